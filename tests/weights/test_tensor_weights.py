"""What TensorTrain and Tucker both do: norms, starts, application, new ranks, measures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxprs import largest_intermediate
from weights_cases import TENSOR_CASES, Case, naive_dense, numpy_dense

from lowrank_jax import (
    FixedRank,
    LowRank,
    RankScale,
    Rule,
    SpatialLowRank,
    TensorTrain,
    Tucker,
    conv_general_dilated,
    diagnostics,
    dot_general,
    factorize,
    frobenius_decay,
    refactorize,
    regular,
    resolve,
    spectral,
    spectral_ones,
    variance_matched,
)

KINDS = [TensorTrain, Tucker]
both_kinds = pytest.mark.parametrize("kind", KINDS)
tensor_case = pytest.mark.parametrize("case", TENSOR_CASES, ids=lambda case: case.name)


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def half_squared_norm(weight):
    return 0.5 * weight.squared_norm()


def half_squared_dense(weight):
    return 0.5 * jnp.sum(jnp.square(weight.dense()))


# Frobenius norm and decay.


def brute_force_gradient(case: Case, factors):
    """The kernel is linear in each leaf: one unit entry at a time, in float64."""
    kernel, gradient = naive_dense(case, factors), {}
    for name, value in factors.items():
        gradient[name] = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            unit = np.zeros(value.shape)
            unit[index] = 1.0
            gradient[name][index] = np.sum(kernel * naive_dense(case, factors | {name: unit}))
    return gradient


@functools.cache
def gradients():
    """Of all cases: what the decay adds, and autodiff of half the composed kernel's squares."""
    weights = {case.name: case.weight(seed=1) for case in TENSOR_CASES}
    tx = frobenius_decay(1.0)

    def penalty(weights):
        return sum(map(half_squared_dense, weights.values()))

    def both(weights):
        zeros = jax.tree.map(jnp.zeros_like, weights)
        return tx.update(zeros, tx.init(weights), weights)[0], jax.grad(penalty)(weights)

    return jax.jit(both)(weights)


@tensor_case
def test_frobenius_gradient(case: Case, x64):
    expected = brute_force_gradient(case, case.factors(seed=1))
    for found in gradients():
        for name, value in expected.items():
            mine = getattr(found[case.name], name)
            np.testing.assert_allclose(mine, value, rtol=0, atol=1e-12 * np.abs(value).max())


@both_kinds
@pytest.mark.parametrize("batch", [(), (3,)])
def test_norm_and_gradient_never_form_the_kernel(kind, batch):
    shape = (*batch, 1, 1, 64, 64)
    rank = kind.rank_from_scale(0.211, shape)
    template = kind.template(shape, np.float32, rank, 2, spatial_axes=2)
    weight = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), template)
    kernel = np.prod(shape)
    assert largest_intermediate(half_squared_norm, weight) < kernel
    assert largest_intermediate(jax.grad(half_squared_norm), weight) < kernel
    assert largest_intermediate(half_squared_dense, weight) >= kernel


def test_float16_norm_does_not_overflow():
    cores = [jnp.full(shape, 8, jnp.float16) for shape in ((1, 4, 4), (4, 4, 3), (3, 3, 1))]
    weight = TensorTrain(*cores, outputs=8)
    assert float(weight.squared_norm()) == 48 * (12 * 8.0**3) ** 2


# Initializers.


def made(kind, shape, init, key=0, rank=None, **axes):
    rank = FixedRank(10**6) if rank is None else rank
    key = None if key is None else jax.random.key(key)
    return factorize({"k": random(*shape)}, [Rule("k", rank, kind, **axes)], init, key)["k"]


@both_kinds
@pytest.mark.parametrize(
    ("init", "variance"),
    [
        (regular("kernel", scale=1 / 3, distribution="uniform"), 1 / (3 * 96)),
        (regular("kernel", mode="fan_out"), 2 / 64),
        (regular(), 2 / 96),
        (regular("one", scale=0.01), 0.01),
    ],
)
def test_regular_draws_the_matrix_that_is_decomposed(kind, init, variance):
    dense = np.asarray(made(kind, (2, 96, 64), init, spatial_axes=0).dense(), np.float64)
    # Within four standard errors; normal entries have the larger kurtosis, 3.
    assert abs(np.mean(dense**2) - variance) <= 4 * variance * np.sqrt(2 / dense.size)
    if init.distribution == "uniform":
        assert np.abs(dense).max() <= np.sqrt(3 * variance) * (1 + 1e-4)
    assert np.abs(dense[0] - dense[1]).max() > np.sqrt(variance)


