"""Plots of one run from its `metrics.jsonl`, drawn at its end into its folder plots/; of a run that
selected its ranks also from its table and the times of its stacks.

Every other function takes the lines of the record and returns a `matplotlib.figure.Figure`, or None
where the data for it was not recorded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import (
    files,
    measures,
    mechanism_plots,
    rank_plots,
    recorded_ranks,
    stack_plot,
    stack_profiling,
)
from experiments.measures import Measure
from experiments.metrics import columns, read_metrics
from experiments.plot_style import (
    COLOURS,
    above_zero,
    epoch_axis,
    legend_below,
    log_ticks,
    mark,
    panels,
    save,
    wrapped,
)
from experiments.run_folder import CONFIG

_SPLIT_COLOURS = {"train": COLOURS[0], "validation": COLOURS[1], "test": COLOURS[2]}


def run_plots(folder: str | os.PathLike[str]) -> list[Path]:
    """Draws the plots of the run in `folder` into its folder plots/, and returns their paths.

    Raises:
      RunError: if the config or the metrics cannot be read or a plot cannot be written.
    """
    lines = read_metrics(folder)
    config = files.read_json(Path(folder) / CONFIG)
    kernels = [
        mechanism_plots.Panel(path.removesuffix("/kernel"), lines, path)
        for path in _first_middle_last(lines)
    ]
    figures = {
        "curves": curves(lines, measures.of_task(measures.value_at(config, "task"))),
        "nuclear_norm": mechanism_plots.nuclear_norm(
            [mechanism_plots.Recorded("nuclear norm", [lines])]
        ),
        "frobenius_norm": mechanism_plots.frobenius_norm(
            [mechanism_plots.Recorded("Frobenius norm", [lines])]
        ),
        "spectra": spectra(lines),
        "spectra_over_time": mechanism_plots.spectra_over_time(kernels),
        "selected_ranks": _selected_ranks(Path(folder), lines),
        "stack_times": _stack_times(Path(folder)),
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(Path(folder) / "plots" / f"{name}.png")
            save(figure, paths[-1])
    return paths


def curves(lines: Sequence[Mapping[str, Any]], measure: Measure) -> Figure | None:
    """Loss and accuracy of each split over the epochs, as the measure of the task calls them."""
    with panels(1, 2, (8.6, 3.4)) as (figure, axes):
        drawn = False
        for split, colour in _SPLIT_COLOURS.items():
            for axis, name, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
                epochs, values = columns(lines, f"{split}_{name}")
                if len(epochs):
                    drawn = True
                    axis.plot(epochs, scale * values, color=colour, label=split, **mark(epochs))
        axes[0].set_ylabel(f"{measure.loss} (nats)")
        axes[1].set_ylabel(f"{measure.per_epoch} (%)")
        for axis in axes:
            epoch_axis(axis)
        legend_below(figure, axes)
    return figure if drawn else None


def spectra(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Singular values of the first, middle and last kernel at the first and the last record."""
    measured = [line for line in lines if line.get("spectra")]
    if not measured:
        return None
    chosen = _first_middle_last(lines)
    shown = [(measured[0], COLOURS[5], "--")]
    if len(measured) > 1:
        shown.append((measured[-1], COLOURS[0], "-"))
    with panels(1, len(chosen), (1.4 + 2.9 * len(chosen), 3.4), sharey=True) as (figure, axes):
        for axis, path in zip(axes, chosen, strict=True):
            for line, colour, style in shown:
                values = above_zero(np.array(line["spectra"][path], float))
                index = np.arange(1, len(values) + 1) / len(values)
                label = f"epoch {round(line['epoch'], 2):g}"
                axis.plot(index, values, style, color=colour, label=label, **mark(index))
            axis.set_yscale("log")
            axis.set_xlim(0, 1.03)
            axis.set_title(wrapped(path.removesuffix("/kernel"), 30))
            axis.set_xlabel("index / rank")
        axes[0].set_ylabel("singular value")
        log_ticks(axes[0].yaxis, *axes[0].get_ylim())
        legend_below(figure, axes)
    return figure


def _selected_ranks(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    table = recorded_ranks.table(folder)
    if table is None:
        return None
    return rank_plots.while_training(rank_plots.SelectingRun("", lines, table))


def _stack_times(folder: Path) -> Figure | None:
    profile = stack_profiling.read(folder)
    return None if profile is None else stack_plot.stack_times(profile)


def _first_middle_last(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths of up to three of the kernels whose spectra were recorded."""
    paths = mechanism_plots.kernels(lines)
    return list(dict.fromkeys([paths[0], paths[len(paths) // 2], paths[-1]])) if paths else []
