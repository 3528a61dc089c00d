"""LowRank: a matrix (or a multi-axis linear map) stored as ``u @ vt`` or ``u @ m @ vt``.

    y = x @ kernel = (x @ u) @ (m @ vt),     u: (*in, r),  m: (r, r),  vt: (r, *out)

The rank of a published scale s is ``round(s * min(in, out))``. Source: Khodak et al., ICLR 2021
(arXiv 2105.01029), section 2; Denil et al., "Predicting Parameters in Deep Learning", 2013.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.weights.base import refuse_factored, register_weight
from lowrank_jax.weights.geometry import RANK, Geometry
from lowrank_jax.weights.two_factor import TwoFactorWeight


@register_weight(static=("in_axes", "out_axes"))
class LowRank(TwoFactorWeight):
    """``kernel = u @ vt`` (``u @ m @ vt`` when deep), shape ``(*batch, *in, *out)``.

    Attributes:
      u: ``(*batch, *in, r)``, the factor that touches the input.
      vt: ``(*batch, r, *out)``.
      m: ``(*batch, r, r)`` or ``None``.
      in_axes: how many axes of the dense kernel, after the batch axes, are inputs.
      out_axes: how many axes after those are outputs.

    >>> weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))
    >>> weight.shape, weight.rank, float(weight.squared_norm())
    ((4, 3), 2, 48.0)
    """

    u: Any
    vt: Any
    m: Any = None
    _: dataclasses.KW_ONLY
    in_axes: int = 1
    out_axes: int = 1

    @classmethod
    def geometry(cls, in_axes: int = 1, out_axes: int = 1) -> Geometry:  # type: ignore[override]
        if in_axes < 1 or out_axes < 1:
            raise ValueError(f"in_axes={in_axes} and out_axes={out_axes} must be at least 1")
        return Geometry(u=(*range(in_axes), RANK), vt=(RANK, *range(in_axes, in_axes + out_axes)))

    @classmethod
    def static_axes(cls, shape: Sequence[int], **named: int) -> dict[str, int]:
        if not named and len(shape) != 2:
            raise ValueError(
                f"a kernel of shape {tuple(shape)} is not a matrix: name the kind (SpatialLowRank, "
                "ChannelLowRank) or the axes (in_axes=…, out_axes=…) in the rule"
            )
        return super().static_axes(shape, **named)

    @classmethod
    def rank_from_scale(cls, scale: float, shape: Sequence[int], **axes: int) -> int:
        return max(1, round(scale * min(cls.geometry(**axes).matrix_shape(shape))))

    @classmethod
    def draw_shape(cls, shape: Sequence[int], **axes: int) -> tuple[int, ...]:
        # As a matrix, so that fan-in and fan-out are what the layer computes with.
        return cls.geometry(**axes).matrix_shape(shape)

    def dot_general(
        self,
        x: jax.Array,
        dimension_numbers: lax.DotDimensionNumbers,
        precision: lax.PrecisionLike = None,
        preferred_element_type: Any = None,
        *,
        compose: bool | None = None,
    ) -> jax.Array:
        """Factored where the contraction is over all inputs (or all outputs) and it is cheaper.

        The factored form costs ``rows * r * (in + out)`` multiply-adds and the composed one
        ``in * r * out + rows * in * out``; ``compose`` overrides the choice.
        """
        (x_contract, w_contract), (x_batch, w_batch) = dimension_numbers
        batch = self.batch_ndim
        inputs = range(batch, batch + self.in_axes)
        outputs = range(batch + self.in_axes, batch + self.in_axes + self.out_axes)
        forward = set(w_contract) == set(inputs)
        factorable = set(w_batch) == set(range(batch)) and (
            forward or set(w_contract) == set(outputs)
        )
        if not factorable:
            refuse_factored(self, compose, f"contraction over axes {tuple(w_contract)}")
            compose = True
        elif compose is None:
            rows = math.prod(x.shape) // math.prod(
                x.shape[axis] for axis in (*x_contract, *x_batch)
            )
            n_in, n_out = self.geometry(**self.axes).matrix_shape(self.shape)
            compose = self.composing_is_cheaper(rows, rows * self.rank * (n_in + n_out))
        if compose:
            return lax.dot_general(
                x,
                self.dense(precision=precision),
                dimension_numbers,
                precision=precision,
                preferred_element_type=preferred_element_type,
            )
        vt = self.fold_middle(precision)
        if forward:
            first, second, second_rank = self.u, vt, batch
            first_contract = tuple(w_contract)
        else:
            # In vt the rank axis stands where u has its inputs.
            first, second, second_rank = vt, self.u, self.u.ndim - 1
            first_contract = tuple(axis - self.in_axes + 1 for axis in w_contract)
        hidden = lax.dot_general(
            x, first, ((x_contract, first_contract), (x_batch, w_batch)), precision=precision
        )
        return lax.dot_general(
            hidden,
            second,
            (((hidden.ndim - 1,), (second_rank,)), (tuple(range(batch)), tuple(w_batch))),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

    def take(self, indices: jax.Array, *, compose: bool | None = None) -> jax.Array:
        """Rows of ``u`` times ``vt``; rows of the dense kernel for more rows than it has."""
        rows = math.prod(indices.shape)
        if compose is None and not self.batch_ndim:
            # A number that is left open, as `jax.export` does for a batch, stands for large ones.
            compose = not isinstance(rows, int) or rows > self.u.shape[0]
        if compose or self.batch_ndim:
            return super().take(indices, compose=compose)
        return jnp.tensordot(jnp.take(self.u, indices, axis=0), self.fold_middle(), axes=1)
