"""The folder of a run: whose it is, and what it may be continued with.

    config.json      the settled config
    data.json        name, origin and fingerprint of the data
    table.json       the factorization table (table.txt: the same to read); of a run that selects
                     its ranks, empty until it has
    kept_layers.json the times of the network's stacks, where ranks are selected by them (and .txt)
    forms.json       how each factorized kernel is applied (forms.txt: the same to read)
    metrics.jsonl    one line per record; tensorboard/ has the same
    checkpoints/     one folder per step, with a manifest
    result.json      the outcome, written last
    plots/           drawn from metrics.jsonl
    profile/         traces, if profile_steps asks for them
    norms.npz        norms after every step, if record_norms or replay ask for them
    compact.safetensors   the merged network, if merge asks for it

A folder belongs to one experiment. Before anything is written, what is there is compared with what
is asked for, and whatever differs is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import config_keys, files
from experiments.errors import RunError
from experiments.forms import Forms
from experiments.result import FILE_NAME as RESULT
from experiments.result import Data

CONFIG, DATA, TABLE, TABLE_TO_READ = "config.json", "data.json", "table.json", "table.txt"
FORMS, FORMS_TO_READ = "forms.json", "forms.txt"

# What a run may be continued with a change of. Steps per dispatch, layout, forms and
# rematerialization do not change the experiment either, but they may change bits; recorded norms
# are a part of the state. Another mesh may change bits, too, and may be all that there is.
MAY_CHANGE = tuple(
    key
    for key in config_keys.OPERATIONAL
    if key not in ("steps_per_dispatch", "layout", "forms", "remat", "record_norms")
)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder that has been found fit for this run.

    Attributes:
      path: the folder.
      continues: whether a run of this very experiment has begun there.
    """

    path: Path
    continues: bool

    @property
    def finished(self) -> bool:
        return (self.path / RESULT).exists()


def examine(path: Path, config: ConfigDict, data: Data, table: lrj.Table | None) -> RunFolder:
    """Compares a folder with a run; writes nothing.

    Args:
      path: the folder.
      config: of the run, settled.
      data: that it is trained on.
      table: what it factorizes; None where that is decided on the way.

    Raises:
      RunError: the folder holds another experiment, or something that is no run.
    """
    if not path.exists():
        return RunFolder(path, continues=False)
    if not path.is_dir():
        raise RunError(f"{path} is a file: give another --workdir")
    if not (path / CONFIG).exists():
        # A run that was stopped before its first write leaves at most temporary files.
        strangers = sorted(p.name for p in path.iterdir() if not p.name.endswith(".tmp"))
        if strangers:
            raise RunError(
                f"{path} is not empty and not a run folder (it has {', '.join(strangers[:3])}): "
                "give another --workdir"
            )
        return RunFolder(path, continues=False)
    found = config_keys.differences(_read_object(path / CONFIG), config, ignore=MAY_CHANGE)
    if found:
        words = [
            f"{key} is {theirs!r} there and {ours!r} here" for key, (theirs, ours) in found.items()
        ]
        raise RunError(
            f"{path} holds a run of another config: {'; '.join(words[:4])}. Give another "
            "--workdir, or the same config to continue that run"
        )
    if (path / DATA).exists():
        there = _read_object(path / DATA)
        if there.get("fingerprint") != data.fingerprint:
            raise RunError(
                f"{path} holds a run on other data: {there.get('name')} with fingerprint "
                f"{str(there.get('fingerprint'))[:12]}… from {there.get('origin')}; found "
                f"{data.fingerprint[:12]}… from {data.origin}"
            )
        if there.get("vocabulary") != data.vocabulary:
            raise RunError(
                f"{path} holds a run with another vocabulary: digest {there.get('vocabulary')} "
                f"there, {data.vocabulary} here; the same text and vocabulary_size give the same "
                "one with the same version of SentencePiece"
            )
    if table is not None and (path / TABLE).exists():
        differences = table.differences(read_table(path))
        if differences:
            raise RunError(f"{path} holds a run with another factorization: {differences[0]}")
    return RunFolder(path, continues=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """While entered, no other process can enter for the same folder; a kill lets it go.

    Raises:
      RunError: another process is in it.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise RunError(f"{path}: another process is running this experiment") from error
    except OSError:
        logging.info("%s: no locks on this file system", path)
    try:
        yield
    finally:
        os.close(folder)


def begin(path: Path, config: ConfigDict, data: Data, table: lrj.Table) -> None:
    """Writes what identifies the run, as far as it is missing: a kill may come between two files.

    The config comes first, since with it the folder is a run's.
    """
    contents: dict[str, Any] = {
        CONFIG: config.to_dict(),
        DATA: dataclasses.asdict(data),
        TABLE: table.to_json(),
        TABLE_TO_READ: str(table),
    }
    for name, content in contents.items():
        if (path / name).exists():
            continue
        if isinstance(content, str):
            files.write_text(path / name, f"{content}\n")
        else:
            files.write_json(path / name, content)


def write_table(path: Path, table: lrj.Table) -> None:
    """Keeps what a run factorizes that has decided on it on the way."""
    files.write_text(path / TABLE_TO_READ, f"{table}\n")
    files.write_text(path / TABLE, f"{table.to_json()}\n")


def read_table(path: Path) -> lrj.Table:
    """The factorization table of a run folder.

    Raises:
      RunError: it is not there or not readable.
    """
    try:
        return lrj.Table.from_json((path / TABLE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"cannot read {path / TABLE}: {error}") from error


def write_forms(path: Path, forms: Forms) -> None:
    """Keeps the forms of a run: what is read again comes last."""
    files.write_text(path / FORMS_TO_READ, f"{forms}\n")
    files.write_json(path / FORMS, forms.as_dict())


def read_forms(path: Path, table: lrj.Table) -> Forms | None:
    """How a run that has begun applies its kernels; None if that is not written yet.

    Raises:
      RunError: the file is damaged, or of other kernels than the table.
    """
    if not (path / FORMS).exists():
        return None
    try:
        forms = Forms.from_dict(_read_object(path / FORMS))
    except ValueError as error:
        raise RunError(f"{path / FORMS} is damaged: {error}") from error
    for row in forms.rows:
        if table.row(row.path) is None:
            raise RunError(f"{path / FORMS} is damaged: {row.path!r} is not a factorized kernel")
    return forms


def _read_object(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged: expected a JSON object, found {str(found)[:60]!r}")
    return found