@both_kinds
def test_the_other_initializers_are_refused(kind):
    for init in (spectral_ones(), variance_matched()):
        with pytest.raises(ValueError, match=r"k: .*makes two factors.*use spectral"):
            made(kind, (6, 8), init)
    with pytest.raises(ValueError, match=r"k: a random initializer .*pass key"):
        made(kind, (6, 8), regular(), key=None)
    for init, text in (
        (spectral("zero"), "overcomplete='zero' .*one matrix: use 'complement'"),
        (spectral(method="randomized"), "method='randomized' .*one matrix: use 'exact'"),
        (spectral(middle_noise=0.1), "middle_noise=0.1 .*one matrix: leave it out"),
        (regular(middle_noise=0.1), "middle_noise=0.1 .*one matrix: leave it out"),
    ):
        with pytest.raises(ValueError, match=f"k: {text}"):
            made(kind, (6, 8), init)
    kernel = np.full((6, 8), np.nan, np.float32)
    with pytest.raises(ValueError, match="k: 48 of 48 entries are not finite"):
        factorize({"k": kernel}, [Rule("k", FixedRank(2), kind)])


@both_kinds
def test_stacks_are_decomposed_one_by_one(kind):
    kernels = random(3, 1, 1, 12, 10)
    rule = Rule("k", RankScale(0.5), kind, spatial_axes=2)
    stack = factorize({"k": kernels}, [rule])["k"]
    assert stack.shape == kernels.shape
    for index, kernel in enumerate(kernels):
        one = factorize({"k": kernel}, [rule])["k"]
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a[i], b), stack, one)


