"""The table of weights that the tests run over: every kind, depth and number of batch axes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank_jax import (
    ChannelLowRank,
    FactorizedWeight,
    LowRank,
    SpatialLowRank,
    TensorTrain,
    Tucker,
)
from lowrank_jax.weights import register_weight


@register_weight()
class PlusDiagonal(FactorizedWeight):
    """A kind of somebody else's, which says nothing but what it stands for."""

    u: object
    vt: object
    diagonal: object

    def dense(self, *, precision=None):
        return self.u @ self.vt + jnp.diag(self.diagonal)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind, its dense kernel's shape (batch axes included), and how that is split."""

    name: str
    kind: type
    shape: tuple[int, ...]
    batch: int = 0
    axes: tuple[tuple[str, int], ...] = ()
    rank: int | tuple[int, ...] = 2
    depth: int = 2
    dims: tuple[int, ...] = ()  # of the tensor, for the kinds that store one

    @property
    def rows(self) -> tuple[int, ...]:
        """The dense axes (after the batch axes) that ``u`` keeps; of a tensor kind, the inputs."""
        axes = dict(self.axes)
        if self.dims:
            return (len(self.shape) - self.batch - 2,)
        if self.kind is LowRank:
            return tuple(range(axes.get("in_axes", 1)))
        return (1, 2) if self.kind is SpatialLowRank else (0, 1, 2)

    @property
    def columns(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape) - self.batch) if a not in self.rows)

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Written out per kind, from the definitions in the design."""
        batch, kernel = self.shape[: self.batch], self.shape[self.batch :]
        if self.dims:
            shapes = tensor_shapes(self.dims, self.rank)
            return {name: (*batch, *shape) for name, shape in shapes.items()}
        r = self.rank
        if self.kind is LowRank:
            n = dict(self.axes).get("in_axes", 1)
            u, vt = (*kernel[:n], r), (r, *kernel[n:])
        elif self.kind is SpatialLowRank:
            kh, kw, n_in, n_out = kernel
            u, vt = (1, kw, n_in, r), (kh, 1, r, n_out)
        else:
            kh, kw, n_in, n_out = kernel
            u, vt = (kh, kw, n_in, r), (1, 1, r, n_out)
        shapes = {"u": (*batch, *u), "vt": (*batch, *vt)}
        if self.depth == 3:
            shapes["m"] = (*batch, r, r)
        return shapes

    def factors(self, seed: int = 0, dtype: Any = np.float64) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        return {
            name: generator.standard_normal(shape).astype(dtype)
            for name, shape in self.factor_shapes.items()
        }

    def weight(self, seed: int = 0, dtype: Any = np.float64) -> Any:
        return self.kind(**self.factors(seed, dtype), **dict(self.axes))


def tensor_shapes(dims: tuple[int, ...], rank: Any) -> dict[str, tuple[int, ...]]:
    """For two ranks the cores of a tensor train, for three those and the factors of Tucker."""
    d1, d2, d3 = dims
    if len(rank) == 2:
        r1, r2 = rank
        return {"core1": (1, d1, r1), "core2": (r1, d2, r2), "core3": (r2, d3, 1)}
    r1, r2, r3 = rank
    b = min(d1, r2 * r3)
    return {
        "core1": (1, r1, b),
        "core2": (b, r2, r3),
        "core3": (r3, r3, 1),
        "factor1": (d1, r1),
        "factor2": (d2, r2),
        "factor3": (d3, r3),
    }


def naive_dense(case: Case, factors: dict[str, np.ndarray]) -> np.ndarray:
    """The dense kernel entry by entry, from the sums in the design, in float64."""
    if case.dims:
        return _naive_dense_of_tensor(case, factors)
    result = np.zeros(case.shape)
    for index in np.ndindex(case.shape):
        batch, kernel = index[: case.batch], index[case.batch :]
        u, vt = factors["u"][batch].astype(float), factors["vt"][batch].astype(float)
        m = factors["m"][batch].astype(float) if "m" in factors else np.eye(case.rank)
        for r in range(case.rank):
            for s in range(case.rank):
                if case.kind is LowRank:
                    n = len(case.rows)
                    left, right = u[(*kernel[:n], r)], vt[(s, *kernel[n:])]
                elif case.kind is SpatialLowRank:
                    h, w, i, o = kernel
                    left, right = u[0, w, i, r], vt[h, 0, s, o]
                else:
                    h, w, i, o = kernel
                    left, right = u[h, w, i, r], vt[0, 0, s, o]
                result[index] += left * m[r, s] * right
    return result


def _naive_dense_of_tensor(case: Case, factors: dict[str, np.ndarray]) -> np.ndarray:
    result = np.zeros(case.shape)
    for index in np.ndindex(case.shape):
        batch, (i, o) = index[: case.batch], index[-2:]
        leaves = {name: value[batch].astype(float) for name, value in factors.items()}
        # Of the matrix (out, in), row by row.
        place = np.unravel_index(o * case.shape[-2] + i, case.dims)
        product = np.eye(1)
        for k, at in enumerate(place, 1):
            core = leaves[f"core{k}"]
            if f"factor{k}" in leaves:
                weights = leaves[f"factor{k}"][at]
                product = product @ sum(w * core[:, x] for x, w in enumerate(weights))
            else:
                product = product @ core[:, at]
        result[index] = product.item()
    return result


def numpy_dense(weight: Any, dims: tuple[int, ...]) -> np.ndarray:
    """The kernel of a weight that stores a tensor of these dimensions, likewise."""
    axes, batch = tuple(weight.axes.items()), weight.batch_ndim
    case = Case("", type(weight), weight.shape, batch, axes, weight.rank, dims=dims)
    return naive_dense(case, {name: np.asarray(value) for name, value in weight.children()})


def matrix(case: Case, kernel: np.ndarray) -> np.ndarray:
    """The kernel as the matrix its kind factorizes, ``(*batch, rows, columns)``."""
    order = [*range(case.batch), *(case.batch + a for a in case.rows + case.columns)]
    kernel = np.asarray(kernel, np.float64).transpose(order)
    rows = int(np.prod([case.shape[case.batch + a] for a in case.rows]))
    return kernel.reshape((*case.shape[: case.batch], rows, -1))


def _cases() -> list[Case]:
    two = (("in_axes", 2), ("out_axes", 1))
    three = (("in_axes", 1), ("out_axes", 2))
    plain = [
        Case("matrix", LowRank, (5, 4)),
        Case("matrix_batch2", LowRank, (2, 3, 5, 4), 2),
        Case("in2", LowRank, (2, 3, 4), 0, two),
        Case("out2", LowRank, (5, 2, 3), 0, three),
        Case("in2out2_batch", LowRank, (2, 2, 3, 3, 2), 1, (("in_axes", 2), ("out_axes", 2))),
        Case("spatial", SpatialLowRank, (3, 2, 4, 5)),
        Case("spatial_batch", SpatialLowRank, (2, 2, 3, 4, 3), 1),
        Case("spatial_1x1", SpatialLowRank, (1, 1, 4, 3)),
        Case("channel", ChannelLowRank, (2, 3, 4, 5)),
        Case("channel_batch2", ChannelLowRank, (2, 1, 3, 2, 2, 3), 2),
        Case("overcomplete", LowRank, (3, 4), rank=6),
    ]
    only_flat = ("in2", "out2", "spatial", "spatial_1x1")
    deep = [
        dataclasses.replace(case, name=f"{case.name}_deep", depth=3)
        for case in plain
        if case.name not in only_flat
    ]
    return plain + deep


def _tensor_cases() -> list[Case]:
    conv, flat = (("outputs", 8), ("spatial_axes", 2)), (("outputs", 5), ("spatial_axes", 0))
    return [
        Case("train", TensorTrain, (1, 1, 6, 8), 0, conv, (3, 2), 3, (4, 4, 3)),
        Case("train_batch2", TensorTrain, (2, 1, 6, 5), 2, flat, (2, 1), 3, (3, 5, 2)),
        Case("tucker", Tucker, (6, 5), 0, flat, (2, 3, 1), 6, (3, 5, 2)),
        Case("tucker_batch", Tucker, (2, 1, 1, 6, 8), 1, conv, (3, 2, 2), 6, (4, 4, 3)),
    ]


TWO_FACTOR_CASES = _cases()
TENSOR_CASES = _tensor_cases()
CASES = TWO_FACTOR_CASES + TENSOR_CASES
