"""What a benchmark leaves behind: DATE-DEVICE.json with the figures, and beside it .md and .png.

    {"date", "versions", "commit", "hardware", "quick", "sections": {name: record, …}}

It is written anew after every part, so that what was measured survives an interruption, and never
takes the place of an earlier one.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import files, plot_style
from experiments.benchmark import targets
from experiments.benchmark.plot import ratios
from experiments.benchmark.sections import SECTIONS
from experiments.result import commit, hardware, versions


class Outcome:
    """The growing record of one benchmark.

    Args:
      folder: where to write; made if it is not there.
      quick: whether the figures are only a trial.

    Raises:
      RunError: from every method, where a file cannot be written.
    """

    def __init__(self, folder: Path, quick: bool) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.record: dict[str, Any] = {
            "date": now.isoformat(timespec="seconds"),
            "versions": versions() | {"torch": torch_version()},
            "commit": commit(),
            "hardware": hardware(),
            "quick": quick,
            "sections": {},
        }
        self.path = _free(folder, f"{now.date()}-{_device(self.record['hardware'])}")
        self._save()

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Notes the record of a section, in the place of an earlier one, and writes it down."""
        self.record["sections"][name] = record
        self._save()

    def show(self) -> str:
        """Writes the plot and the Markdown, and returns the latter."""
        figure = ratios(self.record)
        if figure is not None:
            plot_style.save(figure, self.path.with_suffix(".png"))
        text = document(self.record, self.path.with_suffix(".png").name if figure else None)
        files.write_text(self.path.with_suffix(".md"), text)
        return text

    def _save(self) -> None:
        files.write_json(self.path, self.record)


def document(record: Mapping[str, Any], picture: str | None) -> str:
    """A record as a page of Markdown, with the plot in the file `picture`."""
    parts = [f"# Benchmark of {record['date'][:10]}", f"{machine(record)}."]
    if record["quick"]:
        parts.append("A quick look: tiny networks, whose figures say nothing.")
    parts.append(
        "Medians over the alternations with 95 % intervals; ratios are paired within an "
        "alternation, and below 1 means faster, or less. This project's step makes its batch from "
        "stored images; PyTorch gets its batches ready-made. Memory of steps is the peak while "
        "training, without what importing the framework takes; peak memory is that of the whole "
        "process, compiling included."
    )
    if picture:
        parts.append(f"![Time relative to the comparison]({picture})")
    if not record["quick"] and (aims := targets.table(record)):
        parts += ["## Targets", aims]
    for name, section in SECTIONS.items():
        if name in record["sections"]:
            parts += [f"## {section.title}", section.table(record["sections"][name])]
    return "\n\n".join(parts) + "\n"


def machine(record: Mapping[str, Any]) -> str:
    """Hardware, versions and commit of a record in one sentence, without its full stop."""
    device, found = record["hardware"], record["versions"]
    cpu = f"{device['cores']} cores of {device['cpu']}"
    place = cpu
    if device["platform"] != "cpu":
        place = f"{device['device_count']} x {device['device_kind']} beside {cpu}"
    names = {"jax": "JAX", "torch": "PyTorch", "python": "Python"}
    software = ", ".join(f"{names[key]} {found[key]}" for key in names if found[key])
    source = record["commit"]
    if source is None:
        return f"{place}; {software}"
    dirty = " with uncommitted changes" if source["dirty"] else ""
    return f"{place}; {software}; commit {source['hash'][:12]}{dirty}"


def torch_version() -> str | None:
    """The installed version of PyTorch, found without importing it; None if there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(found: Mapping[str, Any]) -> str:
    """The kind of device, for a file name: 'cpu-2-cores', 'nvidia-h200'."""
    if found["platform"] == "cpu":
        return f"cpu-{found['cores']}-cores"
    return re.sub(r"[^a-z0-9]+", "-", found["device_kind"].lower()).strip("-")


def _free(folder: Path, stem: str) -> Path:
    """The first of STEM.json, STEM-2.json, … that is not there."""
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path
