"""The record of a run: `metrics.jsonl`, TensorBoard events, and progress lines on the console.

One JSON object a line, on disk before `write` returns:

    {"step": 39, "epoch": 1.0, "train_loss": 1.9, "validation_accuracy": 0.41, ...,
     "diagnostics_seconds": 0.05,
     "diagnostics": {"nuclear_norm": {"block_1/conv1/kernel": 12.5, ...}, ...},
     "spectra": {"block_1/conv1/kernel": [3.1, 2.2, ...], ...},
     "selection": {"stable_rank": {"block_1/conv1/kernel": 5.2, ...}, "selected_rank": {...}}}

The last is there while a run selects its ranks, the three before it only where kernels were
measured, which may be within an epoch; a value that is not a number is null. TensorBoard gets the
scalars, and for each diagnostic the mean over the kernels, under the names of the published system
(`metric/NucNorm`). The diagnostics of attention's products, each the mean over the heads of a
module, are called `qk/nuclear_norm` and `ov/nuclear_norm`; beside them the tags name their groups
(`metric/NucNorm-QueKey`, `-OutVal`, and `-Linear` for the kernels).

A run that resumes from a checkpoint of step s takes back what was written after it. For that to
give the record of an uninterrupted run, write everything of a step before its checkpoint is saved.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar as scalar_summary

from experiments import files
from experiments.errors import RunError

FILE_NAME = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"

# Diagnostics of `lowrank_jax.diagnostics` and their names in TensorBoard.
TAGS = {
    "frobenius_norm": "metric/FrobNorm",
    "nuclear_norm": "metric/NucNorm",
    "nuclear_bound": "metric/NucNorm-bound",
    "non_orthogonality": "metric/NonOrth",
    "stable_rank": "metric/StableRank",
    "effective_rank": "metric/EffectiveRank",
    "learning_rate": "hyper/lr",
    "effective_learning_rate": "hyper/lr-eff_frobsq",
}

# The groups of products, as their diagnostics begin and as their tags end.
GROUP_TAGS = {"qk": "QueKey", "ov": "OutVal"}
_KERNELS_TAG = "Linear"  # The end of the kernels' tags where there are products as well.


class MetricsWriter:
    """Writes the record of one run. Use it as a context manager, or call `close`.

    Args:
      folder: the run folder; made if it is not there.
      resume_step: the step of the checkpoint that the run continues from: lines of later steps,
        and a last line torn by a kill, are dropped. None starts an empty record.

    Raises:
      RunError: from every method, when a file cannot be written (e.g. no space left on the device)
        or the record to continue is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self.path = Path(folder) / FILE_NAME
        kept: list[dict[str, Any]] = []
        if resume_step is not None and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
        files.write_text(self.path, "".join(_dump(line) for line in kept))
        first_step = 0 if resume_step is None else resume_step + 1
        self._events = _Events(Path(folder) / EVENTS_FOLDER, first_step)

    def write(
        self,
        step: int,
        epoch: float,
        scalars: Mapping[str, Any],
        *,
        diagnostics: Mapping[str, Mapping[str, Any]] | None = None,
        spectra: Mapping[str, Any] | None = None,
        selection: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Appends one line and the same to TensorBoard.

        Args:
          step: optimizer steps done.
          epoch: passes over the training set done; a fraction within one.
          scalars: {name: number}, e.g. train_loss, validation_accuracy, learning_rate.
          diagnostics: {diagnostic: {path of the kernel: number}}, those of products as in
            {"qk/nuclear_norm": {path of the module: number}}.
          spectra: {path of the kernel: singular values, largest first}.
          selection: {measure: {path of the kernel: number}}, what ranks are selected by.
        """
        line: dict[str, Any] = {"step": int(step), "epoch": float(epoch), **scalars}
        if diagnostics is not None:
            line["diagnostics"] = diagnostics
        if spectra is not None:
            line["spectra"] = spectra
        if selection:
            line["selection"] = selection
        with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(_dump(line))
            file.flush()
            os.fsync(file.fileno())
        self._events.write(step, _tagged(scalars, diagnostics or {}))

    def close(self) -> None:
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, or of the one in a run folder; a torn last line is left out.

    Raises:
      RunError: if the file is not there, or a line before the last is no record.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(f"cannot read {path}: {reason}") from error
    lines = []
    for number, text in enumerate(texts[:-1], start=1):  # what follows the last newline is torn
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}, line {number}: not a metrics record: {text[:60]!r}") from error
        lines.append(line)
    return lines


def mean_diagnostic(line: Mapping[str, Any], name: str) -> float:
    """The mean over the kernels of one diagnostic of a line; NaN where it was not measured."""
    values = line.get("diagnostics", {}).get(name) or {}
    numbers = [np.nan if value is None else float(value) for value in values.values()]
    return float(np.mean(numbers)) if numbers else float("nan")


_RATE_SECONDS = 10.0


class Progress:
    """Speed over the last seconds, time left, and the console line that tells them.

    Args:
      total_steps: steps of the whole run.
      clock: seconds, from any origin.
      unit: what is counted.
    """

    def __init__(
        self,
        total_steps: int,
        clock: Callable[[], float] = time.perf_counter,
        unit: str = "examples",
    ) -> None:
        self._unit = unit
        self._total, self._clock = total_steps, clock
        self._done = 0  # examples
        self._start: tuple[int, float] | None = None
        self._recent = [(0, clock(), 0.0)]
        self.examples_per_second = float("nan")
        self.data_wait_share: float | None = None
        self.seconds_left = float("nan")

    def update(self, step: int, examples: int, waited: float | None = None) -> None:
        """Notes that `step` steps are done, with `examples` more; sets `examples_per_second` and
        `seconds_left`, and where data is waited for, `waited` seconds so far, `data_wait_share`."""
        now = self._clock()
        self._done += examples
        self._recent.append((self._done, now, waited or 0.0))
        while len(self._recent) > 2 and now - self._recent[1][1] >= _RATE_SECONDS:
            self._recent.pop(0)
        done, taken = self._done - self._recent[0][0], now - self._recent[0][1]
        if done > 0 and taken > 0:
            self.examples_per_second = done / taken
            if waited is not None:
                self.data_wait_share = (waited - self._recent[0][2]) / taken
        if self._start is None:
            self._start = (step, now)
        start_step, start_time = self._start
        if step > start_step:
            # Over everything since the start: evaluation and checkpoints take their part of it.
            self.seconds_left = (self._total - step) * (now - start_time) / (step - start_step)

    def line(self, step: int, epoch: float, scalars: Mapping[str, Any]) -> str:
        """One line for the console, such as

        step 39/234  epoch 1.0  train loss 1.912, accuracy 31.2 %  512 examples/s  1:15 left
        """
        parts = [f"step {step}/{self._total}", f"epoch {epoch:.1f}"]
        for split in ("train", "validation", "test"):
            words = []
            if f"{split}_loss" in scalars:
                words.append(f"loss {float(scalars[f'{split}_loss']):.3f}")
            if f"{split}_accuracy" in scalars:
                words.append(f"accuracy {100 * float(scalars[f'{split}_accuracy']):.1f} %")
            if words:
                parts.append(f"{split} {', '.join(words)}")
        if np.isfinite(self.examples_per_second):
            parts.append(f"{self.examples_per_second:.0f} {self._unit}/s")
        if self.data_wait_share is not None:
            parts.append(f"waiting for data {100 * self.data_wait_share:.0f} % of the time")
        if np.isfinite(self.seconds_left):
            parts.append(f"{duration(self.seconds_left)} left")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class _Events:
    """TensorBoard events, written in the calling thread so that a failure reaches the caller.

    (tensorboardX's `SummaryWriter` writes in a thread of its own, where an error is only printed.)
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._path = folder
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The library's file name has a resolution of a second; a restart may be faster.
            suffix = f".{os.getpid()}.{time.time_ns()}"
            self._writer = EventsWriter(str(folder / "events"), suffix)
            # Readers drop what an earlier file holds for this step and later ones.
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=first_step, session_log=start))
            self._writer.flush()

    def write(self, step: int, tagged: Mapping[str, float]) -> None:
        with files.writing(self._path):
            for tag, value in tagged.items():
                summary = scalar_summary(tag, value)
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._writer.flush()

    def close(self) -> None:
        with files.writing(self._path):
            self._writer.close()


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(files.plain(line), allow_nan=False) + "\n"


