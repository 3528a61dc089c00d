"""Library misuse is one clear ValueError or TypeError, at the call that is wrong."""

import jax
import jax.numpy as jnp
import optax
import pytest

from lowrank_jax import (
    Energy,
    FixedRank,
    LowRank,
    ParamFraction,
    Product,
    RankScale,
    Rule,
    decay,
    factorize,
    frobenius_decay,
    initializers,
    refactorize,
    regular,
    resolve,
    target_ratio,
)
from lowrank_jax.weights import FactorizedWeight
from lowrank_jax.weights.two_factor import TwoFactorWeight

PARAMS = {"k": jnp.ones((4, 4)), "b": jnp.ones(4)}
WEIGHT = {"k": LowRank(jnp.ones((4, 2)), jnp.ones((2, 4))), "b": jnp.ones(4)}
INTEGERS = {"u": jnp.ones((4, 2), jnp.int32), "vt": jnp.ones((2, 4), jnp.int32)}

MISUSE = {
    "scale as text": (lambda: RankScale("0.1"), TypeError, "expected a number"),
    "scale as truth": (lambda: RankScale(True), TypeError, "expected a number"),
    "energy as text": (lambda: Energy("0.1"), TypeError, "expected a number"),
    "energy above one": (lambda: Energy(1.5), ValueError, "share"),
    "negative scale": (lambda: RankScale(-1.0), ValueError, "positive"),
    "no pattern": (lambda: Rule(None, FixedRank(2)), TypeError, "pattern"),
    "abstract kind": (lambda: Rule("k", FixedRank(2), FactorizedWeight), TypeError, "kind"),
    "half a kind": (lambda: Rule("k", FixedRank(2), TwoFactorWeight), TypeError, "kind"),
    "axes as text": (lambda: Rule("k", FixedRank(2), in_axes="1"), TypeError, "whole number"),
    "axes by position": (
        lambda: LowRank(jnp.ones((4, 2)), jnp.ones((2, 4)), None, 1),
        TypeError,
        "positional",
    ),
    "empty kernel": (
        lambda: resolve({"k": jnp.zeros((0, 4, 4))}, [Rule("k", ParamFraction(0.5), in_axes=1)]),
        ValueError,
        "without entries",
    ),
    "overcomplete misspelled": (
        lambda: refactorize(WEIGHT, overcomplete="zeros"),
        ValueError,
        "expected one of complement, zero",
    ),
    "negative noise": (
        lambda: initializers.spectral(middle_noise=-1.0),
        ValueError,
        "middle_noise",
    ),
    "negative variance": (lambda: regular(scale=-1.0), ValueError, "scale"),
    "coefficient as text": (lambda: frobenius_decay("1e-4"), TypeError, "a number or a schedule"),
    "one product alone": (
        lambda: frobenius_decay(0.1, products=Product("u", "vt")),
        TypeError,
        "sequence of Product",
    ),
    "pairs of paths": (
        lambda: decay(0.1, products=[("u", "vt")]),
        TypeError,
        "sequence of Product",
    ),
    "product of integers": (
        lambda: frobenius_decay(0.1, products=[Product("u", "vt")]).init(INTEGERS),
        ValueError,
        "int32 has no gradient",
    ),
    "mask of text": (
        lambda: decay(0.1, mask={"k": "False", "b": True}).init(PARAMS),
        TypeError,
        "mask at k",
    ),
    "unreachable ratio": (
        lambda: target_ratio(PARAMS, lambda s: [Rule("k", RankScale(s))], 0.1),
        ValueError,
        "cannot be reached",
    ),
    "a scale without effect": (
        lambda: target_ratio(PARAMS, lambda s: [Rule("k", FixedRank(1))], 0.9),
        ValueError,
        "cannot be reached",
    ),
    "matrix product": (lambda: jnp.ones((2, 4)) @ WEIGHT["k"], TypeError, "dot_general"),
}


@pytest.mark.parametrize(("call", "error", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_energy_does_not_count_rounding_noise():
    left = jax.random.normal(jax.random.key(0), (32, 2))
    right = jax.random.normal(jax.random.key(1), (2, 32))
    table = resolve({"k": left @ right}, [Rule("k", Energy(1.0))])
    assert table.rows[0].rank == 2


def test_a_weight_prints_shapes_and_no_numbers():
    assert repr(WEIGHT["k"]) == "LowRank(u=float32[4,2], vt=float32[2,4])"
    weight = factorize({"k": jnp.ones((4, 4))}, [Rule("k", FixedRank(1), depth=3)])["k"]
    assert repr(weight) == "LowRank(u=float32[4,1], vt=float32[1,4], m=float32[1,1])"


def test_masks_of_numpy_truth_values_are_masks():
    mask = jax.tree.map(lambda x: jnp.ndim(x) > 1, PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = decay(0.5, mask=mask)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    expected = optax.add_decayed_weights(0.5, mask=mask)
    reference, _ = expected.update(zeros, expected.init(PARAMS), PARAMS)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), updates, reference))
