"""What importing the library brings in, and the names it offers."""

import subprocess
import sys

import lowrank_jax

HEAVY = (
    "flax",
    "safetensors",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "ml_collections",
    "experiments",
)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_root_import_is_light():
    code = f"import sys, lowrank_jax\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run(code) == []


def test_linen_is_imported_by_itself():
    assert run("import sys, lowrank_jax.linen; print('flax' in sys.modules)") == ["True"]


def test_importing_starts_no_backend():
    code = "import lowrank_jax, jax._src.xla_bridge as b; print(b.backends_are_initialized())"
    assert run(code) == ["False"]


def test_public_names():
    assert sorted(lowrank_jax.__all__) == [
        "AttentionLayout",
        "ChannelLowRank",
        "Energy",
        "FactorizedWeight",
        "FixedRank",
        "LowRank",
        "ParamFraction",
        "Product",
        "Projection",
        "RankScale",
        "Rule",
        "SpatialLowRank",
        "StableRank",
        "Table",
        "TensorTrain",
        "Tucker",
        "View",
        "attention_products",
        "balance_products",
        "batch_minor",
        "break_even_rank",
        "conv_general_dilated",
        "decay",
        "describe",
        "diagnostics",
        "dot_general",
        "export",
        "factorize",
        "frobenius_decay",
        "frobenius_penalty",
        "initializers",
        "is_factorized",
        "merge",
        "products_by_suffix",
        "raise_if_vanished",
        "rank_selection",
        "record_norms",
        "recorded_norms",
        "refactorize",
        "regular",
        "replay_norms",
        "resolve",
        "restructure",
        "sharding",
        "spectral",
        "spectral_ones",
        "target_ratio",
        "variance_matched",
    ]
    for name in lowrank_jax.__all__:
        assert hasattr(lowrank_jax, name), name
