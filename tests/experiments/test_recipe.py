"""Schedules, decays and the order of the optimizer, against tables and closed forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import lowrank_jax as lrj
from configs import cifar_resnet, cuttlefish
from experiments import arguments, recipe


def settled(argument: str = "", **keys: Any) -> ConfigDict:
    config = cifar_resnet.get_config(argument)
    config.update(keys)
    return arguments.settle(config)


@pytest.mark.parametrize(
    ("argument", "rates"),
    [
        # Milestones at int(.5 * epochs) and int(.75 * epochs), as rates of whole epochs.
        ("epochs=8", [0.1] * 4 + [0.01] * 2 + [0.001] * 2),
        ("epochs=5", [0.1] * 2 + [0.01] + [0.001] * 2),
        ("epochs=1", [0.001]),
        ("epochs=8,depth=56,protocol=published", [0.01] + [0.1] * 3 + [0.01] * 2 + [0.001] * 2),
        ("epochs=4,depth=110", [0.01, 0.1, 0.01, 0.001]),
        ("epochs=8,depth=44,protocol=published", [0.1] * 4 + [0.01] * 2 + [0.001] * 2),
        ("epochs=2,depth=56", [0.01, 0.001]),  # The milestones pass during the warm-up.
        ("epochs=6,warmup_epochs=2,warmup_learning_rate=0.5", [0.5] * 2 + [0.1, 0.01, 1e-3, 1e-3]),
        ("epochs=4,learning_rate=2,milestone_factor=0.5", [2.0, 2.0, 1.0, 0.5]),
    ],
)
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_learning_rate_of_every_step(
    argument: str, rates: list[float], steps_per_epoch: int
) -> None:
    schedule = recipe.learning_rate(settled(argument), steps_per_epoch)
    found = [float(schedule(step)) for step in range(len(rates) * steps_per_epoch)]
    np.testing.assert_allclose(found, np.repeat(rates, steps_per_epoch), rtol=1e-6)


# The published recipe: 300 epochs, warm-up of five, a tenth at 150 and at 225.
_WARM = [0.1, 0.24, 0.38, 0.52, 0.66]


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        (None, {}),
        (40, dict(zip(range(40, 45), _WARM, strict=True))),
        # From a milestone on it is never above what it would be without a switch.
        (148, {148: 0.1, 149: 0.24, 150: 0.08, 151: 0.08, 152: 0.08}),
    ],
)
def test_the_learning_rate_warms_up_again_after_a_switch(
    switch: int | None, changed: dict[int, float]
) -> None:
    config = arguments.settle(cuttlefish.get_config())
    rates = _WARM + [0.8] * 145 + [0.08] * 75 + [0.008] * 75
    for epoch, rate in changed.items():
        rates[epoch] = rate
    at = None if switch is None else 3 * switch
    schedule = recipe.learning_rate(config, 3, at)
    found = [float(schedule(step)) for step in range(3 * len(rates))]
    np.testing.assert_allclose(found, np.repeat(rates, 3), rtol=1e-6)


@pytest.mark.parametrize("decay", ["frobenius", "plain"])
def test_decay_of_a_network_that_becomes_low_rank(decay: str) -> None:
    """Vectors are never decayed; kernels plainly, and their factors by one of both rules."""
    config = arguments.settle(cuttlefish.get_config())
    config.update({"decay": decay, "weight_decay": 0.1})
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 8)))
    dense = {"kernel": kernel, "bias": jnp.ones(8), "norm": {"scale": jnp.ones(8)}}
    low = lrj.factorize(dense, [lrj.Rule("kernel", lrj.FixedRank(2), lrj.ChannelLowRank)])

    def update(params: Any) -> Any:
        tx = recipe.decay(config, ratio=0.5)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zeros, tx.init(params), params)[0]

    for updates in (update(dense), update(low)):
        assert not np.any(updates["bias"]) and not np.any(updates["norm"]["scale"])
    np.testing.assert_allclose(update(dense)["kernel"], 0.1 * kernel, rtol=1e-6)
    u, vt = low["kernel"].u.reshape(36, 2), low["kernel"].vt.reshape(2, 8)
    expected = (u @ vt @ vt.T, u.T @ u @ vt) if decay == "frobenius" else (u, vt)
    found = update(low)["kernel"]
    np.testing.assert_allclose(found.u.reshape(36, 2), 0.1 * expected[0], rtol=1e-5)
    np.testing.assert_allclose(found.vt.reshape(2, 8), 0.1 * expected[1], rtol=1e-5)


def test_two_hundred_published_epochs() -> None:
    """The recipe of the paper: 200 epochs, a tenth at 100 and at 150."""
    schedule = recipe.learning_rate(settled("protocol=published"), 391)
    changes = [
        step
        for step in range(1, 200 * 391)
        if step % 391 in (0, 1, 390) and float(schedule(step)) != float(schedule(step - 1))
    ]
    assert changes == [100 * 391, 150 * 391]


@pytest.fixture
def tree() -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters with every case (a factorized and a dense kernel, a vector), and gradients."""
    keys = iter(jax.random.split(jax.random.key(0), 12))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    def make() -> dict[str, Any]:
        weight = lrj.SpatialLowRank(u=normal(1, 3, 4, 2), vt=normal(3, 1, 2, 5))
        return {"conv": {"kernel": weight}, "head": {"kernel": normal(5, 3), "bias": normal(3)}}

    return make(), make()


