"""Frobenius decay: its values against autodiff and closed forms, its memory, kinds, and errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jaxprs import largest_intermediate
from weights_cases import CASES, TWO_FACTOR_CASES, Case

from lowrank_jax import (
    ChannelLowRank,
    FactorizedWeight,
    LowRank,
    SpatialLowRank,
    Tucker,
    decay,
    frobenius_decay,
    frobenius_penalty,
)
from lowrank_jax.weights import register_weight

COEFFICIENT = 0.37
ROUNDED_CASES = [case for case in CASES if case.depth != 2]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def added(tx: optax.GradientTransformation, params: Any, state: Any = None) -> Any:
    """What a transform adds to updates of zero."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return tx.update(zeros, tx.init(params) if state is None else state, params)[0]


def same(left: Any, right: Any) -> None:
    """Asserts that two trees have one structure, one set of dtypes, and equal values."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@functools.cache
def decayed_cases(dtype: str, widened: bool = False) -> Any:
    """The added terms of all cases in one tree; ``widened``: rounded to ``dtype``, but float32."""
    cases = ROUNDED_CASES if dtype == "bfloat16" else CASES
    params = {case.name: case.weight() for case in cases}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    if widened:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return jax.jit(functools.partial(added, frobenius_decay(COEFFICIENT)))(params)


def dense(case: Case, **factors: Any) -> jax.Array:
    """The kernel, written out from the definitions in the design, not by the library."""
    return (dense_of_tensor if case.dims else dense_of_two)(case, **factors)


def dense_of_tensor(case: Case, **factors: Any) -> jax.Array:
    def core(k: int) -> Any:
        if case.kind is Tucker:
            return jnp.einsum("...xry,...dr->...xdy", factors[f"core{k}"], factors[f"factor{k}"])
        return factors[f"core{k}"]

    two = jnp.einsum("...xay,...ybz->...xabz", core(1), core(2))
    tensor = jnp.einsum("...xabz,...zcw->...abc", two, core(3))
    matrix = tensor.reshape(*case.shape[: case.batch], *case.shape[:-3:-1])
    return jnp.swapaxes(matrix, -1, -2).reshape(case.shape)


def dense_of_two(case: Case, u: Any, vt: Any, m: Any = None) -> jax.Array:
    if m is None:
        m = jnp.eye(case.rank, dtype=u.dtype)
    if case.kind is SpatialLowRank:
        return jnp.einsum("...zwir,...rs,...hzso->...hwio", u, m, vt)
    if case.kind is ChannelLowRank:
        return jnp.einsum("...hwir,...rs,...yzso->...hwio", u, m, vt)
    rows, columns = "abcd"[: len(case.rows)], "efgh"[: len(case.columns)]
    return jnp.einsum(f"...{rows}r,...rs,...s{columns}->...{rows}{columns}", u, m, vt)


def half_squared_norms(factors: dict[str, dict[str, Any]]) -> jax.Array:
    cases = {case.name: case for case in CASES}
    return 0.5 * sum(jnp.sum(dense(cases[name], **fs) ** 2) for name, fs in factors.items())


@functools.cache
def autodiff_float64() -> Any:
    """Half the sum of the squared norms of all cases, and its gradient."""
    factors = {case.name: case.factors() for case in CASES}
    return jax.jit(jax.value_and_grad(half_squared_norms))(factors)


def matrices(case: Case, factors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Factors as matrices: ``u`` (*batch, rows, r), ``vt`` (*batch, r, columns)."""
    batch, found = case.shape[: case.batch], {k: np.float64(v) for k, v in factors.items()}
    rank_axis = case.batch if case.kind is LowRank else case.batch + 2
    vt = np.moveaxis(found["vt"], rank_axis, case.batch)
    return found | {
        "u": found["u"].reshape(*batch, -1, case.rank),
        "vt": vt.reshape(*batch, case.rank, -1),
    }


