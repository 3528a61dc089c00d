"""Values and gradients of functions around a convolution, in float64, against themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import assert_agrees
from flax import linen as nn
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x, kernel, strides=(1, 1), padding="SAME", layout=LAYOUT, **options):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, **options
    )


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def mean_over_heads(y, k):
    """Attention over rows: arrays of four axes that are not images."""
    weights = nn.softmax(jnp.einsum("nhwc,nhvc->nhwv", y, y))
    return jnp.einsum("nhwv,nhvc->nhwc", weights, y)


@jax.custom_jvp
def clipped(y):
    return jnp.clip(y, -1, 1)


@clipped.defjvp
def _clipped_jvp(primals, tangents):
    return clipped(*primals), 0.5 * tangents[0]


@jax.custom_vjp
def reversed_gradient(y):
    return y * 1.0


reversed_gradient.defvjp(lambda y: (y * 1.0, y > 0), lambda above, g: (jnp.where(above, -g, g),))


def while_loop(y, k):
    """Has no gradient by itself: under stop_gradient."""
    held, kernel = lax.stop_gradient((y, k))
    condition, body = lambda c: c[0] < 3, lambda c: (c[0] + 1, convolve(c[1], kernel))
    return y * lax.while_loop(condition, body, (0, held))[1]


# From an image (2, 6, 5, 4) and a kernel (3, 3, 4, 4).
BODIES = {
    "nothing": lambda y, k: y,
    "pools": lambda y, k: [
        nn.max_pool(y, (2, 3), (2, 1), "SAME"),
        nn.avg_pool(y, (3, 2), (2, 2), ((1, 0), (0, 1))),
        lax.reduce_window(y, jnp.inf, lax.min, (1, 2, 2, 1), (1, 1, 2, 1), "SAME"),
        lax.reduce_window(
            y, 0.0, lax.add, (1, 2, 1, 3), (1, 2, 1, 1), "VALID", window_dilation=(1, 2, 1, 1)
        ),
    ],
    "groups": lambda y, k: [
        convolve(y, k[:, :, :2], feature_group_count=2),
        convolve(y, k[:, :, :1], feature_group_count=4),
        convolve(y, jnp.concatenate([k, -k], 3)[:, :, :1], feature_group_count=4),
    ],
    "orders": lambda y, k: [y + jnp.flip(y, 1) * jnp.flip(y, (0, 3)), jnp.stack([y, -y], 1)],
    "sorts": lambda y, k: [jnp.sort(y, 1), lax.top_k(y, 4)],
    "choices": lambda y, k: [
        lax.select(y.sum() > 0, y, 2 * y),
        lax.clamp(-1.0, y, 0.5),
        jnp.clip(y, y.min() / 2, y.max() / 2),
        y * ((y > 0) ^ (y < 1) & ~jnp.isnan(y)).any(3, keepdims=True),
        y * k[:1, :1, :1] + k[0, 0, 0] - y.mean((1, 2), keepdims=True),
    ],
    "nested jit": lambda y, k: jax.jit(lambda y: jax.jit(convolve)(jnp.sin(y), k) + y)(y),
    "cumulative sums": lambda y, k: jnp.cumsum(y, 1) + jnp.cumsum(y, 0),
    "transposed": lambda y, k: lax.conv_transpose(y, k, (2, 3), "SAME", dimension_numbers=LAYOUT),
    "transposed kernel": lambda y, k: lax.conv_transpose(
        y, k, (2, 2), "VALID", dimension_numbers=LAYOUT, transpose_kernel=True
    ),
    "kernel OIHW": lambda y, k: convolve(
        y, k.transpose(3, 2, 0, 1), layout=("NHWC", "OIHW", "NHWC")
    ),
    "NCHW": lambda y, k: convolve(
        y.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), layout=("NCHW", "OIHW", "NCHW")
    ),
    "NCHW to NHWC": lambda y, k: convolve(
        y.transpose(0, 3, 1, 2), k, layout=("NCHW", "HWIO", "NHWC")
    ),
    "CHWN": lambda y, k: convolve(
        y.transpose(3, 1, 2, 0), k.transpose(2, 0, 1, 3), layout=("CHWN", "IHWO", "CHWN")
    ),
    "CHWN as kernels' gradients": lambda y, k: convolve(
        y.transpose(3, 1, 2, 0), k.transpose(2, 0, 1, 3), layout=("CHWN", "IHWO", "HWNC")
    ),
    "1-D": lambda y, k: convolve(y[:, 0], k[0], (2,), layout=("NWC", "WIO", "NWC")),
    "3-D": lambda y, k: convolve(
        y[:, None], k[None], (1, 2, 1), layout=("NDHWC", "DHWIO", "NDHWC")
    ),
    "image as kernel": lambda y, k: convolve(k, y[:, :3, :4].transpose(1, 2, 3, 0)),
    "pad": lambda y, k: jnp.pad(y, ((0, 1), (2, 0), (1, 1), (0, 3)), constant_values=0.5),
    "negative pad": lambda y, k: lax.pad(
        y, jnp.float64(2), ((0, 0, 1), (-1, 2, 0), (1, -2, 2), (0, 0, 0))
    ),
    "reflect": lambda y, k: jnp.pad(y, ((0, 0), (2, 1), (1, 2), (0, 0)), "reflect"),
    "edge and wrap": lambda y, k: jnp.pad(jnp.pad(y, 1, "edge"), 1, "wrap"),
    "slices": lambda y, k: [y[::2, 1:, ::-2, 1:3], y[:1, :5, 4::-2, :2]],
    "an axis less": lambda y, k: y[:, 2] * y[:, :, 0, None].mean((1, 2))[:, None],
    "dynamic slices": lambda y, k: lax.dynamic_update_slice(
        y, lax.dynamic_slice(y, (0, 1, 2, 0), (2, 3, 2, 4)), (0, jnp.argmax(y[0, :3, 0, 0]), 1, 0)
    ),
    "gather and scatter": lambda y, k: y[:, jnp.array([0, 0, 5])].at[1, :, 2].mul(2.0),
    "concatenate": lambda y, k: (
        jnp.concatenate([y, jnp.ones_like(y), y[:, :, ::-1]], 3)
        + jnp.concatenate([y[:1], convolve(y, k)[1:]], 0).mean(3, keepdims=True)
    ),
    "split": lambda y, k: [jnp.split(y, [2, 3], 2), jnp.split(y, 2, 0), jnp.split(y, 4, 3)[1]],
    "reshapes": lambda y, k: [y.reshape(2, 6, 5, 2, 2).sum(3), y.reshape(2, 30, 4), y[:, None, 1]],
    "flatten": lambda y, k: y.reshape(2, -1) @ y.reshape(2, -1).T,
    "transpose": lambda y, k: y.transpose(0, 2, 1, 3)[:, :, :5] + y[:, :5].swapaxes(2, 1),
    "dense": lambda y, k: [jnp.einsum("nhwc,hwdc->nhwd", y[:, :3, :3], k), jnp.dot(y, k[0, 0])],
    "softmax": lambda y, k: nn.softmax(y) + nn.log_softmax(y, (1, 2)),
    "attention": mean_over_heads,
    "maxima": lambda y, k: [y.max((1, 2)), y.min((0, 2)), y.prod(3), y.argmax(3), y.std(0)],
    "where": lambda y, k: jnp.where(y > 0, y, k[0, 0, :1]) + jnp.where(y[..., :1] > 0, 1.0, y),
    "integers": lambda y, k: [y * (jnp.round(y).astype(int) % 3 == 1), y.astype(jnp.int8) << 1],
    "activations": lambda y, k: (
        nn.gelu(y)
        + nn.gelu(y, False)
        + nn.swish(y)
        + nn.elu(y)
        + nn.softplus(y)
        + nn.hard_swish(y)
        + nn.leaky_relu(y)
        + nn.relu6(y)
        + jnp.tanh(y)
        + nn.relu(y)
    ),
    "custom_jvp": lambda y, k: clipped(y),
    "custom_vjp": lambda y, k: reversed_gradient(y) * convolve(reversed_gradient(y), k),
    "checkpoint": lambda y, k: jax.checkpoint(lambda y: jnp.sin(convolve(jnp.sin(y), k)))(y),
    "checkpoint with a policy": lambda y, k: jax.checkpoint(
        lambda y: jnp.sin(convolve(jnp.sin(y), k)), policy=jax.checkpoint_policies.dots_saveable
    )(y),
    "scan": lambda y, k: lax.scan(
        lambda c, s: (convolve(c, k * s), c.mean()), y, jnp.arange(3.0), reverse=True
    ),
    "scan of images": lambda y, k: lax.scan(
        lambda c, y: (c + y.sum(), convolve(y, k)), 0.0, jnp.stack([y, 2 * y])
    ),
    "map": lambda y, k: lax.map(lambda y: convolve(y[None], k)[0], y),
    "fori_loop": lambda y, k: lax.fori_loop(0, 3, lambda i, y: convolve(y, k) * i, y),
    "while_loop": while_loop,
    "cond": lambda y, k: lax.cond(y.sum() > 0, lambda y: convolve(y, k), lambda y: y, y),
    "switch": lambda y, k: lax.switch(
        jnp.int32(1), [lambda y: y, lambda y: jnp.cos(convolve(y, k))], y
    ),
    "vmap": lambda y, k: jax.vmap(convolve, (None, 0))(y, jnp.stack([k, k[::-1]])),
    "vmap of images": lambda y, k: jax.vmap(convolve, (1, None))(jnp.stack([y, -y], 1), k),
    "inner gradient": lambda y, k: jax.grad(lambda y: jnp.sin(convolve(y, k)).sum())(y),
    "jvp": lambda y, k: jax.jvp(lambda y: jnp.sin(convolve(y, k)), (y,), (y * y,))[1],
    "barrier": lambda y, k: lax.optimization_barrier((y, k))[0],
    "no taps of the image": lambda y, k: convolve(y, k, (2, 2), ((5, -9), (0, 0))),
    "empty": lambda y, k: convolve(y[:0], k).sum() + convolve(y, k[:, :, :, :0]).sum() + y,
    "large window": lambda y, k: convolve(y, jnp.tile(k, (3, 3, 1, 1)), padding="SAME"),
}


@pytest.mark.parametrize("name", BODIES)
def test_values_and_gradients(name, x64):
    x, first, kernel = arrays((2, 6, 5, 3), (1, 1, 3, 4), (3, 3, 4, 4))

    def loss(x, first, kernel):
        result = BODIES[name](convolve(x, first), kernel)
        parts = [jnp.sin(leaf).sum() for leaf in jax.tree.leaves(result)]
        return sum(parts), result

    gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    assert_agrees(gradients, x, first, kernel / 3)


class Layers(nn.Module):
    """Layers of Flax, one after the other."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), (2, 2), padding="CIRCULAR")(x)
        x = nn.GroupNorm(2)(x)
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, kernel_dilation=2)(x))
        x = nn.LayerNorm()(x) + nn.InstanceNorm()(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.Dropout(0.5, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = nn.max_pool(x, (2, 2), padding="SAME")
        x = nn.ConvTranspose(6, (3, 3), (2, 2))(x)
        x = nn.WeightNorm(nn.Conv(6, (1, 1)))(x)
        x = nn.RMSNorm()(nn.swish(nn.BatchNorm(use_running_average=not train)(x)))
        x = nn.ConvLocal(3, (2, 2))(x)
        x = x + self.param("image", nn.initializers.normal(), x.shape[1:], x.dtype)
        x = nn.MultiHeadDotProductAttention(3)(x.reshape(x.shape[0], -1, 3))
        return nn.Dense(4)(nn.Conv(5, (3,), padding="CAUSAL")(x).reshape(x.shape[0], -1))


def test_layers_of_flax(x64):
    (x,) = arrays((2, 8, 8, 3))
    model, key = Layers(), jax.random.key(3)
    shapes = jax.eval_shape(lambda: model.init({"params": key, "dropout": key}, x, True))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape)), shapes)

    def loss(params, variables, x, key):
        variables, rngs = {**variables, "params": params}, {"dropout": key}
        out, new = model.apply(variables, x, True, rngs=rngs, mutable=["batch_stats"])
        return (out**2).sum(), new

    gradients = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
    assert_agrees(gradients, variables["params"], variables, x, key)


class Cell(nn.Module):
    """The body of a scan over layers."""

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Conv(3, (3, 3))(x)), x.mean()


@pytest.mark.parametrize("remat", [True, False])
def test_scan_over_layers(remat, x64):
    cell = nn.remat(Cell, prevent_cse=False) if remat else Cell
    scanned = nn.scan(cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    x, kernel, bias = arrays((2, 5, 5, 3), (3, 3, 3, 3, 3), (3, 3))
    params = jax.eval_shape(lambda: scanned().init(jax.random.key(0), x, None))
    leaves = {kernel.shape: kernel, bias.shape: bias}
    params = jax.tree.map(lambda leaf: leaves[leaf.shape], params)

    def loss(params, x):
        y, means = scanned().apply(params, x, None)
        return (y**2).sum() + means.sum()

    assert_agrees(jax.value_and_grad(loss, argnums=(0, 1)), params, x)
