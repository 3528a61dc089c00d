"""Moment projection: what an optimizer remembers of a kernel, in the coordinates of its factors."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
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
from lowrank_jax.moment_projection import pull_back
from lowrank_jax.ranks import FixedRank
from lowrank_jax.rules import Rule
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank, TensorTrain

# The dense kernel of each kind, written out: the sum of the products of the factors' entries.
FORMULAS = {
    "matrix": (LowRank, {}, "ik,kj->ij", {"u": (5, 2), "vt": (2, 4)}),
    "heads": (
        LowRank,
        {"in_axes": 2, "out_axes": 2},
        "abk,kcd->abcd",
        {"u": (2, 3, 2), "vt": (2, 3, 2)},
    ),
    "stack": (LowRank, {}, "bik,bkj->bij", {"u": (3, 4, 2), "vt": (3, 2, 5)}),
    "spatial": (
        SpatialLowRank,
        {},
        "ywik,hzko->hwio",
        {"u": (1, 3, 4, 2), "vt": (2, 1, 2, 5)},
    ),
    "channel": (
        ChannelLowRank,
        {},
        "hwik,yzko->hwio",
        {"u": (3, 2, 4, 2), "vt": (1, 1, 2, 5)},
    ),
    "deep": (LowRank, {}, "ik,kl,lj->ij", {"u": (5, 2), "m": (2, 2), "vt": (2, 4)}),
}


def drawn(name):
    """A weight with random factors, and its dense kernel as a function of the factors in NumPy."""
    kind, axes, equation, shapes = FORMULAS[name]
    draws = np.random.default_rng(7)
    factors = {field: draws.standard_normal(shape) for field, shape in shapes.items()}

    def dense(factors):
        return np.einsum(equation, *(factors[field] for field in shapes))

    weight = kind(**{field: jnp.asarray(value) for field, value in factors.items()}, **axes)
    return weight, factors, dense


def derivatives(factors, dense, field):
    """The kernel's derivatives by the entries of one factor, ``(entries, *kernel)``: the kernel is
    linear in each factor, so they are the kernels of the unit vectors."""
    size = factors[field].size
    units = np.eye(size).reshape(size, *factors[field].shape)
    return np.stack([dense(factors | {field: unit}) for unit in units])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_against_sums_over_all_entries(name, order, x64):
    weight, factors, dense = drawn(name)
    if name == "deep" and order == 2:
        factors["m"] = np.eye(2)  # the derivative has one term, then
        weight = weight.replace(m=jnp.eye(2))
    moment = np.random.default_rng(8).standard_normal(weight.shape) ** order
    pulled = pull_back(weight, jnp.asarray(moment), order)
    for field in factors:
        by_entry = derivatives(factors, dense, field) ** order
        expected = np.tensordot(by_entry, moment, moment.ndim).reshape(factors[field].shape)
        np.testing.assert_allclose(getattr(pulled, field), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_first_moment_is_the_gradient_of_the_inner_product(name, x64):
    weight, factors, _ = drawn(name)
    _, _, equation, shapes = FORMULAS[name]
    moment = jnp.asarray(np.random.default_rng(8).standard_normal(weight.shape))

    def product(factors):
        return jnp.vdot(moment, jnp.einsum(equation, *(factors[field] for field in shapes)))

    expected = jax.grad(product)({field: jnp.asarray(value) for field, value in factors.items()})
    assert_close(dict(pull_back(weight, moment, 1).children()), expected)


def test_squares_term_by_term(x64):
    """Several terms in a derivative: the products of different ones are left out."""
    draws = np.random.default_rng(5)
    core1, core2, core3 = cores = [
        draws.standard_normal(shape) for shape in ((1, 3, 2), (2, 2, 2), (2, 2, 1))
    ]
    weight = TensorTrain(*map(jnp.asarray, cores), outputs=3)
    tensor = draws.uniform(size=(3, 2, 2))
    pulled = pull_back(weight, jnp.asarray(tensor.reshape(3, 4).T), 2)
    expected = np.einsum("abc,ybz,zc->ay", tensor, core2**2, core3[..., 0] ** 2)[None]
    np.testing.assert_allclose(pulled.core1, expected, rtol=1e-12)
    expected = np.einsum("abc,ay,zc->ybz", tensor, core1[0] ** 2, core3[..., 0] ** 2)
    np.testing.assert_allclose(pulled.core2, expected, rtol=1e-12)


def factor_moments(weight, moment, order):
    """The moments of the two changed weights of the cases, in NumPy."""
    moment = np.asarray(moment, np.float64)
    u, vt = (np.asarray(factor, np.float64) ** order for factor in (weight.u, weight.vt))
    if isinstance(weight, SpatialLowRank):
        return (
            np.einsum("hwio,hko->wik", moment, vt[:, 0])[None],
            np.einsum("hwio,wik->hko", moment, u[0])[:, None],
        )
    return moment @ vt.T, u.T @ moment


# The moments in the states of those optimizers that have nothing else.
ORDERS = {
    "adamw": {"0/mu": 1, "0/nu": 2},
    "sgd": {"0/trace": 1},
    "inject_hyperparams": {"inner_state/0/mu": 1, "inner_state/0/nu": 2},
    "MultiSteps": {"inner_opt_state/0/mu": 1, "inner_opt_state/0/nu": 2, "acc_grads": 1},
    "ema": {"1/ema": 1},
    "apply_if_finite": {"inner_state/0/mu": 1, "inner_state/0/nu": 2},
    "masked": {"1/inner_state/mu": 1, "1/inner_state/nu": 2},
}


@pytest.mark.parametrize("name", ORDERS)
def test_switch_takes_moments_along(name):
    tx, params, state = trained(name)
    new_params, new_state, _ = restructure.switch(tx, params, state, RULES, policy="project")
    assert jax.tree.structure(new_state) == jax.tree.structure(tx.init(new_params))
    old, new = by_path(state), by_path(new_state)
    weights = {
        "stem/kernel": new_params["stem"]["kernel"],
        "block/conv/kernel": new_params["block"]["conv"]["kernel"],
    }
    compared = 0
    for mirror, order in ORDERS[name].items():
        for path, weight in weights.items():
            if f"{mirror}/{path}" not in old:
                assert name == "masked" and path == "block/conv/kernel"
                continue
            u, vt = factor_moments(weight, old.pop(f"{mirror}/{path}"), order)
            assert_close(new.pop(f"{mirror}/{path}/u"), u, 1e-5)
            assert_close(new.pop(f"{mirror}/{path}/vt"), vt, 1e-5)
            compared += bool(u.any() and vt.any())
    assert compared >= (1 if name == "masked" else 2)
    # The rest is the same to the bit.
    assert new.keys() == old.keys()
    for path, leaf in new.items():
        np.testing.assert_array_equal(leaf, old[path], err_msg=path)


def test_training_goes_on():
    tx, params, state = trained("adamw")
    params, state, _ = restructure.switch(tx, params, state, RULES, policy="project")
    after, _ = train(tx, params, state, 3)
    assert float(loss(after)) < float(loss(params))


def test_groups():
    tx, params, state = trained("multi_transform")
    new_params, new, _ = restructure.switch(tx, params, state, RULES, policy="project")

    def of_group(state, name):
        return state.inner_states[name].inner_state[0]

    weight, moment = new_params["stem"]["kernel"], of_group(state, "adam").nu["stem"]["kernel"]
    u, _ = factor_moments(weight, moment, 2)
    assert_close(of_group(new, "adam").nu["stem"]["kernel"].u, u, 1e-5)
    weight = new_params["block"]["conv"]["kernel"]
    _, vt = factor_moments(weight, of_group(state, "momentum").trace["block"]["conv"]["kernel"], 1)
    assert_close(of_group(new, "momentum").trace["block"]["conv"]["kernel"].vt, vt, 1e-5)


def test_a_step_of_momentum_after_the_projection():
    """A linear model, three dense steps and one with factors, beside NumPy's in float64."""
    draws = np.random.default_rng(3)
    x, y, w = (draws.standard_normal(shape) for shape in ((20, 6), (20, 5), (6, 5)))
    rate, decay, rank = 0.003, 0.9, 3
    params, tx = {"kernel": jnp.asarray(w, jnp.float32)}, optax.sgd(rate, momentum=decay)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum((x @ merge(p)["kernel"] - y) ** 2) / 2)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    trace = np.zeros_like(w)
    for _ in range(3):
        params, state = step(params, state)
        trace = decay * trace + x.T @ (x @ w - y)
        w = w - rate * trace
    rules = [Rule("kernel", FixedRank(rank))]
    params, state, _ = restructure.switch(tx, params, state, rules, policy="project")
    left, values, right = np.linalg.svd(w, full_matrices=False)
    u = left[:, :rank] * np.sqrt(values[:rank])
    vt = np.sqrt(values[:rank])[:, None] * right[:rank]
    # A singular vector's sign is free.
    signs = np.sign(np.sum(u * np.asarray(params["kernel"].u), axis=0))
    u, vt = u * signs, vt * signs[:, None]

    params, state = step(params, state)
    gradient = x.T @ (x @ u @ vt - y)
    trace_u = decay * trace @ vt.T + gradient @ vt.T
    trace_vt = decay * u.T @ trace + u.T @ gradient
    assert_close(state[0].trace["kernel"].u, trace_u, 1e-5)
    assert_close(params["kernel"].u, u - rate * trace_u, 1e-5)
    assert_close(params["kernel"].vt, vt - rate * trace_vt, 1e-5)