def closed_form(case: Case, factors: dict[str, Any]) -> dict[str, np.ndarray]:
    """``u B``, ``A vt``; with a middle factor ``u m B mᵀ``, ``A m B``, ``mᵀ A m vt``."""
    f = matrices(case, factors)
    u, vt, t = f["u"], f["vt"], functools.partial(np.swapaxes, axis1=-1, axis2=-2)
    left, right = t(u) @ u, vt @ t(vt)
    if "m" not in f:
        return {"u": u @ right, "vt": left @ vt}
    m = f["m"]
    return {"u": u @ m @ right @ t(m), "m": left @ m @ right, "vt": t(m) @ left @ m @ vt}


def close(found: Any, expected: Any, tolerance: float) -> None:
    expected = np.asarray(expected, np.float64)
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error <= tolerance * np.abs(expected).max()


@each_case
def test_equals_autodiff_of_the_dense_norm_in_float64(x64: None, case: Case) -> None:
    found, expected = decayed_cases("float64")[case.name], autodiff_float64()[1][case.name]
    for name, factor in found.children():
        assert factor.dtype == jnp.float64
        close(factor, COEFFICIENT * expected[name], 1e-12)


@pytest.mark.parametrize("case", TWO_FACTOR_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_equals_the_closed_forms(x64: None, case: Case, dtype: str, tolerance: float) -> None:
    found = decayed_cases(dtype)[case.name]
    expected = closed_form(case, case.factors(dtype=dtype))
    assert all(factor.dtype == dtype for _, factor in found.children())
    found = matrices(case, dict(found.children()))
    assert found.keys() == expected.keys()
    for name, factor in expected.items():
        close(found[name], COEFFICIENT * factor, tolerance)


@pytest.mark.parametrize("case", ROUNDED_CASES, ids=lambda case: case.name)
def test_bfloat16_is_the_float32_result_rounded_once(case: Case) -> None:
    found = decayed_cases("bfloat16")[case.name]
    expected = decayed_cases("bfloat16", widened=True)[case.name]
    same(found, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))


def test_vmapped_and_stacked_weights_decay_alike() -> None:
    case = Case("stacked", LowRank, (3, 5, 4), batch=1, depth=3)
    stacked = jax.tree.map(jnp.float32, case.weight())
    tx = frobenius_decay(COEFFICIENT)
    same(added(tx, stacked), jax.vmap(functools.partial(added, tx))(stacked))


def large(kind: type, depth: int, batch: tuple[int, ...] = ()) -> FactorizedWeight:
    """At rank min(in, out) / 4, so that any array as large as the kernel stands out."""
    shape, axes, rank = {
        LowRank: ((6, 8, 4, 12), {"in_axes": 2, "out_axes": 2}, 12),
        SpatialLowRank: ((3, 3, 16, 16), {}, 12),
        ChannelLowRank: ((3, 3, 16, 16), {}, 4),
    }[kind]
    template = kind.template(batch + shape, jnp.float32, rank, depth, **axes)
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), template)


@pytest.mark.parametrize("kind", [LowRank, SpatialLowRank, ChannelLowRank])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_nothing_as_large_as_the_kernel_is_made(kind: type, depth: int, batch: tuple) -> None:
    params = {"kernel": large(kind, depth, batch)}
    tx = decay(1e-4)
    kernel = np.prod(params["kernel"].shape[len(batch) :])
    assert largest_intermediate(functools.partial(added, tx), params) < np.prod(batch) * kernel
    # The measure itself sees a composed kernel.
    assert largest_intermediate(lambda p: p["kernel"].dense(), params) >= np.prod(batch) * kernel


# Kinds that define nothing but `dense()`.


@register_weight()
class LowRankPlusSparse(FactorizedWeight):
    """``u @ vt`` plus ``values`` at integer ``indices`` (n, 2)."""

    u: Any
    vt: Any
    values: Any
    indices: Any

    def dense(self, *, precision: Any = jax.lax.Precision.HIGHEST) -> jax.Array:
        low_rank = jnp.matmul(self.u, self.vt, precision=precision)
        return low_rank.at[self.indices[:, 0], self.indices[:, 1]].add(self.values)


@register_weight()
class OneFactor(FactorizedWeight):
    """A matrix as itself: the factorization in which Frobenius decay is weight decay."""

    matrix: Any

    def dense(self, *, precision: Any = None) -> jax.Array:
        return self.matrix


