"""Sweeps: what is run, what is not, what is noted, and how a sweep is stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_main
from little_sweeps import ROOT, begin, started, sweep_file

from experiments import files, models, sweep
from experiments.run_folder import held
from experiments.sweep_plan import SweepRun, plan_sweep

# What stands in for a run: it may `finish`, and its folder is there.
CHILD = """
import fcntl, json, os, signal, sys, time
folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
def write(name, content):
    with open(os.path.join(folder, name), "w") as file:
        json.dump(content, file)
def finish():
    write("result.json", {"final": {"accuracy": 0.5}})
"""


@pytest.fixture
def children(monkeypatch):
    """Replaces the runs' command; `children[seed]` is what the run with that seed does."""
    programs = {}

    def command(run):
        seed = int(run.name.rpartition("-seed")[2])
        return [sys.executable, "-I", "-c", CHILD + programs.get(seed, "finish()"), str(run.folder)]

    monkeypatch.setattr(SweepRun, "command", property(command))
    return programs


SEEDS = tuple({"seed": seed} for seed in (1, 2, 3))


# ------------------------------------------------------------------ what is not


def test_dry_run_and_commands_start_nothing(tmp_path, capsys):
    path, out = sweep_file(tmp_path, *SEEDS, {"seed": 4}), tmp_path / "o u t"
    finished, failed, begun, untouched = plan_sweep(path, out)
    files.write_json(finished.folder / "result.json", {})
    files.write_json(finished.failure, {"message": "earlier"})
    files.write_json(failed.failure, {"message": "why"})
    begin(begun)
    before = sorted(out.rglob("*"))
    assert started(path, out, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "finished  cifar_resnet-seed1",
        "failed    cifar_resnet-seed2",
        "begun     cifar_resnet-seed3",
        "open      cifar_resnet-seed4",
        "4 runs: 1 begun, 1 failed, 1 finished, 1 open",
    ]
    assert started(path, out, "--commands") == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    main = [sys.executable, "-m", "experiments.main"]
    assert commands == [
        [*main, f"--config={run.config}", f"--workdir={run.folder}"]
        for run in (failed, begun, untouched)
    ]
    assert sorted(out.rglob("*")) == before


def test_nothing_is_done_twice(children, tmp_path, capsys):
    path, out = sweep_file(tmp_path, *SEEDS), tmp_path / "out"
    assert started(path, out) == 0
    first = capsys.readouterr().out
    assert "3 runs: 3 open" in first and "3 runs: 3 finished" in first
    lines = [line for line in first.splitlines() if line.startswith("[")]
    assert lines[0].startswith("[1 of 3] cifar_resnet-seed1  accuracy 50.00%, 0.0 min, about 0:0")
    assert lines[2].startswith("[3 of 3] cifar_resnet-seed3  accuracy 50.00%")
    assert "left" not in lines[2]
    for seed in (1, 2, 3):
        children[seed] = "sys.exit(1)"
    assert started(path, out) == 0
    assert "[" not in capsys.readouterr().out


def test_a_run_waits_for_the_one_it_takes_the_folder_of(children, tmp_path, capsys, monkeypatch):
    """In order they are done at once; where the first fails, the second is not tried."""
    first, second, third = plan_sweep(sweep_file(tmp_path, *SEEDS), tmp_path / "out")
    runs = [first, second, dataclasses.replace(third, after=(second.folder,))]
    children[2] = "sys.exit('no')"
    assert sweep.carry_out(runs) == 1
    printed = capsys.readouterr().out
    assert "cifar_resnet-seed3 (after cifar_resnet-seed2)  waits for cifar_resnet-seed2;" in printed
    assert "3 runs: 1 failed, 1 finished, 1 waiting" in printed
    assert not third.log.exists() and third.state == "open"
    del children[2]
    assert sweep.carry_out(runs) == 0
    assert "3 runs: 3 finished" in capsys.readouterr().out


# ------------------------------------------------------------------ what is noted


def test_a_failed_run_is_noted_and_tried_again(children, tmp_path, capsys):
    path, out = sweep_file(tmp_path, *SEEDS), tmp_path / "out"
    children[1] = "print('starting', flush=True); sys.exit('error: no such data')"
    children[2] = "os.kill(os.getpid(), signal.SIGKILL)"
    assert started(path, out) == 1
    captured = capsys.readouterr()
    assert "3 runs: 2 failed, 1 finished" in captured.out
    assert "[1 of 3] cifar_resnet-seed1  failed: error: no such data" in captured.out
    first, second, third = plan_sweep(path, out)
    failure = json.loads(first.failure.read_text())
    assert (failure["message"], failure["exit_code"]) == ("error: no such data", 1)
    assert failure["output"] == ["starting", "error: no such data"]
    assert failure["command"] == first.command
    killed = json.loads(second.failure.read_text())
    assert killed["exit_code"] == -signal.SIGKILL and "signal 9" in killed["message"]
    assert third.finished and not third.failure.exists()

    children[1] = "print('again'); finish()"
    assert started(path, out) == 1
    assert not first.failure.exists() and second.failure.exists()
    log = first.log.read_text()
    assert log.index("no such data") < log.index("again")
    del children[2]
    assert started(path, out) == 0
    assert not second.failure.exists()