def _tagged(
    scalars: Mapping[str, Any], diagnostics: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """What one line means in TensorBoard: {tag: value}."""
    tagged = {TAGS.get(name, name): float(value) for name, value in scalars.items()}
    for name in diagnostics:
        if diagnostics[name]:  # Some are not defined for a dense or a deep kernel.
            tag = _diagnostic_tag(name, products=any("/" in other for other in diagnostics))
            tagged[tag] = mean_diagnostic({"diagnostics": diagnostics}, name)
    if "learning_rate" in scalars and diagnostics.get("frobenius_norm"):
        norms = np.array([float(v) for v in diagnostics["frobenius_norm"].values()])
        rate = float(scalars["learning_rate"])
        with np.errstate(divide="ignore"):
            tagged["hyper/lr-eff_frob"] = float(np.mean(rate / norms))
    return tagged


def _diagnostic_tag(name: str, products: bool) -> str:
    """The tag of a diagnostic; `products`: whether products were measured beside the kernels."""
    group, _, measure = name.rpartition("/")
    tag = TAGS.get(measure, f"metric/{measure}")
    if not products or tag.startswith("hyper/"):
        return tag
    return f"{tag}-{GROUP_TAGS[group] if group else _KERNELS_TAG}"


def columns(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of one scalar, over the lines that have it."""
    pairs = [(line["epoch"], line[name]) for line in lines if name in line]
    values = [np.nan if value is None else value for _, value in pairs]
    return np.array([epoch for epoch, _ in pairs], float), np.array(values, float)
