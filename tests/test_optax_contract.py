"""The decays among Optax's other transforms: masks, schedules, partitions, chains, None updates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax import (
    FactorizedWeight,
    LowRank,
    SpatialLowRank,
    TensorTrain,
    decay,
    frobenius_decay,
)

WEIGHT, FROBENIUS = 0.25, 0.5


def parameters(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    return {
        "conv": {"kernel": SpatialLowRank(u=normal(1, 3, 4, 2), vt=normal(3, 1, 2, 5))},
        "tensor": {
            "kernel": TensorTrain(
                normal(1, 4, 2), normal(2, 4, 3), normal(3, 3, 1), outputs=8, spatial_axes=2
            )
        },
        "dense": {
            "bias": normal(6),
            "kernel": LowRank(u=normal(5, 2), m=normal(2, 2), vt=normal(2, 6)),
        },
        "norm": {"scale": normal(4)},
    }


@jax.jit
@jax.grad
def gradient_of_the_norm(weight: Any) -> Any:
    return 0.5 * jnp.sum(weight.dense() ** 2)


def constant(value: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), tree)


def expected(params: Any, frobenius: float, plain: float, hidden: tuple[str, ...] = ()) -> Any:
    """The decays written out: gradient of the norm of ``dense()`` by autodiff, and the leaf."""

    def term(path: Any, leaf: Any) -> Any:
        if jax.tree_util.keystr(path, simple=True, separator="/").startswith(hidden or "-"):
            return constant(0, leaf)
        if isinstance(leaf, jax.Array):
            return plain * leaf
        return jax.tree.map(lambda x: frobenius * x, gradient_of_the_norm(leaf))

    is_leaf = lambda x: isinstance(x, FactorizedWeight)  # noqa: E731
    return jax.tree_util.tree_map_with_path(term, params, is_leaf=is_leaf)


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def added(tx: optax.GradientTransformation, params: Any) -> Any:
    return tx.update(constant(0, params), tx.init(params), params)[0]


def test_each_leaf_of_a_mixed_tree_is_decayed_once_by_the_rule_that_fits() -> None:
    params = parameters()
    close(added(decay(WEIGHT), params), expected(params, WEIGHT, WEIGHT))
    close(added(decay(WEIGHT, FROBENIUS), params), expected(params, FROBENIUS, WEIGHT))
    close(added(frobenius_decay(FROBENIUS), params), expected(params, FROBENIUS, 0))


@pytest.mark.parametrize(("plain", "frobenius"), [(WEIGHT, 0.0), (0.0, FROBENIUS), (0, 0)])
def test_a_coefficient_of_zero_leaves_the_updates_themselves(
    plain: float, frobenius: float
) -> None:
    params = parameters()
    tx, updates = decay(plain, frobenius), constant(0, params)
    found, _ = tx.update(updates, tx.init(params), params)
    close(found, expected(params, frobenius, plain))
    if not plain:
        assert found["norm"]["scale"] is updates["norm"]["scale"]
    if not frobenius:
        assert found["conv"]["kernel"].u is updates["conv"]["kernel"].u


# Schedules.


def schedule(count: jax.Array) -> jax.Array:
    return 0.1 * (count + 1)


@pytest.mark.parametrize(
    ("tx", "at"),
    [
        (decay(schedule, FROBENIUS), lambda c: (FROBENIUS, c)),
        (decay(WEIGHT, schedule), lambda c: (c, WEIGHT)),
        (decay(schedule), lambda c: (c, c)),
        (frobenius_decay(schedule), lambda c: (c, 0)),
    ],
)
def test_schedules_share_one_counter_and_compile_once(tx: Any, at: Any) -> None:
    params = parameters()
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()]
    traces = []

    @jax.jit
    def update(*args: Any) -> Any:
        traces.append(None)
        return tx.update(*args)

    for step in range(3):
        found, state = update(constant(0, params), state, params)
        close(found, expected(params, *at(0.1 * (step + 1))))
    assert state.count == 3
    assert len(traces) == 1


def test_the_counter_saturates() -> None:
    tx, params = frobenius_decay(schedule), parameters()
    last = jnp.iinfo(jnp.int32).max
    state = tx.init(params)._replace(count=jnp.int32(last))
    assert tx.update(params, state, params)[1].count == last


def test_a_scheduled_coefficient_keeps_bfloat16() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters())
    found = added(decay(schedule), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}


# Masks.

DENSE_MASK = {
    "conv": {"kernel": True},
    "tensor": {"kernel": False},
    "dense": {"kernel": False, "bias": True},
    "norm": {"scale": False},
}
HIDDEN = ("dense/kernel", "norm", "tensor")


@pytest.mark.parametrize(
    ("mask", "hidden"),
    [
        (DENSE_MASK, HIDDEN),
        ({"conv": True, "dense": False, "norm": True, "tensor": True}, ("dense",)),
        (lambda params: DENSE_MASK, HIDDEN),
        (lambda params: jax.tree.map(lambda x: x.ndim > 1, params), ("dense/bias", "norm")),
        (True, ()),
        (False, ("conv", "dense", "norm", "tensor")),
        (np.bool_(True), ()),
    ],
    ids=["dense tree", "prefix", "callable", "callable per leaf", "True", "False", "numpy"],
)
@pytest.mark.parametrize("outer", [False, True], ids=["mask=", "optax.masked"])
def test_masks_mean_what_those_of_optax_do(mask: Any, hidden: tuple[str, ...], outer: bool) -> None:
    params = parameters()
    inner = functools.partial(decay, WEIGHT, FROBENIUS)
    tx = optax.masked(inner(), mask) if outer else inner(mask=mask)
    close(added(tx, params), expected(params, FROBENIUS, WEIGHT, hidden))
    only = functools.partial(frobenius_decay, FROBENIUS)
    tx = optax.masked(only(), mask) if outer else only(mask=mask)
    close(added(tx, params), expected(params, FROBENIUS, 0, hidden))


@pytest.mark.parametrize("outer", [False, True], ids=["mask=", "optax.masked"])
def test_a_mask_over_half_a_weight_is_an_error(outer: bool) -> None:
    params = parameters()
    mask = jax.tree.map(lambda _: True, params)
    mask["dense"]["kernel"] = mask["dense"]["kernel"].replace(m=False)
    tx = optax.masked(decay(0.1), mask) if outer else decay(0.1, mask=mask)
    with pytest.raises(ValueError, match=r"^dense/kernel: the mask covers some of its factors"):
        tx.init(params)


def test_a_mask_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError):
        decay(0.1, mask={"conv": True}).init(parameters())


def test_masks_may_read_the_parameters_inside_jit() -> None:
    params = parameters()
    mask = lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)  # noqa: E731
    close(
        jax.jit(functools.partial(added, decay(0.1, mask=mask)))(params),
        added(decay(0.1, mask=mask), params),
    )


# None.


def test_missing_updates_stay_missing() -> None:
    params = parameters()
    updates = constant(0, params)
    wanted = expected(params, FROBENIUS, WEIGHT)
    for tree in (updates, wanted):
        tree["conv"] = None
        tree["dense"]["kernel"] = tree["dense"]["kernel"].replace(u=None)
        tree["norm"]["scale"] = None
    tx = decay(WEIGHT, FROBENIUS)
    close(tx.update(updates, tx.init(params), params)[0], wanted)


def test_parameters_filtered_to_none_are_out_of_sight() -> None:
    params = parameters() | {"frozen": LowRank(u=None, vt=None), "nothing": None}
    wanted = expected(parameters(), FROBENIUS, WEIGHT)
    found = added(decay(WEIGHT, FROBENIUS), params)
    close({key: found[key] for key in wanted}, wanted)
    params["frozen"] = LowRank(u=jnp.ones((3, 1)), vt=None)
    with pytest.raises(ValueError, match=r"^frozen: the mask covers some of its factors"):
        decay(0.1).init(params)


# Compositions.


def test_partition_decays_by_label() -> None:
    params = parameters()
    transforms = {"low": frobenius_decay(FROBENIUS), "rest": optax.add_decayed_weights(WEIGHT)}
    labels = {
        "conv": "low",
        "dense": {"kernel": "low", "bias": "rest"},
        "norm": "rest",
        "tensor": "low",
    }
    wanted = expected(params, FROBENIUS, WEIGHT)
    close(added(optax.partition(transforms, labels), params), wanted)
    close(added(optax.multi_transform(transforms, lambda _: labels), params), wanted)
    frozen = {"low": frobenius_decay(FROBENIUS), "rest": optax.set_to_zero()}
    close(added(optax.partition(frozen, labels), params), expected(params, FROBENIUS, 0))


def test_a_label_nobody_wears_is_no_error() -> None:
    transforms = {"low": frobenius_decay(0.1), "rest": optax.identity()}
    close(added(optax.partition(transforms, "rest"), parameters()), constant(0, parameters()))


def test_multi_steps_decays_once_per_accumulated_step() -> None:
    params = parameters()
    tx = optax.MultiSteps(optax.chain(decay(WEIGHT, FROBENIUS), optax.scale(-1.0)), 2)
    state, update = tx.init(params), jax.jit(tx.update)
    first, state = update(constant(1, params), state, params)
    close(first, constant(0, params))
    second, _ = update(constant(3, params), state, params)
    close(second, jax.tree.map(lambda d: -(d + 2), expected(params, FROBENIUS, WEIGHT)))


def test_injected_coefficients_can_be_changed() -> None:
    params = parameters()
    tx = optax.inject_hyperparams(frobenius_decay)(weight_decay=WEIGHT)
    state = tx.init(params)
    update = jax.jit(tx.update)
    close(update(constant(0, params), state, params)[0], expected(params, WEIGHT, 0))
    state.hyperparams["weight_decay"] = jnp.float32(FROBENIUS)
    close(update(constant(0, params), state, params)[0], expected(params, FROBENIUS, 0))
    both = optax.inject_hyperparams(decay)(weight_decay=schedule, frobenius_decay=FROBENIUS)
    close(added(both, params), expected(params, FROBENIUS, 0.1))
    masked = optax.inject_hyperparams(decay, static_args="mask")
    tx = masked(weight_decay=WEIGHT, frobenius_decay=FROBENIUS, mask=lambda _: DENSE_MASK)
    close(added(tx, params), expected(params, FROBENIUS, WEIGHT, HIDDEN))


def test_tree_map_params_sees_the_factors_and_not_the_counter() -> None:
    params = parameters()
    tx = optax.chain(decay(schedule), optax.adam(1e-3))
    state = optax.tree_map_params(tx, lambda leaf: leaf + 1, tx.init(params))
    assert state[0].count == 0
    moments = optax.tree_utils.tree_get(state, "mu")
    close(moments, constant(1, params))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_position_in_the_chain_decides_how_decay_is_coupled(optimizer: str) -> None:
    params, rate = parameters(), 0.1
    gradient = parameters(seed=1)
    term = expected(params, FROBENIUS, WEIGHT)
    rule = decay(WEIGHT, FROBENIUS)
    if optimizer == "sgd":
        coupled = optax.chain(rule, optax.sgd(rate, momentum=0.9))
        first = lambda g: g  # noqa: E731  (momentum starts at zero)
        second = lambda g, d: 1.9 * (g + d)  # noqa: E731
        decoupled = optax.chain(optax.trace(0.9), rule, optax.scale(-rate))
        second_decoupled = lambda g, d: 1.9 * g + d  # noqa: E731
    else:
        coupled = optax.chain(rule, optax.adam(rate, eps=0.0))
        first = jnp.sign  # With both moments bias-corrected, the first step is the sign.
        second, second_decoupled = (lambda g, d: jnp.sign(g + d)), (lambda g, d: jnp.sign(g) + d)
        decoupled = optax.chain(optax.scale_by_adam(eps=0.0), rule, optax.scale(-rate))
    for tx, one, two in (
        (coupled, lambda g, d: first(g + d), second),
        (decoupled, lambda g, d: first(g) + d, second_decoupled),
    ):
        state, update = tx.init(params), jax.jit(tx.update)
        for closed in (one, two):  # The same gradient at the same parameters, twice.
            found, state = update(gradient, state, params)
            close(found, jax.tree.map(lambda g, d, f=closed: -rate * f(g, d), gradient, term))


def test_decoupled_on_a_dense_tree_is_adamw() -> None:
    params = {"kernel": parameters()["dense"]["kernel"].dense(), "bias": jnp.ones(6)}
    gradient = jax.tree.map(jnp.cos, params)
    ours = optax.chain(optax.scale_by_adam(), decay(0.1), optax.scale_by_learning_rate(1e-2))
    theirs = optax.adamw(1e-2, weight_decay=0.1)
    found, _ = ours.update(gradient, ours.init(params), params)
    wanted, _ = theirs.update(gradient, theirs.init(params), params)
    close(found, wanted, 1e-7)