def test_dtype_of_the_moments_stays():
    tx = optax.adam(0.1, mu_dtype=jnp.bfloat16)
    params = {"kernel": normal(0, 6, 8).astype(jnp.bfloat16)}
    grads = {"kernel": normal(1, 6, 8).astype(jnp.bfloat16)}
    _, state = tx.update(grads, tx.init(params))
    rules = [Rule("kernel", FixedRank(3))]
    new, state, _ = restructure.switch(tx, params, state, rules, policy="project")
    assert state[0].mu["kernel"].u.dtype == jnp.bfloat16
    expected = factor_moments(new["kernel"], 0.1 * np.asarray(grads["kernel"], np.float64), 1)
    assert_close(state[0].mu["kernel"].u, expected[0], 2**-6)


def test_boxed_kernels():
    tx = optax.sgd(0.1, momentum=0.9)
    params = {"kernel": nn.Partitioned(normal(0, 6, 8), names=("in", "out"))}
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    rules = [Rule("kernel", FixedRank(3))]
    new, state, _ = restructure.switch(tx, params, state, rules, policy="project")
    trace = state[0].trace["kernel"]
    assert jax.tree.structure(trace) == jax.tree.structure(new["kernel"])
    expected = np.ones((6, 8)) @ np.asarray(new["kernel"].vt.value, np.float64).T
    assert_close(trace.u.value, expected, 1e-5)


