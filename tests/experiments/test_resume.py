"""A run that was interrupted, by whatever, ends with the same bits as one that never was."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from tiny_runs import contents, outcome, sigterm_at

from experiments import tasks
from experiments import train as training
from experiments.stopping import Stopped

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def reference(finished: Path) -> dict[str, Any]:
    """What the uninterrupted run computes."""
    return outcome(finished)


def at_call(number: int, function: Any, action: Any) -> Any:
    """`function`, with `action` carried out before its call of that number."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return function(*args, **kwargs)

    return wrapped


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "kill", ["config", "commit", pytest.param("manifest", marks=pytest.mark.slow)]
)
def test_killed_between_two_writes(
    kill: str, reference: dict[str, Any], tmp_path: Path, compilation_cache: Path
) -> None:
    folder = tmp_path / "run"
    process = tiny_runs.start(folder, f"--kill={kill}", cache=compilation_cache)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    if kill == "commit":  # A manifest is written while the folder is made in the background.
        assert list((folder / "checkpoints").glob("5?*")), "the second checkpoint was not begun"
    if kill != "config":
        assert not (folder / "checkpoints" / "5").exists()
    tiny_runs.train(folder)
    assert outcome(folder) == reference
    assert {"config.json", "data.json", "table.json", "table.txt"} <= set(contents(folder))


@pytest.mark.slow
def test_killed_from_outside_twice(
    reference: dict[str, Any], tmp_path: Path, compilation_cache: Path
) -> None:
    """While it compiles, and after its first epoch; an independent process runs to the end."""
    folder = tmp_path / "run"
    for marker in ("steps:", "step 5/10"):
        process = tiny_runs.start(folder, cache=compilation_cache)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(marker):
                process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = tiny_runs.start(folder, cache=compilation_cache)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert outcome(folder) == reference


@pytest.mark.slow
def test_killed_at_ten_random_moments(reference: dict[str, Any], tmp_path: Path) -> None:
    """Without the compilation cache: the process that continues compiles for itself."""
    started = time.monotonic()
    process = tiny_runs.start(tmp_path / "timed")
    process.communicate()
    duration = time.monotonic() - started
    moments = random.Random(0)
    kills = 0
    for attempt in range(1000):
        folder = tmp_path / f"run{attempt}"
        while kills < 10:
            process = tiny_runs.start(folder)
            time.sleep(moments.uniform(0.2, 1.0) * duration)
            process.kill()
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                break  # It had finished.
            kills += 1
        process = tiny_runs.start(folder)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert outcome(folder) == reference
        if kills == 10:
            break
    assert outcome(tmp_path / "timed") == reference


@pytest.mark.parametrize(
    "argument",
    [
        "protocol=published,record_norms,diagnostics_every=1,diagnostics_share=1",
        pytest.param("variant=deep", marks=pytest.mark.slow),
    ],
)
def test_sigterm_in_the_middle_of_an_epoch(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves where it is; under the published protocol the partial batch is still to come."""
    folder, steps_per_dispatch = tmp_path / "run", 2
    whole = tiny_runs.train(tmp_path / "whole", argument, steps_per_dispatch=steps_per_dispatch)
    with monkeypatch.context() as patch:
        # Called after every dispatch: the signal arrives in the second of three or four.
        update = at_call(1, training.Progress.update, sigterm)
        patch.setattr(training.Progress, "update", update)
        with pytest.raises(Stopped, match="stopped at step 4"):
            tiny_runs.train(folder, argument, steps_per_dispatch=steps_per_dispatch)
    assert (folder / "checkpoints" / "4").is_dir()
    lines: list[str] = []
    tiny_runs.train(folder, argument, say=lines.append, steps_per_dispatch=steps_per_dispatch)
    assert "continuing from step 4" in lines
    assert outcome(folder) == outcome(whole)


def test_sigterm_at_every_other_moment(
    reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, stopped in turn while data is loaded, while the state is made, while it compiles,
    at the first step, at the end of an epoch and after the last step; it is continued each time."""
    folder = tmp_path / "run"
    moments = [
        (tasks, "load", 1),
        (training.states, "create", 1),
        (training.Programs, "compile", 1),
        (training.KernelDiagnostics, "measure", 1),
        (training.tally, "note_best", 1),
    ]
    for owner, name, number in moments:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, at_call(number, getattr(owner, name), sigterm))
            with pytest.raises(Stopped, match="start again to continue"):
                tiny_runs.train(folder)
        assert not (folder / "result.json").exists()
    # After the last step there is nothing to stop: the run finishes.
    tiny_runs.train(folder, say=sigterm_at("step 10/10"))
    assert outcome(folder) == reference


def test_sigterm_of_the_process_exits_0(
    reference: dict[str, Any], tmp_path: Path, compilation_cache: Path
) -> None:
    folder = tmp_path / "run"
    process = tiny_runs.start(folder, cache=compilation_cache)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("steps:"):  # It is about to make the state and to compile.
            process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said[-1].startswith("stopped") and "start again to continue" in said[-1]
    tiny_runs.train(folder)
    assert outcome(folder) == reference


def test_the_signal_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        tiny_runs.train(tmp_path / "run", say=sigterm_at("cifar_resnet_local"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_killed_between_the_last_checkpoint_and_the_result(
    reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training.plots, "run_plots", at_call(1, lambda path: None, _fail))
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.train(folder)
    assert not (folder / "result.json").exists()
    tiny_runs.train(folder)
    assert outcome(folder) == reference


def _fail() -> None:
    raise KeyboardInterrupt


def test_checkpoints_every_other_epoch_lose_at_most_those_epochs(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    """Lines written after the checkpoint are taken back when the run continues from it."""
    folder = tmp_path / "run"

    def fail_after_first_epoch(line: str) -> None:
        if line.startswith("step 5/10"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_runs.train(folder, say=fail_after_first_epoch, checkpoint_every_epochs=2)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    tiny_runs.train(folder, checkpoint_every_epochs=2)
    assert outcome(folder) == reference


def test_a_finished_run_started_again_changes_nothing(tmp_path: Path) -> None:
    folder = tiny_runs.train(tmp_path / "run")
    before = contents(folder)
    lines: list[str] = []
    tiny_runs.train(folder, say=lines.append)
    assert len(lines) == 1 and "is finished" in lines[0]
    assert contents(folder) == before
