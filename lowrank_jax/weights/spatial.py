"""SpatialLowRank: a convolution kernel as a horizontal convolution followed by a vertical one.

    kernel[h, w, i, o] = sum_r u[0, w, i, r] * vt[h, 0, r, o]

that is, the matrix with rows ``(kw, in)`` and columns ``(kh, out)``, the paper's matricisation. The
rank of a published scale s is ``round(s * out * kh)``: relative to one side, not to the smaller
one, so the counts of the publication come out. Source: Khodak et al., ICLR 2021 (arXiv 2105.01029),
section 2 and appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowrank_jax.weights.base import register_weight
from lowrank_jax.weights.convolution import ConvolutionWeight
from lowrank_jax.weights.geometry import RANK, Geometry


@register_weight()
class SpatialLowRank(ConvolutionWeight):
    """An HWIO kernel as a ``1 x kw`` convolution to ``r`` channels, then a ``kh x 1`` one.

    Attributes:
      u: ``(*batch, 1, kw, in, r)``.
      vt: ``(*batch, kh, 1, r, out)``.
      m: ``(*batch, r, r)`` or ``None``, folded into ``vt`` when applied.

    >>> import numpy as np
    >>> SpatialLowRank(u=np.ones((1, 3, 4, 2)), vt=np.ones((5, 1, 2, 6))).shape
    (5, 3, 4, 6)
    """

    u: Any
    vt: Any
    m: Any = None

    @classmethod
    def geometry(cls) -> Geometry:  # type: ignore[override]
        return Geometry(u=(None, 1, 2, RANK), vt=(0, None, RANK, 3))

    @classmethod
    def rank_from_scale(cls, scale: float, shape: Sequence[int], **axes: int) -> int:
        _, columns = cls.geometry(**axes).matrix_shape(shape)
        return max(1, round(scale * columns))
