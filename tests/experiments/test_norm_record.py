"""Norms recorded in one run and replayed in another: the runs as a whole, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_runs
from tiny_main import ENTRY
from tiny_runs import sigterm_at

import lowrank_jax as lrj
from experiments import models, norm_record
from experiments import state as states
from experiments.arguments import settle
from experiments.divergence import diverged
from experiments.errors import RunError
from experiments.norm_record import NormRecord
from experiments.restored_run import RestoredRun
from experiments.result import Data
from experiments.run_folder import read_table
from experiments.stopping import Stopped
from lowrank_jax.norm_replay import ReplayState

pytestmark = pytest.mark.usefixtures("tiny")

STEPS = 10


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with Frobenius decay strong enough to show, and the norms of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", ENTRY)
        folder = tmp_path_factory.mktemp("recorded") / "run"
        return tiny_runs.train(folder, "decay=frobenius,weight_decay=0.01,record_norms=True")


def norms_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / norm_record.FILE_NAME) as archive:
        return dict(archive)


def final_norms(folder: Path) -> dict[str, float]:
    """The norms of the dense kernels in the last checkpoint, in float64."""
    params = RestoredRun.read(folder).state.params
    kernels = lrj.merge(params)
    rows = lrj.describe(params).rows

    def leaf(path: str) -> Any:
        node = kernels
        for part in path.split("/"):
            node = node[part]
        return np.asarray(node, np.float64)

    return {row.path: float(np.linalg.norm(leaf(row.path))) for row in rows}


def test_what_is_recorded_are_the_norms_after_every_step(recorded: Path) -> None:
    norms = norms_of(recorded)
    assert {len(values) for values in norms.values()} == {STEPS}
    expected = final_norms(recorded)
    assert norms.keys() == expected.keys() == {"conv/kernel"}
    for path, norm in expected.items():
        assert norms[path][-1] == pytest.approx(norm, rel=1e-6)
        assert len(np.unique(norms[path])) == STEPS
    # Every record of the diagnostics has the norms of its step.
    lines = [json.loads(line) for line in (recorded / "metrics.jsonl").read_text().splitlines()]
    for line in [line for line in lines if "diagnostics" in line and line["step"]]:
        for path, norm in line["diagnostics"]["frobenius_norm"].items():
            assert norms[path][line["step"] - 1] == pytest.approx(norm, rel=1e-6)


@pytest.mark.slow
def test_a_run_replays_them_without_decay(recorded: Path, tmp_path: Path) -> None:
    """It is interrupted, and several of its steps are one dispatch."""
    lines: list[str] = []
    replay = {"replay": str(recorded), "steps_per_dispatch": 2}
    argument, folder = "decay=none,weight_decay=0.01", tmp_path / "run"
    with pytest.raises(Stopped):
        tiny_runs.train(folder, argument, sigterm_at("step 5/10"), **replay)
    replayed = tiny_runs.train(folder, argument, lines.append, **replay)
    free = tiny_runs.train(tmp_path / "free", "decay=none,weight_decay=0.01,record_norms=True")
    targets = norms_of(recorded)
    for path, norms in norms_of(replayed).items():
        np.testing.assert_allclose(norms, targets[path], rtol=1e-5)
        assert norms_of(free)[path][-1] > 1.001 * targets[path][-1]
    assert final_norms(replayed) == pytest.approx(final_norms(recorded), rel=1e-5)
    result = json.loads((replayed / "result.json").read_text())
    assert result["replay"]["run"] == str(recorded)
    assert 0 <= result["replay"]["largest_difference"] <= 1e-5
    assert f"replayed the norms of {recorded}" in lines[-1]
    assert json.loads((free / "result.json").read_text())["replay"] is None


@pytest.mark.slow
def test_an_interrupted_run_records_the_same(recorded: Path, tmp_path: Path) -> None:
    argument, folder = "decay=frobenius,weight_decay=0.01,record_norms=True", tmp_path / "run"
    with pytest.raises(Stopped):
        tiny_runs.train(folder, argument, sigterm_at("step 5/10"))
    assert not (folder / norm_record.FILE_NAME).exists()
    tiny_runs.train(folder, argument)
    for path, norms in norms_of(recorded).items():
        np.testing.assert_array_equal(norms_of(folder)[path], norms)


def test_a_record_of_another_model_is_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is the record of another model: .*rank"):
        tiny_runs.train(tmp_path / "run", rank_scale=0.25, replay=str(recorded))
    assert not (tmp_path / "run").exists()


def test_a_record_of_another_experiment_is_refused(recorded: Path, tmp_path: Path) -> None:
    changes = {
        "seed": (2, "1"),
        "epochs": (3, "2"),
        "learning_rate": (0.2, "0.1"),
        "init": ("regular", "'"),
    }
    for key, (value, there) in changes.items():
        keys = {"weight_decay": 0.01, "decay": "none", "replay": str(recorded), key: value}
        message = f"is the record of another experiment: {key} is {there}"
        with pytest.raises(RunError, match=message):
            tiny_runs.train(tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()


def fits(record: NormRecord, recorded: Path, fingerprint: str, steps: int) -> None:
    config = settle(tiny_runs.config("decay=none,weight_decay=0.01", replay=str(recorded)))
    table = read_table(recorded)
    record.require_fit(config, Data("digits", "here", fingerprint), table, steps)


def test_a_record_of_other_data_or_length_is_refused(recorded: Path) -> None:
    record = NormRecord.load(str(recorded))
    same = json.loads((recorded / "data.json").read_text())["fingerprint"]
    fits(record, recorded, same, STEPS)
    with pytest.raises(RunError, match="is the record of a run on other data than digits here"):
        fits(record, recorded, "f" * 64, STEPS)
    with pytest.raises(RunError, match="recorded 10 steps, and this run has 9"):
        fits(record, recorded, same, 9)


def test_a_record_that_changes_under_a_run_is_noticed(recorded: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "recorded", tmp_path / "run"
    shutil.copytree(recorded, source, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    keys = {"weight_decay": 0.01, "decay": "none", "replay": str(source)}
    with pytest.raises(Stopped):
        tiny_runs.train(folder, say=sigterm_at("step 5/10"), **keys)
    np.savez(source / "norms.npz", **{p: 2 * norms for p, norms in norms_of(source).items()})
    with pytest.raises(RunError, match="has recorded other norms since this run began"):
        tiny_runs.train(folder, **keys)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def headers(path: Path) -> None:
    """Every bit of the archive's central directory: none may pass, or end in something else."""
    content, load = path.read_bytes(), NormRecord.load(str(path.parent)).norms
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                found = NormRecord.load(str(path.parent)).norms
            except RunError:
                continue
            # A date, say; but also a name, which `require_fit` looks at.
            for name in found.keys() & load.keys():
                np.testing.assert_array_equal(found[name], load[name])
    path.write_bytes(content[:-1])


