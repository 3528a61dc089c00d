"""Diagnostics in the course of a run: when they are due, what they may cost, what is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

import lowrank_jax as lrj
from experiments import state as states
from experiments import tally, tasks
from experiments.arguments import settle
from experiments.errors import RunError
from experiments.kernel_diagnostics import KernelDiagnostics
from experiments.restored_run import RestoredRun

STEPS = 10


def diagnostics(**keys: Any) -> tuple[KernelDiagnostics, dict[str, Any]]:
    config = settle(tiny_runs.config(**keys))
    task = tasks.load(config)
    counted = tally.new(1)
    return KernelDiagnostics(config, states.plan(config, task.network, 5), counted), counted


@pytest.mark.usefixtures("tiny")
def test_they_are_due_where_a_multiple_of_the_interval_is_reached() -> None:
    found, counted = diagnostics(diagnostics_every=100)
    # Dispatches of 13 steps: the first ends at or after 100, 200, 300.
    ends = [end for end in range(13, 400, 13) if found.due(end - 13, end, elapsed=1.0)]
    assert ends == [104, 208, 312]
    assert counted["diagnostics"] == {"seconds": 0.0, "records": 0, "left_out": 0}
    found, _ = diagnostics(diagnostics_every=5)
    assert [found.due(end - 1, end, 1.0) for end in (4, 5, 6, 10)] == [False, True, False, True]


@pytest.mark.usefixtures("tiny")
def test_a_record_that_would_cost_too_much_is_left_out() -> None:
    """Each record takes 2 s, each interval 10 s: within 3 % there is room for one in 67 s."""
    found, counted = diagnostics(diagnostics_every=1, diagnostics_share=0.03)
    counted["diagnostics"] |= {"seconds": 2.0, "records": 1}  # At step 0.
    elapsed, taken = 0.0, []
    for step in range(1, 61):
        elapsed += 10
        if found.due(step - 1, step, elapsed):
            elapsed += 2
            counted["diagnostics"]["seconds"] += 2.0
            counted["diagnostics"]["records"] += 1
            taken.append(step)
        assert counted["diagnostics"]["seconds"] <= max(2.0, 0.03 * elapsed)
    assert taken[0] == 14  # 4 s are 3 % of 133 s.
    assert len(taken) == int(0.03 * 620 / 2) - 1
    assert counted["diagnostics"]["left_out"] == 60 - len(taken)


@pytest.mark.usefixtures("tiny")
def test_measures_of_factors_that_are_known() -> None:
    found, counted = diagnostics()
    u, vt = np.zeros((1, 3, 4, 12)), np.zeros((3, 1, 12, 8))
    u[0, 0, 0, 0], u[0, 1, 0, 1], vt[0, 0, 0, 0], vt[1, 0, 1, 3] = 3.0, 2.0, 2.0, 1 / 3
    weight = lrj.SpatialLowRank(u, vt)
    measured = found.measure({"conv": {"kernel": weight}}, learning_rate=0.4)
    norm = 36 + 4 / 9
    assert measured.diagnostics["frobenius_norm"] == {"conv/kernel": pytest.approx(norm**0.5)}
    rate = measured.diagnostics["effective_learning_rate"]["conv/kernel"]
    assert rate == pytest.approx(0.4 / norm)
    assert measured.spectra["conv/kernel"][:3] == [6.0, 0.666667, 0.0]  # Six digits.
    assert counted["diagnostics"]["records"] == 1
    assert counted["diagnostics"]["seconds"] == pytest.approx(measured.seconds, abs=1e-4)
    with pytest.raises(RunError, match="conv/kernel"):
        found.measure({"conv": {"kernel": weight.replace(u=np.full_like(u, np.nan))}}, 0.4)


@pytest.mark.usefixtures("tiny")
def test_a_run_measures_within_epochs_and_says_what_it_took(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tiny_runs.train(
        tmp_path / "run", "merge=True", said.append, diagnostics_every=3, diagnostics_share=1.0
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "diagnostics" in line]
    assert [line["step"] for line in measured] == [0, 3, 6, 9, STEPS]
    assert [line["epoch"] for line in lines] == [0, 0.6, 1, 1.2, 1.8, 2]
    for line in measured:
        norms = line["diagnostics"]["frobenius_norm"]
        for path, norm in norms.items():
            assert np.linalg.norm(line["spectra"][path]) == pytest.approx(norm, rel=1e-5)
            effective = line["diagnostics"]["effective_learning_rate"][path]
            assert effective == pytest.approx(line["learning_rate"] / norm**2)
    result = json.loads((folder / "result.json").read_text())
    total = sum(line["diagnostics_seconds"] for line in measured)
    assert result["diagnostics_time_s"] == pytest.approx(total, abs=1e-3)
    share = f"{result['diagnostics_time_s'] / result['wall_time_s']:.1%}"
    assert f"diagnostics took {share} of the time\n" in said[-1]
    assert result["diagnostics_left_out"] == 0
    check_compact(folder, result, said[-1])


def check_compact(folder: Path, result: dict[str, Any], closing: str) -> None:
    """What merge=True leaves behind: the dense network, with the accuracy of the factors."""
    compact = result["compact"]
    assert compact["parameters"] == result["dense_parameters"] != result["parameters"]
    assert compact["accuracy"] == pytest.approx(result["final"]["accuracy"], abs=0.005)
    assert 0 <= compact["logit_difference"] <= 1e-4
    assert f"with {compact['parameters']:,} parameters instead of" in closing
    loaded = lrj.export.load(folder / compact["file"])
    trained = RestoredRun.read(folder).state
    weight = trained.params["conv"]["kernel"]
    kernel = np.einsum(
        "xwir,hyro->hwio", np.asarray(weight.u, np.float64), np.asarray(weight.vt, np.float64)
    )
    np.testing.assert_allclose(loaded["params"]["conv"]["kernel"], kernel, rtol=1e-5, atol=1e-6)
    statistics = trained.model_state["batch_stats"]["norm"]["mean"]
    np.testing.assert_array_equal(loaded["batch_stats"]["norm"]["mean"], statistics)