class TestRefusals:
    def refused(self, tx, message, params=None, new_params=None, state=None):
        params = dense_params() if params is None else params
        state = tx.init(params) if state is None else state
        new_params = factorize(params, RULES) if new_params is None else new_params
        with pytest.raises(ValueError, match=message):
            restructure.carry(tx, state, params, new_params, CHANGED, policy="project")

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("adafactor", "0/v_row/block/conv/kernel"),
            ("lbfgs", "0/params/block/conv/kernel"),
            ("schedule_free_sgd", "z/block/conv/kernel"),
        ],
    )
    def test_unknown_meaning(self, name, what):
        self.refused(OPTIMIZERS[name](), f"state {what}: what it means for the .*policy='reset'")

    def test_factors_in_another_group_than_their_kernel(self):
        def groups(params):
            return jax.tree.map(lambda leaf: "wide" if min(leaf.shape) > 5 else "other", params)

        tx = optax.multi_transform(
            {"wide": optax.sgd(0.1, momentum=0.9), "other": optax.sgd(0.1, momentum=0.5)}, groups
        )
        message = "inner_states/wide/inner_state/0/trace/stem/kernel: there is no such state"
        self.refused(tx, message)

    def test_what_was_factorized_already(self):
        params = factorize(dense_params(), RULES)
        message = "block/conv/kernel was a SpatialLowRank and is a SpatialLowRank: .*use policy="
        self.refused(optax.adam(0.1), message, params, refactorize(params))

    def test_merging(self):
        params = factorize(dense_params(), RULES)
        message = "block/conv/kernel was a SpatialLowRank and is a dense kernel"
        self.refused(optax.adam(0.1), message, params, merge(params))

    def test_state_of_other_parameters(self):
        other = dense_params()
        other["stem"]["kernel"] = jnp.zeros((6, 7))
        tx = optax.adam(0.1)
        message = "state 0/mu/stem/kernel: its shape is (6, 7), the kernel's (6, 8)"
        self.refused(tx, re.escape(message), state=tx.init(other))

    def test_flattened_moments(self):
        self.refused(optax.flatten(optax.adam(0.1)), "state 0/mu: its size changes")
