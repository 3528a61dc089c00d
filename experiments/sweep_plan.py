"""What a sweep consists of: its runs, all of them checked before the first one starts.

A sweep is a Python file with a function `get_sweep()`, which returns the runs in the order in which
they are to be done, as pairs of a config file and its arguments (see `experiments.grid`). In the
folder of a sweep there is, for each run:

    NAME/                 the run folder (see `experiments.run_folder`)
    NAME.log              what the run printed, one attempt after the other
    NAME.failure.json     why the last attempt failed, if it did

where NAME is made of the config's name and the run's own arguments. Arguments that all runs share
may stand behind the config file instead, as on a command line, and are no part of names; more of
them may be given with the sweep itself. A run may take the folder of an earlier one as an argument
(`experiments.grid.FolderOf`), and is then carried out after it.
"""

from __future__ import annotations

import dataclasses
import runpy
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from absl import flags
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import arguments, config_keys, files, rank_selection, recipe, tasks
from experiments import state as states
from experiments.command_line import read_config
from experiments.errors import RunError
from experiments.grid import FolderOf
from experiments.main import default_workdir
from experiments.result import FILE_NAME as RESULT
from experiments.run_folder import CONFIG, MAY_CHANGE

# What the parameters that are left depend on, besides the model.
_SIZING = ("data.name", "kind", "method", "variant", "start", *config_keys.SIZES)

SWEEPS = Path("configs/sweeps")
"""Where a sweep that is given by its name alone is looked for, there and in the folder above."""

