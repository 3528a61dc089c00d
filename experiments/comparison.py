"""Finished runs gathered into settings, and settings compared seed by seed.

A setting is all runs whose configs agree in everything but the seed and the keys that do not
change what is computed (`experiments.config_keys.OPERATIONAL`). Settings stand in one section of a
report if they are of one dense network and were measured on the same examples. Two settings are
compared by the differences of the scores (`experiments.measures`) of runs of the same seed: with n
differences of mean m and sample standard deviation s, the 95 % interval of Student's t is
m ± t(0.975, n - 1) s / sqrt(n).
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import config_keys, files, measures, result, setting_names
from experiments.errors import RunError

FEWEST_SEEDS = 3  # for an interval, and so for any claim

_FEWEST_COEFFICIENTS = 3  # of decay, for a study of it


class Section(NamedTuple):
    """What runs must have in common to be compared: what was measured on, and the network."""

    data: str
    fingerprint: str
    split: str
    model: tuple[tuple[str, Any], ...]  # the keys of the dense network and their values, by key
    task: str

    @property
    def network(self) -> str:
        """E.g. 'VGG-19, width 0.25'."""
        return setting_names.network_name(dict(self.model))

    @property
    def title(self) -> str:
        """E.g. 'VGG-19, width 0.25 on fashion_small'."""
        return f"{self.network} on {self.data}"

    @property
    def measure(self) -> measures.Measure:
        """What its runs are judged by."""
        return measures.of_task(self.task)


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder and the content of its result.json."""

    folder: Path
    result: dict[str, Any]
    config: dict[str, Any]  # flat, without seed, operational keys, and keys that change nothing

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def accuracy(self) -> float:
        """At the end, a fraction."""
        return float(self.result["final"]["accuracy"])

    @property
    def score(self) -> float:
        """What it is judged by, in the unit of its measure."""
        measure = self.section.measure
        return measure.factor * measure.written(self.result)

    @property
    def section(self) -> Section:
        data, split = self.result["data"], self.result["final"]["split"]
        model = tuple((k, v) for k, v in self.config.items() if setting_names.of_network(k))
        return Section(data["name"], data["fingerprint"], split, model, self.config["task"])


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed, ordered by it.

    Attributes:
      name: the method in words.
      apart: what else sets it apart from the other settings of its section: {key of the config:
        words, such as 'weight_decay=5e-05'}.
      size: what it was asked to become; None for the dense network, and where ranks are selected.
    """

    name: str
    apart: Mapping[str, str]
    size: setting_names.Size | None
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """The name, and whatever else sets it apart."""
        return ", ".join([self.name, *self.apart.values()])

    @property
    def label(self) -> str:
        return self.label_without()

    def label_without(self, *keys: str) -> str:
        """What it is called in tables and plots, without the words about some keys."""
        words = [self.name, *(word for key, word in self.apart.items() if key not in keys)]
        return ", ".join([*words, *([setting_names.size_name(self.size)] if self.size else [])])

    @property
    def dense(self) -> bool:
        """Whether it is the ordinary dense network, which ratios are relative to."""
        config = self.runs[0].config
        ordinary = config["kind"] not in config_keys.TENSOR_KINDS
        whole = not setting_names.smaller_heads(config)
        return setting_names.dense(config) and ordinary and whole

    @property
    def pruned(self) -> bool:
        return setting_names.pruned(self.runs[0].config)

    @property
    def selects_ranks(self) -> bool:
        """Whether it becomes low rank in the middle of training."""
        return config_keys.selects_ranks(self.runs[0].config)

    @property
    def parameters(self) -> int:
        """The mean over the runs: counts differ where ranks follow from a trained network."""
        return round(self.mean("parameters"))

    def mean(self, figure: str) -> float:
        """The mean over the runs of one figure of their results."""
        return float(np.mean([run.result[figure] for run in self.runs]))

    @property
    def scores(self) -> np.ndarray:
        """Of each run, in the unit of the measure."""
        return np.array([run.score for run in self.runs])

    @property
    def accuracies(self) -> np.ndarray:
        """Of each run at the end, fractions."""
        return np.array([run.accuracy for run in self.runs])

    @property
    def coefficient(self) -> tuple[str, float]:
        """The coefficient of decay that a study varies: its key and its value."""
        config = self.runs[0].config
        key = setting_names.decay_key(config)
        return key, config[key]


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
        "seed": int, "config": dict, "config.task": str, "config.model.name": str, "data.name": str,
        "data.fingerprint": str, "final.split": str, "final.accuracy": (int, float),
        "parameters": int, "dense_parameters": int, "ratio": (int, float), "multiply_adds": int,
        "steps": int, "wall_time_s": (int, float), "compile_time_s": (int, float),
    }  # fmt: skip
    for key, kind in (needed | {measures.of_result(content).key: (int, float)}).items():
        value = measures.value_at(content, key)
        if not isinstance(value, kind):
            raise RunError(f"{path} is not a complete result: {key} is {value!r}")
    config = config_keys.experiment(content["config"])
    del config["seed"]
    for key in ("frobenius_decay", "kind"):
        if not setting_names.concerned(key, config):
            config[key] = config_keys.ADDED_LATER[key]  # What it is set to changes nothing.
    # Each seed begins with, or replays, a run of its own, whose path differs by the seed alone.
    for key in ("start", "replay"):
        if key in config:
            config[key] = re.sub(r"-?seed=?\d+", "", config[key])
    return Run(folder, content, config)


def settings_by_section(runs: Sequence[Run]) -> dict[Section, list[Setting]]:
    """Runs gathered into settings, section by section.

    Dense settings come first, then method by method, the largest networks first.

    Raises:
      RunError: if two runs of one setting have the same seed.
    """
    tables: dict[Section, list[Setting]] = {}
    for section in sorted({run.section for run in runs}):
        groups: dict[tuple, list[Run]] = {}
        for run in (run for run in runs if run.section == section):
            groups.setdefault(tuple(run.config.items()), []).append(run)
        configs = [dict(config) for config in groups]
        found = []
        for config, others, group in zip(
            configs, _other_words(configs), groups.values(), strict=True
        ):
            group.sort(key=lambda run: (run.seed, str(run.folder)))
            for one, other in itertools.pairwise(group):
                if one.seed == other.seed:
                    raise RunError(
                        f"{one.folder} and {other.folder} are the same experiment with the same "
                        f"seed {one.seed}: leave one of them out"
                    )
            name, size = setting_names.method_name(config), setting_names.size(config)
            found.append(Setting(name, others, size, tuple(group)))
        tables[section] = sorted(found, key=_place)
    return tables


def decay_studies(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Settings of a section that differ in one coefficient of decay, from three of them on.

    Returns:
      Their labels without the coefficient, and for each its settings.
    """
    groups: dict[tuple, list[Setting]] = {}
    for setting in settings:
        key, _ = setting.coefficient
        rest = tuple(item for item in setting.runs[0].config.items() if item[0] != key)
        groups.setdefault((key, *rest), []).append(setting)
    return {
        group[0].label_without(group[0].coefficient[0]): group
        for group in groups.values()
        if len(group) >= _FEWEST_COEFFICIENTS
    }


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
    """Score of `setting` minus score of `baseline`, for each seed that both have."""
    measure = setting.runs[0].section.measure
    reference = {run.seed: measure.written(run.result) for run in baseline.runs}
    pairs = [
        (measure.written(run.result), reference[run.seed])
        for run in setting.runs
        if run.seed in reference
    ]
    # The unit comes last: accuracies are shares of some thousand, so that means may be ties.
    return measure.factor * np.array([score - other for score, other in pairs])


