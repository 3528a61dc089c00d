"""One run of two processes, on one machine: what it computes, and that a kill of either loses
nothing but time."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import large_sets
import little_translations
import numpy as np
import pytest
import tiny_runs
from jax.sharding import AbstractMesh

from experiments import mesh as meshes
from experiments import processes
from experiments.command_line import MISTAKE
from experiments.data.catalog import LARGE_IMAGE_SETS
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.metrics import read_metrics
from experiments.tasks.classification import Network

EPOCHS = 2  # Of five steps.
# Each process holds a part of the state.
SPLIT = (f"--config.epochs={EPOCHS}", "--config.mesh=fsdp:2")


def start_both(
    folder: Path,
    cache: Path,
    *,
    of_the_second: Sequence[str] = (),
    flags: Sequence[str] = (f"--config.epochs={EPOCHS}",),
    run: Sequence[str] = tuple(tiny_runs.FLAGS),
) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        tiny_runs.start(
            folder,
            *flags,
            f"--distributed=127.0.0.1:{port},{index},2",
            *(of_the_second if index else ()),
            cache=cache,
            run=run,
        )
        for index in range(2)
    ]


def kill_when_saved(folder: Path, cache: Path, step: int, victim: int) -> list[str]:
    """Kills one of the two when a checkpoint is there; what both said until they had ended."""
    both = start_both(folder, cache, flags=SPLIT)
    try:
        while not (folder / "checkpoints" / str(step)).exists():
            assert [process.poll() for process in both] == [None, None], both[0].communicate()
            time.sleep(0.01)
        both[victim].send_signal(signal.SIGKILL)
        said = [" ".join(process.communicate()) for process in both]
    finally:
        for process in both:
            process.kill()
    assert both[victim].returncode == -signal.SIGKILL
    # With the first one goes JAX's service, and then JAX may be the first to end the other.
    ends = [MISTAKE] if victim else [MISTAKE, -signal.SIGABRT]
    assert both[1 - victim].returncode in ends, said
    return said


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_either_process_is_killed_and_the_run_goes_on(
    victim: int, tmp_path: Path, compilation_cache: Path
) -> None:
    folder = tmp_path / "two"
    said = kill_when_saved(folder, compilation_cache, 5, victim)
    assert re.search("has lost another one|another task died", said[1 - victim]), said
    assert not (folder / "result.json").exists()
    both = start_both(folder, compilation_cache, flags=SPLIT)
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "continuing from step " in said[0][0]
    assert "step " not in said[1][0]  # One of them speaks.
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 5 * EPOCHS

    # The same as one process computes, up to the order of sums; one record, one checkpoint.
    one = tiny_runs.train(tmp_path / "one", epochs=EPOCHS)
    names = ("train_loss", "validation_loss")
    curves = [
        [[line[name] for name in names] for line in read_metrics(run)[1:]] for run in (folder, one)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)
    files = [
        {str(path.relative_to(run)) for path in run.iterdir()} - {"plots"} for run in (folder, one)
    ]
    assert files[0] == files[1]
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert steps == [5, 10]

    # One process restores what two have saved in parts, and finds the digest that they gave it.
    run = FinishedRun.read(folder)
    plan = run.plan(Network.of(run.config, 10, 32))
    run.restore(plan, run.data)


def test_one_that_is_started_otherwise_ends_both(tmp_path: Path, compilation_cache: Path) -> None:
    """And so does every other error of one, while the other waits for it."""
    both = start_both(
        tmp_path / "run", compilation_cache, of_the_second=["--config.learning_rate=0.7"]
    )
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [MISTAKE, MISTAKE], said
    cause = (
        "process 1 was started otherwise than process 0: learning_rate is 0.1 there and 0.7 here. "
        "Give all of them the same command\n"
    )
    assert said[1].endswith(f"error: {cause}")
    assert said[0].endswith(f"error: process 1 has failed: {cause}")
    assert not (tmp_path / "run").exists()


def require_one_outcome(both: list[subprocess.Popen[str]], two: Path, one: Path) -> None:
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    names = ("train_loss", "validation_loss")
    curves = [
        [[line[name] for name in names] for line in read_metrics(run)[1:]] for run in (two, one)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_photographs_that_are_read_as_they_are_used(
    tmp_path: Path, compilation_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process reads its part of the same batches."""
    large_sets.write(tmp_path / "data")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setitem(LARGE_IMAGE_SETS, "imagenet2012", large_sets.entry())
    keys = {
        "data.name": "imagenet2012",
        "augment.crop": 0,
        "batch_size": 8,
        "eval_batch_size": 4,
        "steps_per_dispatch": 2,
        "epochs": EPOCHS,
    }
    one = tiny_runs.train(
        tmp_path / "one", **{key.replace(".", "__"): value for key, value in keys.items()}
    )
    flags = ["--little-imagenet", *(f"--config.{key}={value}" for key, value in keys.items())]
    both = start_both(tmp_path / "two", compilation_cache, flags=flags)
    require_one_outcome(both, tmp_path / "two", one)


@pytest.mark.slow
def test_a_translation(tmp_path: Path, compilation_cache: Path) -> None:
    """Of which the network of the best epoch is kept beside the state."""
    text = little_translations.write_text(tmp_path / "text")
    one = little_translations.train(tmp_path / "one", text)
    run = [
        f"--config=configs/translation.py:{little_translations.ARGUMENT}",
        f"--config.data.dir={text}",
    ]
    both = start_both(tmp_path / "two", compilation_cache, flags=[], run=run)
    require_one_outcome(both, tmp_path / "two", one)


@pytest.mark.usefixtures("tiny")
def test_another_mesh_is_told(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "result.json").unlink()
    monkeypatch.setattr(meshes, "text", lambda mesh: "data:8")
    lines: list[str] = []
    tiny_runs.train(folder, say=lines.append)
    assert (
        "the mesh was data:1, now data:8: the same run up to the order of sums, not the same bits"
    ) in lines


@pytest.mark.parametrize(
    ("text", "written"), [("data:-1", "data:1"), ("fsdp:4,tensor:2", "data:1,fsdp:4,tensor:2")]
)
def test_a_mesh_as_text(text: str, written: str) -> None:
    sizes = [abs(size) for size in meshes.parse(text).values()]
    mesh = AbstractMesh(tuple(sizes), meshes.AXES)
    assert meshes.text(mesh) == written


@pytest.mark.parametrize(
    "text", ["2", "host:1,0", "host:1,2,2", "host:1,-1,2", "host:1,a,2", "host:1,0,2,3"]
)
def test_what_says_no_process(text: str) -> None:
    with pytest.raises(RunError, match="expected auto, or HOST:PORT,INDEX,COUNT"):
        processes.join(text)


def test_alone_there_is_nothing_to_agree_on(tmp_path: Path) -> None:
    processes.wait("a moment")
    assert processes.is_first() and not processes.several()
    assert processes.any_says(True) is True and processes.any_says(False) is False
    tree = {"a": np.ones(2)}
    assert processes.gathered(tree) is tree and processes.of_the_first(tree) is tree
    with processes.output_folder(tmp_path) as folder:
        assert folder == tmp_path
