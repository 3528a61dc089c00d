"""Which equations of a jaxpr are convolutions of images, and which convolution each of them is.

Automatic differentiation leaves three kinds of ``conv_general_dilated`` equations for a layer of
Flax, whose images are ``(batch, height, width, channels)``. They are told apart by the layouts of
their operands, which JAX's rules for the derivatives fix:

    convolution        image (N, H, W, C), kernel (H, W, I, O)       -> image (N, H, W, C)
    its input's        image (N, H, W, C), kernel (H, W, O, I)       -> image (N, H, W, C)
    its kernel's       image as (C, H, W, N), image as (I, H, W, O)  -> kernel (H, W, I, O)

so the kernel's layout may be any in the first two, which are one kind: images in, images out.
In a depthwise convolution, I is 1 and the channels are feature groups in the first two kinds, batch
groups in the third. Other groups are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from lowrank_jax.batch_minor import depthwise
from lowrank_jax.batch_minor.convolutions import Convolution, convolve, kernel_gradient
from lowrank_jax.batch_minor.taps import Window

# lax writes a layout as the positions of (batch, features, height, width), of kernels as those of
# (out, in, height, width).
_IMAGES = (0, 3, 1, 2)
_IMAGES_AS_KERNEL_GRADIENT = (3, 0, 1, 2)

# Every tap is an operation of the program: larger windows would take long to compile.
_MOST_TAPS = 64


def maps_images(equation: JaxprEqn) -> bool:
    """Whether a convolution takes an image to an image."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    return (
        numbers.lhs_spec == numbers.out_spec == _IMAGES
        and params["batch_group_count"] == 1
        and _has_no_other_groups(
            params["feature_group_count"], equation.invars[0], equation.outvars[0]
        )
        and _is_feasible(equation, equation.invars[1], numbers.rhs_spec)
    )


def makes_kernel(equation: JaxprEqn) -> bool:
    """Whether a convolution is the gradient of a kernel, from two images."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    return (
        numbers.lhs_spec == numbers.rhs_spec == _IMAGES_AS_KERNEL_GRADIENT
        and params["feature_group_count"] == 1
        and _has_no_other_groups(params["batch_group_count"], *equation.invars)
        and _is_feasible(equation, equation.outvars[0], numbers.out_spec)
    )


def shape(variable: Any) -> tuple[int, ...]:
    """Of a jaxpr's variable that is an array."""
    return variable.aval.shape


def _has_no_other_groups(groups: int, image: Any, other: Any) -> bool:
    """Whether the groups between two images are one, or the channels of both."""
    return groups == 1 or groups == shape(image)[3] == shape(other)[3]


def _is_feasible(equation: JaxprEqn, kernel: Any, layout: Sequence[int]) -> bool:
    """Whether the kernel has few taps, and no array is empty."""
    few = math.prod(shape(kernel)[axis] for axis in layout[2:]) <= _MOST_TAPS
    return few and all(0 not in shape(x) for x in (*equation.invars, *equation.outvars))


def image_convolution(
    x: jax.Array, kernel: jax.Array, outputs: Sequence[int], params: Mapping[str, Any]
) -> jax.Array:
    """A convolution that maps images, applied to a batch-minor one.

    Args:
      x: ``(channels, height, width, batch)``.
      kernel: in the layout that ``params`` names.
      outputs: height and width of the result.
      params: of the equation.
    """
    out, features, height, width = params["dimension_numbers"].rhs_spec
    ordered = jnp.transpose(kernel, (height, width, features, out))
    windows = _windows(
        params, x.shape[1:3], outputs, ordered.shape[:2], "window_strides", "rhs_dilation"
    )
    if params["feature_group_count"] > 1:
        return depthwise.convolve(x, ordered, windows, _dtype(params, x))
    geometry = Convolution(ordered.shape[2], ordered.shape[3], *windows)
    return convolve(x, ordered, geometry, **_options(params))


def kernel_from_images(
    x: jax.Array, y: jax.Array, outputs: Sequence[int], params: Mapping[str, Any]
) -> jax.Array:
    """The gradient of a kernel from two batch-minor images: the input and the output's gradient.

    In the equation the output's gradient is the window that moves over the input: its stride is
    the dilation of the convolution, its dilation the stride.

    Args:
      x, y: ``(channels, height, width, batch)``.
      outputs: height and width of the kernel.
      params: of the equation.

    Returns:
      The kernel in the layout that ``params`` names.
    """
    windows = _windows(
        params, x.shape[1:3], y.shape[1:3], outputs, "rhs_dilation", "window_strides"
    )
    if params["batch_group_count"] > 1:
        gradient = depthwise.kernel_gradient(x, y, windows, _dtype(params, x))
    else:
        geometry = Convolution(x.shape[0], y.shape[0], *windows)
        gradient = kernel_gradient(x, y, geometry, **_options(params))
    features_in, features_out, height, width = params["dimension_numbers"].out_spec
    order = (height, width, features_in, features_out)
    return jnp.transpose(gradient, [order.index(axis) for axis in range(4)])


def _windows(
    params: Mapping[str, Any],
    inputs: Sequence[int],
    outputs: Sequence[int],
    taps: Sequence[int],
    stride: str,
    dilation: str,
) -> list[Window]:
    """Height and width; ``stride`` and ``dilation`` name the parameters that have them."""
    return [
        Window(
            inputs=inputs[axis],
            outputs=outputs[axis],
            taps=taps[axis],
            stride=params[stride][axis],
            low=params["padding"][axis][0],
            input_dilation=params["lhs_dilation"][axis],
            dilation=params[dilation][axis],
        )
        for axis in range(2)
    ]


def _dtype(params: Mapping[str, Any], x: jax.Array) -> Any:
    """Of the result."""
    preferred = params["preferred_element_type"]
    return x.dtype if preferred is None else preferred


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: params[key] for key in ("precision", "preferred_element_type")}