@register_weight()
class FrozenInput(FactorizedWeight):
    """``u @ vt`` whose ``u`` is frozen."""

    u: Any
    vt: Any

    def dense(self, *, precision: Any = jax.lax.Precision.HIGHEST) -> jax.Array:
        return jnp.matmul(jax.lax.stop_gradient(self.u), self.vt, precision=precision)


def sparse_weight() -> LowRankPlusSparse:
    generator = np.random.default_rng(0)
    u, vt = generator.standard_normal((6, 2)), generator.standard_normal((2, 5))
    values, indices = generator.standard_normal(3), jnp.array([[0, 1], [2, 2], [5, 4]])
    return LowRankPlusSparse(jnp.asarray(u), jnp.asarray(vt), jnp.asarray(values), indices)


def test_a_kind_with_only_dense_is_decayed_and_its_integers_pass_through(x64: None) -> None:
    weight = sparse_weight()
    passed = jax.tree.map(jnp.ones_like, weight)
    tx = frobenius_decay(COEFFICIENT)
    found, _ = jax.jit(tx.update)({"w": passed}, tx.init({"w": weight}), {"w": weight})
    kernel = weight.dense()
    rows, columns = weight.indices.T
    close(found["w"].u - 1, COEFFICIENT * kernel @ weight.vt.T, 1e-12)
    close(found["w"].vt - 1, COEFFICIENT * weight.u.T @ kernel, 1e-12)
    close(found["w"].values - 1, COEFFICIENT * kernel[rows, columns], 1e-12)
    assert found["w"].indices is passed.indices or bool((found["w"].indices == 1).all())
    assert found["w"].indices.dtype == weight.indices.dtype


def test_a_mask_by_dtype_may_exclude_the_integers() -> None:
    params = {"w": jax.tree.map(lambda x: x, sparse_weight())}
    mask = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), params)
    same(added(frobenius_decay(1.0, mask=mask), params), added(frobenius_decay(1.0), params))


def test_a_frozen_leaf_gets_nothing() -> None:
    weight = FrozenInput(u=jnp.eye(3)[:, :2] * 2, vt=jnp.arange(8.0).reshape(2, 4))
    found = added(frobenius_decay(0.5), {"w": weight})["w"]
    np.testing.assert_array_equal(found.u, np.zeros((3, 2)))
    np.testing.assert_array_equal(found.vt, 0.5 * 4 * np.arange(8.0).reshape(2, 4))


@pytest.mark.parametrize("position", ["coupled", "decoupled"])
def test_with_one_trained_factor_it_is_weight_decay(position: str) -> None:
    """Momentum couples both alike: five equal steps of the product's matrix."""

    def optimizer(regularizer: optax.GradientTransformation) -> optax.GradientTransformation:
        chain = [regularizer, optax.trace(0.9)]
        return optax.chain(*(chain if position == "coupled" else chain[::-1]), optax.scale(-0.1))

    def run(tx: optax.GradientTransformation, params: Any, gradient: Any) -> Any:
        state = tx.init(params)
        for step in range(5):
            updates, state = tx.update(gradient(step), state, params)
            params = optax.apply_updates(params, updates)
        return params

    generator = np.random.default_rng(0)
    start = jnp.asarray(generator.standard_normal((4, 3)), jnp.float32)
    rotation = jnp.asarray(np.linalg.qr(generator.standard_normal((4, 4)))[0], jnp.float32)
    gradients = jnp.asarray(generator.standard_normal((5, 4, 3)), jnp.float32)
    plain = run(optimizer(optax.add_decayed_weights(0.2)), start, lambda step: gradients[step])
    one = run(
        optimizer(frobenius_decay(0.2)), OneFactor(start), lambda step: OneFactor(gradients[step])
    )
    close(one.matrix, plain, 1e-6)
    frozen = run(
        optimizer(frobenius_decay(0.2)),
        FrozenInput(rotation, rotation.T @ start),
        lambda step: FrozenInput(jnp.zeros((4, 4)), rotation.T @ gradients[step]),
    )
    close(frozen.dense(), plain, 1e-5)


