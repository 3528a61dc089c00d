"""Restructure: what of an optimizer's state survives a change of the parameter tree."""

import functools
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from restructure_cases import (
    CHANGED,
    OPTIMIZERS,
    RULES,
    by_path,
    dense_params,
    loss,
    normal,
    train,
    trained,
)

from lowrank_jax import restructure
from lowrank_jax.factorize import factorize, merge, refactorize
from lowrank_jax.ranks import FixedRank
from lowrank_jax.rules import Rule, resolve

# The last name of a counter of each state, and where it stands after four steps.
STEP_COUNTS = dict.fromkeys(OPTIMIZERS, ("count", 4)) | {
    "MultiSteps": ("gradient_step", 2),
    "schedule_free_sgd": ("step_count", 5),  # it begins at 1
}


def is_changed(path):
    # The names of the changed parameters occur nowhere else in the test tree, nor in any state.
    return any(f"/{name}" in f"/{path}" for name in CHANGED)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_switch_keeps_what_may_survive(name):
    tx, params, state = trained(name)
    new_params, new_state, table = restructure.switch(tx, params, state, RULES)

    assert sorted(row.path for row in table.rows) == CHANGED
    expected = factorize(params, RULES)
    jax.tree.map(np.testing.assert_array_equal, new_params, expected)
    fresh_state = tx.init(new_params)
    assert jax.tree.structure(new_state) == jax.tree.structure(fresh_state)
    old, new, fresh = by_path(state), by_path(new_state), by_path(fresh_state)

    kept = {path for path in new if not is_changed(path)}
    assert kept == {path for path in old if not is_changed(path)}
    if name == "lbfgs":
        # The objective is that of the old parameters, and must not be used again.
        [value] = [path for path in kept if path.endswith("value")]
        assert np.isfinite(old[value]) and np.isinf(new[value])
        kept.remove(value)
        # The next difference starts at the new parameters.
        last = {path: leaf for path, leaf in new.items() if "/params/" in f"/{path}"}
        for path, leaf in last.items():
            if is_changed(path):
                tail = path.partition("params/")[2]
                np.testing.assert_array_equal(leaf, by_path(new_params)[tail])
                del new[path]
    for path in kept:
        np.testing.assert_array_equal(new[path], old[path], err_msg=path)
        assert new[path].dtype == old[path].dtype
    reset = {path for path in new if is_changed(path)}
    for path in reset:
        np.testing.assert_array_equal(new[path], fresh[path], err_msg=path)

    # The comparisons above are of something: counts have counted, and state has moved.
    assert reset
    counts = {path.rpartition("/")[2]: int(new[path]) for path in kept if new[path].ndim == 0}
    counter, steps = STEP_COUNTS[name]
    assert counts[counter] == steps
    assert any(new[path].ndim and not np.array_equal(new[path], fresh[path]) for path in kept)

    after, state = train(tx, new_params, new_state, 2)
    for leaf in jax.tree.leaves((after, state)):
        assert bool(jnp.isfinite(leaf).all())
    assert float(loss(after)) < float(loss(new_params))


def test_restart_begins_everything_anew():
    tx, params, state = trained("adamw")
    new_params, new_state, _ = restructure.switch(tx, params, state, RULES, policy="restart")
    jax.tree.map(np.testing.assert_array_equal, new_state, tx.init(new_params))


def test_injected_values_survive():
    tx, params, state = trained("inject_hyperparams")
    state = state._replace(hyperparams=state.hyperparams | {"learning_rate": jnp.asarray(0.007)})
    _, state, _ = restructure.switch(tx, params, state, RULES)
    assert float(state.hyperparams["learning_rate"]) == np.float32(0.007)


@pytest.mark.parametrize("name", ["adamw", "MultiSteps", "adafactor", "multi_transform"])
def test_moments_of_the_old_basis_go_even_where_shapes_agree(name):
    tx = OPTIMIZERS[name]()
    params = factorize(dense_params(), RULES)
    params, state = train(tx, params, tx.init(params), 2)
    new_params = refactorize(params)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), new_params, params)
    new = by_path(restructure.carry(tx, state, params, new_params, ["stem/kernel"]))
    old, fresh = by_path(state), by_path(tx.init(new_params))
    differs = 0
    for path, leaf in new.items():
        source = fresh if "stem/kernel" in path else old
        np.testing.assert_array_equal(leaf, source[path], err_msg=path)
        differs += "stem/kernel" in path and not np.array_equal(leaf, old[path])
    assert differs


