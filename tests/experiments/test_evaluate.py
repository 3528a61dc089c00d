"""Evaluating a finished run, factored and merged, and refusing what does not agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import pytest
import tiny_runs
from tiny_runs import compilation_cache, contents, tiny  # noqa: F401

import lowrank_jax as lrj
from experiments import arguments, evaluate, mesh
from experiments.errors import RunError

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Path:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_runs.models.MODELS, "tiny", tiny_runs.ENTRY)
        return tiny_runs.train(tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_factored_and_merged_agree_with_the_record(run: Path) -> None:
    found = evaluate.evaluate(run)
    result = json.loads((run / "result.json").read_text())
    assert found["factored"]["accuracy"] == result["final"]["accuracy"]
    assert found["factored"]["loss"] == pytest.approx(result["final"]["loss"], rel=1e-6)
    assert found["factored"]["parameters"] == result["parameters"]
    assert found["merged"]["parameters"] == result["dense_parameters"]
    assert found["logit_difference"] < 1e-5
    assert json.loads((run / "evaluation.json").read_text()) == found


def test_a_merge_that_changes_the_function_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = lrj.merge
    monkeypatch.setattr(lrj, "merge", lambda p: jax.tree.map(lambda x: 1.01 * x, merge(p)))
    with pytest.raises(RunError, match="factored and merged logits differ"):
        evaluate.evaluate(run)


def change(run: Path, name: str, edit: object) -> None:
    path = run / name
    content = json.loads(path.read_text())
    edit(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))


def test_another_accuracy_than_recorded_is_found(run: Path) -> None:
    change(run, "result.json", lambda c: c["final"].update(accuracy=c["final"]["accuracy"] + 0.01))
    with pytest.raises(RunError, match=r"accuracy .* here, .* in result.json"):
        evaluate.evaluate(run)


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
        evaluate.evaluate(run)
    assert contents(run) == before


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run([str(run)])
    text = capsys.readouterr().out
    assert "factored" in text and "merged" in text and "they agree" in text
    for wrong in ([], ["--help"]):
        with pytest.raises(RunError, match="Usage"):
            evaluate.run(wrong)


def test_a_config_for_more_devices_is_planned_with_those_there_are() -> None:
    config = arguments.settle(tiny_runs.config())
    config.mesh.data = 8
    with pytest.raises(RunError, match="does not fit"):
        mesh.make(config.mesh)
    assert mesh.make(mesh.on_this_machine(config).mesh).size == jax.device_count()
    assert config.mesh.data == 8