# Boxes, dense and mixed trees.


def test_partition_boxes_around_factors() -> None:
    case = Case("boxed", SpatialLowRank, (3, 2, 4, 5), depth=3)
    weight = jax.tree.map(jnp.float32, case.weight())
    boxed = weight.replace(
        **{
            name: nn.Partitioned(factor, names=(None,) * factor.ndim)
            for name, factor in weight.children()
        }
    )
    found = added(frobenius_decay(COEFFICIENT), {"kernel": boxed})["kernel"]
    assert all(isinstance(box, nn.Partitioned) for _, box in found.children())
    same(nn.unbox(found), added(frobenius_decay(COEFFICIENT), {"kernel": weight})["kernel"])
    assert frobenius_penalty({"kernel": boxed}) == frobenius_penalty({"kernel": weight})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_on_a_dense_tree_decay_is_optax_add_decayed_weights(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal((2, 7, 5))
    params, updates = ({"a": [jnp.asarray(v, dtype)], "b": 1.5, "c": None} for v in values)
    ours, theirs = decay(0.1), optax.add_decayed_weights(0.1)
    found, state = ours.update(updates, ours.init(params), params)
    assert state == theirs.init(params)
    expected, _ = theirs.update(updates, theirs.init(params), params)
    expected["c"] = None
    same(found["a"], expected["a"])
    assert float(found["b"]) == pytest.approx(expected["b"]) and found["c"] is None


def test_integers_and_keys_outside_weights_pass_through() -> None:
    params = {"count": jnp.int32(3), "key": jax.random.key(0), "w": jnp.ones(2)}
    updates = {"count": jnp.int32(7), "key": jax.random.key(1), "w": jnp.zeros(2)}
    tx = decay(0.5)
    found, _ = tx.update(updates, tx.init(params), params)
    assert found["count"] == 7 and found["key"] == updates["key"]
    np.testing.assert_array_equal(found["w"], [0.5, 0.5])


def test_the_penalty_is_the_sum_and_zero_where_nothing_is_factorized(x64: None) -> None:
    params = {case.name: case.weight() for case in CASES} | {"bias": np.ones(3)}
    expected, expected_gradient = autodiff_float64()
    found, gradient = jax.jit(jax.value_and_grad(frobenius_penalty))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not gradient["bias"].any()
    for case in CASES:
        for name, factor in gradient[case.name].children():
            close(factor, expected_gradient[case.name][name], 1e-12)
    for empty in ({}, {"bias": np.ones(3)}, None):
        assert frobenius_penalty(empty) == 0


# Errors.


def test_a_tree_without_factorized_weights_is_refused_by_name_of_the_remedy() -> None:
    for params in ({"kernel": jnp.ones((3, 3))}, {}, {"kernel": None}):
        with pytest.raises(ValueError, match=r"no factorized weight.*lowrank_jax\.decay"):
            frobenius_decay(1e-4).init(params)
        decay(1e-4).init(params)


def test_missing_params_give_the_message_of_optax() -> None:
    params = {"w": LowRank(jnp.ones((3, 1)), jnp.ones((1, 3)))}
    with pytest.raises(ValueError) as theirs:
        optax.add_decayed_weights(0.1).update(params, optax.EmptyState(), None)
    schedule = optax.constant_schedule(1.0)
    for tx in (frobenius_decay(0.1), decay(0.1), decay(0.0), frobenius_decay(schedule)):
        with pytest.raises(ValueError) as ours:
            tx.update(params, tx.init(params))
        assert str(ours.value) == str(theirs.value)


def test_init_accepts_abstract_parameters() -> None:
    params = {"k": large(SpatialLowRank, 3), "b": jnp.ones(3), "s": sparse_weight()}
    abstract = jax.eval_shape(lambda: params)
    for tx in (frobenius_decay(1e-4), decay(1e-4), decay(optax.constant_schedule(1e-4))):
        assert jax.tree.structure(tx.init(abstract)) == jax.tree.structure(tx.init(params))
        jax.eval_shape(tx.init, params)