def test_merging_carries_too():
    tx = OPTIMIZERS["adamw"]()
    params = factorize(dense_params(), RULES)
    params, state = train(tx, params, tx.init(params), 2)
    new_state = restructure.carry(tx, state, params, merge(params), CHANGED)
    np.testing.assert_array_equal(new_state[0].mu["stem"]["kernel"], np.zeros((6, 8)))
    np.testing.assert_array_equal(new_state[0].nu["kernel"], state[0].nu["kernel"])
    assert int(new_state[0].count) == 2


def test_nothing_changed_is_the_same_state():
    tx, params, state = trained("lbfgs")
    jax.tree.map(
        np.testing.assert_array_equal, restructure.carry(tx, state, params, params, []), state
    )


def test_switch_leaves_weights_that_are_factorized_already_alone():
    tx = OPTIMIZERS["sgd"]()
    params = factorize(dense_params(), RULES[:1])
    params, state = train(tx, params, tx.init(params), 2)
    table = resolve(params, RULES)
    new_params, new_state, same = restructure.switch(tx, params, state, table)
    assert same is table
    np.testing.assert_array_equal(new_params["stem"]["kernel"].u, params["stem"]["kernel"].u)
    old, new = state[0].trace, new_state[0].trace
    np.testing.assert_array_equal(new["stem"]["kernel"].vt, old["stem"]["kernel"].vt)
    assert not np.any(new["block"]["conv"]["kernel"].u)


def test_line_search_evaluates_again():
    # With the stored objective, the first gradient of changed parameters would be zero.
    tx, params, state = trained("lbfgs")
    params, state, _ = restructure.switch(tx, params, state, RULES)
    value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
    expected, expected_grads = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), grads, expected_grads)


def test_boxed_kernels():
    def boxed(kernel):
        return nn.Partitioned(kernel, names=("in", "out"))

    tx = OPTIMIZERS["adamw"]()
    params = {"a": {"kernel": boxed(normal(0, 6, 8))}, "b": {"kernel": boxed(normal(1, 6, 8))}}
    state = jax.tree.map(jnp.ones_like, tx.init(params))
    _, state, _ = restructure.switch(tx, params, state, [Rule("a/kernel", FixedRank(2))])
    mu = state[0].mu
    assert not np.any(mu["a"]["kernel"].u.value) and mu["a"]["kernel"].u.value.shape == (6, 2)
    np.testing.assert_array_equal(mu["b"]["kernel"].value, np.ones((6, 8)))


class PairState(NamedTuple):
    steps: jax.Array
    pairs: dict
    start: dict


def pairs():
    """Keeps two entries per parameter, and the very parameters it was initialized with."""

    def init(params):
        pair = jax.tree.map(lambda p: {"row": jnp.zeros(3), "kernel": jnp.zeros(2)}, params)
        return PairState(jnp.zeros((), jnp.int32), pair, params)

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def test_state_with_several_entries_per_parameter():
    tx = pairs()
    params = dense_params()
    state = jax.tree.map(jnp.ones_like, tx.init(params))
    new_params, new, _ = restructure.switch(tx, params, state, RULES)
    assert int(new.steps) == 1
    assert not np.any(new.pairs["stem"]["kernel"].u["row"])
    np.testing.assert_array_equal(new.pairs["kernel"]["kernel"], np.ones(2))
    np.testing.assert_array_equal(new.start["stem"]["kernel"].u, new_params["stem"]["kernel"].u)


@pytest.mark.parametrize("policy", ["reset", "restart"])
def test_parameters_and_state_can_be_donated_together(policy):
    tx = pairs()
    params = dense_params()
    state = jax.tree.map(jnp.ones_like, tx.init(params))
    params, state, _ = restructure.switch(tx, params, state, RULES, policy=policy)
    theirs = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    mine = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
    assert not theirs & mine


