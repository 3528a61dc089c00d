"""ChannelLowRank: a convolution kernel as a convolution to few channels and a 1 x 1 convolution.

    kernel[h, w, i, o] = sum_r u[h, w, i, r] * vt[0, 0, r, o]

that is, the matrix with rows ``(kh, kw, in)`` and columns ``(out,)``. The rank of a published scale
s is ``int(s * min(kh * kw * in, out))``. Sources: Wang et al., "Pufferfish", MLSys 2021 (arXiv
2103.03936); Wang et al., "Cuttlefish", MLSys 2023 (arXiv 2305.02538).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowrank_jax.weights.base import register_weight
from lowrank_jax.weights.convolution import ConvolutionWeight
from lowrank_jax.weights.geometry import RANK, Geometry


@register_weight()
class ChannelLowRank(ConvolutionWeight):
    """An HWIO kernel as a ``kh x kw`` convolution to ``r`` channels, then a ``1 x 1`` one.

    Attributes:
      u: ``(*batch, kh, kw, in, r)``.
      vt: ``(*batch, 1, 1, r, out)``.
      m: ``(*batch, r, r)`` or ``None``, folded into ``vt`` when applied.

    >>> import numpy as np
    >>> ChannelLowRank(u=np.ones((3, 3, 4, 2)), vt=np.ones((1, 1, 2, 6))).shape
    (3, 3, 4, 6)
    """

    u: Any
    vt: Any
    m: Any = None

    @classmethod
    def geometry(cls) -> Geometry:  # type: ignore[override]
        return Geometry(u=(0, 1, 2, RANK), vt=(None, None, RANK, 3))

    @classmethod
    def rank_from_scale(cls, scale: float, shape: Sequence[int], **axes: int) -> int:
        return max(1, int(scale * min(cls.geometry(**axes).matrix_shape(shape))))
