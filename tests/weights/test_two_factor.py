"""The squared norm and its gradient, and weights as pytrees, against NumPy in float64."""

import copy
import operator
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from jaxprs import largest_intermediate
from weights_cases import CASES, TWO_FACTOR_CASES, Case, PlusDiagonal, matrix, naive_dense

from lowrank_jax import ChannelLowRank, LowRank, SpatialLowRank

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
two_factor_case = pytest.mark.parametrize("case", TWO_FACTOR_CASES, ids=lambda case: case.name)
some_cases = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.depth != 2 or case.name in ("matrix", "spatial")],
    ids=lambda case: case.name,
)


def squared_norm(weight):
    return weight.squared_norm()


def half_squared_norm(weight):
    return 0.5 * weight.squared_norm()


def half_squared_dense(weight):
    return 0.5 * jnp.sum(jnp.square(weight.dense()))


def closed_form(case: Case, factors):
    """``u B``, ``A vt``; deep ``u m B mᵀ``, ``A m B``, ``mᵀ A m vt``: in float64, per slice."""
    factors = {name: value.astype(np.float64) for name, value in factors.items()}
    r = case.rank
    u = factors["u"].reshape((*case.shape[: case.batch], -1, r))
    # The rank axis is second to last in the convolution kinds' vt and right after the batch axes
    # in LowRank's.
    position = case.batch if case.kind is LowRank else factors["vt"].ndim - 2
    moved = np.moveaxis(factors["vt"], position, case.batch)
    vt = moved.reshape((*case.shape[: case.batch], r, -1))
    m = factors.get("m", np.broadcast_to(np.eye(r), (*case.shape[: case.batch], r, r)))
    t = lambda x: np.swapaxes(x, -1, -2)  # noqa: E731
    a, b = t(u) @ u, vt @ t(vt)
    found = {
        "u": (u @ m @ b @ t(m)).reshape(factors["u"].shape),
        "vt": np.moveaxis((t(m) @ a @ m @ vt).reshape(moved.shape), case.batch, position),
    }
    if "m" in factors:
        found["m"] = a @ m @ b
    return found


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_squared_norm_is_the_sum_of_squares(case: Case, dtype, tolerance, x64):
    factors = case.factors(dtype=dtype)
    found = case.kind(**factors, **dict(case.axes)).squared_norm()
    assert found.shape == () and found.dtype == dtype
    assert_close(found, np.sum(naive_dense(case, factors) ** 2), tolerance)


@two_factor_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_gradient_is_autodiff_of_the_dense_norm_and_the_closed_form(
    case: Case, dtype, tolerance, x64
):
    factors = case.factors(seed=1, dtype=dtype)
    found = jax.jit(jax.grad(half_squared_norm))(case.kind(**factors, **dict(case.axes)))
    expected = closed_form(case, factors)
    for name, value in expected.items():
        assert getattr(found, name).dtype == dtype
        assert_close(getattr(found, name), value, tolerance)
    if dtype == np.float64:
        weight = case.kind(**factors, **dict(case.axes))
        oracle = jax.jit(jax.grad(half_squared_dense))(weight)
        for name, value in expected.items():
            assert_close(getattr(oracle, name), value, 1e-12)


@some_cases
def test_bfloat16_gradient_is_the_float32_one_rounded_once(case: Case):
    factors = {k: jnp.asarray(v, jnp.bfloat16) for k, v in case.factors(seed=2).items()}
    weight = case.kind(**factors, **dict(case.axes))
    assert weight.squared_norm().dtype == jnp.float32
    found = jax.jit(jax.grad(half_squared_norm))(weight)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), weight)
    expected = jax.jit(jax.grad(half_squared_norm))(wide)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_array_equal(mine, theirs.astype(jnp.bfloat16))


def test_float16_norm_does_not_overflow():
    weight = LowRank(u=jnp.full((64, 4), 8, jnp.float16), vt=jnp.full((4, 64), 8, jnp.float16))
    assert float(weight.squared_norm()) == 64 * 64 * 256.0**2
    found = jax.grad(half_squared_norm)(
        LowRank(u=jnp.full((64, 4), 2, jnp.float16), vt=jnp.full((4, 64), 2, jnp.float16))
    )
    assert np.isfinite(np.asarray(found.u, np.float32)).all()


