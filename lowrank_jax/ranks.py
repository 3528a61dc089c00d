"""Rank rules: how the rank of a kernel follows from a number.

The field uses a bare float for three different things: a share of the smaller side, a share of the
parameters, and a share of the energy. So a rank is always one of the classes here.

Sources: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 4 and its code (`RankScale`); Wang et
al., "Cuttlefish", MLSys 2023 (arXiv 2305.02538) (`StableRank`).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lowrank_jax.weights import FactorizedWeight, LowRank, Rank

Spectrum = Callable[[], np.ndarray]
"""Gives the singular values ``(*batch, k)`` of the kernel in question, computing them if asked."""


@dataclasses.dataclass(frozen=True)
class RankRule(abc.ABC):
    """Base of the rank rules."""

    @abc.abstractmethod
    def rank(
        self,
        kind: type[FactorizedWeight],
        shape: Sequence[int],
        axes: dict[str, int],
        depth: int,
        spectrum: Spectrum | None,
    ) -> Rank:
        """The rank for one kernel.

        Args:
          kind, axes, depth: how it will be stored.
          shape: of the dense kernel, batch axes included.
          spectrum: gives its singular values; None where only shapes are known.
        """


@dataclasses.dataclass(frozen=True)
class RankScale(RankRule):
    """The papers' rank scale: a share of the side that the kind of weight measures ranks by.

    ``round(s * min(in, out))`` for matrices, ``round(s * out * kh)`` for ``SpatialLowRank``,
    ``int(s * min(kh * kw * in, out))`` for ``ChannelLowRank``; with the dimensions d of the tensor,
    ``round(s * min(d_k, d_(k+1)))`` for each rank of ``TensorTrain`` and ``round(s * d_k)`` for
    ``Tucker``; at least 1, halves rounded to even. Above 1 a weight of two factors is overcomplete.

    >>> RankScale(0.111).rank(LowRank, (64, 96), {}, 2, None)
    7
    """

    scale: float

    def __post_init__(self) -> None:
        _require_positive(self, self.scale)

    def rank(self, kind, shape, axes, depth, spectrum):
        return kind.rank_from_scale(self.scale, shape, **axes)


@dataclasses.dataclass(frozen=True)
class FixedRank(RankRule):
    """The same rank for every kernel, whatever its size.

    Of a kind with several ranks all are this number, or full rank where that is less.

    >>> FixedRank(8).rank(LowRank, (64, 96), {}, 2, None)
    8
    """

    value: int

    def __post_init__(self) -> None:
        whole = isinstance(self.value, int | np.integer) and not isinstance(self.value, bool)
        if not whole or self.value < 1:
            raise ValueError(f"FixedRank({self.value!r}): the rank must be a whole number >= 1")

    def rank(self, kind, shape, axes, depth, spectrum):
        return kind.uniform_rank(int(self.value), shape, **axes)


@dataclasses.dataclass(frozen=True)
class ParamFraction(RankRule):
    """The largest rank whose factors have at most this fraction of the kernel's own parameters.

    At least 1, even where that is more than asked for. Several ranks are equal, as in `FixedRank`.

    >>> ParamFraction(0.25).rank(LowRank, (64, 64), {}, 2, None)
    8
    """

    fraction: float

    def __post_init__(self) -> None:
        _require_positive(self, self.fraction)

    def rank(self, kind, shape, axes, depth, spectrum):
        budget = self.fraction * math.prod(shape)

        def too_high(number: int) -> bool:
            rank = kind.uniform_rank(number, shape, **axes)
            is_full = rank == kind.uniform_rank(number - 1, shape, **axes)
            return is_full or parameters(kind, shape, rank, depth, **axes) > budget

        return kind.uniform_rank(max(1, first_rank(too_high) - 1), shape, **axes)


@dataclasses.dataclass(frozen=True)
class Energy(RankRule):
    """The smallest rank that holds this share of the squared singular values.

    Of a stack of kernels, the largest of their ranks.

    >>> Energy(0.9).rank(LowRank, (3, 3), {}, 2, lambda: np.array([3.0, 1.0, 0.5]))
    2
    """

    share: float

    def __post_init__(self) -> None:
        _require_positive(self, self.share)
        if self.share > 1:
            raise ValueError(f"Energy({self.share}): the share must be in (0, 1]")

    def rank(self, kind, shape, axes, depth, spectrum):
        values = _values(self, kind, spectrum)
        # What the decomposition's rounding leaves of a zero is no energy.
        noise = values.shape[-1] * np.finfo(values.dtype).eps * values[..., :1]
        values = np.where(values > noise, values, 0.0).astype(np.float64)
        energy = np.cumsum(np.square(values), axis=-1)
        # The last partial sum is the whole, exactly: a share of 1 keeps all that is not zero.
        reached = energy >= self.share * energy[..., -1:]
        return int(np.max(np.argmax(reached, axis=-1))) + 1


@dataclasses.dataclass(frozen=True)
class StableRank(RankRule):
    """``ceil(scale * ||W||_F^2 / ||W||_2^2)``, at most full rank; the largest of a stack.

    >>> StableRank().rank(LowRank, (3, 3), {}, 2, lambda: np.array([2.0, 2.0, 1.0]))
    3
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, self.scale)

    def rank(self, kind, shape, axes, depth, spectrum):
        values = np.square(_values(self, kind, spectrum).astype(np.float64))
        top = values[..., 0]
        stable = np.where(top > 0, values.sum(-1) / np.where(top > 0, top, 1.0), 1.0)
        ranks = np.clip(np.ceil(self.scale * stable - 1e-9), 1, values.shape[-1])
        return int(np.max(ranks))


