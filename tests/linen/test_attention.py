"""Attention with dense kernels against flax's, bit for bit in float32: the same computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lowrank_jax import linen

KEY, DROPOUT = jax.random.key(0), jax.random.key(7)


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def random_parameters(model, *args):
    shapes = jax.eval_shape(model.init, {"params": KEY, "dropout": KEY}, *args)["params"]
    random = np.random.default_rng(0)
    draw = lambda leaf: 0.5 * random.standard_normal(leaf.shape).astype(leaf.dtype)  # noqa: E731
    return {"params": jax.tree.map(draw, shapes)}


def identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def same_computation(function, *args):
    """Whether two models give the same program, which then computes the same bits.

    A printed program does not show its constants: every array must be an argument.
    """

    def program(model):
        jaxpr, shapes = jax.make_jaxpr(functools.partial(function, model), return_shape=True)(*args)
        return str(jaxpr), shapes

    def same(ours, flaxs):
        assert program(ours) == program(flaxs)

    return same


def pair(**fields):
    return linen.MultiHeadDotProductAttention(2, **fields), nn.MultiHeadDotProductAttention(
        2, **fields
    )


X, Y, Z = inputs(3, 5, 8), inputs(3, 4, 6, seed=1), inputs(3, 4, 7, seed=2)
CAUSAL = nn.make_causal_mask(X[..., 0])
PADDING = nn.make_attention_mask(jnp.ones((3, 5)), jnp.array([[1, 1, 1, 0]] * 3))


@pytest.mark.parametrize(
    ("fields", "args", "kwargs"),
    [
        ({}, (X,), {}),
        ({"use_bias": False}, (X,), {"mask": CAUSAL}),
        ({"qkv_features": 12, "out_features": 3}, (X, Y), {"mask": PADDING}),
        ({"normalize_qk": True}, (X, Y, Z), {}),
        ({"dropout_rate": 0.4, "deterministic": False}, (X,), {"mask": CAUSAL}),
        ({"dropout_rate": 0.4, "broadcast_dropout": False}, (X,), {"deterministic": False}),
        ({"dropout_rate": 0.4}, (X,), {"deterministic": True}),
        ({"dropout_rate": 0.4}, (X,), {"deterministic": False, "dropout_rng": KEY}),
        ({"dtype": jnp.bfloat16, "force_fp32_for_softmax": True}, (X,), {}),
        ({"kernel_init": nn.initializers.ones, "bias_init": nn.initializers.ones}, (X,), {}),
    ],
)
def test_equals_flax(fields, args, kwargs):
    # A program is compared without the constants in it, so all arrays are its arguments.
    arrays = {name: value for name, value in kwargs.items() if isinstance(value, jax.Array)}
    rest = {name: value for name, value in kwargs.items() if name not in arrays}

    def init(model, args, arrays, *keys):
        rngs = dict(zip(("params", "dropout"), keys, strict=True))
        return model.init(rngs, *args, **rest, **arrays)

    def apply(model, variables, args, arrays, key):
        options = rest | arrays | {"rngs": {"dropout": key}, "sow_weights": True}
        return model.apply(variables, *args, mutable="intermediates", **options)

    ours, flaxs = pair(**fields)
    same_computation(init, args, arrays, KEY, DROPOUT)(ours, flaxs)
    shapes = jax.eval_shape(functools.partial(init, flaxs), args, arrays, KEY, DROPOUT)
    same_computation(apply, shapes, args, arrays, DROPOUT)(ours, flaxs)


def test_gradients_under_jit_equal_flax():
    ours, flaxs = pair(dropout_rate=0.4, deterministic=False)

    def gradient(model, params, x, mask, key):
        def loss(params):
            return jnp.sum(jnp.sin(model.apply(params, x, mask=mask, rngs={"dropout": key})))

        return jax.jit(jax.grad(loss))(params)

    same_computation(gradient, random_parameters(flaxs, X), X, CAUSAL, DROPOUT)(ours, flaxs)


def test_equals_flax_in_numbers():
    ours, flaxs = pair(dropout_rate=0.4, deterministic=False, normalize_qk=True)
    params = random_parameters(flaxs, X, Y)
    apply = [functools.partial(m.apply, rngs={"dropout": DROPOUT}) for m in (ours, flaxs)]
    found, expected = (jax.jit(run)(params, X, Y, mask=PADDING) for run in apply)
    identical(found, expected)


@pytest.mark.parametrize("positions", [None, lambda query, key: (query, key)])
def test_an_attention_of_ones_own_gets_the_module(positions):
    seen = []

    def attention(query, key, value, mask=None, module=None):
        seen.append(module)
        return nn.dot_product_attention(query, key, value, mask=mask, module=module)

    fields = {"attention_fn": attention}
    model = linen.MultiHeadDotProductAttention(2, positions=positions, **fields)
    params = random_parameters(model, X)
    seen.clear()
    apply = functools.partial(model.apply, mutable="intermediates", sow_weights=True)
    _, kept = jax.eval_shape(apply, params, X)
    assert isinstance(seen[0], linen.MultiHeadDotProductAttention)
    (weights,) = kept["intermediates"]["attention_weights"]
    assert weights.shape == (3, 2, 5, 5)


def decode(model, params, x, **kwargs):
    """The outputs of decoding with a cache, one position at a time, and the last cache."""
    shapes = jax.eval_shape(model.init, KEY, x)["cache"]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    rows = []

    @jax.jit
    def step(cache, row):
        return model.apply({"params": params, "cache": cache}, row, mutable="cache", **kwargs)

    for i in range(x.shape[-2]):
        row, changed = step(cache, x[..., i : i + 1, :])
        cache = changed["cache"]
        rows.append(row)
    return jnp.concatenate(rows, -2), cache


def test_cached_decoding_equals_flax_step_by_step():
    ours, flaxs = pair(decode=True, normalize_qk=True)
    params = random_parameters(flaxs, X)["params"]
    identical(decode(ours, params, X), decode(flaxs, params, X))


def rotary(query, key):
    """Rotary positions (Su et al., arXiv 2104.09864): pairs of features turned by the position."""

    def turn(rows):
        half = rows.shape[-1] // 2
        angle = jnp.arange(rows.shape[-3])[:, None, None] * 0.7 ** jnp.arange(half)
        a, b = rows[..., :half], rows[..., half:]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    return turn(query), turn(key)


def rotary_attention(params, x):
    """Causal rotary attention in float64 NumPy, head by head with rotations as complex numbers."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64)
    q, k, v = (
        np.einsum("btm,mhd->bhtd", x, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    q, k = (
        (rows - rows.mean(-1, keepdims=True))
        / np.sqrt(rows.var(-1, keepdims=True) + 1e-6)
        * p[name]["scale"]
        for rows, name in ((q, "query_ln"), (k, "key_ln"))
    )
    length, half = x.shape[1], q.shape[-1] // 2
    turns = np.exp(1j * np.arange(length)[:, None] * 0.7 ** np.arange(half))
    q, k = ((rows[..., :half] + 1j * rows[..., half:]) * turns for rows in (q, k))
    logits = np.einsum("bhqd,bhkd->bhqk", q, k.conj()).real / np.sqrt(2 * half)
    logits = np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    heads = np.einsum("bhqk,bhkd->bqhd", shares, v)
    return np.einsum("bqhd,hdm->bqm", heads, p["out"]["kernel"]) + p["out"]["bias"]


def test_positions_with_and_without_a_cache():
    model = linen.MultiHeadDotProductAttention(2, positions=rotary, normalize_qk=True)
    params = random_parameters(model, X)["params"]
    expected = rotary_attention(params, X)
    found = jax.jit(model.apply)({"params": params}, X, mask=CAUSAL)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    plain = jax.jit(model.clone(positions=None).apply)({"params": params}, X, mask=CAUSAL)
    assert np.abs(plain - expected).max() > 1e-2
    np.testing.assert_allclose(
        decode(model.clone(decode=True), params, X)[0], expected, rtol=0, atol=1e-5
    )


def test_positions_with_an_attention_of_ones_own():
    def attention(query, key, value, mask=None):
        return nn.dot_product_attention(query, key, value, mask=mask)

    model = linen.MultiHeadDotProductAttention(2, positions=rotary)
    params = jax.eval_shape(model.init, KEY, X)

    def apply(model, params, x, mask):
        return model.apply(params, x, mask=mask)

    same_computation(apply, params, X, CAUSAL)(model.clone(attention_fn=attention), model)


def test_positions_across():
    """Queries and keys of other lengths, each at its own position."""

    def scaled(query, key):
        assert query.shape == (3, 5, 2, 4) and key.shape == (3, 4, 2, 4)
        return query * 2, key * 3

    model = linen.MultiHeadDotProductAttention(2, positions=scaled)
    params = random_parameters(model, X, Y)["params"]
    six = params | {"query": jax.tree.map(lambda leaf: 6 * leaf, params["query"])}
    expected = jax.jit(nn.MultiHeadDotProductAttention(2).apply)({"params": six}, X, Y)
    found = jax.jit(model.apply)({"params": params}, X, Y)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
