"""Initializers: what the factors of a dense kernel are at the start.

An initializer turns the matrix a dense kernel is read as, ``(*batch, rows, columns)``, into factor
matrices ``u (*batch, rows, r)`` and ``vt (*batch, r, columns)``, and the square middle factor
``m (*batch, r, r)`` when three factors are asked for: the identity, plus noise if wished.

* :func:`spectral`: the best rank-r approximation of the kernel, balanced (spectral initialization).
* :func:`spectral_ones`: its singular directions, all at the same value.
* :func:`variance_matched`: random factors whose product has the kernel's variance.
* :func:`regular`: each factor as if it were a layer of its own, or as if it were the kernel.
* :func:`factorized`: any of them as a ``kernel_init``, for layers that are born factorized.

A kind that is not made of two factors (``TensorTrain``, ``Tucker``) is the decomposition of one
matrix: of the kernel with :func:`spectral`, of a random one with :func:`regular`. The other two
have no meaning for it, nor have ``middle_noise``, ``overcomplete="zero"`` and
``method="randomized"``: all of them raise ValueError.

Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 3.1 (spectral initialization) and the
experiments' baselines (regular).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax import svd
from lowrank_jax.host import on_host
from lowrank_jax.ranks import RankRule, require_rank_rule
from lowrank_jax.rules import Rule
from lowrank_jax.weights import FactorizedWeight, LowRank

Matrices = tuple[Any, Any, Any]
Pair = tuple[Any, Any]
Fans = tuple[int, int]
Fan = Literal["factor", "kernel", "one"]
Mode = Literal["fan_in", "fan_out"]
Distribution = Literal["normal", "uniform"]


@dataclasses.dataclass(frozen=True)
class Initializer(abc.ABC):
    """Base of the initializers: ``init(matrix, fans, rank, depth, key) -> (u, vt, m or None)``.

    Attributes:
      middle_noise: standard deviation of the Gaussian noise added to the identity in ``m``.
    """

    middle_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.middle_noise < 0:
            raise ValueError(f"middle_noise={self.middle_noise}: expected 0 or a positive number")

    def __call__(self, matrix: Any, fans: Fans, rank: int, depth: int, key: Any) -> Matrices:
        """Factor matrices of a kernel, in float32 or better.

        Args:
          matrix: the kernel as a matrix, ``(*batch, rows, columns)``.
          fans: fan-in and fan-out of the dense kernel.
          rank: columns of ``u``.
          depth: 2, or 3 to get ``m`` as well.
          key: a ``jax.random`` key, or None where nothing random is drawn.
        """
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        factor_key, middle_key = (None, None) if key is None else jax.random.split(key)
        u, vt = self.factors(matrix, fans, rank, dtype, factor_key)
        if depth == 2:
            return u, vt, None
        shape = (*matrix.shape[:-2], rank, rank)
        m = jnp.broadcast_to(jnp.eye(rank, dtype=dtype), shape)
        if self.middle_noise:
            noise = jax.random.normal(require_key(middle_key, "middle_noise"), shape, dtype)
            m = m + self.middle_noise * noise
        return u, vt, m

    @abc.abstractmethod
    def factors(self, matrix: Any, fans: Fans, rank: int, dtype: Any, key: Any) -> Pair:
        """``u`` and ``vt`` as matrices."""

    def to_decompose(self, matrix: Any, fans: Fans, key: Any) -> Any:
        """The matrix to decompose for a kind that is not made of two factors.

        Args:
          matrix, fans, key: as in a call.

        Raises:
          ValueError: the initializer asks for what only two factors, or three, can be.
        """
        if self.middle_noise:
            raise _for_factors_only(
                f"middle_noise={self.middle_noise} is for a square middle factor", "leave it out"
            )
        return self.one_matrix(matrix, fans, key)

    def one_matrix(self, matrix: Any, fans: Fans, key: Any) -> Any:
        """As :meth:`to_decompose`, for initializers that can say it."""
        raise _for_factors_only(f"{self} makes two factors", "use spectral() or regular()")


def _for_factors_only(found: str, instead: str) -> ValueError:
    return ValueError(f"{found}, and this kind is made by decomposing one matrix: {instead}")


def require_key(key: Any, what: str) -> Any:
    """Returns the key, or raises ValueError where randomness is needed and there is none."""
    if key is None:
        raise ValueError(f"{what} draws random numbers: pass key=jax.random.key(...)")
    return key


def require_initializer(init: Any) -> Initializer:
    """Returns an initializer as it is; raises TypeError for anything else."""
    if isinstance(init, Initializer):
        return init
    raise TypeError(
        f"init={init!r} is not an initializer: pass spectral(), spectral_ones(), regular() or "
        "variance_matched(), called, or an Initializer of your own"
    )


@dataclasses.dataclass(frozen=True)
class Spectral(Initializer):
    """See :func:`spectral` and :func:`spectral_ones`."""

    overcomplete: svd.Overcomplete = "complement"
    method: svd.Method = "exact"
    equal: bool = False

    def factors(self, matrix: Any, fans: Fans, rank: int, dtype: Any, key: Any) -> Pair:
        *batch, rows, columns = matrix.shape
        missing = svd.noise_rows(columns, rank) if self.overcomplete == "complement" else 0
        shape = (*batch, missing, columns)
        noise: Any = np.zeros(shape, dtype)
        if missing:
            key = require_key(key, f"rank {rank}, more than all {columns} output directions,")
            noise = jax.random.normal(key, shape, dtype)
        result = (
            jax.ShapeDtypeStruct((*batch, rows, rank), dtype),
            jax.ShapeDtypeStruct((*batch, rank, columns), dtype),
        )
        return on_host(functools.partial(self._on_host, rank), result, matrix, noise)

    def one_matrix(self, matrix: Any, fans: Fans, key: Any) -> Any:
        if self.equal:
            return super().one_matrix(matrix, fans, key)
        for name, only in (("overcomplete", "complement"), ("method", "exact")):
            if (found := getattr(self, name)) != only:
                raise _for_factors_only(f"{name}={found!r} is for two factors", f"use {only!r}")
        return matrix

    def _on_host(
        self, rank: int, matrix: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        matrix = svd.working_precision(matrix)
        *batch, rows, columns = matrix.shape
        left = np.empty((*batch, rows, rank), matrix.dtype)
        right = np.empty((*batch, rank, columns), matrix.dtype)
        for index in np.ndindex(*batch):
            u, s, vt = svd.thin_svd(matrix[index], rank, self.method)
            if self.equal:
                s = np.full_like(s, np.linalg.norm(s) / math.sqrt(len(s)))
            left[index], right[index] = svd.balanced_factors(
                u, s, vt, rank, self.overcomplete, noise[index]
            )
        return left, right


@dataclasses.dataclass(frozen=True)
class Random(Initializer):
    """Independent entries; subclasses say with which variance."""

    distribution: Distribution = "normal"

    def factors(self, matrix: Any, fans: Fans, rank: int, dtype: Any, key: Any) -> Pair:
        *batch, rows, columns = matrix.shape
        u_variance, vt_variance = self.variances(matrix, fans, rank)
        u_key, vt_key = jax.random.split(require_key(key, "a random initializer"))
        return (
            self._draw(u_key, (*batch, rows, rank), u_variance, dtype),
            self._draw(vt_key, (*batch, rank, columns), vt_variance, dtype),
        )

    @abc.abstractmethod
    def variances(self, matrix: Any, fans: Fans, rank: int) -> tuple[Any, Any]:
        """Variance of the entries of ``u`` and of ``vt``, broadcastable against them."""

    def _draw(self, key: Any, shape: tuple[int, ...], variance: Any, dtype: Any) -> Any:
        if self.distribution == "normal":
            unit = jax.random.normal(key, shape, dtype)
        else:
            unit = jax.random.uniform(key, shape, dtype, -math.sqrt(3.0), math.sqrt(3.0))
        return unit * jnp.sqrt(jnp.asarray(variance, dtype))


@dataclasses.dataclass(frozen=True)
class Regular(Random):
    """See :func:`regular`."""

    fan: Fan = "factor"
    mode: Mode = "fan_in"
    scale: float = 2.0

    def variances(self, matrix: Any, fans: Fans, rank: int) -> tuple[Any, Any]:
        rows, columns = matrix.shape[-2:]
        u_fans, vt_fans = {
            "factor": ((rows, rank), (rank, columns)),
            "kernel": (fans, fans),
            "one": ((1, 1), (1, 1)),
        }[self.fan]
        return self.scale / u_fans[self._side], self.scale / vt_fans[self._side]

    def one_matrix(self, matrix: Any, fans: Fans, key: Any) -> Any:
        fan = 1 if self.fan == "one" else fans[self._side]
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        key = require_key(key, "a random initializer")
        return self._draw(key, matrix.shape, self.scale / fan, dtype)

    @property
    def _side(self) -> int:
        return ("fan_in", "fan_out").index(self.mode)


@dataclasses.dataclass(frozen=True)
class VarianceMatched(Random):
    """See :func:`variance_matched`."""

    def variances(self, matrix: Any, fans: Fans, rank: int) -> tuple[Any, Any]:
        variance = jnp.mean(jnp.square(jnp.asarray(matrix)), axis=(-2, -1), keepdims=True)
        root = jnp.sqrt(variance / rank)
        return root, root


def spectral(
    overcomplete: svd.Overcomplete = "complement",
    *,
    method: svd.Method = "exact",
    middle_noise: float = 0.0,
) -> Initializer:
    """Spectral initialization: the best rank-r approximation of the kernel, balanced.

    ``u = U_r sqrt(S_r)``, ``vt = sqrt(S_r) V_rᵀ`` of the truncated SVD.

    Args:
      overcomplete: what stands in directions past the kernel's own rank.
        ``"complement"`` keeps the product and their gradient alive, ``"zero"`` is the published
        code's padding, which never trains.
      method: ``"randomized"`` is faster and slightly less exact for large kernels of two factors.
      middle_noise: standard deviation of noise on the identity in ``m``.

    Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 3.1.

    >>> u, vt, m = spectral()(np.diag([4.0, 1.0]), (2, 2), rank=1, depth=2, key=None)
    >>> bool(np.allclose(u @ vt, np.diag([4.0, 0.0])))
    True
    """
    svd.require_overcomplete(overcomplete)
    _check(method, svd.Method, "method")
    return Spectral(middle_noise, overcomplete, method)


def spectral_ones(
    overcomplete: svd.Overcomplete = "complement",
    *,
    method: svd.Method = "exact",
    middle_noise: float = 0.0,
) -> Initializer:
    """The kept singular directions, all at one value; the norm is the truncated kernel's.

    Arguments as in :func:`spectral`.

    >>> u, vt, m = spectral_ones()(np.diag([4.0, 3.0]), (2, 2), rank=2, depth=2, key=None)
    >>> float(round(np.linalg.norm(u @ vt), 5))
    5.0
    """
    svd.require_overcomplete(overcomplete)
    _check(method, svd.Method, "method")
    return Spectral(middle_noise, overcomplete, method, equal=True)


def regular(
    fan: Fan = "factor",
    *,
    mode: Mode = "fan_in",
    scale: float = 2.0,
    distribution: Distribution = "normal",
    middle_noise: float = 0.0,
) -> Initializer:
    """Independent factor entries of variance ``scale / fan``, with no regard to the product.

    For a kind that is the decomposition of one matrix, the entries are that matrix's, and their fan
    is the dense kernel's with ``"factor"`` too.

    Args:
      fan: whose fan. ``"factor"``: each factor matrix is a layer of its own; ``"kernel"``: every
        entry is drawn like an entry of the dense kernel; ``"one"``: the variance is ``scale``.
      mode: ``"fan_in"`` or ``"fan_out"``.
      scale: 2 for rectified networks (He et al.).
      distribution: ``"normal"`` or ``"uniform"``, both of that variance.
      middle_noise: standard deviation of noise on the identity in ``m``.

    The published baselines: CIFAR ResNets ``regular()``; VGG ``regular("kernel")``; WideResNet
    ``regular("kernel", mode="fan_out")``; Transformer linears
    ``regular("one", scale=0.01 / 3, distribution="uniform")`` and embeddings
    ``regular("one", scale=0.01)``; tensor trains and Tucker tensors
    ``regular("kernel", scale=1 / 3, distribution="uniform")``.

    >>> matrix = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    >>> u, vt, m = regular()(matrix, (64, 64), rank=8, depth=3, key=jax.random.key(0))
    >>> u.shape, vt.shape, m.shape
    ((64, 8), (8, 64), (8, 8))
    """
    _check(fan, Fan, "fan")
    if not scale > 0:
        raise ValueError(f"scale={scale}: expected a positive number")
    _check(mode, Mode, "mode")
    _check(distribution, Distribution, "distribution")
    return Regular(middle_noise, distribution, fan, mode, scale)


def variance_matched(
    *, distribution: Distribution = "normal", middle_noise: float = 0.0
) -> Initializer:
    """Random factors whose product has the kernel's mean squared entry.

    With independent entries of variance v in both factors, those of the product have ``r v²``;
    so ``v = sqrt(variance / r)``. Arguments as in :func:`regular`.
    """
    _check(distribution, Distribution, "distribution")
    return VarianceMatched(middle_noise, distribution)


def factorized(
    kind: type[FactorizedWeight] = LowRank,
    rank: RankRule | None = None,
    init: Initializer | None = None,
    *,
    kernel_init: Callable[..., Any] | None = None,
    depth: int = 2,
    **axes: int,
) -> FactorizedInitializer:
    """A flax ``kernel_init`` that returns a weight: for layers that are born factorized.

    Works inside ``jit`` and ``eval_shape`` too; spectral initialization then calls back to the
    host once.

    Args:
      kind: the kind of weight.
      rank: a rank rule that needs no values, such as ``FixedRank(8)``.
      init: the initializer of the factors, :func:`spectral` by default.
      kernel_init: the initializer of the dense kernel, LeCun normal (flax's default) by default.
      depth: 2 factors, or 3 with the square middle factor.
      **axes: static axes of the kind.

    Raises:
      TypeError: ``rank`` is not a rank rule, ``init`` no initializer, or an axis not the kind's.
      ValueError: depth is not 2 or 3; when called, a shape that is not a matrix and no axes given.

    >>> from lowrank_jax.ranks import FixedRank
    >>> weight = factorized(LowRank, FixedRank(2))(jax.random.key(0), (6, 5))
    >>> weight.u.shape, weight.vt.shape
    ((6, 2), (2, 5))
    """
    return FactorizedInitializer(
        Rule(".*", require_rank_rule(rank), kind, depth=depth, **axes),
        spectral() if init is None else require_initializer(init),
        jax.nn.initializers.lecun_normal() if kernel_init is None else kernel_init,
    )


def _check(value: str, choices: Any, name: str) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(get_args(choices))}")


@dataclasses.dataclass(frozen=True)
class FactorizedInitializer:
    """See :func:`factorized`."""

    rule: Rule
    init: Initializer
    kernel_init: Callable[..., Any]

    def __call__(self, key: Any, shape: Any, dtype: Any = jnp.float32, **axes: int) -> Any:
        """``axes``: those of a layer that knows them, for a rule that names none."""
        kind, rank, depth = self.rule.kind, self.rule.rank, self.rule.depth
        axes = kind.static_axes(shape, **(self.rule.axes or axes))
        kernel_key, factor_key = jax.random.split(key)
        kernel = kind.draw(self.kernel_init, kernel_key, shape, dtype, **axes)
        number = require_rank_rule(rank).rank(kind, tuple(shape), axes, depth, None)
        return kind.initialize(kernel, number, depth, self.init, factor_key, **axes)
