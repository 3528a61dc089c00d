"""refactorize against NumPy's best approximations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factorize_cases import CASES, component_gradients, every_case, rule, truncated
from jaxprs import largest_intermediate
from weights_cases import Case, matrix

from lowrank_jax import (
    Energy,
    FixedRank,
    LowRank,
    Rule,
    SpatialLowRank,
    refactorize,
)
from lowrank_jax.factored_svd import factored_svd


def random_weight(case, rank, depth, dtype=np.float64, seed=0):
    full = Case(case.name, case.kind, case.shape, case.batch, case.axes, rank, depth)
    return jax.tree.map(jnp.asarray, full.weight(seed, dtype))


@every_case
@pytest.mark.parametrize("depth", [2, 3])
def test_refactorize_truncates_to_the_best_and_grows_without_change(case, depth, x64):
    weight = random_weight(case, 4, depth)
    dense = matrix(case, weight.dense())
    for rank in (2, 4, 30):
        done = refactorize({"kernel": weight}, [rule(case, FixedRank(rank), depth)])["kernel"]
        assert (done.rank, done.depth, done.shape) == (rank, depth, weight.shape)
        best, s = truncated(case, weight.dense(), rank)
        scale = np.abs(dense).max()
        np.testing.assert_allclose(matrix(case, done.dense()), best, atol=1e-12 * scale)
        u, vt = done.geometry(**done.axes).fold(np.asarray(done.u), np.asarray(done.vt))
        keep = min(rank, 4)
        for gram in (np.swapaxes(u, -1, -2) @ u, vt @ np.swapaxes(vt, -1, -2)):
            np.testing.assert_allclose(
                gram[..., :keep, :keep],
                s[..., :keep, None] * np.eye(keep),
                atol=1e-11 * scale,
            )
        if depth == 3:
            np.testing.assert_array_equal(done.m, np.broadcast_to(np.eye(rank), done.m.shape))
        left, right = component_gradients(case, done)
        assert (np.maximum(left, right) > 1e-6).all()


def test_refactorize_without_rules_balances_every_weight():
    params = {
        "a": random_weight(CASES[0], 3, 3, np.float32),
        "b": jnp.ones(3),
        "c": random_weight(CASES[3], 2, 2, np.float32),
    }
    done = refactorize(params)
    assert done["b"] is params["b"]
    for name in ("a", "c"):
        assert done[name].rank == params[name].rank
        expected = np.asarray(params[name].dense())
        error = np.abs(np.asarray(done[name].dense()) - expected).max()
        assert error <= 2e-6 * np.abs(expected).max()
        assert done[name].dtype == jnp.float32
    twice = refactorize(done)
    np.testing.assert_allclose(
        np.abs(np.asarray(twice["a"].u)), np.abs(np.asarray(done["a"].u)), atol=1e-4
    )


def test_refactorize_never_forms_the_kernel(monkeypatch):
    weight = random_weight(Case("wide", LowRank, (4000, 5000)), 3, 2, np.float32)
    monkeypatch.setattr(LowRank, "dense", lambda *a, **k: pytest.fail("formed the kernel"))
    import tracemalloc

    tracemalloc.start()
    refactorize({"kernel": weight}, [Rule("kernel", FixedRank(5))])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 5000 * 4 / 4
    assert largest_intermediate(lambda w: w.squared_norm(), weight) < 4000 * 5000


def test_refactorize_by_energy_reads_the_products_spectrum(x64):
    weight = random_weight(CASES[0], 5, 3)
    values = np.linalg.svd(np.asarray(weight.dense()), compute_uv=False)
    energy = np.cumsum(values**2) / np.sum(values**2)
    expected = int(np.argmax(energy >= 0.8)) + 1
    rules = [Rule("kernel", Energy(0.8), depth=3)]
    assert refactorize({"kernel": weight}, rules)["kernel"].rank == expected
    np.testing.assert_allclose(factored_svd(weight)[1], values[:5], rtol=1e-10)


def test_refactorize_takes_the_first_match():
    params = {
        "a": random_weight(CASES[0], 4, 2, np.float32),
        "b": random_weight(CASES[3], 4, 2, np.float32),
    }
    done = refactorize(params, [Rule("a", FixedRank(2)), Rule(".", FixedRank(3), SpatialLowRank)])
    assert (done["a"].rank, done["b"].rank) == (2, 3)


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([Rule("nothing", FixedRank(1))], "matches no path"),
        ([Rule(".*", FixedRank(1)), Rule("a", FixedRank(1))], "never used"),
        ([Rule("b", FixedRank(1))], "b: .*cannot refactorize it"),
        ([Rule("a", None)], "a: .*cannot refactorize it"),
        ([Rule("a", FixedRank(1), SpatialLowRank)], "a: it is a LowRank .*asks for another"),
        ([Rule("a", FixedRank(1), depth=3)], "a: it is a LowRank of depth 2"),
        ([Rule("a", FixedRank(1), out_axes=2)], "a: it is a LowRank .*asks for another"),
    ],
)
def test_refactorize_refuses(rules, text):
    params = {"a": LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 4))), "b": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=text):
        refactorize(params, rules)


def test_refactorize_refuses_what_is_not_finite():
    weight = LowRank(u=jnp.full((4, 2), jnp.nan), vt=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"^k: 8 of 8 entries are not finite"):
        refactorize({"k": weight})
