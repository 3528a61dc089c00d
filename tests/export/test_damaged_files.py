"""Files that are damaged, cut, changed, forged, or something else altogether."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import lowrank_jax as lrj
from lowrank_jax import export
from lowrank_jax.export.predict import checksum

TREE = {"w": lrj.LowRank(u=np.ones((4, 2)), vt=np.ones((2, 3))), "b": np.arange(3.0)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    export.save(tmp_path / "model.safetensors", TREE, {"model": "tiny"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("first", range(3))
def test_no_byte_can_change(file: Path, first: int) -> None:
    whole = file.read_bytes()
    accepted = []
    for at in range(first, len(whole), 3):
        mask = (0x01, 0x20, 0xFF)[at // 3 % 3]  # The second changes the case of a letter.
        file.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        try:
            export.load(file)
        except ValueError as error:
            assert str(error).startswith(f"{file}: ")
        else:
            accepted.append(at)
    assert accepted == []


def test_no_part_is_enough(file: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 29), 7, 8, 9, len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a safetensors file, or a damaged one"):
            export.load(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="not a safetensors file, or a damaged one"):
        export.load(file)


@pytest.mark.parametrize(
    "content",
    {
        "pickle": pickle.dumps({"w": np.ones(3)}),
        "zip": b"PK\x03\x04" + bytes(100),
        "json": b'{"w": [1, 2, 3]}',
        "a header of 4 EiB": (2**62).to_bytes(8, "little") + b'{"w": {}}',
        "a header of 100 MB": (10**8 - 1).to_bytes(8, "little") + b"{}",
        "a list for a header": (2).to_bytes(8, "little") + b"[]",
    }.items(),
    ids=lambda item: item[0],
)
def test_other_files_are_refused(file: Path, content: tuple[str, bytes]) -> None:
    file.write_bytes(content[1])
    with pytest.raises(ValueError, match="not a safetensors file, or a damaged one"):
        export.load(file)


def test_missing_files_and_folders_come_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        export.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        export.load(tmp_path)


def test_a_file_of_somebody_else_has_no_manifest(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"b": TREE["b"]}, tmp_path / "a", {"x": "y"})
    with pytest.raises(ValueError, match="without a manifest"):
        export.load(tmp_path / "a")


def rewrite(file: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None], seal: bool) -> None:
    """Changes arrays and manifest as another tool would; `seal` makes the checksum right."""
    arrays: dict[str, Any] = safetensors.numpy.load_file(file)
    with safetensors.safe_open(file, "np") as opened:
        manifest = json.loads(opened.metadata()["lowrank_jax"])
    edit(arrays, manifest)
    if seal:
        contents = [arrays[name].tobytes() for name in sorted(arrays)]
        manifest["checksum"] = checksum(manifest, contents)
    safetensors.numpy.save_file(arrays, file, {"lowrank_jax": json.dumps(manifest)})


def row(manifest: dict[str, Any], **changes: Any) -> None:
    manifest["table"]["rows"][0].update(changes)


def test_what_another_tool_writes_again_unchanged_is_accepted(file: Path) -> None:
    rewrite(file, lambda arrays, manifest: None, seal=False)
    assert repr(export.load(file)["w"]) == repr(TREE["w"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a, m: a.pop("b"), "b is missing"),
        (lambda a, m: a.update(c=np.ones(1)), "c is one too many"),
        (lambda a, m: a.update(b=np.ones(4)), r"b: found .*\[4\].*has .*\[3\]"),
        (lambda a, m: a.update(b=np.ones(3, "float32")), "b: found .*float32.*has .*float64"),
        (lambda a, m: a.update(b=np.ones(3)), "checksum"),
        (lambda a, m: m["metadata"].update(model="other"), "checksum"),
        (lambda a, m: row(m, kind="Tucker"), "checksum"),
        (lambda a, m: m.update(checksum="0" * 64), "checksum"),
        (lambda a, m: m.pop("checksum"), "manifest is damaged"),
        (lambda a, m: m.update(format=2), "format 2, and 1 is what can be read"),
    ],
)
def test_changes_are_found(file: Path, edit: Any, message: str) -> None:
    rewrite(file, edit, seal=False)
    with pytest.raises(ValueError, match=message):
        export.load(file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: row(m, kind="Unheard"), "w: unknown kind of weight 'Unheard'"),
        (lambda m: row(m, rank=3), r"w: expected LowRank\(rank=3.*, found LowRank\(rank=2"),
        (lambda m: row(m, depth=3), "w: expected LowRank.*depth=3.*, found LowRank.*depth=2"),
        (lambda m: row(m, shape=[4, 4]), "w: expected .*4x4 kernel, found .*4x3 kernel"),
        (lambda m: row(m, axes={"in_axes": 1, "depth": 2}), "contradict its table of weights: w"),
        (lambda m: row(m, axes={"in_axes": 2, "out_axes": 1}), "contradict its table"),
        (lambda m: row(m, kind="SpatialLowRank", axes={}), "contradict its table of weights: w"),
        (lambda m: row(m, kind="Tucker"), "contradict its table of weights: w"),
        (lambda m: row(m, path="v"), "contradict its table of weights: v"),
        (lambda m: row(m, path="b"), "b lies below|contradict"),
        (lambda m: m["table"]["rows"].clear(), "contradict its table"),
        (lambda m: m["table"].update(other_parameters=4), "expected 4, found 3"),
        (lambda m: m.pop("table"), "not a factorization table"),
        (lambda m: m["table"].update(rows=3), "not a factorization table"),
    ],
)
def test_a_table_that_contradicts_the_arrays(file: Path, edit: Any, message: str) -> None:
    rewrite(file, lambda arrays, manifest: edit(manifest), seal=True)
    with pytest.raises(ValueError, match=message) as caught:
        export.load(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("manifest", ["", "{", "[]", "3", "null", '"text"', "{}", "[" * 100_000])
def test_a_manifest_that_is_none(file: Path, manifest: str) -> None:
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(arrays, file, {"lowrank_jax": manifest})
    with pytest.raises(ValueError, match="manifest is damaged"):
        export.load(file)
