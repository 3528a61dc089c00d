"""What the convolution kinds share: a 2-D convolution in two stages, ``u`` first, then ``vt``.

Each spatial axis of the kernel belongs to one of the two factors; its stride, padding and
dilation go to the stage whose factor holds it, and the other stage leaves that axis alone:

    conv(x, kernel) = conv(conv(x, u), vt).

Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 2 (spatial); Wang et al.,
"Pufferfish", MLSys 2021 (arXiv 2103.03936) (channel).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from lowrank_jax.weights.base import refuse_factored
from lowrank_jax.weights.two_factor import TwoFactorWeight

# lax writes a kernel layout as the positions of (out, in, height, width).
HWIO = (3, 2, 0, 1)


class ConvolutionWeight(TwoFactorWeight):
    """Base of the kinds that stand for an HWIO kernel and apply themselves as two convolutions."""

    @classmethod
    def check(cls, shape: Sequence[int], **axes: int) -> None:
        if len(shape) < 4:
            raise ValueError(
                f"{cls.__name__} is for 2-D convolution kernels (height, width, in, out), found "
                f"shape {tuple(shape)}; use LowRank for matrices"
            )

    def conv_general_dilated(  # type: ignore[override]
        self,
        x: jax.Array,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
        feature_group_count: int = 1,
        batch_group_count: int = 1,
        precision: lax.PrecisionLike = None,
        preferred_element_type: Any = None,
        *,
        compose: bool | None = None,
        between: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Two convolutions where that costs fewer multiply-adds than composing, else one.

        With ``between`` always two, the second of ``between(first)``, in the layout of ``x``.
        """
        name = type(self).__name__
        if between is not None:
            if compose:
                raise ValueError(
                    f"{name} of shape {self.shape}: something lies between its two convolutions, "
                    "so it cannot be composed to one; leave compose at None"
                )
            compose = False
        if feature_group_count != 1 or batch_group_count != 1:
            raise ValueError(
                f"{name} of shape {self.shape}: a grouped convolution cannot use a factorized "
                f"kernel (feature_group_count={feature_group_count}, "
                f"batch_group_count={batch_group_count}); keep this kernel dense."
            )
        if self.batch_ndim:
            raise ValueError(
                f"{name} of shape {self.shape} is a stack of kernels; apply it under jax.vmap or "
                "a scan, one kernel at a time."
            )
        numbers = lax.conv_dimension_numbers(x.shape, self.shape, dimension_numbers)
        if numbers.rhs_spec != HWIO:
            refuse_factored(self, compose, "convolution, whose kernel layout is not HWIO,")
            compose = True

        # What lies between the stages has the input's layout; the output may have another.
        inner = numbers._replace(out_spec=numbers.lhs_spec)

        def convolve(
            inputs: Any, kernel: Any, held: set[Any] | None, layout: Any, dtype: Any
        ) -> jax.Array:
            """One stage; ``held`` are the spatial axes it works on (None: all of them)."""

            def own(values: Any, neutral: Any) -> Any:
                if values is None or isinstance(values, str) or held is None:
                    return values
                return [v if axis in held else neutral for axis, v in enumerate(values)]

            return lax.conv_general_dilated(
                inputs,
                kernel,
                own(window_strides, 1),
                own(padding, (0, 0)),
                own(lhs_dilation, 1),
                own(rhs_dilation, 1),
                layout,
                precision=precision,
                preferred_element_type=dtype,
            )

        geometry = self.geometry()
        first, second = set(geometry.u), set(geometry.vt)

        def factored(inputs: Any, u: Any, vt: Any) -> tuple[jax.Array, jax.Array]:
            hidden = convolve(inputs, u, first, inner, None)
            if between is not None:
                hidden = between(hidden)
            return hidden, convolve(hidden, vt, second, numbers, preferred_element_type)

        if compose is None:
            hidden, output = jax.eval_shape(factored, x, self.u, self.vt)
            positions = math.prod(output.shape) // output.shape[numbers.out_spec[1]]
            hidden_positions = math.prod(hidden.shape) // self.rank
            compose = self.composing_is_cheaper(
                positions,
                hidden_positions * math.prod(self.u.shape) + positions * math.prod(self.vt.shape),
            )
        if compose:
            dense = self.dense(precision=precision)
            return convolve(x, dense, None, numbers, preferred_element_type)
        return factored(x, self.u, self.fold_middle(precision))[1]
