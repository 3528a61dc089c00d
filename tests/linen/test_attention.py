"""Attention with dense kernels against flax's, bit for bit in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lowrank_jax import linen

KEY, DROPOUT = jax.random.key(0), jax.random.key(7)


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


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
    ours, flaxs = pair(**fields)
    rngs = {"params": KEY, "dropout": DROPOUT}
    variables = flaxs.init(rngs, *args, **kwargs)
    identical(ours.init(rngs, *args, **kwargs), variables)
    options = kwargs | {"rngs": {"dropout": DROPOUT}, "sow_weights": True}

    def run(model):
        return model.apply(variables, *args, mutable="intermediates", **options)

    identical(run(ours), run(flaxs))


def test_gradients_under_jit_equal_flax():
    ours, flaxs = pair()
    params = flaxs.init(KEY, X)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, X, mask=CAUSAL)))))

    identical(gradient(ours)(params), gradient(flaxs)(params))


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


@pytest.mark.parametrize("normalize", [False, True])
def test_cached_decoding_equals_flax_step_by_step(normalize):
    ours, flaxs = pair(decode=True, normalize_qk=normalize)
    params = flaxs.init(KEY, X)["params"]
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


def rotary_attention(params, x, normalized):
    """Causal rotary attention in float64 NumPy, head by head with rotations as complex numbers."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64)
    q, k, v = (
        np.einsum("btm,mhd->bhtd", x, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    if normalized:
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


@pytest.mark.parametrize("normalize", [False, True])
def test_positions_with_and_without_a_cache(normalize):
    fields = {"positions": rotary, "normalize_qk": normalize, "bias_init": nn.initializers.ones}
    model = linen.MultiHeadDotProductAttention(2, **fields)
    params = model.init(KEY, X)["params"]
    expected = rotary_attention(params, X, normalize)
    found = model.apply({"params": params}, X, mask=CAUSAL)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    plain = model.clone(positions=None).apply({"params": params}, X, mask=CAUSAL)
    assert np.abs(plain - expected).max() > 1e-2
    np.testing.assert_allclose(
        decode(model.clone(decode=True), params, X)[0], expected, rtol=0, atol=1e-5
    )


def test_positions_with_an_attention_of_ones_own():
    def attention(query, key, value, mask=None):
        return nn.dot_product_attention(query, key, value, mask=mask)

    model = linen.MultiHeadDotProductAttention(2, positions=rotary)
    params = model.init(KEY, X)
    own = model.clone(attention_fn=attention)
    identical(own.apply(params, X, mask=CAUSAL), model.apply(params, X, mask=CAUSAL))


def test_positions_across():
    """Queries and keys of other lengths, each at its own position."""

    def scaled(query, key):
        assert query.shape == (3, 5, 2, 4) and key.shape == (3, 4, 2, 4)
        return query * 2, key * 3

    model = linen.MultiHeadDotProductAttention(2, positions=scaled)
    params = model.init(KEY, X, Y)["params"]
    six = params | {"query": jax.tree.map(lambda leaf: 6 * leaf, params["query"])}
    expected = nn.MultiHeadDotProductAttention(2).apply({"params": six}, X, Y)
    np.testing.assert_allclose(model.apply({"params": params}, X, Y), expected, atol=1e-5)