WIDE = [
    Case("matrix", LowRank, (64, 48), rank=12),
    Case("tall", LowRank, (96, 16), rank=4),
    Case("stack", LowRank, (3, 32, 40), 1, rank=8),
    Case("heads", LowRank, (32, 4, 8), 0, (("in_axes", 1), ("out_axes", 2)), rank=8),
    Case("spatial", SpatialLowRank, (3, 3, 16, 24), rank=12),
    Case("channel", ChannelLowRank, (3, 3, 16, 32), rank=8),
]


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.name)
def test_norm_and_gradient_never_form_the_kernel(case: Case, depth):
    case = Case(case.name, case.kind, case.shape, case.batch, case.axes, case.rank, depth)
    rows, columns = matrix(case, np.zeros(case.shape)).shape[-2:]
    assert case.rank <= min(rows, columns) / 4
    weight = case.weight(dtype=np.float32)
    one_kernel = rows * columns * int(np.prod(case.shape[: case.batch]))
    assert largest_intermediate(squared_norm, weight) < one_kernel
    assert largest_intermediate(jax.grad(squared_norm), weight) < one_kernel
    assert largest_intermediate(jax.jit(jax.value_and_grad(squared_norm)), weight) < one_kernel
    # The walker does see a kernel where there is one.
    assert largest_intermediate(lambda w: w.dense(), weight) >= one_kernel
    assert largest_intermediate(jax.jit(jax.remat(half_squared_dense)), weight) >= one_kernel


@some_cases
def test_take_is_rows_of_dense(case: Case):
    weight = case.weight(dtype=np.float32)
    indices = jnp.array([[0, 1], [1, 0]]) % case.shape[0]
    np.testing.assert_allclose(
        weight.take(indices), np.asarray(weight.dense())[indices], rtol=1e-5, atol=1e-5
    )


def test_take_looks_up_before_it_multiplies():
    weight = LowRank(u=jnp.ones((1000, 4)), vt=jnp.ones((4, 32)), m=jnp.eye(4))
    assert largest_intermediate(lambda w: w.take(jnp.arange(8)), weight) < 1000 * 32


# Weights as pytrees.


def test_a_missing_middle_factor_is_an_ordinary_none_child():
    weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(weight)]
    assert paths == [".u", ".vt"]
    with_none = jax.tree.leaves(weight, is_leaf=lambda x: x is None)
    assert len(with_none) == 3 and with_none[-1] is None


@some_cases
def test_jit_grad_vmap_remat_scan(case: Case):
    weight = case.weight(dtype=np.float32)
    norm = float(weight.squared_norm())
    assert float(jax.jit(squared_norm)(weight)) == pytest.approx(norm, rel=1e-5)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), weight)
    power = 2 * weight.depth
    each = [norm, norm * 2**power, norm * 3**power]
    assert stack.shape == (3, *case.shape)

    @jax.jit
    def ways(stack):
        _, scanned = jax.lax.scan(lambda c, w: (c, w.squared_norm()), 0.0, stack)
        return jax.vmap(squared_norm)(stack), scanned, stack.squared_norm()

    vmapped, scanned, summed = ways(stack)
    np.testing.assert_allclose(vmapped, each, rtol=1e-5)
    np.testing.assert_allclose(scanned, each, rtol=1e-5)
    np.testing.assert_allclose(summed, sum(each), rtol=1e-5)
    plain = jax.jit(jax.grad(half_squared_norm))(weight)
    remat = jax.jit(jax.grad(jax.remat(half_squared_norm)))(weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, remat)
    assert type(plain) is case.kind and plain.axes == weight.axes


def test_donation_frees_the_factors():
    weight = LowRank(u=jnp.ones((8, 2)), vt=jnp.ones((2, 8)))
    doubled = jax.jit(lambda w: jax.tree.map(lambda x: 2 * x, w), donate_argnums=0)(weight)
    assert weight.u.is_deleted() and weight.vt.is_deleted()
    assert float(doubled.u[0, 0]) == 2.0


def test_eval_shape_and_back():
    weight = LowRank(u=jnp.ones((8, 2)), vt=jnp.ones((2, 8)), in_axes=1)
    abstract = jax.eval_shape(lambda w: jax.tree.map(lambda x: x.T, w), weight)
    assert abstract.u.shape == (2, 8)
    assert jax.tree.structure(abstract) == jax.tree.structure(weight)


