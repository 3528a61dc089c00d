"""What the tests of the flax part share."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import jax
import numpy as np
import pytest

from lowrank_jax.weights import ChannelLowRank, FactorizedWeight, LowRank, SpatialLowRank


def _double_precision() -> AbstractContextManager:
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before jax 0.8

    return enable_x64()


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision inside one test."""
    with _double_precision():
        yield


class Draw:
    """Random float64 arrays and weights, and the kernels the weights stand for, by NumPy."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def array(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape)

    def weight(self, kind: type, shape: tuple[int, ...], rank: int, deep: bool, in_axes: int = 1):
        m = self.array(rank, rank) if deep else None
        if kind is LowRank:
            u, vt = self.array(*shape[:in_axes], rank), self.array(rank, *shape[in_axes:])
            return LowRank(u=u, vt=vt, m=m, in_axes=in_axes, out_axes=len(shape) - in_axes)
        height, width, n_in, n_out = shape
        if kind is SpatialLowRank:
            u, vt = self.array(1, width, n_in, rank), self.array(height, 1, rank, n_out)
        else:
            u, vt = self.array(height, width, n_in, rank), self.array(1, 1, rank, n_out)
        return kind(u=u, vt=vt, m=m)

    @staticmethod
    def dense(weight: FactorizedWeight, einsum=np.einsum):
        """The dense kernel, written out kind by kind; ``einsum`` may be JAX's."""
        u, vt = weight.u, weight.vt
        if weight.m is not None:
            u = einsum("...r,rs->...s", u, weight.m)
        if isinstance(weight, SpatialLowRank):
            return einsum("wir,hro->hwio", u[0], vt[:, 0])
        if isinstance(weight, ChannelLowRank):
            return einsum("hwir,ro->hwio", u, vt[0, 0])
        out = "xyz"[: vt.ndim - 1]
        return einsum(f"...r,r{out}->...{out}", u, vt)


@pytest.fixture
def draw() -> Draw:
    return Draw()