def test_a_run_that_someone_else_stops_is_not_a_failure(children, tmp_path, capsys):
    path, out = sweep_file(tmp_path, *SEEDS), tmp_path / "out"
    children[1] = "print('stopped at step 3')"  # As after SIGTERM: exit code 0 and no result.
    children[2] = "os.kill(os.getpid(), signal.SIGTERM)"  # Before it could save anything.
    assert started(path, out) == 1  # Not all that was asked for has been done.
    assert "3 runs: 1 finished, 2 stopped" in capsys.readouterr().out
    assert not list(out.glob("*.failure.json"))


def test_what_another_process_runs_is_left_to_it(children, tmp_path, capsys):
    path, out = sweep_file(tmp_path, *SEEDS), tmp_path / "out"
    by_hand, by_another_sweep, unseen = plan_sweep(path, out)
    by_hand.folder.mkdir(parents=True)
    by_another_sweep.log.touch()
    # Another process enters after the look at the lock: the run finds it taken and gives up.
    children[3] = (
        "fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)\n"
        "if os.fork():\n    os._exit(2)\n"
        "time.sleep(2)\n"
    )
    with held(by_hand.folder), held(by_another_sweep.log):
        assert started(path, out) == 0
    assert "3 runs: 3 busy" in capsys.readouterr().out
    assert not any(run.failure.exists() or run.finished for run in plan_sweep(path, out))
    assert "$ " in unseen.log.read_text() and by_another_sweep.log.read_text() == ""
    children[3] = "sys.exit(2)"
    while sweep.attempt(unseen, sweep.Interruptions()) == "busy":
        time.sleep(0.1)  # Until the other process lets go.
    assert unseen.failure.exists()


def test_no_place_to_write_is_one_message(children, tmp_path, capsys, monkeypatch):
    path = sweep_file(tmp_path, *SEEDS)
    (tmp_path / "file").touch()
    assert started(path, tmp_path / "file" / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path}/file/out/cifar_resnet-seed1.log: ")
    assert error.count("\n") == 1

    def full(path, content):
        with files.writing(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    children[1] = "sys.exit(2)"
    assert started(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "seed1.failure.json: no space left on device" in error and error.count("\n") == 1


# ------------------------------------------------------------------ how it is stopped


def signalled(number, *marks):
    """Sends this process a signal when each of these files is there."""

    def watch():
        for mark in marks:
            while not mark.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


SAVING = """
def save(*_):
    write("checkpoint", 1)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
write("ready", 1)
time.sleep(60)
"""
STUBBORN = """
signal.signal(signal.SIGTERM, lambda *_: write("asked", 1))
write("ready", 1)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_ends_the_sweep(children, tmp_path, capsys, number):
    path, out = sweep_file(tmp_path, *SEEDS), tmp_path / "out"
    first, second, third = plan_sweep(path, out)
    children[2] = SAVING
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    watcher = signalled(number, second.folder / "ready")
    assert started(path, out) == 128 + number
    watcher.join()
    told = capsys.readouterr().out
    assert "seed2  stopping the run (again: kill it)\nstopped; it can be continued\n" in told
    assert (second.folder / "checkpoint").exists()
    assert first.finished and not third.log.exists()
    assert not list(out.glob("*.failure.json"))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_kills(children, tmp_path):
    path, out = sweep_file(tmp_path, *SEEDS), tmp_path / "out"
    first = plan_sweep(path, out)[0]
    children[1] = STUBBORN
    watcher = signalled(signal.SIGINT, first.folder / "ready", first.folder / "asked")
    assert started(path, out) == 130
    watcher.join()
    assert not first.failure.exists()


# ------------------------------------------------------------------ the real thing


@pytest.mark.slow
def test_a_real_run_is_continued_and_finished(tmp_path, capsys, monkeypatch):
    """The training loop itself, with a small model: it is stopped while starting, then done."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    main = [sys.executable, str(Path(__file__).with_name("tiny_main.py"))]
    real = SweepRun.command.fget
    monkeypatch.setattr(SweepRun, "command", property(lambda run: [*main, *real(run)[3:]]))
    monkeypatch.setitem(models.MODELS, "tiny", tiny_main.ENTRY)
    path = sweep_file(
        tmp_path, {"runlocal": True, "model": "tiny", "rank_scale": 0.5, "batch_size": 256}
    )
    (run,) = plan_sweep(path, tmp_path / "out")
    watcher = signalled(signal.SIGTERM, run.folder / "config.json")
    assert started(path, tmp_path / "out") == 143
    watcher.join()
    assert run.state == "begun" and "start again to continue" in run.log.read_text()
    capsys.readouterr()
    assert started(path, tmp_path / "out") == 0
    accuracy = json.loads((run.folder / "result.json").read_text())["final"]["accuracy"]
    assert f"accuracy {accuracy:.2%}, " in capsys.readouterr().out
    assert "final test accuracy" in run.log.read_text()


@pytest.mark.slow
def test_a_mistake_of_a_real_run_is_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.chdir(ROOT)
    path = sweep_file(
        tmp_path, {"data.source": "files", "data.dir": str(tmp_path), "data.download": "never"}
    )
    assert started(path, tmp_path / "out") == 1
    (run,) = plan_sweep(path, tmp_path / "out")
    failure = json.loads(run.failure.read_text())
    assert failure["exit_code"] == 2 and "cifar10" in " ".join(failure["output"])
    assert not run.folder.exists()


def test_the_command_uses_no_device():
    """The runs need the accelerator; a platform that does not exist shows that nobody asks."""
    process = subprocess.run(
        [*f"{sys.executable} -m experiments.sweep compression_small".split(), "--dry-run"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines()[-1].startswith("44 runs: ")
