"""Library misuse is one clear ValueError or TypeError, at the call that is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax import (
    AttentionLayout,
    Energy,
    FixedRank,
    LowRank,
    ParamFraction,
    Product,
    Projection,
    RankScale,
    Rule,
    View,
    attention_products,
    balance_products,
    decay,
    factorize,
    frobenius_decay,
    frobenius_penalty,
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
    "one product alone to balance": (
        lambda: balance_products(PARAMS, Product("u", "vt")),
        TypeError,
        "sequence of Product",
    ),
    "one product alone to measure": (
        lambda: frobenius_penalty(PARAMS, Product("u", "vt")),
        TypeError,
        "sequence of Product",
    ),
    "product of a number": (lambda: Product(1, "vt"), TypeError, "1: expected a path"),
    "no bias": (lambda: Product("u", "vt", u_bias=0), TypeError, "0: expected a path"),
    "projection of a number": (lambda: Projection(3), TypeError, "3: expected a path"),
    "layout of paths": (
        lambda: AttentionLayout(query="q/kernel"),
        TypeError,
        r"query='q/kernel'\): expected a Projection",
    ),
    "layout as text": (
        lambda: attention_products(PARAMS, layout="flax"),
        TypeError,
        "expected an AttentionLayout",
    ),
    "split in a number": (lambda: View("q").split(-1, 3), TypeError, r"split\(-1, 3\): expected"),
    "split along half": (lambda: View("q").split(0.5, (3,)), TypeError, "expected an axis"),
    "take a list": (lambda: View("q").take(0, [0, 2]), TypeError, r"a tuple \(start, stop\)"),
    "take a slice": (lambda: View("q").take(0, slice(0, 2)), TypeError, r"tuple \(start, stop\)"),
    "take three": (lambda: View("q").take(0, (0, 1, 2)), TypeError, r"a tuple \(start, stop\)"),
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


def test_whole_numbers_of_numpy_are_whole_numbers():
    view = View("q").split(np.int64(-1), np.array([3, 4])).take(np.int32(0), np.int64(1))
    assert view == View("q").split(-1, (3, 4)).take(0, 1)
    assert view.take(-1, (np.int64(0), np.int64(2))).shape((2, 12)) == (3, 2)


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