def _require_positive(rule: RankRule, value: Any) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number:
        raise TypeError(f"{rule}: expected a number, found {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{rule}: expected a positive number")


def _values(rule: RankRule, kind: type[FactorizedWeight], spectrum: Spectrum | None) -> np.ndarray:
    if kind.rank_count > 1:
        raise ValueError(
            f"{rule} reads the singular values of one matrix, and a {kind.__name__} has "
            f"{kind.rank_count} ranks, each of another: use RankScale, FixedRank or ParamFraction"
        )
    if spectrum is None:
        raise TypeError(
            f"{rule} needs the values of the kernel, and only its shape is known here: resolve the "
            "rules on real parameters once and use the resulting table."
        )
    return spectrum()


def require_rank_rule(rank: Any) -> RankRule:
    """Returns a rank rule as it is; raises TypeError for anything else, bare numbers above all."""
    if isinstance(rank, RankRule):
        return rank
    if isinstance(rank, int | np.integer) and not isinstance(rank, bool):
        advice = f"write FixedRank({rank})"
    elif isinstance(rank, float):
        advice = (
            f"a bare float has three meanings in this field: write RankScale({rank}) for a share "
            f"of the side, ParamFraction({rank}) for a share of the parameters, or Energy({rank}) "
            "for a share of the squared singular values"
        )
    else:
        advice = "use RankScale, FixedRank, ParamFraction, Energy or StableRank"
    raise TypeError(f"rank={rank!r} is not a rank rule: {advice}.")


def parameters(
    kind: type[FactorizedWeight], shape: Sequence[int], rank: Rank, depth: int = 2, **axes: int
) -> int:
    """Number of parameters of a weight of this kind and rank for a dense kernel of this shape.

    >>> parameters(LowRank, (10, 20), rank=3)
    90
    """
    template = kind.template(shape, np.float32, rank, depth, **axes)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template))


def break_even_rank(
    shape: Sequence[int], kind: type[FactorizedWeight] = LowRank, depth: int = 2, **axes: int
) -> int:
    """The smallest rank at which the factors have as many parameters as the dense kernel, or more.

    Of a kind with several ranks, the smallest number that all are to be, as in `FixedRank`.

    >>> break_even_rank((64, 64))
    32
    """
    dense = math.prod(shape)

    def reached(number: int) -> bool:
        rank = kind.uniform_rank(number, shape, **axes)
        return parameters(kind, shape, rank, depth, **axes) >= dense

    return first_rank(reached)


def first_rank(reached: Callable[[int], bool]) -> int:
    """The smallest rank >= 1 for which a condition that stays true once true holds."""
    high = 1
    while not reached(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