def not_norms(path: Path) -> None:
    norms = {name: -np.ones(STEPS) for name in norms_of(path.parent)}
    np.savez(path, **norms)


def a_pickle(path: Path) -> None:
    np.savez(path, kernel=np.array([{"a": 1}], object))


def of_other_paths(path: Path) -> None:
    np.savez(path, kernel=np.ones(STEPS))


DAMAGE: dict[Callable[[Path], None], str] = {
    Path.unlink: "there is no .*norms.npz; it is written at the end",
    lambda path: path.write_bytes(b""): "is damaged",
    cut_short: "is damaged",
    flipped: "is damaged",
    headers: "is damaged",
    not_norms: "is not a series of norms",
    a_pickle: "is damaged",
    of_other_paths: "norms.npz is the record of another model",
}


def test_a_damaged_record_is_refused(recorded: Path, tmp_path: Path) -> None:
    for number, (damage, message) in enumerate(DAMAGE.items()):
        folder = tmp_path / str(number)
        ignored = shutil.ignore_patterns("checkpoints", "tensorboard")
        shutil.copytree(recorded, folder, ignore=ignored)
        damage(folder / norm_record.FILE_NAME)
        with pytest.raises(RunError, match=message):
            fits(NormRecord.load(str(folder)), folder, "", STEPS)


def test_norms_that_were_not_reached_are_an_error(recorded: Path) -> None:
    record = NormRecord.load(str(recorded))
    path, norms = next(iter(record.norms.items()))
    assert norm_record.compare(record.norms, record).largest_difference == 0
    zeros = {path: np.full(STEPS, 1e-13)}  # What is as good as zero is left alone.
    norm_record.compare(zeros, dataclasses.replace(record, norms={path: 5 * zeros[path]}))
    apart = record.norms | {path: norms * np.where(np.arange(STEPS) == 6, 1 + 2e-5, 1)}
    with pytest.raises(RunError, match=f"{path}: after step 7 its norm is"):
        norm_record.compare(apart, record)


def test_a_product_that_vanished_is_told_instead_of_nan() -> None:
    vanished = {"a": jnp.int32(-1), "b/kernel": jnp.int32(4)}
    state = states.TrainState(
        step=jnp.int32(6),
        params={"kernel": jnp.full(2, jnp.nan)},
        model_state={},
        opt_state=(optax.EmptyState(), ReplayState(jnp.int32(6), vanished)),
    )
    error = diverged(state, 4, np.array([1.0, np.nan]), 10, 0)
    assert "b/kernel: after step 5 the norm of the product is below 1e-12" in str(error)
    assert "The checkpoint of step 0 is intact" in str(error)


@pytest.mark.parametrize("key", ["replay", "record_norms", "merge"])
def test_a_dense_network_has_nothing_to_record(key: str, tmp_path: Path) -> None:
    value = "nowhere" if key == "replay" else True
    with pytest.raises(RunError, match=f"{key}={value} with .*: nothing is factorized"):
        tiny_runs.train(tmp_path / "run", rank_scale=0.0, **{key: value})
