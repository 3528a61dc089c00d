"""What result.json says about code, versions and machine."""

from __future__ import annotations

import json
import subprocess

import jax
from synthetic_runs import write_run

from experiments import result


def test_the_result_is_whole(tmp_path):
    folder = write_run(tmp_path / "run", "seed=3", 0.75)
    content = json.loads((folder / "result.json").read_text())
    assert content["ratio"] == 107370 / 464154
    assert content["final"] == {
        "split": "test", "accuracy": 0.75, "loss": 0.5, "epoch": 6.0, "step": 234,
    }  # fmt: skip
    assert content["best"] is None
    assert (content["seed"], content["config"]["model"]["depth"]) == (3, 32)
    assert content["versions"]["jax"] == jax.__version__
    assert content["hardware"]["device_count"] == jax.device_count()
    assert content["hardware"]["cores"] >= 1


def test_commit_is_that_of_the_checkout(tmp_path):
    assert result.commit(tmp_path) is None
    run = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "file").write_text("1")
    subprocess.run([*run, "init", "-q"], check=True)
    assert result.commit(tmp_path) is None  # nothing committed yet
    subprocess.run([*run, "add", "file"], check=True)
    subprocess.run([*run, "commit", "-q", "-m", "x"], check=True)
    head = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert result.commit(tmp_path) == {"hash": head.stdout.strip(), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert result.commit(tmp_path) == {"hash": head.stdout.strip(), "dirty": True}
    assert result.commit(tmp_path / "below") is None