def _other_words(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What sets each config apart besides method, size and network, by key: see `Setting.apart`."""
    named = setting_names.NAMED_RUNS
    by_name = {key for key, is_named in named.items() if any(map(is_named, configs))}
    told = {*setting_names.METHOD_KEYS, *config_keys.SIZES, *by_name}
    keys = {key for config in configs for key in config if not setting_names.of_network(key)} - told

    values: dict[tuple[str, Any], set[Any]] = {}
    for config in configs:
        for key in keys:
            if setting_names.concerned(key, config):
                among = setting_names.comparable(key, config)
                values.setdefault((key, among), set()).add(config.get(key))

    def told_of(key: str, config: Mapping[str, Any]) -> bool:
        concerned = key in config and setting_names.concerned(key, config)
        return concerned and len(values[key, setting_names.comparable(key, config)]) > 1

    differing = [key for key in sorted(keys) if any(told_of(key, config) for config in configs)]
    last = [key.rpartition(".")[2] for key in differing]
    # A key goes by its last part where that is clear ('cutout'), else by its whole path.
    short = {k: (s if last.count(s) == 1 and s != "name" else k)
             for k, s in zip(differing, last, strict=True)}  # fmt: skip
    found = [
        {
            key: f"{short[key]}={setting_names.as_written(config[key])}"
            for key in differing
            if told_of(key, config)
        }
        for config in configs
    ]
    # The name of a method tells that there is another run; which, only where nothing else does.
    labels = [
        (setting_names.method_name(config), setting_names.size(config), *words.values())
        for config, words in zip(configs, found, strict=True)
    ]
    for config, words, label in zip(configs, found, labels, strict=True):
        for key in by_name:
            if named[key](config) and labels.count(label) > 1:
                words[key] = f"{key}={config[key]}"
    return found


def _place(setting: Setting) -> tuple:
    """Where a setting stands in its section: weight_decay=5e-05 before weight_decay=0.0005."""
    order = setting_names.method_order(setting.runs[0].config)
    words = []
    for part in setting.apart.values():
        name, _, value = part.partition("=")
        try:
            words.append((name, float(value), ""))
        except ValueError:
            words.append((name, 0.0, value))
    key, asked = setting.size or ("", 0.0)
    return order, words, key, -asked
