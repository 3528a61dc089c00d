"""Sweeps: what is run, what is not, what is noted, and how a sweep is stopped."""

from __future__ import annotations

import doctest
import itertools
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

from experiments import files, grid, sweep
from experiments.errors import RunError
from experiments.run_folder import held
from experiments.sweep_plan import SweepRun, find_sweep, plan_sweep

ROOT = Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/cifar_resnet.py"

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
def sweep_file(tmp_path, monkeypatch):
    """Writes a sweep of runs with these arguments, and returns its path."""
    monkeypatch.chdir(ROOT)

    def write(*listed, name="little"):
        path = tmp_path / f"{name}.py"
        runs = [(CONFIG, arguments) for arguments in listed]
        path.write_text(f"def get_sweep():\n    return {runs!r}\n")
        return path

    return write


@pytest.fixture
def children(monkeypatch):
    """Replaces the runs' command; `children[seed]` is what the run with that seed does."""
    programs = {}

    def command(run):
        seed = int(run.name.rpartition("-seed")[2])
        return [sys.executable, "-I", "-c", CHILD + programs.get(seed, "finish()"), str(run.folder)]

    monkeypatch.setattr(SweepRun, "command", property(command))
    return programs


def started(path, out, *options):
    return sweep.main([str(path), f"--out={out}", *options])


SEEDS = tuple({"seed": seed} for seed in (1, 2, 3))


# ------------------------------------------------------------------ what is run


def test_grids_are_products_of_their_dimensions():
    assert doctest.testmod(grid).failed == 0
    small = [{"ratio": 0}] + grid.grid(ratio=[0.1, 0.05], init=["regular", "spectral"])
    found = grid.grid(seed=[1, 2], size=small, data="digits")
    assert len(found) == 2 * (1 + 4)
    assert found[:2] == [
        {"seed": 1, "ratio": 0, "data": "digits"},
        {"seed": 1, "ratio": 0.1, "init": "regular", "data": "digits"},
    ]
    assert found[-1] == {"seed": 2, "ratio": 0.05, "init": "spectral", "data": "digits"}
    with pytest.raises(ValueError, match=r"two dimensions of a grid give 'ratio': 0.1 and 0;"):
        grid.grid(ratio=0.1, network=[{"ratio": 0}])


