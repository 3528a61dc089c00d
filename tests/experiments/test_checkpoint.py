"""A checkpoint is continued from only if it is whole and of this very run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
from tiny_runs import contents, outcome

import lowrank_jax as lrj
from experiments import arguments
from experiments import state as states
from experiments.checkpoint import Checkpoints, _checksum
from experiments.errors import RunError
from experiments.state import Plan, TrainState
from experiments.state_digest import digest
from experiments.tasks.classification import Network

pytestmark = pytest.mark.usefixtures("tiny")

FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def made(tiny: None) -> tuple[Plan, TrainState]:
    """A plan and its state."""
    config = arguments.settle(tiny_runs.config())
    network = Network.of(config, 10, 32)
    plan = states.plan(config, network, 5)
    return plan, states.create(plan, network)


def save(folder: Path, plan: Plan, state: TrainState, step: int = 3) -> None:
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(
            step,
            state,
            config=plan.config,
            table=plan.table,
            fingerprint=FINGERPRINT,
            progress={"loss": 0.1, "best": None},
        )


def restore(folder: Path, plan: Plan, **other: object) -> tuple[TrainState, dict[str, object]]:
    identity = {"config": plan.config, "table": plan.table, "fingerprint": FINGERPRINT} | other
    return Checkpoints(folder, keep=2).restore(3, plan.abstract, **identity)  # type: ignore[arg-type]


def test_restores_what_was_saved(made: tuple[Plan, TrainState], tmp_path: Path) -> None:
    plan, state = made
    save(tmp_path, plan, state)
    restored, progress = restore(tmp_path, plan)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
        assert one.sharding == other.sharding
    assert progress == {"loss": 0.1, "best": None}


def test_every_leaf_counts_in_the_digest(made: tuple[Plan, TrainState]) -> None:
    _, state = made
    leaves, structure = jax.tree.flatten(state)
    digests = {digest(state)}
    for number, leaf in enumerate(leaves):
        changed = np.array(leaf)
        changed.reshape(-1).view(np.uint8)[-1] ^= 1
        digests.add(digest(structure.unflatten([*leaves[:number], changed, *leaves[number + 1 :]])))
    assert len(digests) == len(leaves) + 1


def test_another_kind_of_the_same_shapes_is_refused(
    made: tuple[Plan, TrainState], tmp_path: Path
) -> None:
    """Orbax alone puts the factors of one kind into another without a word."""
    plan, state = made
    save(tmp_path, plan, state)
    weight = state.params["conv"]["kernel"]
    kh, kw = weight.shape[:2]
    assert isinstance(weight, lrj.SpatialLowRank) and (kh, kw) == (3, 3)
    row = plan.table.rows[0]
    other = dataclasses.replace(
        plan.table, rows=(dataclasses.replace(row, kind=lrj.ChannelLowRank),)
    )
    with pytest.raises(RunError, match=r"another factorization: conv/kernel.*ChannelLowRank"):
        restore(tmp_path, plan, table=other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("seed", "is of another run: seed is 1 there, 2 here"),
        ("learning_rate", r"is of another run: learning_rate is 0\.1 there, 0\.2 here"),
        ("fingerprint", "other data"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    made: tuple[Plan, TrainState], tmp_path: Path, other: str, message: str
) -> None:
    plan, state = made
    save(tmp_path, plan, state)
    config = plan.config.copy_and_resolve_references()
    if other == "fingerprint":
        changed: dict[str, object] = {"fingerprint": "fedcba9876543210"}
    else:
        config[other] = 2 * config[other]
        changed = {"config": config}
    before = contents(tmp_path)
    with pytest.raises(RunError, match=message):
        restore(tmp_path, plan, **changed)
    assert contents(tmp_path) == before


def test_only_whole_files_are_restored(made: tuple[Plan, TrainState], tmp_path: Path) -> None:
    """Each file in turn cut in half, emptied, missing, or with one bit of it flipped: either the
    checkpoint is refused, in one line that says what to do, or the state is the saved one."""
    plan, state = made
    whole = tmp_path / "whole"
    save(whole, plan, state)
    step = whole / "checkpoints" / "3"
    names = sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())
    assert len(names) > 5
    refused = set()
    for name in names:
        for damage in ("half", "empty", "missing", "flipped"):
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            path = folder / "checkpoints" / "3" / name
            content = path.read_bytes()
            if damage == "missing":
                path.unlink()
            elif damage == "flipped":
                middle = len(content) // 2
                path.write_bytes(
                    content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                )
            else:
                path.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
            before = contents(folder)
            try:
                restored, _ = restore(folder, plan)
            except RunError as error:
                assert "\n" not in str(error)
                assert "remove that folder to continue from an earlier one" in str(error)
                assert "checkpoints/3" in str(error)
                refused.add((name, damage))
            else:
                assert digest(restored) == digest(state), f"{damage} {name} was not noticed"
            assert contents(folder) == before
    assert ("manifest/metadata", "half") in refused
    largest = max(names, key=lambda name: (step / name).stat().st_size)
    assert {name for name, _ in refused} >= {largest, "state/manifest.ocdbt"}, refused


def with_digest(folder: Path, digest: str) -> None:
    """Writes another digest into the manifest of the checkpoint of step 3."""
    path = folder / "checkpoints" / "3" / "manifest" / "metadata"
    manifest = json.loads(path.read_text()) | {"digest": digest}
    del manifest["checksum"]
    manifest["checksum"] = _checksum(manifest)
    path.write_text(json.dumps(manifest))


def test_a_flipped_bit_in_the_arrays_is_found_by_the_digest(
    made: tuple[Plan, TrainState], tmp_path: Path
) -> None:
    """Even where the file itself is sound: the digest in the manifest is another state's."""
    plan, state = made
    save(tmp_path, plan, state)
    with_digest(tmp_path, digest(dataclasses.replace(state, step=state.step ^ 1)))
    with pytest.raises(RunError, match="is damaged: its digest does not match"):
        restore(tmp_path, plan)


