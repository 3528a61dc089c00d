"""`result.json`: what a run computed, from what, with what, and on what.

    {"name", "seed", "config", "data": {"name", "origin", "fingerprint", "vocabulary"},
     "parameters", "dense_parameters", "ratio", "multiply_adds", "dense_multiply_adds",
     "final": {"split", "accuracy", "loss", "epoch", "step"},
     "best": {"split", "accuracy", "loss", "epoch", "step"} or null where no epoch was selected,
     "start": {"run", "accuracy", "loss", "factorized": {"accuracy", "loss"} or null} or null,
     "compact": {"parameters", "accuracy", "loss", "logit_difference", "file"} or null,
     "scores": {"split", "bleu", ...} or null where the task has no others than accuracy and loss,
     "replay": {"run", "largest_difference"} or null,
     "selection": {"epoch", "step", "ranks": {path: rank}, "remark",
                   "seconds": {"profiling", "measuring", "switching"}} or null,
     "steps", "epochs", "wall_time_s", "compile_time_s", "diagnostics_time_s",
     "diagnostics_left_out", "versions", "commit", "hardware"}

Accuracies are fractions; multiply-adds are those of one example's forward pass, in the forms in
which the run applies its kernels (`forms.json`). `start` is null where the run began with a random
network, `compact` where it was not merged at the end, `replay` where no norms were set, `selection`
where no ranks were selected in training. Older files do not have all of these.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import lowrank_jax as lrj
from experiments.cores import cores

FILE_NAME = "result.json"

_DISTRIBUTIONS = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
    "pillow": "pillow",
    "sacrebleu": "sacrebleu",
    "sentencepiece": "sentencepiece",
    "lowrank_jax": "lowrank_jax",
}


@dataclasses.dataclass(frozen=True)
class Data:
    """The data set that was really loaded: its name, where it came from, its fingerprint, and where
    it is text, the digest of the vocabulary that it is encoded with."""

    name: str
    origin: str
    fingerprint: str
    vocabulary: str | None = None

    @property
    def identity(self) -> str:
        """What a network sees of it: the same for equal data in equal form."""
        return self.fingerprint + (f"+{self.vocabulary}" if self.vocabulary else "")


@dataclasses.dataclass(frozen=True)
class Final:
    """The state at the end of training, measured on `split`."""

    split: str
    accuracy: float
    loss: float
    epoch: float
    step: int


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch by its accuracy, or by its loss, on `split`: the test set under
    protocol=published. In older files there is neither loss nor step."""

    split: str
    accuracy: float
    epoch: float
    loss: float | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Start:
    """The finished run that a run started from: its network, dense, and what that was after it had
    been factorized, at step 0 (`accuracy` and `loss`; None where nothing was). Both are measured on
    the test images."""

    run: str
    accuracy: float
    loss: float
    factorized: Mapping[str, float] | None


@dataclasses.dataclass(frozen=True)
class Compact:
    """The dense network that a factorized one was merged into at the end: its parameters, accuracy
    and loss on the test images, the largest difference of its logits from those of the factors (as
    a share of the largest logit), and the file in the run folder that it is in."""

    parameters: int
    accuracy: float
    loss: float
    logit_difference: float
    file: str


@dataclasses.dataclass(frozen=True)
class Replay:
    """The run whose norms were set after each step, and the largest difference from them, as a
    share of the recorded norm."""

    run: str
    largest_difference: float


@dataclasses.dataclass(frozen=True)
class Selected:
    """The ranks that a run selected in training: by kernel, those that stayed dense left out; the
    epochs and steps it had trained until then (None: it stayed dense); what was remarked; and what
    timing its stacks, measuring its kernels, and their decomposition took."""

    epoch: float | None
    step: int | None
    ranks: Mapping[str, int]
    remark: str
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, ranks: Mapping[str, Any], table: lrj.Table) -> Selected:
        """From the tally of a run, and what it factorized at the end."""
        chosen = {row.path: row.rank for row in table.rows if isinstance(row.rank, int)}
        return cls(ranks["epoch"], ranks["step"], chosen, ranks["remark"], ranks["seconds"])


@dataclasses.dataclass(frozen=True)
class Result:
    """The content of `result.json`; `as_dict` adds versions and hardware.

    `commit` is that of the source tree when the run began, see the function of that name.
    """

    name: str
    seed: int
    config: Mapping[str, Any]
    data: Data
    parameters: int
    dense_parameters: int
    multiply_adds: int
    dense_multiply_adds: int
    final: Final
    best: Best | None
    steps: int
    epochs: float
    wall_time_s: float
    compile_time_s: float
    diagnostics_time_s: float
    diagnostics_left_out: int
    commit: Mapping[str, Any] | None
    start: Start | None = None
    compact: Compact | None = None
    scores: Mapping[str, Any] | None = None
    replay: Replay | None = None
    selection: Selected | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "ratio": self.parameters / self.dense_parameters,
            "versions": versions(),
            "hardware": hardware(),
        }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit(folder: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """The git commit of the source tree and whether tracked files differ from it.

    Args:
      folder: the checkout; by default the one this file lies in.

    Returns:
      {"hash": 40 hexadecimal digits, "dirty": bool}, or None where that is no checkout.
    """
    root = Path(folder) if folder is not None else Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # git would look in the folders above as well
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"hash": revision, "dirty": bool(changes)}


def hardware() -> dict[str, Any]:
    """The devices JAX computes on, and the machine's processor."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "cpu": _cpu_model(),
        "cores": cores(),
    }


def _git(folder: Path, *command: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return run.stdout.strip()


def _cpu_model() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
