"""Runs that begin dense and become low rank: as a whole, and interrupted before, at and after the
switch."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_runs
from tiny_runs import outcome

from experiments import evaluate, export, inference_cost, programs, stack_profiling, switching
from experiments import train as training
from experiments.checkpoint import Checkpoints
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.metrics import read_metrics
from experiments.restored_run import RestoredRun
from experiments.stopping import Stopped
from lowrank_jax.weights import ChannelLowRank, is_factorized

pytestmark = pytest.mark.usefixtures("tiny")

EPOCHS = 6
# Five steps an epoch. Whatever the stable ranks do, they count as settled after three epochs.
CUTTLEFISH = {
    "kind": "channel",
    "rank_scale": 0.0,
    "epochs": EPOCHS,
    "method": "cuttlefish",
    "selection__kept": "none",
    "selection__window": 2,
    "selection__tail": 2,
    "selection__threshold": 100.0,
    # Unscaled: of so small a kernel the scaled rank is at break-even.
    "selection__metric": "stable",
    "selection__epoch": 5,
}
SWITCH = 3


def train(folder: Path, say: Any = None, **keys: Any) -> Path:
    return tiny_runs.train(folder, say=say, **(CUTTLEFISH | keys))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.recipe.models.MODELS, "tiny", tiny_runs_entry())
        return train(tmp_path_factory.mktemp("reference") / "run")


def tiny_runs_entry() -> Any:
    from tiny_main import ENTRY

    return ENTRY


def test_what_is_recorded(reference: Path) -> None:
    result = json.loads((reference / "result.json").read_text())
    selection = result["selection"]
    assert (selection["epoch"], selection["step"]) == (SWITCH, 5 * SWITCH)
    assert "settled" in selection["remark"]
    rank = selection["ranks"]["conv/kernel"]
    assert 1 <= rank < 288 / 44  # Of a 36 x 8 matrix.
    assert result["parameters"] == result["dense_parameters"] - 288 + rank * 44
    assert set(selection["seconds"]) == {"profiling", "measuring", "switching"}
    lines = read_metrics(reference)
    measured = [line["selection"] for line in lines if "selection" in line]
    assert len(measured) == 1 + SWITCH
    for found in measured:
        stable = found["stable_rank"]["conv/kernel"]
        assert found["selected_rank"] == {"conv/kernel": math.ceil(stable)}
    assert math.ceil(stable) == rank
    (switched,) = [line for line in lines if "switched_validation_loss" in line]
    assert switched["epoch"] == SWITCH
    # No epoch of the dense network is the best one.
    assert result["best"]["epoch"] > SWITCH


def test_the_finished_run_is_taken_up_as_any_other(reference: Path) -> None:
    restored = RestoredRun.read(reference)
    kernel = restored.state.params["conv"]["kernel"]
    assert isinstance(kernel, ChannelLowRank)
    table = FinishedRun.read(reference).plan(restored.task.network).table
    assert [row.path for row in table.rows] == ["conv/kernel"]


class Killed(BaseException):
    """Nothing catches it, so it is as good as a kill: nothing more is written."""


@pytest.mark.slow
def test_stopped_again_and_again(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an epoch, within one, at the switch, and after it; one run, continued each time. At the
    switch it leaves when that is made and saved."""
    folder, update = tmp_path / "run", training.Progress.update
    # The step of the signal, and of the newest checkpoint when the run has left.
    for requested, newest in [(5, 5), (11, 12), (15, 15), (18, 19)]:

        def stop_there(self: Any, step: int, *more: Any, requested: int = requested) -> None:
            update(self, step, *more)
            if step == requested:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(training.Progress, "update", stop_there)
            with pytest.raises(Stopped):
                train(folder)
        found = max(int(path.name) for path in (folder / "checkpoints").iterdir())
        assert found == newest
    train(folder)
    assert outcome(folder) == outcome(reference)


