"""The switch of a network to low rank: what it computes, and what the optimizer is afterwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import linen as nn

from lowrank_jax import (
    ChannelLowRank,
    FixedRank,
    LowRank,
    Rule,
    SpatialLowRank,
    decay,
    frobenius_decay,
    restructure,
)
from lowrank_jax.linen import Conv, Dense

KERNELS = ("conv_1/kernel", "conv_2/kernel", "head/kernel")


class Network(nn.Module):
    """Two convolutions with batch norms, and a linear layer."""

    @nn.compact
    def __call__(self, x, train=False):
        for name, strides in (("conv_1", 1), ("conv_2", 2)):
            x = Conv(8, (3, 3), strides, use_bias=False, name=name)(x)
            x = nn.BatchNorm(not train, momentum=0.9, name=f"norm_{name[-1]}")(x)
            x = nn.relu(x)
        return Dense(6, name="head")(x.mean((1, 2)))


MODEL = Network()
IMAGES = jax.random.normal(jax.random.key(5), (16, 8, 8, 6))
LABELS = jnp.arange(16) % 6


def loss(params, batch_stats):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = MODEL.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return losses.mean(), updated["batch_stats"]


def train(tx, params, batch_stats, state, steps):
    @jax.jit
    def step(params, batch_stats, state):
        grads, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), batch_stats, state

    for _ in range(steps):
        params, batch_stats, state = step(params, batch_stats, state)
    return params, batch_stats, state


DENSE_TX = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9))


@functools.cache
def trained():
    """Parameters, batch statistics and state after four dense steps."""
    variables = MODEL.init(jax.random.key(0), IMAGES)
    params = variables["params"]
    return train(DENSE_TX, params, variables["batch_stats"], DENSE_TX.init(params), 4)


def rules(kind, conv_1, conv_2, head):
    return [
        Rule(KERNELS[0], FixedRank(conv_1), kind),
        Rule(KERNELS[1], FixedRank(conv_2), kind),
        Rule(KERNELS[2], FixedRank(head)),
    ]


def kernel(params, path):
    module, name = path.split("/")
    return params[module][name]


def matrix(kind, kernel):
    """The kernel as the matrix whose spectrum is truncated, in float64."""
    kernel = np.asarray(kernel, np.float64)
    if kind is SpatialLowRank and kernel.ndim == 4:
        h, w, i, o = kernel.shape
        return kernel.transpose(1, 2, 0, 3).reshape(w * i, h * o)
    return kernel.reshape(-1, kernel.shape[-1])


def logits(params, batch_stats):
    return MODEL.apply({"params": params, "batch_stats": batch_stats}, IMAGES)


@pytest.mark.parametrize(
    ("kind", "ranks"), [(ChannelLowRank, (8, 8, 6)), (SpatialLowRank, (18, 24, 6))]
)
def test_at_full_rank_the_network_stays_the_same(kind, ranks):
    params, batch_stats, state = trained()
    before = logits(params, batch_stats)
    new, _, table = restructure.switch(DENSE_TX, params, state, rules(kind, *ranks))
    assert [row.path for row in table.rows] == list(KERNELS)
    np.testing.assert_allclose(logits(new, batch_stats), before, atol=1e-5, rtol=0)
    # Norms and biases are the same to the bit.
    for module in ("norm_1", "norm_2"):
        jax.tree.map(np.testing.assert_array_equal, new[module], params[module])
    np.testing.assert_array_equal(new["head"]["bias"], params["head"]["bias"])


@pytest.mark.parametrize("kind", [ChannelLowRank, SpatialLowRank])
def test_below_full_rank_what_is_lost_is_the_discarded_spectrum(kind):
    params, _, state = trained()
    ranks = dict(zip(KERNELS, (3, 5, 2), strict=True))
    new, _, _ = restructure.switch(DENSE_TX, params, state, rules(kind, *ranks.values()))
    for path, rank in ranks.items():
        weight = jax.tree.map(lambda factor: np.asarray(factor, np.float64), kernel(new, path))
        u, vt = weight.geometry(**weight.axes).fold(weight.u, weight.vt)
        dense = matrix(kind, kernel(params, path))
        values = np.linalg.svd(dense, compute_uv=False)
        lost = np.sum(values[rank:] ** 2)
        assert lost > 0
        np.testing.assert_allclose(np.sum((dense - u @ vt) ** 2), lost, rtol=1e-5)
        # The factors are balanced: both have the square roots of the values.
        np.testing.assert_allclose(u.T @ u, np.diag(values[:rank]), atol=1e-5)
        np.testing.assert_allclose(vt @ vt.T, np.diag(values[:rank]), atol=1e-5)


LOW_RANK = rules(ChannelLowRank, 3, 5, 2)


@pytest.mark.parametrize("policy", ["reset", "project"])
def test_parameters_that_are_new(policy):
    """A norm between the factors of a convolution, as Pufferfish puts it there."""
    params, _, state = trained()
    factorized, _, _ = restructure.switch(DENSE_TX, params, state, LOW_RANK)
    norm = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    conv = factorized["conv_1"] | {"factor_norm": norm}
    new = factorized | {"conv_1": conv}
    changed = [*KERNELS, "conv_1/factor_norm/scale", "conv_1/factor_norm/bias"]
    found = restructure.carry(DENSE_TX, state, params, new, changed, policy=policy)
    assert jax.tree.structure(found) == jax.tree.structure(DENSE_TX.init(new))
    trace, old = found[1][0].trace, state[1][0].trace
    for name in norm:
        np.testing.assert_array_equal(trace["conv_1"]["factor_norm"][name], np.zeros(3))
    for module in ("norm_1", "norm_2"):
        jax.tree.map(np.testing.assert_array_equal, trace[module], old[module])
        assert all(leaf.any() for leaf in jax.tree.leaves(old[module]))
    assert bool(trace["conv_1"]["kernel"].u.any()) == (policy == "project")
    # Or in two steps: the switch, and then the norms.
    _, switched, _ = restructure.switch(DENSE_TX, params, state, LOW_RANK, policy=policy)
    again = restructure.carry(DENSE_TX, switched, factorized, new, changed[3:], policy="project")
    jax.tree.map(np.testing.assert_array_equal, again, found)


# Another optimizer from the switch on: a matrix and a bias, gradients that are drawn, all again in
# NumPy.

STEPS, DECAY, MOMENTUM = 3, 1e-2, 0.9
MATRIX_RULES = [Rule("kernel", FixedRank(2))]


def drawn(seed, *shapes):
    draws = np.random.default_rng(seed)
    return [draws.standard_normal(shape) for shape in shapes]


def dense_phase(tx):
    """Parameters, state, and the momentum of kernel and bias in NumPy."""
    kernel, bias = drawn(0, (6, 5), (5,))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias)}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    state, traces = tx.init(params), [np.zeros((6, 5)), np.zeros(5)]
    for step in range(STEPS):
        grads = drawn(step + 1, (6, 5), (5,))
        for index, value in enumerate((kernel, bias)):
            decayed = grads[index] + DECAY * value
            traces[index] = MOMENTUM * traces[index] + decayed
        kernel, bias = kernel - 0.1 * traces[0], bias - 0.1 * traces[1]
        given = dict(zip(("kernel", "bias"), map(jnp.float32, grads), strict=True))
        updates, state = tx.update(given, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(params, {"kernel": kernel, "bias": bias}, 1e-5)
    return params, state, traces


@pytest.mark.parametrize("policy", ["reset", "project"])
def test_frobenius_decay_and_a_second_warm_up(policy):
    rates = (0.01, 0.02)

    def schedule(step):
        return jnp.asarray(rates)[jnp.clip(step - STEPS, 0, 1)]

    plain = optax.add_decayed_weights(DECAY)
    before = optax.chain(plain, optax.sgd(optax.constant_schedule(0.1), momentum=0.9))
    bias_decay = optax.add_decayed_weights(DECAY, mask={"kernel": False, "bias": True})
    after = optax.chain(
        optax.chain(frobenius_decay(DECAY), bias_decay),
        optax.sgd(schedule, momentum=0.9),
    )
    params, state, (trace, bias_trace) = dense_phase(before)
    params, state, _ = restructure.switch(after, params, state, MATRIX_RULES, policy=policy)
    u, vt, bias = (
        np.asarray(leaf, np.float64)
        for leaf in (params["kernel"].u, params["kernel"].vt, params["bias"])
    )
    kept = policy == "project"
    trace_u, trace_vt = kept * trace @ vt.T, kept * u.T @ trace
    for step, rate in enumerate(rates):
        of_u, of_vt, of_bias = drawn(10 + step, u.shape, vt.shape, bias.shape)
        grads = {"kernel": LowRank(of_u, of_vt), "bias": of_bias}
        grads = jax.tree.map(jnp.float32, grads)
        updates, state = after.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        trace_u = MOMENTUM * trace_u + of_u + DECAY * u @ vt @ vt.T
        trace_vt = MOMENTUM * trace_vt + of_vt + DECAY * u.T @ u @ vt
        bias_trace = MOMENTUM * bias_trace + of_bias + DECAY * bias
        u, vt, bias = u - rate * trace_u, vt - rate * trace_vt, bias - rate * bias_trace
        assert_close(params, {"kernel": LowRank(u, vt), "bias": bias}, 1e-5)
    assert int(state[1][1].count) == STEPS + 2


def test_one_decay_before_and_after():
    """Plain decay on a dense tree, Frobenius decay on factors: it continues plain decay."""
    both = optax.chain(decay(DECAY), optax.sgd(0.1, momentum=0.9))
    plain = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.1, momentum=0.9))
    expected = dense_phase(both)[:2]
    found = dense_phase(plain)[:2]
    for policy in ("reset", "project"):
        jax.tree.map(
            assert_close,
            *(
                restructure.switch(both, *phase, MATRIX_RULES, policy=policy)[:2]
                for phase in (found, expected)
            ),
        )


def test_state_that_only_the_new_optimizer_has():
    tx = optax.chain(
        decay(optax.constant_schedule(DECAY)),
        optax.sgd(0.1, momentum=0.9),
        optax.scale_by_adam(),
    )
    plain = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.1, momentum=0.9))
    params, state, (trace, bias_trace) = dense_phase(plain)
    new, state, _ = restructure.switch(tx, params, state, MATRIX_RULES, policy="project")
    assert int(state[0].count) == 0
    jax.tree.map(np.testing.assert_array_equal, state[2], tx.init(new)[2])
    found = state[1][0].trace
    assert_close(found["bias"], bias_trace, 1e-5)
    assert_close(found["kernel"].u, trace @ np.asarray(new["kernel"].vt).T, 1e-5)