def test_runs_are_named_by_their_arguments(sweep_file, tmp_path):
    path = sweep_file({"weight_decay": 5e-6, "data.name": "digits", "seed": 2}, {"flip": False})
    first, second = plan_sweep(path, tmp_path / "out")
    assert first.config == f"{CONFIG}:weight_decay=5e-06,data.name=digits,seed=2"
    assert first.folder == tmp_path / "out" / "cifar_resnet-weight_decay5e-06-data.namedigits-seed2"
    assert second.name == "cifar_resnet-flipFalse-seed1"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dept": 20}, "unknown config argument 'dept' (did you mean 'depth'?)"),
        ({"decay": "frobenious"}, "decay='frobenious': expected one of"),
        ({"model.name": "resent"}, "unknown model 'resent' (did you mean 'resnet'?)"),
        ({"depth": 21}, "depth"),
        ({"data": "cifra10"}, "cifra10"),
    ],
)
def test_a_mistake_in_the_last_run_is_found_first(
    sweep_file, children, tmp_path, capsys, arguments, message
):
    path = sweep_file({"seed": 1}, arguments)
    assert started(path, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert f"{path}, run 2 of 2, {CONFIG}:" in captured.err
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "twin", [{}, {"seed": 1, "steps_per_dispatch": 4}, {"rank_scale": 0.111, "seed": 1}]
)
def test_the_same_experiment_twice_is_refused(sweep_file, tmp_path, twin):
    path = sweep_file({"seed": 1}, {"seed": 2}, twin)
    with pytest.raises(RunError, match="are the same experiment; leave one out") as error:
        plan_sweep(path, tmp_path)
    assert f"{CONFIG}:seed=1 and {CONFIG}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("runs = []\n", "is not a sweep: it has no function get_sweep()"),
        ("def get_sweep():\n    return []\n", "returned an empty list; expected a list of"),
        ("def get_sweep():\n    return {}\n", "returned a dict; expected a list of"),
        ("def get_sweep():\n    return ['a.py']\n", "run 1 of get_sweep() is 'a.py'; expected"),
        ("def get_sweep():\n    return [('no.py', {})]\n", "run 1 of 1, no.py: cannot read"),
        ("\ndef get_sweep():\n    return 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("def get_sweep(:\n", "SyntaxError"),
    ],
)
def test_what_is_no_sweep_is_one_message(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "sweep.py"
    path.write_text(content)
    assert started(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(path) in error and message in error
    assert error.count("\n") == 1


def test_a_sweep_goes_by_its_path_or_its_name(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert find_sweep("compression_small") == find_sweep("configs/sweeps/compression_small.py")
    assert sweep.main(["compresion"]) == 2
    error = capsys.readouterr().err
    assert "no sweep 'compresion': no such file, and configs/sweeps has cifar_resnet, comp" in error


def test_shards_are_the_whole_sweep_and_have_nothing_in_common(sweep_file, tmp_path, capsys):
    path = sweep_file(*({"seed": seed} for seed in range(10)))
    whole = [run.name for run in plan_sweep(path, tmp_path)]
    shards = []
    for index in (1, 2, 3):
        assert started(path, tmp_path / "out", f"--shard={index}/3", "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()[:-1]
        shards.append([line.split()[1] for line in lines])
    assert sorted(itertools.chain(*shards)) == sorted(whole)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2"])
def test_a_shard_that_does_not_exist_is_refused(shard, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(["compression_small", f"--shard={shard}"])
    assert end.value.code == 2
    assert f"{shard!r}: expected i/n with 1 <= i <= n" in capsys.readouterr().err


# ------------------------------------------------------------------ what is not


def test_dry_run_and_commands_start_nothing(sweep_file, tmp_path, capsys):
    path, out = sweep_file(*SEEDS, {"seed": 4}), tmp_path / "o u t"
    finished, failed, begun, untouched = plan_sweep(path, out)
    files.write_json(finished.folder / "result.json", {})
    files.write_json(finished.failure, {"message": "earlier"})
    files.write_json(failed.failure, {"message": "why"})
    files.write_json(begun.folder / "config.json", {})
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


def test_nothing_is_done_twice(sweep_file, children, tmp_path, capsys):
    path, out = sweep_file(*SEEDS), tmp_path / "out"
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


# ------------------------------------------------------------------ what is noted


def test_a_failed_run_is_noted_and_tried_again(sweep_file, children, tmp_path, capsys):
    path, out = sweep_file(*SEEDS), tmp_path / "out"
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


def test_a_run_that_someone_else_stops_is_not_a_failure(sweep_file, children, tmp_path, capsys):
    path, out = sweep_file(*SEEDS), tmp_path / "out"
    children[1] = "print('stopped at step 3')"  # As after SIGTERM: exit code 0 and no result.
    children[2] = "os.kill(os.getpid(), signal.SIGTERM)"  # Before it could save anything.
    assert started(path, out) == 0
    assert "3 runs: 1 finished, 2 stopped" in capsys.readouterr().out
    assert not list(out.glob("*.failure.json"))


def test_what_another_process_runs_is_left_to_it(sweep_file, children, tmp_path, capsys):
    path, out = sweep_file(*SEEDS), tmp_path / "out"
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


def test_no_place_to_write_is_one_message(sweep_file, children, tmp_path, capsys, monkeypatch):
    path = sweep_file(*SEEDS)
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
def test_a_signal_lets_the_run_save_and_ends_the_sweep(
    sweep_file, children, tmp_path, capsys, number
):
    path, out = sweep_file(*SEEDS), tmp_path / "out"
    first, second, third = plan_sweep(path, out)
    children[2] = SAVING
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    watcher = signalled(number, second.folder / "ready")
    assert started(path, out) == 128 + number
    watcher.join()
    assert "seed2  stopped; it can be continued" in capsys.readouterr().out
    assert (second.folder / "checkpoint").exists()
    assert first.finished and not third.log.exists()
    assert not list(out.glob("*.failure.json"))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_kills(sweep_file, children, tmp_path):
    path, out = sweep_file(*SEEDS), tmp_path / "out"
    first = plan_sweep(path, out)[0]
    children[1] = STUBBORN
    watcher = signalled(signal.SIGINT, first.folder / "ready", first.folder / "asked")
    assert started(path, out) == 130
    watcher.join()
    assert not first.failure.exists()


# ------------------------------------------------------------------ the real thing


def test_a_sweep_of_one_real_run(sweep_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    argument = {
        "runlocal": True,
        "validation": 0.9,
        "batch_size": 64,
        "epochs": 1,
        "forms": "count",
    }
    path, out = sweep_file(argument), tmp_path / "out"
    assert started(path, out) == 0
    (run,) = plan_sweep(path, out)
    accuracy = json.loads((run.folder / "result.json").read_text())["final"]["accuracy"]
    assert f"accuracy {accuracy:.2%}, " in capsys.readouterr().out
    assert "final test accuracy" in run.log.read_text()


def test_the_command_uses_no_device():
    """The runs need the accelerator; a platform that does not exist shows that nobody asks."""
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.sweep",
            "compression_small",
            "--dry-run",
            "--shard=1/4",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines()[-1].startswith("11 runs: ")
