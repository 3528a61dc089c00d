"""factorize and merge against NumPy's best approximations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factorize_cases import CASES, component_gradients, every_case, random, rule, truncated
from jax import lax
from weights_cases import Case, matrix

from lowrank_jax import (
    ChannelLowRank,
    Energy,
    FixedRank,
    LowRank,
    RankScale,
    Rule,
    SpatialLowRank,
    conv_general_dilated,
    describe,
    factorize,
    merge,
    refactorize,
    regular,
    resolve,
    spectral,
    spectral_ones,
    variance_matched,
)


def factorized(case, rank, depth=2, dtype=np.float64, **options):
    kernel = jnp.asarray(random(*case.shape), dtype)
    rules = [rule(case, FixedRank(rank), depth)]
    return kernel, factorize({"kernel": kernel}, rules, **options)["kernel"]


@every_case
@pytest.mark.parametrize("depth", [2, 3])
def test_spectral_is_the_best_approximation_and_balanced(case, depth, x64):
    for rank in (1, 4):
        kernel, weight = factorized(case, rank, depth)
        best, s = truncated(case, kernel, rank)
        np.testing.assert_allclose(matrix(case, weight.dense()), best, atol=1e-12)
        u, vt = weight.geometry(**weight.axes).fold(np.asarray(weight.u), np.asarray(weight.vt))
        diagonal = s[..., :rank, None] * np.eye(rank)
        np.testing.assert_allclose(np.swapaxes(u, -1, -2) @ u, diagonal, atol=1e-12)
        np.testing.assert_allclose(vt @ np.swapaxes(vt, -1, -2), diagonal, atol=1e-12)
        if depth == 3:
            np.testing.assert_array_equal(weight.m, np.broadcast_to(np.eye(rank), weight.m.shape))


@every_case
def test_full_rank_and_merge_give_the_kernel_back(case):
    full = min(matrix(case, np.zeros(case.shape)).shape[-2:])
    kernel, weight = factorized(case, full, dtype=np.float32)
    merged = merge({"kernel": weight})["kernel"]
    assert merged.dtype == jnp.float32
    np.testing.assert_allclose(merged, kernel, atol=1e-5)


@pytest.mark.parametrize("kind", [SpatialLowRank, ChannelLowRank])
def test_full_rank_reproduces_the_convolution(kind):
    kernel, x = random(3, 3, 8, 8, dtype=np.float32), random(2, 9, 9, 8, seed=1, dtype=np.float32)
    params = factorize({"kernel": kernel}, [Rule("kernel", RankScale(1.0), kind)])
    call = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
    expected = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", **call)
    found = conv_general_dilated(x, params["kernel"], (2, 2), "SAME", compose=False, **call)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@every_case
@pytest.mark.parametrize("depth", [2, 3])
def test_overcomplete_keeps_the_product_and_every_component_alive(case, depth):
    rows, columns = matrix(case, np.zeros(case.shape)).shape[-2:]
    key = jax.random.key(0)
    for rank in (min(rows, columns) + 1, rows + columns):
        kernel, weight = factorized(case, rank, depth, np.float32, key=key)
        error = np.abs(weight.dense() - kernel).max() / np.abs(kernel).max()
        # The product is that of the full-rank factors, whose rounding is float32's.
        assert error <= 2e-6
        left, right = component_gradients(case, weight)
        assert (np.maximum(left, right) > 1e-3).all()
        _, padded = factorized(case, rank, depth, np.float32, init=spectral(overcomplete="zero"))
        # The product itself is the same to the last bit.
        np.testing.assert_array_equal(np.asarray(padded.dense()), np.asarray(weight.dense()))
        left, right = component_gradients(case, padded)
        dead = np.maximum(left, right) == 0
        assert (dead.sum(-1) == rank - min(rows, columns)).all()


def test_overcomplete_nearly_keeps_the_nuclear_bound(x64):
    kernel = random(48, 96)
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(96))])["k"]
    nuclear = np.linalg.svd(kernel, compute_uv=False).sum()
    bound = 0.5 * (np.sum(np.square(weight.u)) + np.sum(np.square(weight.vt)))
    smallest = np.linalg.svd(kernel, compute_uv=False)[-1]
    assert bound == pytest.approx(nuclear + 0.5 * 48 * smallest, rel=1e-10)


@pytest.mark.parametrize("true_rank", [0, 1, 3])
@pytest.mark.parametrize("rank", [2, 4, 8, 12])
def test_kernels_of_low_rank(true_rank, rank):
    kernel = (random(8, true_rank) @ random(true_rank, 10, seed=1)).astype(np.float32)
    case = Case("matrix", LowRank, (8, 10))
    rules = [Rule("k", FixedRank(rank))]
    weight = factorize({"k": kernel}, rules, key=jax.random.key(0))["k"]
    best, _ = truncated(case, kernel, rank)
    np.testing.assert_allclose(weight.dense(), best, atol=2e-6 * max(1, np.abs(kernel).max()))
    left, right = component_gradients(case, weight)
    assert (np.maximum(left, right) > 1e-4).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weight))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("init", [spectral(), spectral_ones(), regular(), variance_matched()])
def test_the_dtype_is_the_kernels(dtype, init, x64):
    kernel = jnp.asarray(random(8, 6), dtype)
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(3), depth=3)], init, jax.random.key(0))[
        "k"
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(weight)} == {jnp.dtype(dtype)}
    assert merge({"k": weight})["k"].dtype == dtype


def test_bfloat16_factors_are_the_float32_ones_rounded():
    kernel = jnp.asarray(random(8, 6), jnp.bfloat16)
    rules = [Rule("k", FixedRank(3))]
    low = factorize({"k": kernel}, rules)["k"]
    high = factorize({"k": kernel.astype(jnp.float32)}, rules)["k"]
    np.testing.assert_array_equal(low.u, high.u.astype(jnp.bfloat16))


def test_the_host_array_of_numpy_is_a_kernel_too():
    weight = factorize({"k": random(4, 4, dtype=np.float32)}, [Rule("k", FixedRank(2))])["k"]
    assert isinstance(weight.u, jax.Array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_kernels_name_their_path(bad):
    kernel = random(4, 4, dtype=np.float32)
    kernel[1, 2] = kernel[3, 3] = bad
    with pytest.raises(ValueError, match=r"^a/kernel: 2 of 16 entries are not finite$"):
        factorize({"a": {"kernel": kernel}}, [Rule(".*", FixedRank(2))])


def test_traced_kernels_say_what_to_do():
    with pytest.raises(TypeError, match=r"^k: its values are being traced.*eval_shape"):
        jax.jit(lambda k: factorize({"k": k}, [Rule("k", FixedRank(2))])["k"].u)(jnp.ones((4, 4)))
    weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 4)))
    with pytest.raises(TypeError, match=r"^k: its values are being traced"):
        jax.jit(lambda w: refactorize({"k": w})["k"].u)(weight)


def test_what_is_no_initializer():
    for init in ("spectral", spectral):
        with pytest.raises(TypeError, match="is not an initializer"):
            factorize({"k": jnp.ones((4, 4))}, [Rule("k", FixedRank(2))], init)


@every_case
@pytest.mark.parametrize("depth", [2, 3])
def test_abstract_in_abstract_out(case, depth):
    params = {"kernel": jnp.asarray(random(*case.shape), jnp.float32), "bias": jnp.ones(3)}
    rules = [rule(case, FixedRank(3), depth)]
    abstract = factorize(jax.eval_shape(lambda: params), rules)
    concrete = factorize(params, rules)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(jax.eval_shape(lambda: concrete))
    assert jax.tree.leaves(merge(abstract)) == jax.tree.leaves(jax.eval_shape(merge, concrete))
    smaller = [rule(case, FixedRank(2), depth)]
    assert jax.tree.leaves(refactorize(abstract, smaller)) == jax.tree.leaves(
        jax.eval_shape(lambda: refactorize(concrete, smaller))
    )


def test_a_table_serves_like_its_rules_and_is_checked():
    params = {"a": jnp.asarray(random(6, 4), jnp.float32), "b": jnp.ones(4)}
    table = resolve(params, [Rule("a", Energy(0.9))])
    again = factorize(params, table)
    assert describe(again) == table
    # On shapes, too, where the rule itself could not be.
    assert describe(factorize(jax.eval_shape(lambda: params), table)) == table
    with pytest.raises(ValueError, match=r"table names a, which is not in the tree; .*A"):
        factorize({"A": params["a"]}, table)
    with pytest.raises(ValueError, match=r"a has shape \(4, 6\), the table says \(6, 4\)"):
        factorize({"a": params["a"].T}, table)
    # Factorized as the table says: left alone; otherwise refused.
    assert factorize(again, table)["a"] is again["a"]
    other = factorize(params, [Rule("a", FixedRank(1), depth=3)])
    with pytest.raises(ValueError, match=r"a is factorized already.*refactorize"):
        factorize(other, table)


def test_other_leaves_are_untouched():
    params = {"a": jnp.ones((4, 4)), "b": np.ones(3), "c": None, "d": 1.5}
    done = factorize(params, [Rule("a", FixedRank(1))])
    assert done["b"] is params["b"] and done["c"] is None and done["d"] == 1.5
    assert merge(done)["b"] is params["b"]


def test_the_key_of_a_kernel_depends_on_its_path_alone():
    kernel = jnp.ones((4, 4))
    rules, key = [Rule(".*kernel", FixedRank(2))], jax.random.key(3)
    one = factorize({"x": {"kernel": kernel}}, rules, regular(), key)
    two = factorize(
        {"a": {"kernel": kernel}, "x": {"kernel": kernel}, "z": kernel}, rules, regular(), key
    )
    np.testing.assert_array_equal(one["x"]["kernel"].u, two["x"]["kernel"].u)
    assert np.abs(two["a"]["kernel"].u - two["x"]["kernel"].u).max() > 0.1
    other = factorize({"x": {"kernel": kernel}}, rules, regular(), jax.random.key(4))
    assert np.abs(one["x"]["kernel"].u - other["x"]["kernel"].u).max() > 0.1


def test_factorize_of_merge_is_the_same_product():
    case = CASES[3]
    _, weight = factorized(case, 3, dtype=np.float32)
    again = factorize(merge({"kernel": weight}), [rule(case, FixedRank(3))])["kernel"]
    np.testing.assert_allclose(again.dense(), weight.dense(), atol=2e-6)


@pytest.mark.parametrize("box_class", ["Partitioned", "LogicallyPartitioned"])
def test_boxes_move_inside_and_back(box_class):
    nn = pytest.importorskip("flax.linen")
    if box_class == "Partitioned":
        box = nn.Partitioned
    else:
        from flax.linen.spmd import LogicallyPartitioned as box
    kernel = jnp.asarray(random(3, 3, 4, 8), jnp.float32)
    params = {
        "conv": {"kernel": box(kernel, (None, "w", "in", "out"))},
        "heads": {"kernel": box(kernel, ("stack", "embed", "head", "dim"))},
        "bias": box(jnp.ones(8), ("out",)),
    }
    rules = [
        Rule("conv/kernel", FixedRank(2), SpatialLowRank, depth=3),
        Rule("heads/kernel", FixedRank(2), in_axes=1, out_axes=2),
    ]
    done = factorize(params, rules)
    conv, heads = done["conv"]["kernel"], done["heads"]["kernel"]
    assert isinstance(conv, SpatialLowRank) and isinstance(conv.u, box)
    assert conv.u.names == (None, "w", "in", None)
    assert conv.vt.names == (None, None, None, "out")
    assert conv.m.names == (None, None)
    assert heads.u.names == ("stack", "embed", None)
    assert heads.vt.names == ("stack", None, "head", "dim")
    assert done["bias"] is params["bias"]
    assert resolve(done, rules) == resolve(params, rules) == describe(done)
    smaller = refactorize(done, [Rule("conv/kernel", FixedRank(1), SpatialLowRank, depth=3)])
    assert smaller["conv"]["kernel"].u.names == (None, "w", "in", None)
    assert smaller["conv"]["kernel"].u.value.shape == (1, 3, 4, 1)
    back = merge(done)
    assert back["conv"]["kernel"].names == (None, "w", "in", "out")
    assert back["heads"]["kernel"].names == ("stack", "embed", "head", "dim")
    assert back["conv"]["kernel"].value.shape == kernel.shape
    abstract = factorize(jax.eval_shape(lambda: params), rules)
    assert jax.tree.structure(abstract) == jax.tree.structure(done)


def test_boxes_with_fewer_names_than_axes_and_under_a_mesh():
    nn = pytest.importorskip("flax.linen")
    mesh = jax.make_mesh((1,), ("x",))
    params = {"k": nn.Partitioned(jnp.ones((4, 6)), ("x",))}
    abstract = jax.eval_shape(lambda: params)
    # Under a mesh the box's own `unbox` constrains the sharding, which shapes do not have.
    with jax.set_mesh(mesh):
        for tree in (params, abstract):
            done = factorize(tree, [Rule("k", FixedRank(2))])
            assert done["k"].u.names == ("x", None) and done["k"].vt.names == (None, None)
            assert merge(done)["k"].names == ("x", None)