def test_killed_around_the_switch(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of it, in turn; one run, continued each time."""
    folder, save = tmp_path / "run", Checkpoints.save

    def kill(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    def kill_at_switch(self: Any, step: int, *args: Any, **kwargs: Any) -> None:
        if step == 5 * SWITCH:
            raise Killed
        save(self, step, *args, **kwargs)

    moments = [
        (switching, "switch", kill),
        (training.run_folder, "write_forms", kill),
        (switching, "recalibrated", kill),
        (Checkpoints, "save", kill_at_switch),
    ]
    for owner, name, replacement in moments:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            with pytest.raises(Killed):
                train(folder)
        assert not (folder / "checkpoints" / str(5 * SWITCH)).exists()
    train(folder)
    assert outcome(folder) == outcome(reference)


def test_the_switch_changes_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels become their best approximation; statistics, moments and the rest stay."""
    seen: list[Any] = []
    switch = switching.switch

    def watched(state: Any, plan: Any) -> Any:
        before = jax.device_get(state)
        after = switch(state, plan)
        seen.append((before, jax.device_get(after)))
        return after

    compiled: list[tuple[int, Any]] = []
    dispatch_function = programs.dispatch_function

    def counted(task: Any, plan: Any, steps: int, batch: Any) -> Any:
        compiled.append((steps, batch))
        return dispatch_function(task, plan, steps, batch)

    monkeypatch.setattr(switching, "switch", watched)
    monkeypatch.setattr(programs, "dispatch_function", counted)
    train(tmp_path / "run", epochs=4, selection__epoch=3, selection__moments="project")
    # Every program once before the switch and once after it: one recompilation.
    once = compiled[: len(compiled) // 2]
    assert compiled == 2 * once and len(set(once)) == len(once)
    ((before, after),) = seen
    dense, weight = before.params["conv"]["kernel"], after.params["conv"]["kernel"]
    assert is_factorized(weight)
    spectrum = np.linalg.svd(np.asarray(dense, np.float64).reshape(36, 8), compute_uv=False)
    error = np.sum((np.asarray(weight.dense(), np.float64) - dense) ** 2)
    np.testing.assert_allclose(error, np.sum(spectrum[weight.rank :] ** 2), rtol=1e-5)
    np.testing.assert_array_equal(before.params["stem"]["kernel"], after.params["stem"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, before.model_state, after.model_state)
    assert before.step == after.step


@pytest.mark.slow
def test_norms_between_factors_and_recalibration(tmp_path: Path) -> None:
    """Such a run is evaluated and exported as it is, and nothing is made of it that it is not."""
    keys = {"factor_norm": True, "decay": "plain", "selection__recalibration_batches": 2}
    folder = train(tmp_path / "run", **keys)
    restored = RestoredRun.read(folder)
    found = evaluate.evaluate(restored)
    assert found["merged"] is None and found["factored"]["accuracy"] == restored.run.accuracy
    assert inference_cost.measure(restored).merged is None
    export.export(folder, "factored", tmp_path / "factored.safetensors")
    for make_dense in (
        lambda: export.export(folder, "merged", tmp_path / "merged.safetensors"),
        lambda: train(tmp_path / "next", start=str(folder), method="factorize"),
    ):
        with pytest.raises(RunError, match="norms between the factors"):
            make_dense()
    state = restored.state
    norm = state.params["conv"]["factor_norm"]
    assert norm["scale"].shape == (state.params["conv"]["kernel"].rank,)
    assert np.ptp(norm["scale"]) > 0
    # What the norms saw while nothing was learned is part of their statistics.
    plain = train(tmp_path / "plain", **(keys | {"selection__recalibration_batches": 0}))
    assert outcome(plain)["digest"] != outcome(folder)["digest"]


@pytest.mark.slow
def test_pufferfish_and_a_late_switch(tmp_path: Path) -> None:
    lines: list[str] = []
    folder = train(
        tmp_path / "pufferfish", method="pufferfish", selection__epoch=2, selection__fraction=0.5
    )
    selection = json.loads((folder / "result.json").read_text())["selection"]
    assert (selection["epoch"], selection["ranks"]) == (2, {"conv/kernel": 4})
    folder = train(
        tmp_path / "late", say=lines.append, selection__threshold=1e-9, selection__epoch=4
    )
    selection = json.loads((folder / "result.json").read_text())["selection"]
    assert selection["epoch"] == 4
    assert "NOT SETTLED" in selection["remark"]
    assert any(line.startswith("NOT SETTLED") for line in lines)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rank_scale": 0.5}, "ranks are selected in training"),
        ({"steps": 20}, "counts in epochs"),
        ({"selection__epoch": EPOCHS}, "nothing would be left"),
        ({"init": "regular"}, "become their two factors"),
        ({"factor_norm": True, "decay": "frobenius"}, "means nothing"),
        ({"record_norms": True}, "begins dense"),
        ({"selection__kept": "conv/.*"}, "keeps all 1 kernels dense"),
        ({"selection__kept": "("}, "is no pattern"),
        ({"selection__kept": "publishd"}, "is none of profile, published and none"),
        ({"method": "pufferfish", "selection__kept": "profile"}, "it times nothing"),
    ],
)
def test_what_contradicts_is_refused(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=words):
        train(tmp_path / "run", **keys)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_kept_layers_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is continued reads the times of its stacks; without them it says so."""
    seconds = iter([1.0, 2.0])

    def timed(contenders: Any, inputs: Any, plan: Any, say: Any) -> dict[str, float]:
        return {"dense": 4.0, "factorized": next(seconds)}

    monkeypatch.setattr(stack_profiling, "time_gradients", timed)
    folder, lines = tmp_path / "run", []
    keys = {"selection__kept": "profile", "selection__speed_up": 3.0}

    class Enough(Exception):
        pass

    def stop(line: str) -> None:
        lines.append(line)
        if line.startswith("step 5/"):
            raise Enough

    with pytest.raises(Enough):
        train(folder, say=stop, **keys)
    assert "timed 2 of 2 stacks" in "".join(lines)
    train(folder, say=lines.append, **keys)  # A third time would be one too many.
    kept = json.loads((folder / "kept_layers.json").read_text())
    assert [stack["kept"] for stack in kept["stacks"]] == [False, False]
    assert (folder / "plots" / "stack_times.png").is_file()
    result = json.loads((folder / "result.json").read_text())
    assert list(result["selection"]["ranks"]) == ["conv/kernel"]
    assert result["selection"]["seconds"]["profiling"] > 0
