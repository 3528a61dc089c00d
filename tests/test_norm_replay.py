"""Norms recorded and replayed: they are those after every step, and nothing else changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lowrank_jax import (
    FixedRank,
    LowRank,
    Rule,
    SpatialLowRank,
    factorize,
    frobenius_decay,
    record_norms,
    recorded_norms,
    replay_norms,
)
from lowrank_jax.norm_replay import raise_if_vanished
from lowrank_jax.weights import FactorizedWeight, register_weight

STEPS = 4


def parameters() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    conv = jnp.asarray(generator.standard_normal((3, 3, 4, 5)), jnp.float32)
    deep = [
        jnp.asarray(generator.standard_normal(s), jnp.float32) for s in ((6, 2), (2, 5), (2, 2))
    ]
    return {"conv": conv, "deep": LowRank(*deep), "bias": jnp.zeros(5), "step": jnp.int32(1)}


def weights() -> dict[str, Any]:
    return factorize(parameters(), [Rule("conv", FixedRank(3), SpatialLowRank)])


def record(paths: tuple[str, ...] = ("conv", "deep"), steps: int = STEPS) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {path: jnp.asarray(generator.uniform(0.5, 9.0, steps)) for path in paths}


def norm(weight: Any) -> float:
    return float(np.linalg.norm(np.asarray(weight.dense(), np.float64)))


def test_after_every_step_the_norms_are_the_recorded_ones() -> None:
    params, norms = weights(), record()
    del params["step"]
    tx = optax.chain(optax.adam(0.05), replay_norms(norms))
    plain = optax.adam(0.05)
    state, plain_state, update = tx.init(params), plain.init(params), jax.jit(tx.update)
    for step in range(STEPS + 2):
        gradient = jax.tree.map(lambda x, step=step: jnp.sin(7 * x + step), params)
        updates, state = update(gradient, state, params)
        undisturbed, plain_state = plain.update(gradient, plain_state, params)
        # What is not rescaled is passed on as it came; so is the middle factor.
        np.testing.assert_allclose(updates["bias"], undisturbed["bias"], rtol=1e-6)
        reached = optax.apply_updates(params, undisturbed)
        params = optax.apply_updates(params, updates)
        for path, recorded in norms.items():
            target = float(recorded[min(step, STEPS - 1)])
            assert norm(params[path]) == pytest.approx(target, rel=1e-5)
            ratio = (target / norm(reached[path])) ** 0.5
            np.testing.assert_allclose(
                params[path].u, reached[path].u * ratio, rtol=1e-4, atol=1e-5
            )
        np.testing.assert_allclose(params["deep"].m, reached["deep"].m, rtol=1e-5, atol=1e-6)


def test_other_leaves_integers_and_missing_updates_pass_through() -> None:
    params = weights()
    tx = replay_norms(record())
    updates = jax.tree.map(jnp.zeros_like, params) | {"step": jnp.int32(5), "bias": None}
    found, _ = tx.update(updates, tx.init(params), params)
    assert found["step"] == 5 and found["step"].dtype == jnp.int32 and found["bias"] is None


def test_norms_are_recorded_after_every_step_and_nothing_changes() -> None:
    params = weights()
    del params["step"]
    plain = optax.chain(frobenius_decay(0.1), optax.adam(0.05))
    tx = optax.chain(plain, record_norms(STEPS))
    state, update = tx.init(params), jax.jit(tx.update)
    expected: dict[str, list[float]] = {"conv": [], "deep": []}
    for step in range(STEPS + 2):  # The last two are past the end of the record.
        gradient = jax.tree.map(lambda x, step=step: jnp.sin(7 * x + step), params)
        # Not compiled, since two programs may round otherwise.
        found, _ = tx.update(gradient, state, params)
        undisturbed, _ = plain.update(gradient, state[0], params)
        jax.tree.map(np.testing.assert_array_equal, found, undisturbed)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for path, norms in expected.items():
            norms.append(norm(params[path]))
        found = recorded_norms(state)
        assert {len(norms) for norms in found.values()} == {min(step + 1, STEPS)}
    for path, norms in expected.items():
        np.testing.assert_allclose(found[path], norms[:STEPS], rtol=1e-6)


def test_a_recorded_run_can_be_replayed_without_its_decay() -> None:
    def train(tx: optax.GradientTransformation) -> tuple[Any, list[dict[str, float]]]:
        params, norms = weights(), []
        del params["step"]
        state = tx.init(params)
        for step in range(STEPS):
            gradient = jax.tree.map(lambda x, step=step: jnp.sin(7 * x + step), params)
            updates, state = jax.jit(tx.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
            norms.append({path: norm(params[path]) for path in ("conv", "deep")})
        return state, norms

    decayed = optax.chain(frobenius_decay(0.5), optax.sgd(0.01), record_norms(STEPS))
    state, norms = train(decayed)
    _, replayed = train(optax.chain(optax.sgd(0.01), replay_norms(recorded_norms(state))))
    _, free = train(optax.sgd(0.01))
    for step in range(STEPS):
        assert replayed[step] == pytest.approx(norms[step], rel=1e-5)
        assert free[step]["conv"] > 1.001 * norms[step]["conv"]


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a positive number of steps"):
        record_norms(0)
    with pytest.raises(ValueError, match="nothing is factorized"):
        record_norms(3).init({"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="expected one record_norms in the optimizer, found 0"):
        recorded_norms(optax.adam(0.1).init(weights()))
    twice = optax.chain(record_norms(2), record_norms(3))
    with pytest.raises(ValueError, match="found 2"):
        recorded_norms(twice.init(weights()))


def test_the_record_is_planned_by_shapes() -> None:
    state = jax.eval_shape(record_norms(7).init, weights())
    assert {path: leaf.shape for path, leaf in state.norms.items()} == {"conv": (7,), "deep": (7,)}


# The norm of the product is 3 * (3e-7)^2 = 2.7e-13.
VANISHED = {"w": LowRank(jnp.full((3, 1), 3e-7), jnp.full((1, 3), 3e-7))}


def test_a_product_that_has_vanished_is_an_error() -> None:
    params = {"v": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2))), **VANISHED}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optax.chain(optax.sgd(0.1), replay_norms({"v": jnp.ones(2), "w": jnp.array([1e-13, 1])}))
    message = r"w: after step 2 the norm of the product is below 1e-12"
    state = tx.init(params)
    _, state = tx.update(zeros, state, params)  # The recorded norm is below as well: nothing to do.
    with pytest.raises(ValueError, match=message):
        tx.update(zeros, state, params)
    updates, state = jax.jit(tx.update)(zeros, state, params)
    assert jnp.isnan(updates["w"].u).all() and jnp.isfinite(updates["v"].u).all()
    with pytest.raises(ValueError, match=message):
        raise_if_vanished(state)
    # The first step at which it happened stays the one that is told.
    _, state = jax.jit(tx.update)(zeros, state, params)
    with pytest.raises(ValueError, match=message):
        raise_if_vanished(state)


def test_a_small_product_is_rescaled_while_it_has_a_direction() -> None:
    params = jax.tree.map(lambda leaf: 10 * leaf, VANISHED)
    tx = replay_norms({"w": jnp.ones(1)})
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    raise_if_vanished(state)
    assert norm(optax.apply_updates(params, updates)["w"]) == pytest.approx(1.0, rel=1e-5)


def test_a_weight_of_zeros_stays_one_where_zero_was_recorded() -> None:
    params = {"w": LowRank(jnp.zeros((3, 1)), jnp.zeros((1, 3)))}
    tx = replay_norms({"w": jnp.zeros(1)})
    found, _ = tx.update(params, tx.init(params), params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found))


def test_boxes_stay_on() -> None:
    plain = weights()["conv"]
    boxed = plain.replace(u=nn.Partitioned(plain.u, names=(None, None, "in", None)))
    tx = replay_norms({"conv": jnp.array([2.0])})
    zeros = jax.tree.map(jnp.zeros_like, {"conv": boxed})
    updates, _ = tx.update(zeros, tx.init({"conv": boxed}), {"conv": boxed})
    assert updates["conv"].u.names == boxed.u.names
    moved = optax.apply_updates({"conv": boxed}, updates)["conv"]
    assert norm(moved.replace(u=moved.u.value)) == pytest.approx(2.0, rel=1e-5)


@register_weight()
class Scaled(FactorizedWeight):
    """A kind without two factors."""

    matrix: Any

    def dense(self, *, precision: Any = None) -> jax.Array:
        return 2 * self.matrix


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (record(("conv",)), r"another model: not recorded \['deep'\], not in the model \[\]"),
        (record(("conv", "deep", "x")), r"not recorded \[\], not in the model \['x'\]"),
        ({}, r"not recorded \['conv', 'deep'\]"),
        (record(("conv",)) | {"deep": jnp.ones((2, 2))}, r"deep: the record has shape \(2, 2\)"),
        (record(("conv",)) | {"deep": jnp.ones(0)}, r"deep: the record has shape \(0,\)"),
        (record(("conv",)) | {"deep": -jnp.ones(3)}, "deep: .*negative or not finite"),
        (record(("conv",)) | {"deep": jnp.full(3, jnp.nan)}, "deep: .*negative or not finite"),
    ],
)
def test_a_record_of_another_model_is_refused(norms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay_norms(norms).init(weights())


def test_a_dense_tree_has_no_norms_to_set() -> None:
    with pytest.raises(ValueError, match="nothing is factorized"):
        replay_norms({}).init({"kernel": jnp.ones((2, 2))})


@register_weight(static=("in_axes", "out_axes"))
class Cancelling(LowRank):
    """Its squared norm is rounded to something below zero, as that of a Gram matrix may be."""

    def squared_norm(self) -> jax.Array:
        return jnp.float32(-1e-6)


def test_a_product_that_cancels_has_the_norm_zero() -> None:
    params = {"w": Cancelling(jnp.ones((3, 2)), jnp.ones((2, 3)))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = record_norms(1)
    _, state = tx.update(zeros, tx.init(params), params)
    assert recorded_norms(state)["w"].tolist() == [0]
    tx = replay_norms({"w": jnp.ones(1)})
    with pytest.raises(ValueError, match="w: after step 1 the norm of the product is below 1e-12"):
        tx.update(zeros, tx.init(params), params)


def test_a_kind_without_two_factors_is_refused() -> None:
    with pytest.raises(ValueError, match="w is a Scaled, not a two-factor weight"):
        replay_norms({"w": jnp.ones(1)}).init({"w": Scaled(jnp.ones((2, 2)))})


def test_missing_params_give_the_message_of_optax() -> None:
    tx, params = replay_norms(record()), weights()
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params))