State = Literal["finished", "failed", "begun", "open"]


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      config: the config file and its arguments, as `--config` takes them.
      folder: the run folder.
      remark: what is to be told before it is carried out, if anything.
      after: folders of the runs that have to be finished before.
    """

    config: str
    folder: Path
    remark: str | None = None
    after: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    @property
    def failure(self) -> Path:
        return self.folder.with_name(f"{self.name}.failure.json")

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).exists()

    @property
    def waits_for(self) -> str | None:
        """The name of a run that has to be finished before, and is not."""
        return next((run.name for run in self.after if not (run / RESULT).exists()), None)

    @property
    def state(self) -> State:
        """What has become of it so far."""
        if self.finished:
            return "finished"
        if self.failure.exists():
            return "failed"
        return "begun" if (self.folder / CONFIG).exists() else "open"

    @property
    def command(self) -> list[str]:
        """What carries it out, or continues it."""
        return [
            *(sys.executable, "-m", "experiments.main"),
            *(f"--config={self.config}", f"--workdir={self.folder}"),
        ]

    @property
    def command_line(self) -> str:
        """The command, quoted for a shell; what it has to wait for is a comment behind it."""
        after = f"  # after {', '.join(run.name for run in self.after)}" if self.after else ""
        return f"{shlex.join(self.command)}{after}"


def find_sweep(sweep: str) -> Path:
    """The file of a sweep that is given by its path or by its name.

    Raises:
      RunError: there is none.
    """
    if Path(sweep).is_file():
        return Path(sweep)
    known = {path.stem: path for folder in (SWEEPS.parent, SWEEPS) for path in folder.glob("*.py")
             if "def get_sweep(" in path.read_text(encoding="utf-8")}  # fmt: skip
    if sweep in known:
        return known[sweep]
    raise RunError(f"no sweep {sweep!r}: no such file, and none of {', '.join(sorted(known))}")


def plan_sweep(path: Path, out: Path, argument: str = "") -> list[SweepRun]:
    """The runs of a sweep, in its order.

    Every config is made and checked, model and data set are looked up, ratios are searched for, so
    that a mistake in the last run is found before the first one starts.

    Args:
      path: the file of the sweep.
      out: the folder that the run folders are to be in; nothing is written.
      argument: given to every run, in front of its own.

    Raises:
      RunError: the file is not a sweep, a config is wrong, two runs are the same experiment, or the
        folder of a run holds another one.
    """
    runs: list[SweepRun] = []
    experiments = []
    remarks: dict[tuple, str | None] = {}
    listed = _listed(path)
    for number, (file, given) in enumerate(listed, start=1):
        after = {
            key: _folder_of(path, number, listed, runs, value.arguments)
            for key, value in given.items()
            if isinstance(value, FolderOf)
        }
        own = ",".join(f"{key}={after.get(key, value)}" for key, value in given.items())
        in_name = ",".join(key if key in after else f"{key}={given[key]}" for key in given)
        name, _, shared = file.partition(":")
        behind = ",".join(filter(None, [shared, argument, own]))
        config = f"{name}:{behind}" if behind else name
        try:
            settled = _settled(config)
            size = tuple((key, value) for key, value in config_keys.flatten(settled).items()
                         if key in _SIZING or key.startswith("model."))  # fmt: skip
            if size not in remarks:
                remarks[size] = _remark(settled)
        except RunError as error:
            place = f"{path}, run {number} of {len(listed)}, {config}"
            raise RunError(f"{place}: {error}".rstrip()) from error
        folder = out / default_workdir(settled, in_name).name
        _refuse_another(folder, settled)
        runs.append(SweepRun(config, folder, remarks[size], tuple(after.values())))
        experiments.append(tuple(config_keys.experiment(settled).items()))
    _refuse_twice(path, runs, experiments, "are the same experiment")
    _refuse_twice(path, runs, [run.name for run in runs], "have the same folder name")
    return runs


def _listed(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """What `get_sweep()` returns, checked for its form."""
    try:
        get_sweep = runpy.run_path(str(path)).get("get_sweep")
        listed = get_sweep() if callable(get_sweep) else None
    except Exception as error:  # A sweep file is a program: anything may come out of it.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        text = " ".join(str(error).split())
        raise RunError(f"cannot read the sweep: {place}: {type(error).__name__}: {text}") from error
    if not callable(get_sweep):
        raise RunError(f"{path} is not a sweep: it has no function get_sweep()")
    expected = "expected a list of (config file, arguments), see experiments/grid.py"
    if not isinstance(listed, list) or not listed:
        found = "an empty list" if listed == [] else f"a {type(listed).__name__}"
        raise RunError(f"{path}: get_sweep() returned {found}; {expected}")
    for number, run in enumerate(listed, start=1):
        match run:
            case (str(), Mapping() as given):
                for key, value in given.items():
                    if not isinstance(value, str | int | float | FolderOf):
                        raise RunError(
                            f"{path}: run {number} of get_sweep(): {key}={value!r}: expected a "
                            "number, True, False, text or FolderOf"
                        )
            case _:
                raise RunError(f"{path}: run {number} of get_sweep() is {run!r}; {expected}")
    return listed


def _folder_of(
    path: Path,
    number: int,
    listed: Sequence[tuple[str, Mapping[str, Any]]],
    runs: Sequence[SweepRun],
    wanted: Mapping[str, Any],
) -> Path:
    """The folder of an earlier run, by its arguments."""
    for (_, given), run in zip(listed, runs, strict=False):
        if given == wanted:
            if "," in str(run.folder):
                raise RunError(f"{run.folder} is an argument of another run: no commas in --out")
            return run.folder
    raise RunError(
        f"{path}: run {number} of get_sweep() is to come after the run with the arguments "
        f"{dict(wanted)!r}, and there is none before it"
    )


def _remark(settled: ConfigDict) -> str | None:
    """What is to be said of the size that a config asks for.

    Raises:
      RunError: it cannot be reached.
    """
    if not settled.ratio or settled.start:
        return None
    network = tasks.network(settled)
    dense = jax.eval_shape(network.init, jax.random.key(0))["params"]
    params = lrj.factorize(dense, states.resolve(settled, dense))
    jax.eval_shape(recipe.optimizer(settled, 1, 1.0).init, params)  # Pruning has a say as well.
    reached = recipe.parameters_left(settled, params) / lrj.describe(dense).parameters
    return states.missed_ratio(settled, reached)


def _refuse_another(folder: Path, settled: ConfigDict) -> None:
    """Raises RunError where a run folder holds a run of another config."""
    if not (folder / CONFIG).exists():
        return
    finished = (folder / RESULT).exists()
    ignored = config_keys.OPERATIONAL if finished else MAY_CHANGE
    found = config_keys.differences(files.read_json(folder / CONFIG), settled, ignore=ignored)
    if found:
        key, (there, here) = next(iter(found.items()))
        raise RunError(
            f"{folder} holds another run: {key} is {there!r} there and {here!r} in the sweep; give "
            "another --out, or remove the folder"
        )


def _settled(config: str) -> ConfigDict:
    """The settled config, whose model and data set exist.

    Raises:
      RunError: they do not, or the config cannot be read.
    """
    found, _ = read_config(["sweep", f"--config={config}"], flags.FlagValues(), usage="")
    settled = arguments.settle(found)
    network = tasks.network(settled)
    if config_keys.selects_ranks(settled):
        variables = jax.eval_shape(network.init, jax.random.key(0))
        rank_selection.check(settled, variables["params"])
    return settled


def _refuse_twice(path: Path, runs: Sequence[SweepRun], keys: Sequence[Any], what: str) -> None:
    """Raises RunError where two runs have the same key."""
    first: dict[Any, SweepRun] = {}
    for run, key in zip(runs, keys, strict=True):
        if key in first:
            raise RunError(f"{path}: {first[key].config} and {run.config} {what}; leave one out")
        first[key] = run
