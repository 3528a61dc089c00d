"""Finished runs gathered into settings, and settings compared seed by seed.

A setting is all runs whose configs agree in everything but the seed and the keys that do not
change what is computed (`experiments.arguments.OPERATIONAL`). Two settings are compared by the
differences of runs of the same seed: with n differences of mean m and sample standard deviation s,
the 95 % interval of Student's t is m ± t(0.975, n - 1) s / sqrt(n).
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import arguments, files, result
from experiments.errors import RunError

FEWEST_SEEDS = 3  # for an interval, and so for any claim

# On a dense network these keys change nothing: there are no factors.
_FACTOR_KEYS = ("init", "variant", "overcomplete", "decay")
# Named in every label beside a dense setting, which is not set apart by these words alone.
_MAIN_KEYS = ("rank_scale", "init", "decay")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder and the content of its result.json."""

    folder: Path
    result: dict[str, Any]
    config: dict[str, Any]  # flat, without seed and operational keys

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def accuracy(self) -> float:
        return float(self.result["final"]["accuracy"])

    @property
    def yardstick(self) -> tuple[str, str, str]:
        """What the accuracy was measured on: only runs that share it can be compared."""
        data = self.result["data"]
        return data["name"], data["fingerprint"], self.result["final"]["split"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed, ordered by it."""

    label: str
    runs: tuple[Run, ...]

    @property
    def dense(self) -> bool:
        return self.runs[0].config.get("rank_scale") == 0

    @property
    def accuracies(self) -> np.ndarray:
        return np.array([run.accuracy for run in self.runs])


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """The run folders (those with a result.json) at or below the given folders or glob patterns.

    Raises:
      RunError: if a pattern leads to none.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        places = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        results = [path for place in places for path in sorted(Path(place).rglob(result.FILE_NAME))]
        if not results:
            exists = any(Path(place).exists() for place in places)
            state = "holds no finished run" if exists else "does not exist"
            raise RunError(f"{pattern} {state}: a run folder has a {result.FILE_NAME} in it")
        found |= {path.parent.resolve(): path.parent for path in results}
    return list(found.values())


def load_run(folder: Path) -> Run:
    """Reads a run; a result.json that is broken or incomplete is a `RunError` that names it."""
    path = folder / result.FILE_NAME
    content = files.read_json(path)
    needed: dict[str, type | tuple[type, ...]] = {
        "seed": int, "config": dict, "data.name": str, "data.fingerprint": str,
        "final.split": str, "final.accuracy": (int, float), "parameters": int,
        "dense_parameters": int, "ratio": (int, float), "multiply_adds": int,
        "wall_time_s": (int, float),
    }  # fmt: skip
    for key, kind in needed.items():
        value = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise RunError(f"{path} is not a complete result: {key} is {value!r}")
    hidden = {"seed", *arguments.OPERATIONAL}
    flat = arguments.complete(content["config"])
    if flat.get("rank_scale") == 0:
        hidden |= {*_FACTOR_KEYS}
    config = {key: flat[key] for key in sorted(flat.keys() - hidden)}
    return Run(folder, content, config)


def settings_by_yardstick(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Setting]]:
    """Runs as labelled settings, kept apart by (data set, fingerprint, split).

    Dense settings come first, the others in the order of what sets them apart.

    Raises:
      RunError: if two runs of one setting have the same seed.
    """
    tables: dict[tuple[str, str, str], list[Setting]] = {}
    for yardstick in sorted({run.yardstick for run in runs}):
        groups: dict[tuple, list[Run]] = {}
        for run in (run for run in runs if run.yardstick == yardstick):
            groups.setdefault(tuple(run.config.items()), []).append(run)
        labels = _labels([dict(config) for config in groups], [g[0] for g in groups.values()])
        table = []
        for label, group in zip(labels, groups.values(), strict=True):
            group.sort(key=lambda run: (run.seed, str(run.folder)))
            for one, other in itertools.pairwise(group):
                if one.seed == other.seed:
                    raise RunError(
                        f"{one.folder} and {other.folder} are the same experiment with the same "
                        f"seed {one.seed}: leave one of them out"
                    )
            table.append(Setting(label, tuple(group)))
        tables[yardstick] = sorted(table, key=lambda s: (not s.dense, _order(s.label)))
    return tables


def t_interval(differences: Sequence[float] | np.ndarray) -> Interval | None:
    """Mean and 95 % t interval of paired differences; None if there are fewer than three.

    Example:
      >>> mean, low, high = t_interval([1.0, 2.0, 3.0])
      >>> round(mean, 3), round(low, 3), round(high, 3)
      (2.0, -0.484, 4.484)
    """
    d = np.asarray(differences, float)
    if len(d) < FEWEST_SEEDS:
        return None
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return Interval(float(d.mean()), float(d.mean() - half), float(d.mean() + half))


def paired_differences(setting: Setting, baseline: Setting) -> np.ndarray:
    """Accuracy of `setting` minus accuracy of `baseline`, for each seed that both have."""
    reference = {run.seed: run.accuracy for run in baseline.runs}
    pairs = [(run.accuracy, reference[run.seed]) for run in setting.runs if run.seed in reference]
    return np.array([accuracy - other for accuracy, other in pairs])


def _labels(configs: list[dict[str, Any]], first_runs: list[Run]) -> list[str]:
    """What sets each config apart from the others, e.g. 'rank_scale=0.111, init=spectral'."""
    if len(configs) == 1:
        return [str(first_runs[0].result.get("name", "run"))]
    keys = sorted({key for config in configs for key in config})
    differing = []
    for key in keys:
        values = {config[key] for config in configs if key in config}
        everywhere = all(key in config or config.get("rank_scale") == 0 for config in configs)
        if len(values) > 1 or not everywhere:
            differing.append(key)
    beside_dense = any(config.get("rank_scale") == 0 for config in configs)
    first = [key for key in _MAIN_KEYS if beside_dense or key in differing]
    differing = first + [key for key in differing if key not in first]
    last = [key.rpartition(".")[2] for key in differing]
    # A key goes by its last part where that is clear ('depth'), else by its whole path.
    short = {k: (s if last.count(s) == 1 and s != "name" else k)
             for k, s in zip(differing, last, strict=True)}  # fmt: skip
    labels = []
    for config in configs:
        dense = config.get("rank_scale") == 0
        parts = ["dense"] if dense else []
        parts += [
            f"{short[key]}={_word(config[key])}"
            for key in differing
            if key in config and not (dense and key == "rank_scale")
        ]
        labels.append(", ".join(parts))
    return labels


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _order(label: str) -> list[tuple[float, str]]:
    """A sort key that puts rank_scale=3 before rank_scale=9 before rank_scale=10."""
    parts = []
    for part in label.split(", "):
        name, _, value = part.partition("=")
        try:
            parts.append((float(value), name))
        except ValueError:
            parts.append((math.inf, part))
    return [(0.0, part[1]) if part[0] == math.inf else part for part in parts]
