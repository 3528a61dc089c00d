"""Evaluating a finished run, factored and merged, and refusing what does not agree; its cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import pytest
import tiny_runs
from tiny_runs import contents

import lowrank_jax as lrj
from experiments import arguments, evaluate, inference_cost, mesh
from experiments.errors import RunError
from experiments.inference_cost import FormCost, InferenceCost
from experiments.restored_run import RestoredRun

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_factored_and_merged_agree_with_the_record(run: Path) -> None:
    found = evaluate.evaluate(RestoredRun.read(run))
    result = json.loads((run / "result.json").read_text())
    assert found["factored"]["accuracy"] == result["final"]["accuracy"]
    assert found["factored"]["loss"] == pytest.approx(result["final"]["loss"], rel=1e-6)
    assert found["factored"]["parameters"] == result["parameters"]
    assert found["merged"]["parameters"] == result["dense_parameters"]
    assert found["logit_difference"] < 1e-5
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert (found["split"], found["examples"], found["tolerance"]) == ("test", 360, 1e-4)


def test_a_merge_that_changes_the_function_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = lrj.merge
    monkeypatch.setattr(lrj, "merge", lambda p: jax.tree.map(lambda x: 1.01 * x, merge(p)))
    with pytest.raises(RunError, match="factored and merged logits differ"):
        evaluate.evaluate(RestoredRun.read(run))


def change(run: Path, name: str, edit: object) -> None:
    path = run / name
    content = json.loads(path.read_text())
    edit(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))


def test_another_accuracy_than_recorded_is_found(run: Path) -> None:
    change(run, "result.json", lambda c: c["final"].update(accuracy=c["final"]["accuracy"] + 0.01))
    with pytest.raises(RunError, match=r"accuracy .* here, .* in result.json"):
        evaluate.evaluate(RestoredRun.read(run))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "not a finished run"),
        (lambda run: (run / "result.json").write_text("{"), "not valid JSON"),
        (lambda run: (run / "result.json").write_text("{}"), "damaged"),
        (lambda run: (run / "config.json").write_text("[1]"), "damaged"),
        (lambda run: (run / "config.json").write_text('{"task": "classification"}'), "damaged"),
        (lambda run: shutil.rmtree(run / "checkpoints" / "10"), "checkpoint"),
        (
            lambda run: change(run, "data.json", lambda c: c.update(fingerprint="0" * 64)),
            "other data",
        ),
    ],
)
def test_damaged_runs_are_refused(run: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(run)
    before = contents(run)
    with pytest.raises(RunError, match=message):
        evaluate.evaluate(RestoredRun.read(run))
    assert contents(run) == before


# The tiny network on images of 32 x 32 pixels: the stem to 8 x 8 of 4 channels, the factorized
# convolution to 4 x 4 of 8 channels, ten classes.
STEM, HEAD = 8 * 8 * 9 * 3 * 4, 8 * 10
DENSE_CONV = 4 * 4 * 9 * 4 * 8
RANK = round(0.5 * 8 * 3)
FACTORED_CONV = 8 * 4 * 3 * 4 * RANK + 4 * 4 * 3 * RANK * 8  # The first factor keeps the rows.
COMPOSING = 3 * 4 * RANK * 3 * 8


def measured(folder: Path) -> InferenceCost:
    return inference_cost.measure(RestoredRun.read(folder), lambda line: None)


def multiply_adds(cost: FormCost) -> dict[int, int]:
    return {one.batch_size: one.multiply_adds for one in cost.latencies}


def test_what_inference_costs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)
    monkeypatch.setattr(inference_cost, "_SECONDS", 0.1)
    found = measured(run)
    assert contents(run) == before
    result = json.loads((run / "result.json").read_text())
    assert found.factored.parameters == result["parameters"]
    assert found.dense.parameters == found.merged.parameters == result["dense_parameters"]
    dense = STEM + DENSE_CONV + HEAD
    assert multiply_adds(found.dense) == multiply_adds(found.merged) == {1: dense, 500: dense}
    assert result["dense_multiply_adds"] == dense
    # Composing costs fewer, even for one example; it is done once for all examples of a call.
    assert DENSE_CONV + COMPOSING < FACTORED_CONV
    composed = {1: dense + COMPOSING, 500: (500 * dense + COMPOSING) // 500}
    assert multiply_adds(found.factored) == composed
    assert found.merged_is_dense and found.precision == "float32"
    assert found.hardware["platform"] == jax.devices()[0].platform
    for cost in (found.dense, found.factored, found.merged):
        for one in cost.latencies:
            assert one.layout in ("as_written", "batch_minor")
            assert 0 < one.lower_quartile_s <= one.median_s <= one.upper_quartile_s
    for ours, theirs in zip(found.dense.latencies, found.merged.latencies, strict=True):
        assert ours.layout == theirs.layout  # As they are one program.


def test_kernels_are_applied_as_the_run_does(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was measured to be faster factored is factored at any batch size."""
    forms = json.loads((run / "forms.json").read_text())
    assert [row["path"] for row in forms["rows"]] == ["conv/kernel"]
    forms["rows"][0] |= {"decided": "measured", "form": "factored"}
    (run / "forms.json").write_text(json.dumps(forms))
    monkeypatch.setattr(inference_cost, "timed", lambda work: lambda: 1.0)  # Nothing is timed.
    factored = STEM + FACTORED_CONV + HEAD
    assert multiply_adds(measured(run).factored) == {1: factored, 500: factored}
    (run / "forms.json").write_text("{}")
    with pytest.raises(RunError, match=r"forms\.json is damaged"):
        measured(run)


def test_the_command(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_cost, "timed", lambda work: lambda: 1.0)  # Nothing is timed.
    evaluate.run([str(run)])
    text = capsys.readouterr().out
    assert "factored" in text and "merged" in text and "they agree" in text
    found = json.loads((run / "evaluation.json").read_text())
    cost = found["inference"]
    for form in ("factored", "merged"):
        assert cost[form]["parameters"] == found[form]["parameters"]
        for latency in cost[form]["latencies"]:
            assert f"{latency['multiply_adds']:,}  {latency['layout']}" in text
    for wrong in ([], ["--help"]):
        with pytest.raises(RunError, match="Usage"):
            evaluate.run(wrong)


def test_a_config_for_more_devices_is_planned_with_those_there_are() -> None:
    config = arguments.settle(tiny_runs.config())
    config.mesh = "data:8"
    with pytest.raises(RunError, match="does not fit"):
        mesh.make(config.mesh)
    assert mesh.make(mesh.on_this_machine(config).mesh).size == jax.device_count()
    assert config.mesh == "data:8"