class TestRefusals:
    def carry(self, changed=("stem/kernel",), tx=None, state=None, new_params=None, **kwargs):
        params = dense_params()
        tx = optax.adam(0.1) if tx is None else tx
        state = tx.init(params) if state is None else state
        new_params = factorize(params, RULES[:1]) if new_params is None else new_params
        return restructure.carry(tx, state, params, new_params, changed, **kwargs)

    def test_unknown_policy(self):
        with pytest.raises(
            ValueError, match="policy='keep': expected one of reset, project, restart"
        ):
            self.carry(policy="keep")

    def test_unknown_path(self):
        with pytest.raises(ValueError, match=r"'stem/kernle', which is no .*misses: stem/kern"):
            self.carry(["stem/kernel", "stem/kernle"])

    def test_a_factor_is_no_parameter(self):
        with pytest.raises(ValueError, match="'stem/kernel/u', which is no parameter"):
            self.carry(["stem/kernel/u"])

    def test_string_instead_of_a_list(self):
        with pytest.raises(TypeError, match=re.escape("write ['stem/kernel']")):
            self.carry("stem/kernel")

    def test_change_that_is_not_named(self):
        message = "stem/kernel was float32[6, 8] and is LowRank(u float32[6, 3], vt float32[3, 8])"
        with pytest.raises(ValueError, match=re.escape(message)):
            self.carry([])

    def test_paths_that_go(self):
        new_params = dense_params()
        del new_params["mu"]
        with pytest.raises(ValueError, match="mu/count is in params and not in new_params"):
            self.carry(["mu/count"], new_params=new_params)

    def test_paths_that_come_and_are_not_named(self):
        new_params = dense_params() | {"norm": {"scale": jnp.ones(3)}}
        message = "norm/scale is in new_params and not in params, but changed does not name it"
        with pytest.raises(ValueError, match=message):
            self.carry([], new_params=new_params)

    @pytest.mark.parametrize(
        ("other", "lost"),
        [
            (optax.sgd(0.1, momentum=0.9), "0/trace/block/conv/kernel"),
            (optax.chain(optax.adam(0.1)), "0/0/count"),
            (optax.sgd(optax.constant_schedule(0.1)), "1/count"),
        ],
    )
    def test_state_that_would_be_lost(self, other, lost):
        message = f"opt_state has {lost}, which tx.init(new_params) has not"
        with pytest.raises(ValueError, match=re.escape(message)):
            self.carry(state=other.init(dense_params()))

    def test_a_moment_without_some_parameter(self):
        tx = optax.adam(0.1)
        params = dense_params()
        del params["mu"]
        message = "tx.init(new_params) has 0/mu/mu/count, which opt_state has not"
        with pytest.raises(ValueError, match=re.escape(message)):
            self.carry([], tx=tx, state=tx.init(params), new_params=dense_params())

    def test_state_of_other_parameters(self):
        params = dense_params()
        params["kernel"] = jnp.zeros((5, 5))
        message = (
            "optimizer state 0/mu/kernel: found float32[5, 5], but tx.init gives float32[8, 5]"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            self.carry(state=optax.adam(0.1).init(params))

    def test_single_kernel(self):
        with pytest.raises(ValueError, match="single kernel"):
            tx = optax.sgd(0.1)
            restructure.carry(tx, tx.init(jnp.ones(3)), jnp.ones(3), jnp.ones(3), [])

    @pytest.mark.parametrize("policy", ["reset", "project", "restart"])
    @pytest.mark.parametrize("wrap", [False, True])
    def test_accumulated_gradients(self, policy, wrap):
        tx = optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation()
        if wrap:
            tx = optax.chain(optax.clip(1.0), tx)
        params = dense_params()
        _, state = train(tx, params, tx.init(params), 2)
        message = f"state {'1' if wrap else 'root'}: MultiSteps has accumulated 2 gradients"
        with pytest.raises(ValueError, match=message):
            restructure.switch(tx, params, state, RULES, policy=policy)
