"""Layers in NumPy, in the precision of their operands: what models are compared with."""

from __future__ import annotations

import jax
import numpy as np


def convolve(x, kernel, stride=1):
    """A 3 x 3 convolution with one pixel of padding on every side, tap by tap."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = x.shape[1] // stride
    return sum(
        padded[:, i : i + stride * size : stride, j : j + stride * size : stride] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def depthwise(x, kernel, stride=1):
    """The same, each channel by itself; the kernel is (3, 3, 1, channels)."""
    diagonal = np.zeros((3, 3, x.shape[-1], x.shape[-1]))
    for channel in range(x.shape[-1]):
        diagonal[:, :, channel, channel] = kernel[:, :, 0, channel]
    return convolve(x, diagonal, stride)


def norm(x, weights, statistics):
    """Batch norm in evaluation."""
    scale = weights["scale"] / np.sqrt(statistics["var"] + 1e-5)
    return (x - statistics["mean"]) * scale + weights["bias"]


def relu(x):
    return np.maximum(x, 0)


def dense_variables(module, *args, seed=0):
    """Variables of a module in float64, each leaf another; statistics are positive."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    variables = jax.tree.map(lambda leaf: 0.5 + np.abs(rng.normal(size=leaf.shape)), shapes)
    variables["params"] = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])),
        shapes["params"],
    )
    return variables
