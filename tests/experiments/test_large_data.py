"""Whole runs on photographs that are read as they are used."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import large_sets
import numpy as np
import pytest
import tiny_runs
from tiny_main import ENTRY
from tiny_runs import outcome

from experiments import models, tasks
from experiments import train as training
from experiments.data import catalog
from experiments.data.errors import DataCorrupt, DataUnavailable
from experiments.errors import RunError
from experiments.evaluate import evaluate
from experiments.restored_run import RestoredRun
from experiments.stopping import Stopped

pytestmark = pytest.mark.usefixtures("tiny", "small_imagenet")

KEYS: dict[str, Any] = {
    "data__name": "imagenet2012",
    "augment__crop": 0,
    "batch_size": 8,
    "eval_batch_size": 4,
    "epochs": 2,
    "steps_per_dispatch": 2,
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    large_sets.write(folder)
    return folder


@pytest.fixture
def small_imagenet(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's ImageNet becomes as small as the fabricated one."""
    monkeypatch.setitem(catalog.LARGE_IMAGE_SETS, "imagenet2012", large_sets.entry())
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))


def train(folder: Path, argument: str = "", **keys: Any) -> Path:
    return tiny_runs.train(folder, argument, **{**KEYS, **keys})


def computed(folder: Path) -> dict[str, Any]:
    found = outcome(folder)
    for line in found["metrics"]:
        line.pop("data_wait_share", None)
    return found


@pytest.fixture(scope="session")
def finished(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path
) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.LARGE_IMAGE_SETS, "imagenet2012", large_sets.entry())
        patch.setitem(models.MODELS, "tiny", ENTRY)
        patch.setenv("TFDS_DATA_DIR", str(prepared))
        return train(tmp_path_factory.mktemp("large") / "run")


def test_a_run_has_a_record_and_a_result(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 10]  # 47 images are left to train on.
    assert all(0 <= line["data_wait_share"] <= 1 for line in lines[1:])
    assert {"validation_accuracy", "train_loss"} <= lines[1].keys()
    result = json.loads((finished / "result.json").read_text())
    assert result["data"]["name"] == "imagenet2012"
    assert result["final"]["split"] == "test"


def test_evaluating_it_anew_gives_what_it_recorded(finished):
    found = evaluate(RestoredRun.read(finished))
    recorded = json.loads((finished / "result.json").read_text())["final"]
    assert found["examples"] == large_sets.TEST
    np.testing.assert_allclose(found["factored"]["loss"], recorded["loss"], rtol=1e-5)
    assert found["logit_difference"] <= found["tolerance"]


def test_a_run_that_is_stopped_within_an_epoch_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch
):
    """Though it is continued with a worker process where it had begun with threads."""
    calls, update = 0, training.Progress.update

    def stopped(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            signal.raise_signal(signal.SIGTERM)
        update(*arguments)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped at step 9"):
        patch.setattr(training.Progress, "update", stopped)
        train(folder)
    assert (folder / "checkpoints" / "9").is_dir()
    train(folder, data_workers=1)
    assert computed(folder) == computed(finished)


@pytest.mark.slow
def test_the_published_protocol_takes_every_image_once_in_an_epoch(tmp_path):
    """The last batch is a partial one, of four; micro-batches halve each."""
    folder = train(tmp_path / "run", "protocol=published", epochs=1, accumulate_steps=2)
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 7
    assert result["best"]["split"] == "test"


def test_a_damaged_shard_ends_a_run_with_its_name(prepared, tmp_path, monkeypatch):
    folder = large_sets.write(tmp_path / "other")
    (path,) = folder.glob("*-train.*")
    content = path.read_bytes()
    path.write_bytes(content[:9000] + bytes(2000) + content[11_000:])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "other"))
    with pytest.raises(DataCorrupt, match=r"train.array_record-00000-of-00001, record \d+:"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"augment__crop": 4}, r"augment.crop=4 with data=imagenet2012.*give augment.crop=0"),
        ({"augment__cutout": 8}, r"augment.cutout=8"),
        ({"data__source": "files"}, r"data.source=files.*give auto or tfds"),
        ({"batch_size": 64}, r"batch size 64 with 47 training examples"),
        ({"data_workers": -1}, r"data_workers=-1: expected 0 or a positive whole number"),
    ],
)
def test_what_is_refused(keys, words, tmp_path):
    with pytest.raises(RunError, match=words):
        train(tmp_path / "run", **keys)


def test_where_there_is_none_one_is_told_how_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataUnavailable) as error:
        train(tmp_path / "run")
    message = str(error.value)
    assert f"{tmp_path}/imagenet2012/*  (array_record): not there" in message
    assert "tfds build imagenet2012 --file_format=array_record" in message
    assert "docs/large_data.md" in message


def test_exported_programs_get_what_the_network_is_measured_on(finished):
    task = tasks.load(RestoredRun.read(finished).run.config)
    (first, *_) = task.splits["test"].read(np.arange(3))
    np.testing.assert_array_equal(task.stored_images(3), first[0])
