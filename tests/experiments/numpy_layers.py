"""Layers in NumPy, in the precision of their operands: what models are compared with."""

from __future__ import annotations

import jax
import numpy as np


def convolve(x, kernel, stride=1):
    """A convolution with an odd window, padded to keep the size at stride 1, tap by tap."""
    height, width = kernel.shape[:2]
    padded = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    rows, columns = (stride * -(-size // stride) for size in x.shape[1:3])
    return sum(
        padded[:, i : i + rows : stride, j : j + columns : stride] @ kernel[i, j]
        for i in range(height)
        for j in range(width)
    )


def max_pool(x):
    """The largest of 3 x 3 pixels around every second one."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    taps = [(i, j) for i in range(3) for j in range(3)]
    shape = x.shape[1:3]
    return np.max([padded[:, i : i + shape[0] : 2, j : j + shape[1] : 2] for i, j in taps], axis=0)


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
    return random_variables(jax.eval_shape(lambda: module.init(jax.random.key(0), *args)), seed)


def random_variables(shapes, seed=0):
    """The same for the shapes of a module's variables."""
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: 0.5 + np.abs(rng.normal(size=leaf.shape)), shapes)
    variables["params"] = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])),
        shapes["params"],
    )
    return variables