LAMBDA, RATIO = 0.25, 0.3


def decayed(kind: str, params: dict[str, Any]) -> dict[str, Any]:
    """What is added to zero gradients."""
    tx = recipe.decay(settled(f"decay={kind}", weight_decay=LAMBDA), RATIO)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return tx.update(zeros, tx.init(params), params)[0]


@pytest.mark.parametrize("kind", ["none", "plain", "frobenius", "crs"])
def test_what_is_not_factorized_gets_plain_decay(
    kind: str, tree: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    params, _ = tree
    added = decayed(kind, params)
    for name in ("kernel", "bias"):
        expected = LAMBDA * np.asarray(params["head"][name])
        np.testing.assert_allclose(added["head"][name], expected, rtol=1e-6)


@pytest.mark.parametrize(("kind", "factor"), [("none", 0.0), ("plain", 1.0), ("crs", RATIO)])
def test_decay_of_each_factor(
    kind: str, factor: float, tree: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    params, _ = tree
    weight, added = params["conv"]["kernel"], decayed(kind, params)["conv"]["kernel"]
    for name in ("u", "vt"):
        expected = factor * LAMBDA * np.asarray(getattr(weight, name))
        np.testing.assert_allclose(getattr(added, name), expected, rtol=1e-6, atol=0)


def test_frobenius_decay_of_the_product(tree: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """With matrices u (kw in, r) and v (r, kh out): u v vᵀ and uᵀ u v."""
    params, _ = tree
    weight, added = params["conv"]["kernel"], decayed("frobenius", params)["conv"]["kernel"]
    u = np.asarray(weight.u, np.float64).reshape(12, 2)
    v = np.asarray(weight.vt, np.float64).transpose(2, 0, 1, 3).reshape(2, 15)
    du = (LAMBDA * u @ v @ v.T).reshape(1, 3, 4, 2)
    dv = (LAMBDA * u.T @ u @ v).reshape(2, 3, 1, 5).transpose(1, 2, 0, 3)
    np.testing.assert_allclose(added.u, du, rtol=1e-5)
    np.testing.assert_allclose(added.vt, dv, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "plain", "frobenius", "crs"])
def test_a_dense_network_is_decayed_alike_by_every_kind(
    kind: str, tree: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    params = lrj.merge(tree[0])
    expected = jax.tree.map(lambda leaf: LAMBDA * leaf, params)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        decayed(kind, params),
        expected,
    )


@pytest.mark.parametrize("kind", ["none", "plain", "frobenius", "crs"])
def test_decay_passes_through_the_momentum(
    kind: str, tree: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """v <- momentum v + (gradient + decay); p <- p - rate v, over three steps with two rates."""
    params, grads = tree
    config = settled(f"decay={kind},epochs=2", weight_decay=LAMBDA, learning_rate=0.01)
    tx = recipe.optimizer(config, 2, RATIO)
    state = tx.init(params)
    expected = params
    velocity = jax.tree.map(jnp.zeros_like, params)
    for rate in (0.01, 0.01, 0.0001):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        added = decayed(kind, expected)
        velocity = jax.tree.map(lambda v, g, d: 0.9 * v + g + d, velocity, grads, added)
        expected = jax.tree.map(lambda p, v, r=rate: p - r * v, expected, velocity)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6),
        params,
        expected,
    )


@pytest.mark.parametrize(("variant", "depth"), [("flat", 2), ("deep", 3)])
def test_rules(variant: str, depth: int) -> None:
    (rule,) = recipe.rules(settled(f"variant={variant},rank_scale=0.5"), {})
    assert (rule.kind, rule.depth, rule.rank) == (lrj.SpatialLowRank, depth, lrj.RankScale(0.5))
    assert recipe.rules(settled("rank_scale=0"), {}) == []
    assert recipe.rules(settled("rank_scale=0,ratio=0.5,method=prune"), {}) == []