@pytest.mark.parametrize(
    "content", [lambda x: None, lambda x: True, lambda x: x[..., None, None], lambda x: "label"]
)
def test_a_node_is_rebuilt_around_anything(content):
    weight = SpatialLowRank(u=jnp.ones((1, 3, 2, 2)), vt=jnp.ones((3, 1, 2, 4)))
    other = jax.tree.map(content, weight)
    assert type(other) is SpatialLowRank
    assert repr(other)
    assert copy.deepcopy(other).m is None


def test_static_axes_are_part_of_the_structure():
    one = LowRank(u=np.ones((4, 2)), vt=np.ones((2, 3)))
    two = LowRank(u=np.ones((4, 2)), vt=np.ones((2, 3)), in_axes=2)
    assert jax.tree.structure(one) != jax.tree.structure(two)
    with pytest.raises(ValueError):
        jax.tree.map(operator.add, one, two)


def test_a_mask_of_the_dense_tree_is_a_valid_prefix():
    dense = {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "b": jnp.ones((4, 3))}
    mask = jax.tree.map(lambda x: x.ndim > 1, dense)
    mask["b"] = False
    weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))
    params = {"a": {"kernel": weight, "bias": jnp.ones(3)}, "b": weight}
    tx = optax.masked(optax.scale(-1.0), mask)
    updates, _ = tx.update(params, tx.init(params), params)
    assert float(updates["a"]["kernel"].u[0, 0]) == -1.0
    assert float(updates["a"]["kernel"].vt[0, 0]) == -1.0
    assert float(updates["a"]["bias"][0]) == 1.0
    assert float(updates["b"].u[0, 0]) == 1.0
    labels = jax.tree.map(lambda x: "train" if x.ndim > 1 else "freeze", dense)
    split = optax.multi_transform({"train": optax.sgd(1.0), "freeze": optax.set_to_zero()}, labels)
    updates, _ = split.update(params, split.init(params), params)
    assert float(updates["b"].vt[0, 0]) == -1.0 and float(updates["a"]["bias"][0]) == 0.0


def test_no_silent_conversion_to_an_array():
    weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))
    message = "is a factorized weight, not an array"
    for convert in (np.asarray, np.array, np.sum):
        with pytest.raises(TypeError, match=message):
            convert(weight)
    for convert in (jnp.asarray, jnp.array):  # Older JAX complains of the missing m first.
        with pytest.raises((TypeError, ValueError), match=f"{message}|None is not a valid value"):
            convert(weight)
    with pytest.raises(TypeError):
        jnp.ones((2, 4)) @ weight


def test_identity_is_equality():
    weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))
    twin = LowRank(u=weight.u, vt=weight.vt)
    assert weight == weight and weight != twin
    assert len({weight, twin, weight}) == 2


@every_case
def test_pickle_and_copy(case: Case):
    weight = case.weight(dtype=np.float32)
    for other in (pickle.loads(pickle.dumps(weight)), copy.copy(weight), copy.deepcopy(weight)):
        assert type(other) is case.kind and other.axes == weight.axes
        jax.tree.map(np.testing.assert_array_equal, other, weight)


def test_weights_are_immutable():
    weight = LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))
    with pytest.raises(AttributeError):
        weight.u = jnp.zeros((4, 2))
    assert weight.replace(vt=jnp.zeros((2, 3))).u is weight.u


def test_a_new_kind_needs_only_dense():
    weight = PlusDiagonal(u=jnp.ones((3, 1)), vt=jnp.ones((1, 3)), diagonal=jnp.arange(3.0))
    dense = np.ones((3, 3)) + np.diag([0.0, 1.0, 2.0])
    assert weight.shape == (3, 3) and weight.ndim == 2 and weight.dtype == jnp.float32
    assert (weight.rank, weight.depth, weight.axes) == (3, 3, {})
    assert float(weight.squared_norm()) == np.sum(dense**2)
    gradient = jax.grad(half_squared_norm)(weight)
    np.testing.assert_allclose(gradient.diagonal, np.diag(dense))
    np.testing.assert_allclose(gradient.u[:, 0], dense.sum(1))
    np.testing.assert_array_equal(weight.take(jnp.array([2])), dense[[2]])
    numbers = (((1,), (0,)), ((), ()))
    np.testing.assert_allclose(weight.dot_general(jnp.eye(3), numbers), dense)
    with pytest.raises(ValueError, match=r"PlusDiagonal.*no factored form"):
        weight.dot_general(jnp.eye(3), numbers, compose=False)
    with pytest.raises(ValueError, match="cannot be made from a dense kernel"):
        PlusDiagonal.check((3, 3))
