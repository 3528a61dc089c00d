"""Plots of ranks that are selected in training, kernel by kernel.

    while_training   one run: stable ranks and the ranks that they say, over the epochs
    selected_ranks   several runs: the ranks that they say, over the epochs
    final_ranks      several settings: ranks as shares of full rank, and parameters, by kernel

Lines are coloured by depth, dark at the input. Every function returns a figure, or None where
nothing of the kind was recorded. The same kind of figures: Wang et al., "Cuttlefish", MLSys 2023
(arXiv 2305.02538).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

import lowrank_jax as lrj
from experiments.plot_style import (
    DENSE_COLOUR,
    ORDERED,
    colours_of,
    epoch_axis,
    grid,
    legend_below,
    mean_and_band,
    natural_order,
    panels,
    wrapped,
)
from experiments.recorded_ranks import Line, selecting, switch
from lowrank_jax.rank_selection.candidates import full_rank
from lowrank_jax.table import Row

_MOST_NAMES = 16  # of kernels, beside a plot
_MOST_TICKS = 48  # of kernels, below a plot
_SMALL = 7.5  # points
_INCHES_OF_A_LETTER = 0.065  # of that size
_STABLE, _SELECTED = "stable_rank", "selected_rank"

Colours = Mapping[str, Any]
"""By the path of the kernel."""


@dataclasses.dataclass(frozen=True)
class SelectingRun:
    """A run that selected its ranks.

    Attributes:
      title: of its panel.
      lines: of its metrics.jsonl.
      table: what it factorized in the end.
    """

    title: str
    lines: Sequence[Line]
    table: lrj.Table

    @property
    def paths(self) -> set[str]:
        """Of the kernels that were measured."""
        measured = selecting(self.lines, _STABLE)
        return {path for line in measured for found in line["selection"].values() for path in found}


@dataclasses.dataclass(frozen=True)
class FinalRanks:
    """The ranks of one setting in the end.

    Attributes:
      label: its name in the legend.
      tables: what the run of each seed factorized.
    """

    label: str
    tables: Sequence[lrj.Table]


def while_training(run: SelectingRun) -> Figure | None:
    """Stable ranks beside the ranks that they say, a line a kernel.

    The latter end at the switch, and the ranks of the factors go on from there.
    """
    if not run.paths:
        return None
    colours = _by_depth(run.paths)
    with panels(1, 2, (9.6, 3.6)) as (figure, axes):
        for path in colours:
            epochs, values = _followed(run.lines, _STABLE, path)
            axes[0].plot(epochs, values, color=colours[path], linewidth=1.3)
        axes[0].set_ylabel("stable rank")
        _mark_switch(axes[0], run)
        _selected(axes[1], run, colours)
        axes[1].set_ylabel("selected rank")
        for axis in axes:
            _epochs_and_ranks(axis, run)
        _depth_bar(figure, axes, colours)
        legend_below(figure, axes)
    return figure


def selected_ranks(runs: Sequence[SelectingRun], title: str) -> Figure | None:
    """The ranks that stable ranks say, a panel a run and a line a kernel."""
    runs = [run for run in runs if selecting(run.lines, _SELECTED)]
    if not runs:
        return None
    colours = _by_depth({path for run in runs for path in run.paths})
    with grid(len(runs), 3.6, 3, "selected rank") as (figure, axes):
        for axis, run in zip(axes, runs, strict=True):
            _selected(axis, run, colours)
            _epochs_and_ranks(axis, run)
            axis.set_title(wrapped(run.title, 40))
        _depth_bar(figure, axes, colours)
        figure.suptitle(title, fontsize=10)
        legend_below(figure, axes)
    return figure


def final_ranks(settings: Sequence[FinalRanks], paths: Sequence[str], title: str) -> Figure | None:
    """Rank over full rank, and parameters over those of the dense kernel, kernel by kernel.

    Means over the seeds, with bands from the lowest to the highest; what stays dense is at 1.

    Args:
      settings: each with a table at least.
      paths: of the kernels, from the input to the output, as far as they are known.
      title: of the figure.
    """
    if not settings:
        return None
    found = {row.path for setting in settings for table in setting.tables for row in table.rows}
    order = sorted({*paths} | found, key=natural_order)
    places = np.arange(len(order), dtype=float)
    shares: dict[str, Callable[[Row], float]] = {
        "rank / full rank": lambda row: float(np.max(row.rank)) / full_rank(row),
        "parameters / dense": lambda row: row.parameters / row.dense_parameters,
    }
    colours = colours_of((setting.label, False) for setting in settings)
    names = [path.removesuffix("/kernel") for path in order]
    width = min(12.0, max(6.4, 1.6 + 0.3 * len(order)))
    height = 4.2 + _INCHES_OF_A_LETTER * max(map(len, names))
    with panels(2, 1, (width, height)) as (figure, axes):
        for axis, (name, share) in zip(axes, shares.items(), strict=True):
            for setting in settings:
                values = [_shares(table, order, share) for table in setting.tables]
                curves = [(places, of_seed) for of_seed in values]
                label = f"{setting.label} (n = {len(curves)})"
                look = {"marker": "o", "markersize": 4, "linewidth": 1.3, "label": label}
                mean_and_band(axis, curves, colours[setting.label], **look)
            axis.set_ylabel(name)
            axis.set_ylim(bottom=0)
            axis.set_xlim(-0.5, len(order) - 0.5)
            axis.grid(visible=False, axis="x")
        shown = _some(len(order), _MOST_TICKS)
        axes[0].set_xticks(shown, [])
        axes[1].set_xticks(shown, [names[place] for place in shown], rotation=90, fontsize=_SMALL)
        axes[0].set_title(title)
        legend_below(figure, axes)
    return figure


def _shares(table: lrj.Table, paths: Sequence[str], share: Callable[[Row], float]) -> np.ndarray:
    rows = [table.row(path) for path in paths]
    return np.array([share(row) if row is not None else 1.0 for row in rows])


def _selected(axis: Axes, run: SelectingRun, colours: Colours) -> None:
    """The ranks of the candidates until the switch, and those of the factors after it."""
    at, last = switch(run.lines), max(line["epoch"] for line in run.lines)
    for path, colour in colours.items():
        epochs, values = _followed(run.lines, _SELECTED, path)
        if not len(epochs):
            continue
        axis.plot(epochs, values, color=colour, linewidth=1.3)
        if at is None:
            continue
        row = run.table.row(path)
        if row is None:
            label = "stays dense: factors would be no smaller"
            axis.plot([at.epoch], values[-1:], "x", color=colour, label=label, zorder=3)
        else:
            axis.plot([at.epoch, last], [row.rank, row.rank], color=colour, linewidth=2.2)
    _mark_switch(axis, run)


def _mark_switch(axis: Axes, run: SelectingRun) -> None:
    at = switch(run.lines)
    if at is not None:
        label = "the switch to low rank"
        axis.axvline(at.epoch, color=DENSE_COLOUR, linestyle="--", linewidth=1, label=label)


def _epochs_and_ranks(axis: Axes, run: SelectingRun) -> None:
    """Both from 0 on, the epochs to the end of the run."""
    epoch_axis(axis)
    axis.set_xlim(right=1.02 * max(line["epoch"] for line in run.lines))
    axis.set_ylim(bottom=0)


def _followed(lines: Sequence[Line], measure: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and a measure of one kernel there; of none where it was not measured."""
    found = [
        (line["epoch"], line["selection"][measure][path])
        for line in selecting(lines, measure)
        if path in line["selection"][measure]
    ]
    return tuple(np.array(found, float).reshape(-1, 2).T)  # type: ignore[return-value]


def _by_depth(paths: Sequence[str] | set[str]) -> dict[str, Any]:
    order = sorted(paths, key=natural_order)
    return {path: ORDERED(place / max(1, len(order) - 1)) for place, path in enumerate(order)}


def _depth_bar(figure: Figure, axes: Sequence[Axes], colours: Colours) -> None:
    """The names of the kernels beside their colours, the input on top; of many some."""
    names = [path.removesuffix("/kernel") for path in colours]
    scale = ScalarMappable(Normalize(0, max(1, len(names) - 1)), ORDERED)
    bar = figure.colorbar(scale, ax=axes, aspect=40, pad=0.02)
    shown = _some(len(names), _MOST_NAMES)
    bar.set_ticks(shown, labels=[names[place] for place in shown], fontsize=_SMALL)
    bar.ax.invert_yaxis()


def _some(number: int, most: int) -> list[int]:
    """At most so many of a number of places, the first and the last with them."""
    return np.linspace(0, number - 1, min(number, most)).round().astype(int).tolist()
