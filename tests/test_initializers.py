"""Variances of the random initializers, the spectral ones, and layers that are born factorized."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax import (
    ChannelLowRank,
    Energy,
    FixedRank,
    LowRank,
    RankScale,
    Rule,
    SpatialLowRank,
    TensorTrain,
    Tucker,
    factorize,
    initializers,
    regular,
    spectral,
    spectral_ones,
    variance_matched,
)

KEY = jax.random.key(7)


def make(shape, init, kind=LowRank, rank=64, depth=2, kernel=None, key=KEY, **axes):
    if kernel is None:
        kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rules = [Rule("k", FixedRank(rank), kind, depth=depth, **axes)]
    return factorize({"k": kernel}, rules, init, key)["k"]


def assert_variance(entries, variance, kurtosis=3.0):
    """The mean square of independent entries is within four standard errors of the variance."""
    entries = np.asarray(entries, np.float64).ravel()
    error = variance * math.sqrt((kurtosis - 1) / entries.size)
    assert abs(np.mean(entries**2) - variance) <= 4 * error
    assert abs(np.mean(entries)) <= 4 * math.sqrt(variance / entries.size)


# Family, initializer, kind, shape, rank, variance of u and of vt: the published table.
FAMILIES = [
    ("resnet", regular(), SpatialLowRank, (3, 3, 64, 48), 96, 2 / (3 * 64), 2 / 96),
    ("resnet_1x1", regular(), SpatialLowRank, (1, 1, 128, 96), 64, 2 / 128, 2 / 64),
    ("linear", regular(), LowRank, (192, 128), 64, 2 / 192, 2 / 64),
    ("channel", regular(), ChannelLowRank, (3, 3, 32, 96), 64, 2 / 288, 2 / 64),
    ("vgg", regular("kernel"), SpatialLowRank, (3, 3, 64, 48), 96, 2 / 576, 2 / 576),
    (
        "wide_resnet",
        regular("kernel", mode="fan_out"),
        SpatialLowRank,
        (3, 3, 64, 48),
        96,
        2 / 432,
        2 / 432,
    ),
    (
        "wide_resnet_shortcut",
        regular("kernel", mode="fan_out"),
        SpatialLowRank,
        (1, 1, 96, 128),
        64,
        2 / 128,
        2 / 128,
    ),
    ("embedding", regular("one", scale=0.01), LowRank, (192, 128), 64, 0.01, 0.01),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
def test_variances_of_the_families(family):
    _, init, kind, shape, rank, u_variance, vt_variance = family
    weight = make(shape, init, kind, rank)
    assert_variance(weight.u, u_variance)
    assert_variance(weight.vt, vt_variance)


def test_transformer_linears_are_uniform():
    weight = make((192, 128), regular("one", scale=0.01 / 3, distribution="uniform"))
    for factor in (weight.u, weight.vt):
        assert_variance(factor, 0.01 / 3, kurtosis=1.8)
        assert 0.099 < np.abs(factor).max() <= 0.1 + 1e-7


def test_regular_inflates_a_resnet_convolution_by_the_published_factor():
    # E||P||^2 = 12 out, against 2 out of the dense kernel, at any rank.
    weights = [
        make((3, 3, 32, 32), regular(), SpatialLowRank, 48, key=jax.random.key(n)) for n in range(4)
    ]
    norms = [float(weight.squared_norm()) for weight in weights]
    assert np.mean(norms) == pytest.approx(12 * 32, rel=0.1)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_fans_of_stacks_and_of_several_axes(mode):
    stack = make((5, 96, 64), regular("kernel", mode=mode), rank=32, in_axes=1)
    assert_variance(stack.u, 2 / (96 if mode == "fan_in" else 64))
    heads = make((96, 4, 32), regular("kernel", mode=mode), rank=32, in_axes=1, out_axes=2)
    assert_variance(heads.vt, 2 / (96 if mode == "fan_in" else 128))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(
    ("kind", "shape"), [(LowRank, (128, 96)), (SpatialLowRank, (3, 3, 32, 32))]
)
def test_variance_matched_products_have_the_kernels_variance(kind, shape, distribution):
    kernel = 0.3 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    variance = float(np.mean(kernel**2))
    init = variance_matched(distribution=distribution)
    rank = 32
    found = [
        float(make(shape, init, kind, rank, kernel=kernel, key=jax.random.key(n)).squared_norm())
        for n in range(8)
    ]
    # Within four standard errors of the mean over the draws, which are a few percent at most.
    error = float(np.std(found)) / math.sqrt(len(found) - 1)
    assert abs(np.mean(found) / kernel.size - variance) <= 4 * error / kernel.size
    assert error / kernel.size < 0.03 * variance
    weight = make(shape, init, kind, rank, kernel=kernel)
    kurtosis = 3.0 if distribution == "normal" else 1.8
    assert_variance(weight.u, math.sqrt(variance / rank), kurtosis)
    assert_variance(weight.vt, math.sqrt(variance / rank), kurtosis)


def test_variance_matched_goes_kernel_by_kernel():
    kernel = np.random.default_rng(0).standard_normal((2, 128, 128)).astype(np.float32)
    kernel[1] *= 10
    weight = make(kernel.shape, variance_matched(), rank=32, kernel=kernel, in_axes=1)
    assert_variance(weight.u[0], math.sqrt(np.mean(kernel[0] ** 2) / 32))
    assert_variance(weight.u[1], math.sqrt(np.mean(kernel[1] ** 2) / 32))


@pytest.mark.parametrize("rank", [3, 8, 12])
def test_spectral_ones(rank, x64):
    kernel = np.random.default_rng(0).standard_normal((10, 8))
    weight = make(kernel.shape, spectral_ones(), rank=rank, kernel=kernel)
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    keep = min(rank, 8)
    level = np.linalg.norm(s[:keep]) / math.sqrt(keep)
    np.testing.assert_allclose(weight.dense(), level * u[:, :keep] @ vt[:keep], atol=1e-12)
    found = np.linalg.svd(np.asarray(weight.dense()), compute_uv=False)
    np.testing.assert_allclose(found[:keep], level, rtol=1e-12)
    assert np.linalg.norm(weight.dense()) == pytest.approx(np.linalg.norm(s[:keep]), rel=1e-12)


@pytest.mark.parametrize("init", [spectral, spectral_ones, regular, variance_matched])
def test_the_middle_factor_is_the_identity_plus_noise(init):
    exact = make((80, 80), init(), depth=3)
    np.testing.assert_array_equal(exact.m, np.eye(64))
    noisy = make((80, 80), init(middle_noise=0.01), depth=3)
    assert_variance(np.asarray(noisy.m) - np.eye(64), 1e-4)
    # The noise has a key of its own: the other factors do not change.
    np.testing.assert_array_equal(noisy.u, exact.u)
    stack = make((3, 80, 80), init(middle_noise=0.01), depth=3, in_axes=1)
    noise = np.asarray(stack.m) - np.eye(64)
    assert stack.m.shape == (3, 64, 64) and np.abs(noise[0] - noise[1]).max() > 0.01


def test_the_two_factors_are_independent():
    weight = make((64, 64), regular("one", scale=1.0))
    correlation = np.mean(np.asarray(weight.u) * np.asarray(weight.vt))
    assert abs(correlation) < 4 / 64


@pytest.mark.parametrize(
    ("init", "rank", "depth"),
    [
        (regular(), 2, 2),
        (variance_matched(), 2, 2),
        (spectral(middle_noise=0.1), 2, 3),
        (spectral(), 9, 2),
        (spectral_ones(), 9, 2),
    ],
)
def test_a_missing_key_is_asked_for(init, rank, depth):
    with pytest.raises(ValueError, match=r"^k: .*pass key=jax.random.key"):
        make((12, 8), init, rank=rank, depth=depth, key=None)


def test_no_key_is_needed_where_nothing_is_drawn():
    make((12, 8), spectral(), rank=8, depth=3, key=None)
    make((8, 12), spectral(), rank=12, key=None)
    make((12, 8), spectral("zero"), rank=20, key=None)


@pytest.mark.parametrize(
    "make_init",
    [
        lambda: spectral("ones"),
        lambda: spectral(method="lanczos"),
        lambda: spectral_ones("no"),
        lambda: regular("fan"),
        lambda: regular(mode="fan_avg"),
        lambda: regular(distribution="cauchy"),
        lambda: variance_matched(distribution="cauchy"),
    ],
)
def test_unknown_options(make_init):
    with pytest.raises(ValueError, match="expected one of"):
        make_init()


# Layers that are born factorized.


BORN = {
    "matrix": (initializers.factorized(LowRank, FixedRank(3)), (10, 8)),
    "overcomplete": (initializers.factorized(LowRank, RankScale(1.5)), (10, 8)),
    "random": (initializers.factorized(LowRank, FixedRank(3), regular(), depth=3), (10, 8)),
    "matched": (initializers.factorized(LowRank, FixedRank(3), variance_matched()), (10, 8)),
    "spatial": (initializers.factorized(SpatialLowRank, RankScale(0.5)), (3, 3, 4, 6)),
    "channel": (
        initializers.factorized(
            ChannelLowRank, RankScale(0.5), spectral_ones(middle_noise=0.1), depth=3
        ),
        (3, 3, 4, 6),
    ),
    "heads": (initializers.factorized(LowRank, FixedRank(3), out_axes=2), (8, 2, 4)),
    "train": (initializers.factorized(TensorTrain, RankScale(0.7)), (1, 1, 12, 10)),
    "tucker": (initializers.factorized(Tucker, RankScale(0.7), regular()), (12, 10)),
}


@pytest.mark.parametrize("name", BORN)
def test_born_factorized_in_jit_vmap_and_eval_shape(name):
    init, shape = BORN[name]
    eager = init(KEY, shape)
    assert eager.shape == shape
    jitted = jax.jit(lambda key: init(key, shape))(KEY)
    abstract = jax.eval_shape(lambda key: init(key, shape), KEY)
    keys = jax.random.split(jax.random.key(1), 3)
    stack = jax.jit(jax.vmap(lambda key: init(key, shape)))(keys)
    one = init(keys[1], shape)

    def close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)

    jax.tree.map(close, jitted, eager)
    jax.tree.map(lambda found, expected: close(found[1], expected), stack, one)
    assert jax.tree.structure(abstract) == jax.tree.structure(eager)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(jax.eval_shape(lambda: eager))


def test_born_spectral_is_the_truncated_dense_kernel():
    init, shape = BORN["spatial"]
    weight = init(KEY, shape)
    kernel_key, _ = jax.random.split(KEY)
    kernel = np.asarray(jax.nn.initializers.lecun_normal()(kernel_key, shape))
    rows = kernel.transpose(1, 2, 0, 3).reshape(12, 18)
    u, s, vt = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    rank = 9
    best = (u[:, :rank] * s[:rank] @ vt[:rank]).reshape(3, 4, 3, 6).transpose(2, 0, 1, 3)
    assert weight.rank == rank
    np.testing.assert_allclose(weight.dense(), best, atol=1e-6)


def test_born_kernels_have_the_fan_of_one_kernel():
    full = initializers.factorized(LowRank, FixedRank(64), in_axes=1)
    assert_variance(full(KEY, (4, 64, 64)).dense(), 1 / 64)
    heads = initializers.factorized(LowRank, FixedRank(64), in_axes=1, out_axes=2)
    assert_variance(heads(KEY, (64, 8, 16)).dense(), 1 / 64)
    conv = initializers.factorized(SpatialLowRank, FixedRank(96))
    assert_variance(conv(KEY, (2, 3, 3, 32, 32)).dense(), 1 / 288)
    stack = full(KEY, (4, 64, 64)).dense()
    assert np.abs(stack[0] - stack[1]).max() > 0.1


def test_born_in_another_dtype_and_from_another_kernel():
    init = initializers.factorized(LowRank, FixedRank(2), kernel_init=jax.nn.initializers.ones)
    weight = init(KEY, (4, 6), jnp.bfloat16)
    assert weight.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(weight.dense(), np.float32), 1.0, atol=0.02)


@pytest.mark.parametrize(
    ("make_init", "error", "text"),
    [
        (lambda: initializers.factorized(LowRank, 0.5), TypeError, "not a rank rule"),
        (lambda: initializers.factorized(LowRank), TypeError, "not a rank rule"),
        (lambda: initializers.factorized(LowRank, FixedRank(1), width=2), TypeError, "no axes"),
        (lambda: initializers.factorized(LowRank, FixedRank(1), depth=4), ValueError, "2 or 3"),
        (
            lambda: initializers.factorized(LowRank, FixedRank(1), spectral),
            TypeError,
            "not an initializer",
        ),
        (
            lambda: initializers.factorized(LowRank, FixedRank(1))(KEY, (3, 3, 4, 4)),
            ValueError,
            "not a matrix",
        ),
        (
            lambda: initializers.factorized(SpatialLowRank, FixedRank(1))(KEY, (4, 4)),
            ValueError,
            "2-D convolution",
        ),
        (
            lambda: initializers.factorized(LowRank, Energy(0.5))(KEY, (4, 4)),
            TypeError,
            "needs the values",
        ),
    ],
)
def test_born_factorized_refuses(make_init, error, text):
    with pytest.raises(error, match=text):
        make_init()


def test_a_large_kernel_is_decomposed_in_a_jitted_init():
    init = initializers.factorized(LowRank, FixedRank(8))
    weight = jax.jit(lambda key: init(key, (300, 400)))(KEY)
    assert np.isfinite(np.asarray(weight.u)).all() and float(weight.squared_norm()) > 0
