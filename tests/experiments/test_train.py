"""The training loop: how an epoch is cut, what is trained on, what is measured, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import contents, outcome

from experiments import arguments, tasks, train
from experiments.data import load, split_validation
from experiments.data.image_data import IMAGENET
from experiments.dispatch import dispatches
from experiments.errors import RunError
from experiments.run_folder import held, read_table
from experiments.stopping import Stopped
from experiments.tasks.task import Batch


@given(
    full=st.integers(1, 400),
    batch_size=st.integers(2, 300),
    rest=st.integers(0, 299),
    limit=st.integers(1, 64),
)
@settings(deadline=None, max_examples=300)
def test_dispatches_cover_an_epoch(full: int, batch_size: int, rest: int, limit: int) -> None:
    sizes = [batch_size] * full + ([rest] if 0 < rest < batch_size else [])
    cuts = dispatches([Batch(size) for size in sizes], limit)
    steps = [cut.first + i for cut in cuts for i in range(cut.steps)]
    assert steps == list(range(len(sizes)))
    for cut in cuts:
        assert set(sizes[cut.first : cut.first + cut.steps]) == {cut.batch.size}
        assert 1 <= cut.steps <= limit
        assert cut.example == sum(sizes[: cut.first])
    # What is compiled: at most two lengths of the full batch and one partial batch.
    assert len({(cut.steps, cut.batch) for cut in cuts}) <= 3


# ------------------------------------------------------------------ protocols


def task(argument: str) -> tasks.Classification:
    return tasks.load(arguments.settle(tiny_runs.config(argument)))


@pytest.mark.usefixtures("tiny")
def test_published_trains_on_everything() -> None:
    published = task("protocol=published")
    assert published.batches(0) == [Batch(256)] * 5 + [Batch(157)]
    assert sum(batch.size for batch in published.batches(0)) == published.train_examples == 1437
    assert sorted(np.asarray(published.order(3))) == list(range(1437))
    assert set(published.splits) == {"train", "test"}
    assert (published.pipeline.mean, published.pipeline.std) == IMAGENET


@pytest.mark.usefixtures("tiny")
def test_ours_holds_out_and_trains_on_full_batches() -> None:
    ours, data = task("validation=0.2"), load("digits")
    train, held_out = split_validation(data, 0.2, 1)
    assert set(train) | set(held_out) == set(range(1437)) and not set(train) & set(held_out)
    for split, indices in (("train", train), ("validation", held_out)):
        np.testing.assert_array_equal(ours.splits[split][0], data.train_images[indices])
        np.testing.assert_array_equal(ours.splits[split][1], data.train_labels[indices])
    np.testing.assert_array_equal(ours.splits["test"][0], data.test_images)
    assert ours.batches(0) == [Batch(256)] * (len(train) // 256)
    assert (ours.pipeline.mean, ours.pipeline.std) == (data.mean, data.std)


@pytest.mark.parametrize(
    ("argument", "split"),
    [("", "validation"), ("validation=0", None), ("protocol=published", "test")],
)
@pytest.mark.usefixtures("tiny")
def test_what_is_measured_and_selected(argument: str, split: str | None, tmp_path: Path) -> None:
    """A split that is held out selects; only the published protocol looks at the test images."""
    folder = tiny_runs.train(tmp_path / "run", argument)
    found = outcome(folder)
    epochs = found["metrics"][1:]
    assert found["final"]["split"] == "test"
    assert found["final"]["accuracy"] == epochs[-1]["test_accuracy"]
    if split is None:
        assert found["best"] is None
    else:
        assert found["best"]["split"] == split
        best = max(line[f"{split}_accuracy"] for line in epochs)
        first = next(line["epoch"] for line in epochs if line[f"{split}_accuracy"] == best)
        assert (found["best"]["accuracy"], found["best"]["epoch"]) == (best, first)
    assert ("test_accuracy" in epochs[0]) == (split != "validation")
    assert ("validation_accuracy" in epochs[0]) == (split == "validation")
    per_epoch = 6 if argument == "protocol=published" else 5
    assert [line["step"] for line in found["metrics"]] == [0, per_epoch, 2 * per_epoch]


@pytest.mark.usefixtures("tiny")
def test_every_example_is_counted_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published protocol's partial batch is trained on, and weighs by its size."""
    from experiments import train as training

    counts = []
    means = training.tally.train_means

    def noted(progress: dict[str, Any]) -> dict[str, float]:
        counts.append(progress["examples"])
        return means(progress)

    monkeypatch.setattr(training.tally, "train_means", noted)
    tiny_runs.train(tmp_path / "run", "protocol=published")
    assert counts.count(1437) == 2 and max(counts) == 1437


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_scan_trains_like_the_steps_written_out(tmp_path: Path) -> None:
    """Batch-minor images and scanned steps against the model's own layout, step after step."""
    runs = []
    for layout in ("as_written", "batch_minor"):
        folder = tiny_runs.train(tmp_path / layout, steps_per_dispatch=5, layout=layout)
        runs.append([line.get("train_loss", 0.0) for line in outcome(folder)["metrics"]])
    np.testing.assert_allclose(*runs, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_an_interrupted_epoch_keeps_its_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default length of a dispatch may be another one where a run is continued."""
    lines: list[str] = []
    monkeypatch.setattr(train, "default_steps", lambda *_: 2)
    monkeypatch.setattr(train, "_SECONDS_BETWEEN_LINES", 0.0)
    with pytest.raises(Stopped):
        tiny_runs.train(
            tmp_path / "run", say=tiny_runs.sigterm_at("step 2/"), steps_per_dispatch=None
        )
    monkeypatch.setattr(train, "default_steps", lambda *_: 5)
    folder = tiny_runs.train(tmp_path / "run", say=lines.append, steps_per_dispatch=None)
    assert "continuing from step 4" in lines  # In the middle of the first epoch.
    assert outcome(folder)["steps"] == 10
    whole = tiny_runs.train(tmp_path / "whole", steps_per_dispatch=2)
    assert outcome(folder)["digest"] == outcome(whole)["digest"]


@pytest.mark.usefixtures("tiny")
def test_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"), pytest.raises(RunError, match="another process"):
        tiny_runs.train(tmp_path / "run")
    assert tiny_runs.train(tmp_path / "run").is_dir()


@pytest.mark.usefixtures("tiny")
def test_dispatches_of_any_length_train_alike(tmp_path: Path) -> None:
    one = outcome(tiny_runs.train(tmp_path / "one"))
    three = outcome(tiny_runs.train(tmp_path / "three", steps_per_dispatch=3))
    for mine, other in zip(one["metrics"], three["metrics"], strict=True):
        assert mine["step"] == other["step"]
        assert mine.get("train_loss", 0) == pytest.approx(other.get("train_loss", 0), rel=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "argument",
    [
        "variant=deep,init=regular",
        pytest.param("decay=crs", marks=pytest.mark.slow),
        pytest.param("init=spectral_ones", marks=pytest.mark.slow),
    ],
)
def test_training_learns(argument: str, tmp_path: Path) -> None:
    """Whatever is chosen, the loss falls well below that of guessing, log 10 = 2.30."""
    tiny_runs.train(tmp_path / "run", argument, epochs=8, batch_size=32)
    assert outcome(tmp_path / "run")["metrics"][-1]["train_loss"] < 1.5


# ------------------------------------------------------------------ the entry point


@pytest.mark.slow
def test_the_command_itself(tmp_path: Path) -> None:
    """The real network, data and command; started again it says that it is finished."""
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "experiments.main", f"--workdir={folder}"),
        "--config=configs/cifar_resnet.py:runlocal,batch_size=64,steps_per_dispatch=1",
        *("--config.epochs=1", "--config.validation=0.9"),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tiny_runs.ROOT, env=environment, capture_output=True, text=True
        )

    process = run()
    assert (process.returncode, process.stderr) == (0, "")
    files = contents(folder)
    assert {
        *("config.json", "data.json", "table.json", "table.txt", "metrics.jsonl", "result.json"),
        *("plots/curves.png", "plots/nuclear_norm.png", "plots/spectra.png"),
        "checkpoints/2/manifest/metadata",
    } <= set(files)
    assert any(name.startswith("tensorboard/events") for name in files)
    result = json.loads((folder / "result.json").read_text())
    assert {
        *("name", "seed", "config", "data", "parameters", "dense_parameters", "ratio"),
        *("multiply_adds", "dense_multiply_adds", "final", "best", "start", "steps", "epochs"),
        *("wall_time_s", "compile_time_s", "diagnostics_time_s"),
        *("diagnostics_left_out", "compact", "replay", "selection", "scores"),
        *("versions", "commit", "hardware"),
    } == set(result)
    assert result["config"] == json.loads((folder / "config.json").read_text())
    assert result["data"] == json.loads((folder / "data.json").read_text())
    assert result["data"]["name"] == "digits"
    assert result["hardware"]["platform"] == "cpu"
    assert (result["steps"], result["epochs"], result["final"]["step"]) == (2, 1, 2)
    assert result["dense_parameters"] == 75290
    assert result["parameters"] == read_table(folder).parameters

    process = run()
    assert process.returncode == 0
    assert process.stdout == f"{folder} is finished: see {folder / 'result.json'}\n"
    assert contents(folder) == files
