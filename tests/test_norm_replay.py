"""Norm replay: the recorded norms are those after every step, and nothing else changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lowrank_jax import FixedRank, LowRank, Rule, SpatialLowRank, factorize, replay_norms
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


def test_a_weight_of_zeros_stays_one() -> None:
    params = {"w": LowRank(jnp.zeros((3, 1)), jnp.zeros((1, 3)))}
    tx = replay_norms({"w": jnp.ones(1)})
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
    ],
)
def test_a_record_of_another_model_is_refused(norms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay_norms(norms).init(weights())


def test_a_kind_without_two_factors_is_refused() -> None:
    with pytest.raises(ValueError, match="w is a Scaled, not a two-factor weight"):
        replay_norms({"w": jnp.ones(1)}).init({"w": Scaled(jnp.ones((2, 2)))})


def test_missing_params_give_the_message_of_optax() -> None:
    tx, params = replay_norms(record()), weights()
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params))
