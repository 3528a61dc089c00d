"""Batch normalization with a backward pass written by hand, for models that use Flax's.

    y = (x - mean) * k + bias,    k = scale / sqrt(var + epsilon)

With n values per feature and x' = (x - mean) / sqrt(var + epsilon), the gradient of the input is

    k * (dy - sum(dy) / n - x' * sum(dy * x') / n)

(Ioffe and Szegedy, ICML 2015, arXiv 1502.03167, section 3): two sums over the batch and one pass,
from ``x`` alone. Automatic differentiation of the same layer keeps ``x - mean`` as well, an array
of the size of every activation. For the same reason both passes are written as ``a x + b``: a
difference that occurs in both would be kept by the compiler from one to the other.

On several devices the statistics are those of the whole batch, which has to be summed over all of
them in each layer. With ``parts`` they are those of each part of the batch by itself, as where each
device normalizes what it has; then nothing is sent, and the network that is trained is another one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import InterceptorContext
from jax import lax

_CALL = inspect.unwrap(nn.BatchNorm.__call__)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes over every axis but the last, as ``flax.linen.BatchNorm`` does in training.

    Args:
      x: ``(..., features)``.
      scale, bias: ``(features,)``.
      epsilon: added to the variance.

    Returns:
      The result in the dtype of ``x``, and mean and variance ``(features,)`` in float32 or better,
      through which no gradient flows.

    >>> y, mean, var = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), 0.0)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[Any, Any]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.maximum(0.0, lax.square(wide).mean(axes) - lax.square(mean))
    inverse = lax.rsqrt(var + epsilon)
    slope = inverse * scale
    y = wide * slope + (bias - mean * slope)
    return (y.astype(x.dtype), mean, var), (x, mean, inverse, scale, bias)


def _backward(epsilon: float, kept: Any, cotangents: Any) -> tuple[jax.Array, ...]:
    x, mean, inverse, scale, bias = kept
    axes = tuple(range(x.ndim - 1))
    wide, dy = x.astype(mean.dtype), cotangents[0].astype(mean.dtype)
    count = x.size // x.shape[-1]
    of_bias = dy.sum(axes)
    of_scale = (dy * (wide - mean)).sum(axes) * inverse
    slope = inverse * scale
    of_mean = slope * inverse * of_scale / count
    of_x = dy * slope - wide * of_mean + (of_mean * mean - slope * of_bias / count)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


batch_norm.defvjp(_forward, _backward)


def batch_norm_of_parts(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, parts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """:func:`batch_norm` of each of so many equal parts of a batch; a batch that cannot be cut into
    these is one.

    Returns:
      As there; of mean and variance the averages over the parts, as running statistics want them.

    >>> x = jnp.array([[1.0], [3.0], [5.0], [9.0]])
    >>> y, mean, var = batch_norm_of_parts(x, jnp.ones(1), jnp.zeros(1), 0.0, 2)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[-1.0], [1.0], [-1.0], [1.0]], [4.5], [2.5])
    """
    if x.shape[0] % parts:
        parts = 1
    of_each = jax.vmap(lambda part: batch_norm(part, scale, bias, epsilon))
    y, mean, var = of_each(x.reshape(parts, -1, *x.shape[1:]))
    return y.reshape(x.shape), mean.mean(0), var.mean(0)


@contextlib.contextmanager
def efficient_batch_norm(parts: int = 1) -> Iterator[None]:
    """Inside, ``flax.linen.BatchNorm`` layers train with :func:`batch_norm`.

    To be entered inside the function that is traced, around ``model.apply``. Layers that do
    something :func:`batch_norm` does not (another axis, masks, statistics across devices by name,
    no scale or bias, the slower variance) run as they are, and so does evaluation.

    Args:
      parts: of a batch, each with statistics of its own, see :func:`batch_norm_of_parts`.

    >>> layer, x = nn.BatchNorm(use_running_average=False), jnp.array([[1.0], [3.0]])
    >>> with efficient_batch_norm():
    ...     y, variables = layer.init_with_output(jax.random.key(0), x)
    >>> bool(jnp.allclose(y, layer.apply(variables, x, mutable=["batch_stats"])[0], atol=1e-6))
    True
    """
    with nn.intercept_methods(functools.partial(_intercept, parts)):
        yield


def _intercept(
    parts: int,
    next_fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    layer = context.module
    if (
        isinstance(layer, nn.BatchNorm)
        and getattr(context.orig_method, "func", None) is _CALL
        and len(args) == 1
        and not kwargs
        and _is_usual(layer, args[0])
    ):
        return _train(layer, args[0], parts)
    return next_fun(*args, **kwargs)


def _is_usual(layer: nn.BatchNorm, x: Any) -> bool:
    return (
        layer.use_running_average is False
        and layer.axis in (-1, x.ndim - 1)
        and layer.axis_name is None
        and layer.use_scale
        and layer.use_bias
        and layer.use_fast_variance
        and layer.force_float32_reductions
        and jnp.issubdtype(x.dtype, jnp.floating)
        and jnp.dtype(layer.dtype or jnp.promote_types(x.dtype, layer.param_dtype)) == x.dtype
    )


def _train(layer: nn.BatchNorm, x: jax.Array, parts: int) -> jax.Array:
    features = x.shape[-1]
    mean = layer.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
    var = layer.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
    scale = layer.param("scale", layer.scale_init, (features,), layer.param_dtype)
    bias = layer.param("bias", layer.bias_init, (features,), layer.param_dtype)
    if parts == 1:
        y, batch_mean, batch_var = batch_norm(x, scale, bias, layer.epsilon)
    else:
        y, batch_mean, batch_var = batch_norm_of_parts(x, scale, bias, layer.epsilon, parts)
    if not layer.is_initializing():
        mean.value = layer.momentum * mean.value + (1 - layer.momentum) * batch_mean
        var.value = layer.momentum * var.value + (1 - layer.momentum) * batch_var
    return y