@both_kinds
def test_the_dtype_is_the_kernels(kind):
    rules, kernel = [Rule("k", RankScale(0.5), kind)], jnp.asarray(random(12, 10), jnp.bfloat16)
    low = factorize({"k": kernel}, rules)["k"]
    high = factorize({"k": kernel.astype(jnp.float32)}, rules)["k"]
    for mine, theirs in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        assert (mine.dtype, theirs.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(mine, theirs.astype(jnp.bfloat16))


@both_kinds
def test_abstract_in_abstract_out(kind):
    params = {"k": jnp.asarray(random(1, 1, 12, 10)), "b": jnp.ones(3)}
    rules = [Rule("k", RankScale(0.5), kind)]
    abstract = factorize(jax.eval_shape(lambda: params), rules)
    concrete = factorize(params, rules)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(jax.eval_shape(lambda: concrete))


# Application.


@tensor_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_composed_kernel_is_rounded_once(case: Case, dtype):
    leaves = {name: value.astype(dtype) for name, value in case.factors(seed=2).items()}
    dense = case.kind(**jax.tree.map(jnp.asarray, leaves), **dict(case.axes)).dense()
    assert dense.dtype == dtype
    exact = naive_dense(case, leaves)
    # Rounding moves an entry by half a unit in its last place; float32 sums are off by far less.
    bound = float(jnp.finfo(dtype).eps) / 2 * np.abs(exact) + 1e-6 * np.abs(exact).max()
    assert (np.abs(np.asarray(dense, np.float64) - exact) <= bound).all()


@both_kinds
def test_application_composes_the_kernel(kind):
    weight = made(kind, (1, 1, 6, 8), None, rank=FixedRank(2))
    x = random(2, 5, 5, 6, seed=1)
    call = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    expected = lax.conv_general_dilated(x, weight.dense(), (2, 2), "SAME", **call)
    found = conv_general_dilated(x, weight, (2, 2), "SAME", **call)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no factored form"):
        conv_general_dilated(x, weight, (1, 1), "SAME", compose=False, **call)
    grouped = call | {"feature_group_count": 2}
    x2 = np.concatenate([x, -x], axis=-1)
    expected = lax.conv_general_dilated(x2, weight.dense(), (1, 1), "SAME", **grouped)
    found = conv_general_dilated(x2, weight, (1, 1), "SAME", **grouped)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    matrix = made(kind, (6, 8), None, rank=FixedRank(2))
    product = dot_general(x, matrix, (((3,), (0,)), ((), ())))
    np.testing.assert_allclose(product, x @ np.asarray(matrix.dense()), rtol=1e-4, atol=1e-5)


# New ranks, and measures.


@both_kinds
def test_refactorize_goes_through_the_kernel(kind):
    params = {"k": made(kind, (1, 1, 12, 10), None, rank=FixedRank(4)), "b": jnp.ones(3)}
    rules, dims = [Rule("k", FixedRank(2), kind)], (5, 6, 4)
    before = numpy_dense(params["k"], dims)
    done = refactorize(params, rules)
    again = factorize({"k": before}, rules)["k"]
    assert done["k"].rank == again.rank and done["b"] is params["b"]
    after = numpy_dense(done["k"], dims)
    np.testing.assert_allclose(after, numpy_dense(again, dims), atol=1e-5)
    abstract = refactorize(jax.eval_shape(lambda: params), rules)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(jax.eval_shape(lambda: done))
    # Without rules there is nothing to balance.
    assert refactorize(params)["k"] is params["k"]
    wider = refactorize(done, [Rule("k", FixedRank(5), kind)])["k"]
    np.testing.assert_allclose(numpy_dense(wider, dims), after, atol=1e-5)


@both_kinds
def test_refactorize_computes_in_single_precision(kind):
    low = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), made(kind, (12, 10), None, rank=FixedRank(4))
    )
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    rules = [Rule(".", FixedRank(2), kind)]
    done = refactorize({"l": low, "h": high}, rules)
    for mine, theirs in zip(jax.tree.leaves(done["l"]), jax.tree.leaves(done["h"]), strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_array_equal(mine, theirs.astype(jnp.bfloat16))


@both_kinds
def test_refactorize_refuses(kind):
    params = {"k": made(kind, (12, 10), None, rank=FixedRank(4))}
    other = Tucker if kind is TensorTrain else TensorTrain
    for rule in (
        Rule("k", FixedRank(2), other),
        Rule("k", FixedRank(2), LowRank),
        Rule("k", FixedRank(2), kind, spatial_axes=2),
    ):
        with pytest.raises(ValueError, match=rf"k: it is a {kind.__name__} .*asks for another"):
            refactorize(params, [rule])
    with pytest.raises(ValueError, match=r"k: ranks .*expected numbers from 1 to"):
        refactorize(params, [Rule("k", RankScale(2.0), kind)])
    with pytest.raises(ValueError, match=r"k: overcomplete='zero' .*use 'complement'"):
        refactorize(params, [Rule("k", FixedRank(2), kind)], overcomplete="zero")


@both_kinds
def test_diagnostics_measure_the_dense_matrix(kind):
    weight = made(kind, (1, 1, 12, 10), None, rank=FixedRank(3))
    params = {"k": weight, "dense": random(1, 1, 6, 8)}
    rules = [Rule("dense", FixedRank(2), kind)]
    table = resolve(params, rules)
    assert [row.path for row in table.rows] == ["dense", "k"]
    report = diagnostics.report(params, table)
    spectra = diagnostics.spectrum(params, table)
    for path, kernel in (("k", weight.dense()), ("dense", params["dense"])):
        s = np.linalg.svd(np.asarray(kernel, np.float64)[0, 0], compute_uv=False)
        np.testing.assert_allclose(spectra[path], s, atol=1e-5 * s[0])
        assert report["frobenius_norm"][path] == pytest.approx(np.linalg.norm(s), rel=1e-5)
        assert report["nuclear_norm"][path] == pytest.approx(s.sum(), rel=1e-5)
        assert report["stable_rank"][path] == pytest.approx(np.sum(s**2) / s[0] ** 2, rel=1e-5)
    assert report["nuclear_bound"] == report["non_orthogonality"] == {}
    assert report["frobenius_norm"]["k"] == pytest.approx(
        float(jnp.sqrt(weight.squared_norm())), rel=1e-5
    )
    stack = made(kind, (2, 12, 10), None, rank=FixedRank(3), spatial_axes=0)
    assert diagnostics.report({"k": stack})["nuclear_norm"]["k"].shape == (2,)
    with pytest.raises(TypeError, match="k: only its shape is known"):
        diagnostics.report(jax.eval_shape(lambda: {"k": weight}))


@both_kinds
def test_in_a_table_beside_other_kinds(kind):
    params = {"conv": random(3, 3, 4, 6), "pointwise": random(1, 1, 6, 8)}
    table = resolve(
        params,
        [
            Rule("conv", FixedRank(2), SpatialLowRank),
            Rule("pointwise", FixedRank(1), kind),
        ],
    )
    lines = str(table).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    ranks = {TensorTrain: "1,1", Tucker: "1,1,1"}[kind]
    assert f"{kind.__name__} outputs=8 spatial_axes=2" in lines[3] and f" {ranks} " in lines[3]
