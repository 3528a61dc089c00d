"""Diagnostics against float64 NumPy on the dense kernel, closed forms and the published table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax import diagnostics
from lowrank_jax.factorize import factorize, merge
from lowrank_jax.initializers import regular, spectral
from lowrank_jax.ranks import FixedRank, RankScale
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank
from lowrank_jax.weights.base import FactorizedWeight, register_weight

SCALARS = [
    "frobenius_norm",
    "nuclear_norm",
    "nuclear_bound",
    "non_orthogonality",
    "stable_rank",
    "effective_rank",
]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrix_kernel(u, m, vt):
    return u.astype(np.float64) @ (np.eye(u.shape[1]) if m is None else m) @ vt.astype(np.float64)


# Factor matrices (12, r) and (r, 10), overcomplete at rank 13, for three kinds and both depths.
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 13])
@pytest.mark.parametrize("kind", ["matrix", "heads", "spatial", "channel"])
def test_measures_agree_with_numpy_on_the_dense_kernel(kind, rank, deep):
    u, vt = normal(0, 12, rank), normal(1, rank, 10)
    m = normal(2, rank, rank) if deep else None
    weight = {
        "matrix": lambda: LowRank(u, vt, m),
        "heads": lambda: LowRank(u, vt.reshape(rank, 5, 2), m, out_axes=2),
        # u holds (kw, in), vt holds (kh, out): its rank axis is not the first.
        "spatial": lambda: SpatialLowRank(
            u.reshape(1, 3, 4, rank),
            vt.reshape(rank, 2, 1, 5).transpose(1, 2, 0, 3),
            m,
        ),
        "channel": lambda: ChannelLowRank(u.reshape(2, 2, 3, rank), vt.reshape(1, 1, rank, 10), m),
    }[kind]()
    kernel = matrix_kernel(u, m, vt)
    s = np.linalg.svd(kernel, compute_uv=False)[: min(rank, 10)]
    p = s / s.sum()
    expected = {
        "frobenius_norm": np.linalg.norm(kernel),
        "nuclear_norm": np.linalg.norm(kernel, "nuc"),
        "nuclear_bound": sum(np.sum(np.square(f, dtype=np.float64)) for f in (u, vt)) / 2
        + (0 if m is None else np.sum(np.square(m, dtype=np.float64)) / 2),
        "stable_rank": np.linalg.norm(kernel) ** 2 / np.linalg.norm(kernel, 2) ** 2,
        "effective_rank": np.prod(p**-p),
    }
    params = {"block": {"kernel": weight, "bias": np.zeros(10)}}
    result = diagnostics.report(params)
    assert list(result) == [*SCALARS, "spectrum"]
    for name, value in expected.items():
        assert list(result[name]) == ["block/kernel"]
        assert isinstance(result[name]["block/kernel"], float)
        np.testing.assert_allclose(result[name]["block/kernel"], value, rtol=1e-12)
        assert getattr(diagnostics, name)(params) == result[name]
    found = diagnostics.spectrum(params)["block/kernel"]
    np.testing.assert_allclose(found, s, rtol=1e-10, atol=1e-12 * s[0])
    np.testing.assert_array_equal(result["spectrum"]["block/kernel"], found)

    if deep:
        assert result["non_orthogonality"] == diagnostics.non_orthogonality(params) == {}
    else:
        shares = []
        for gram in (u.T.astype(float) @ u, vt.astype(float) @ vt.T):
            shares.append(np.linalg.norm(gram - np.diag(np.diag(gram))) / np.linalg.norm(gram))
        value = result["non_orthogonality"]["block/kernel"]
        np.testing.assert_allclose(value, np.mean(shares), rtol=1e-12, atol=1e-15)


def test_closed_forms():
    # Singular values 4, 2, 2 with unequal, oblique factors: u = (e1, e1 + e2, e3).
    u = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    vt = np.linalg.inv(u) @ np.diag([4.0, 2.0, 2.0])
    result = diagnostics.report({"kernel": LowRank(u, vt)})
    values = {name: paths["kernel"] for name, paths in result.items()}
    np.testing.assert_allclose(values.pop("spectrum"), [4, 2, 2], rtol=1e-12)
    # uᵀu = [[1,1,0],[1,2,0],[0,0,1]]; vt = [[4,-2,0],[0,2,0],[0,0,2]], vt vtᵀ has 20, 4, 4 and -4.
    expected = {
        "frobenius_norm": np.sqrt(24.0),
        "nuclear_norm": 8.0,
        "nuclear_bound": (4 + 28) / 2,
        "non_orthogonality": (np.sqrt(2 / 8) + np.sqrt(32 / 464)) / 2,
        "stable_rank": 24 / 16,
        "effective_rank": 2 * np.sqrt(2.0),  # shares 1/2, 1/4, 1/4
    }
    assert values == pytest.approx(expected, rel=1e-12)


def test_zero_kernel_has_rank_zero():
    result = diagnostics.report({"w": LowRank(np.zeros((4, 2)), np.ones((2, 3)))})
    assert result.pop("spectrum")["w"].tolist() == [0, 0]
    assert {name: paths["w"] for name, paths in result.items()} == {
        "frobenius_norm": 0.0,
        "nuclear_norm": 0.0,
        "nuclear_bound": 3.0,
        "non_orthogonality": pytest.approx(np.sqrt(2) / 4),  # 0 and sqrt(18)/6
        "stable_rank": 0.0,
        "effective_rank": 0.0,
    }


def test_stacked_weights_are_measured_one_by_one():
    u, vt, m = normal(0, 2, 3, 6, 4), normal(1, 2, 3, 4, 5), normal(2, 2, 3, 4, 4)
    for middle in (None, m):
        stacked = {"w": LowRank(u, vt, middle)}
        for name, paths in diagnostics.report(stacked).items():
            for index in np.ndindex(2, 3):
                single = {"w": jax.tree.map(lambda leaf, i=index: leaf[i], stacked["w"])}
                value = getattr(diagnostics, name)(single)
                assert bool(value) == bool(paths)
                if value:
                    assert paths["w"].shape == (2, 3) + (4,) * (name == "spectrum")
                    np.testing.assert_allclose(paths["w"][index], value["w"], rtol=1e-12)


def test_low_precision_is_measured_in_float64():
    weight = LowRank(jnp.asarray(normal(0, 8, 3), jnp.bfloat16), jnp.ones((3, 8), jnp.bfloat16))
    dense = np.asarray(weight.u).astype(float) @ np.asarray(weight.vt).astype(float)
    found = diagnostics.frobenius_norm({"w": weight})["w"]
    np.testing.assert_allclose(found, np.linalg.norm(dense), rtol=1e-13)


def test_the_kernel_is_never_formed():
    n = 400_000  # the kernel would take 1.3 TB
    u, vt = np.ones((n, 1), np.float32), np.full((1, n), 2.0, np.float32)
    result = diagnostics.report({"w": LowRank(u, vt)})
    assert result["frobenius_norm"]["w"] == pytest.approx(2.0 * n, rel=1e-12)
    assert result["nuclear_norm"]["w"] == pytest.approx(2.0 * n, rel=1e-12)


def test_one_decomposition_per_weight(monkeypatch):
    calls = []
    original = diagnostics.factored_svd
    monkeypatch.setattr(diagnostics, "factored_svd", lambda w: calls.append(w) or original(w))
    weight = LowRank(normal(0, 6, 2), normal(1, 2, 6))
    diagnostics.report({"a": weight, "b": weight})
    assert len(calls) == 2


@register_weight()
class Scaled(FactorizedWeight):
    """A kind that knows nothing but its kernel."""

    kernel: jax.Array
    scale: jax.Array

    def dense(self, *, precision=None):
        return self.kernel * self.scale


def test_other_kinds_are_measured_by_their_dense_kernel():
    kernel = normal(0, 6, 4)
    params = {"w": Scaled(jnp.asarray(kernel), jnp.asarray(2.0))}
    result = diagnostics.report(params)
    s = 2 * np.linalg.svd(kernel.astype(float), compute_uv=False)
    assert result["nuclear_norm"]["w"] == pytest.approx(s.sum(), rel=1e-12)
    assert result["frobenius_norm"]["w"] == pytest.approx(np.linalg.norm(s), rel=1e-12)
    assert result["nuclear_bound"] == result["non_orthogonality"] == {}
    with pytest.raises(ValueError, match="w: Scaled does not read a kernel as a matrix"):
        diagnostics.spectrum({"w": Scaled(jnp.ones((2, 2, 2)), jnp.asarray(1.0))})


def test_a_table_measures_the_dense_kernels_it_names():
    params = {
        "conv": {"kernel": normal(0, 3, 3, 4, 5)},
        "dense": {"kernel": normal(1, 6, 7)},
        "other": {"kernel": normal(2, 3, 3)},
    }
    rules = [
        Rule("conv/kernel", FixedRank(2), SpatialLowRank),
        Rule("dense/kernel", FixedRank(3)),
    ]
    table = resolve(params, rules)
    assert diagnostics.frobenius_norm(params) == {}
    result = diagnostics.report(params, table)
    assert list(result["nuclear_norm"]) == ["conv/kernel", "dense/kernel"]
    assert result["nuclear_bound"] == result["non_orthogonality"] == {}
    rows_and_columns = params["conv"]["kernel"].transpose(1, 2, 0, 3).reshape(12, 15)
    s = np.linalg.svd(rows_and_columns.astype(float), compute_uv=False)
    np.testing.assert_allclose(diagnostics.spectrum(params, table)["conv/kernel"], s, rtol=1e-10)
    assert result["nuclear_norm"]["conv/kernel"] == pytest.approx(s.sum(), rel=1e-12)

    # A factorized weight is measured as it is, and so is what it merges into.
    factorized = factorize(params, table)
    merged = jax.tree.map(np.asarray, merge(factorized))
    for name in ("frobenius_norm", "nuclear_norm", "stable_rank", "effective_rank"):
        of_factors = getattr(diagnostics, name)(factorized, table)
        assert of_factors == getattr(diagnostics, name)(factorized)
        # The merged kernel is rounded to float32, which gives it small further singular values.
        assert of_factors == pytest.approx(getattr(diagnostics, name)(merged, table), rel=1e-5)


def test_misuse_is_named():
    good = LowRank(np.ones((3, 1)), np.ones((1, 3)))
    bad = good.replace(u=np.array([[1.0], [np.nan], [np.inf]]))
    with pytest.raises(ValueError, match=r"^block/kernel: 2 of 3 entries are not finite"):
        diagnostics.report({"block": {"kernel": bad}})
    with pytest.raises(TypeError, match=r"^kernel: its values are being traced"):
        jax.jit(diagnostics.nuclear_norm)({"kernel": jax.tree.map(jnp.asarray, good)})
    with pytest.raises(TypeError, match=r"^kernel: only its shape is known"):
        diagnostics.spectrum(jax.eval_shape(lambda: {"kernel": good}))
    table = resolve({"kernel": np.ones((4, 4))}, [Rule("kernel", FixedRank(1))])
    with pytest.raises(ValueError, match=re.escape("kernel has shape (4, 5), the table says")):
        diagnostics.spectrum({"kernel": np.ones((4, 5))}, table)
    with pytest.raises(
        ValueError, match="names kernel, which is not in the tree; near misses: kern"
    ):
        diagnostics.spectrum({"kern": np.ones((4, 4))}, table)


# The published code's state before training: ResNet-20's 18 block convolutions, three seeds.
# (rank scale, factors, initializer): Frobenius norm, nuclear norm, bound, non-orthogonality.
EPOCH_ZERO = {
    (0.111, 2, "regular"): ("20.5", "72.4", "125.3", ".296"),
    (0.111, 2, "spectral"): ("4.958", "18.09", "18.09", "0"),
    (0.333, 2, "spectral"): ("7.271", "45.51", "45.51", "0"),
    (1.0, 2, "regular"): ("20.4", "163.7", "224.4", ".707"),
    (1.0, 2, "spectral"): ("8.331", "75.10", "75.10", "0"),
    (1.0, 3, "regular"): ("20.4", "163.7", "280.4", None),
    (1.0, 3, "spectral"): ("8.331", "75.10", "131.1", None),
}
TOLERANCE = {"regular": 0.05, "spectral": 0.015}
MEASURES = ("frobenius_norm", "nuclear_norm", "nuclear_bound", "non_orthogonality")


def block_kernels(seed):
    widths = [(16, 16)] * 6 + [(16, 32)] + [(32, 32)] * 5 + [(32, 64)] + [(64, 64)] * 5
    rng = np.random.default_rng(seed)
    return {
        f"conv_{i:02}": np.float32(np.sqrt(2 / (9 * m)) * rng.standard_normal((3, 3, m, n)))
        for i, (m, n) in enumerate(widths)
    }


def check_printed(value, printed, tolerance):
    decimals = len(printed.partition(".")[2])
    # Half a printed unit; of "0", what float32 factors leave of orthogonality.
    half_unit = 0.5 * 10**-decimals if decimals else 1e-6
    assert abs(value - float(printed)) <= max(half_unit, tolerance * float(printed))


@pytest.mark.parametrize("row", EPOCH_ZERO, ids=str)
def test_epoch_zero_table(row):
    scale, depth, name = row
    init = {"regular": regular(), "spectral": spectral(overcomplete="zero")}[name]
    rules = [Rule("conv_.*", RankScale(scale), SpatialLowRank, depth=depth)]
    reports = [
        diagnostics.report(factorize(block_kernels(seed), rules, init, jax.random.key(seed)))
        for seed in (1, 2, 3)
    ]
    for measure, printed in zip(MEASURES, EPOCH_ZERO[row], strict=True):
        values = [value for found in reports for value in found[measure].values()]
        if printed is None:
            assert values == []
        else:
            assert len(values) == 3 * 18
            check_printed(np.mean(values), printed, TOLERANCE[name])


def test_epoch_zero_table_unfactorized():
    params = block_kernels(1)
    table = resolve(params, [Rule("conv_.*", RankScale(0.111), SpatialLowRank)])
    result = diagnostics.report(params, table)
    for measure, printed in (("frobenius_norm", "8.326"), ("nuclear_norm", "75.0")):
        assert len(result[measure]) == 18
        check_printed(np.mean(list(result[measure].values())), printed, 0.015)