def test_a_digest_of_bytes_is_compared_and_an_unknown_one_refused(
    made: tuple[Plan, TrainState], tmp_path: Path
) -> None:
    """Checkpoints of older versions have SHA-256 over the bytes of all leaves."""
    plan, state = made
    save(tmp_path, plan, state)
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sha.update(np.asarray(leaf).tobytes())
    with_digest(tmp_path, sha.hexdigest())
    assert digest(restore(tmp_path, plan)[0]) == digest(state)
    with_digest(tmp_path, sha.hexdigest()[::-1])
    with pytest.raises(RunError, match="is damaged: its digest does not match"):
        restore(tmp_path, plan)
    with_digest(tmp_path, f"later:{sha.hexdigest()}")
    with pytest.raises(RunError, match="cannot be checked: its digest is of the kind 'later'"):
        restore(tmp_path, plan)


def test_the_advice_for_a_damaged_checkpoint_works(tmp_path: Path) -> None:
    """Without the folder of the newest checkpoint, the run continues from the one before."""
    folder = tiny_runs.train(tmp_path / "run")
    expected = outcome(folder)
    (folder / "result.json").unlink()
    newest = folder / "checkpoints" / "10"
    (newest / "manifest" / "metadata").write_text("{")
    before = contents(folder)
    with pytest.raises(RunError, match=r"10 has no readable manifest .* remove that folder"):
        tiny_runs.train(folder)
    assert contents(folder) == before
    shutil.rmtree(newest)
    lines: list[str] = []
    tiny_runs.train(folder, say=lines.append)
    assert "continuing from step 5" in lines
    assert outcome(folder) == expected


def test_only_the_newest_checkpoints_are_kept(
    made: tuple[Plan, TrainState], tmp_path: Path
) -> None:
    plan, state = made
    for step in (0, 1, 2, 3):
        save(tmp_path, plan, state, step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
