"""The same norms, gradients and kernels on eight devices, automatic and explicit mesh axes."""

from pathlib import Path

import pytest
from eight_devices import printed_by

CASES = [
    f"{axes}-{name}"
    for axes in ("Auto", "Explicit")
    for name in (
        "matrix-in",
        "matrix-out",
        "matrix-in_out",
        "matrix-in_out_eager",
        "heads-in_heads",
        "stack-batch",
        "stack-batch_out",
        "spatial-in_out",
        "channel-in_out",
        "train-batch",
        "train-batch_middle",
        "train-ranks",
        "tucker-batch",
        "tucker-factors",
    )
]


@pytest.fixture(scope="module")
def results():
    return printed_by(Path(__file__).with_name("sharded_checks.py"), optimized=False)


def test_all_cases_ran(results):
    assert set(results) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_agree_with_one(results, case):
    found = results[case]
    assert "error" not in found, found["error"]
    assert found["shardings"] == []
    for quantity in ("norm", "dense", "gradient"):
        assert found[quantity] <= 1e-6, (quantity, found[quantity])
