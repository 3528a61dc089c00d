"""Plots of how training acts on the kernels, from the diagnostics that runs record.

    nuclear_norm         ||P||_* and its bound, half the squared norms of the factors, which is what
                         plain decay of the factors penalizes; equal where the factors are balanced
    frobenius_norm       ||P||_F, which Frobenius decay penalizes
    effective_step_size  learning rate / ||P||_F²: what a step turns the kernel by, where a
                         normalization follows it that makes its scale not matter
    spectra_over_time    the singular values of one kernel

All but the last are means over the kernels; and in panels of their own, where those were recorded,
over the products of queries and keys and of outputs and values of attention. Every function returns
a figure, or None where nothing of the kind was recorded. Source: Khodak et al., ICLR 2021 (arXiv
2105.01029), section 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.metrics import mean_diagnostic
from experiments.plot_style import (
    METHOD_COLOURS,
    ORDERED,
    Curve,
    above_zero,
    colours_of,
    epoch_axis,
    grid,
    legend_below,
    log_ticks,
    mean_and_band,
    natural_order,
    panels,
    wrapped,
)

MOST_SETTINGS = len(METHOD_COLOURS)
"""How many settings a plot can tell apart."""

MOST_PANELS = 6
"""How many spectra stand side by side."""

# What is measured together, by what its diagnostics are called before the '/'.
_GROUPS = {"": "kernels", "qk": "queries-keys", "ov": "outputs-values"}

_MOST_SINGULAR_VALUES = 12  # lines in a panel
_BROKEN = (0, (2.2, 2.2))

Line = Mapping[str, Any]
"""One record of a metrics.jsonl."""

Measure = Callable[[Line, str], float]
"""A mean of one record, of what begins with '', or with 'qk/' or 'ov/'; NaN where unknown."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What was recorded of one setting.

    Attributes:
      label: its name in the legend.
      runs: the lines of the metrics.jsonl of each seed.
      dense: whether it is the dense network, which is grey.
      replayed: whether its norms are those of another run, which it then lies on.
    """

    label: str
    runs: Sequence[Sequence[Line]]
    dense: bool = False
    replayed: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """The spectra of one kernel in one run."""

    title: str
    lines: Sequence[Line]
    path: str


def nuclear_norm(settings: Sequence[Recorded], title: str = "") -> Figure | None:
    """Mean nuclear norm of the kernels, and its bound as a broken line, over the epochs.

    Kernels of three factors have no bound: half the squared norms of their factors bounds nothing.
    """
    return _over_time(
        settings,
        "nuclear norm",
        lambda line, group: mean_diagnostic(line, f"{group}nuclear_norm"),
        title=title,
        bound=_nuclear_bound,
    )


def frobenius_norm(settings: Sequence[Recorded], title: str = "") -> Figure | None:
    """Mean Frobenius norm of the kernels over the epochs."""
    return _over_time(
        settings,
        "Frobenius norm",
        lambda line, group: mean_diagnostic(line, f"{group}frobenius_norm"),
        title=title,
    )


def effective_step_size(settings: Sequence[Recorded], title: str = "") -> Figure | None:
    """Mean over the kernels of learning rate / ||P||_F², over the epochs."""
    return _over_time(
        settings,
        "learning rate / ||P||²",
        lambda line, group: math.nan if group else effective_learning_rate(line),
        title=title,
        always_logarithmic=True,
    )


def effective_learning_rate(line: Line) -> float:
    """Mean over the kernels of learning rate / ||P||_F² in one record; NaN where unknown.

    Records from before it was measured have the norms and the learning rate that it follows from.

    Example:
      >>> line = {"learning_rate": 0.1, "diagnostics": {"frobenius_norm": {"a": 1.0, "b": 2.0}}}
      >>> round(effective_learning_rate(line), 4)
      0.0625
    """
    if "effective_learning_rate" in line["diagnostics"]:
        return mean_diagnostic(line, "effective_learning_rate")
    rate = line.get("learning_rate")
    norms = np.array(list(line["diagnostics"].get("frobenius_norm", {}).values()), float)
    if rate is None or not len(norms):
        return math.nan
    return float(np.mean(rate / np.where(norms > 0, norms, np.nan) ** 2))


def spectra_over_time(chosen: Sequence[Panel], title: str = "") -> Figure | None:
    """Singular values over the epochs, a panel each for some kernels or settings.

    Of many singular values some are drawn, evenly spaced from the largest to the smallest. Left out
    is what was not followed; see `spectra_followed`.
    """
    chosen = [panel for panel in chosen if spectra_followed(panel.lines)]
    if not chosen:
        return None
    with grid(len(chosen), 2.7, 2.7, "singular value") as (figure, axes):
        for axis, panel in zip(axes, chosen, strict=True):
            epochs, values = _spectra(panel)
            rank = values.shape[1]
            shown = np.linspace(0, rank - 1, min(rank, _MOST_SINGULAR_VALUES)).round().astype(int)
            for index in shown:
                place = index / max(1, rank - 1)
                axis.plot(epochs, values[:, index], color=ORDERED(place), linewidth=1.3)
            axis.set_yscale("log")
            axis.set_title(wrapped(panel.title, 30))
            epoch_axis(axis)
        log_ticks(axes[0].yaxis, *axes[0].get_ylim())
        bar = figure.colorbar(ScalarMappable(cmap=ORDERED), ax=axes, aspect=40, shrink=0.7)
        bar.set_ticks([0, 1], labels=["largest", "smallest"])
        bar.ax.invert_yaxis()
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def spectra_followed(lines: Sequence[Line]) -> bool:
    """Whether spectra were recorded between the first and the last record, too."""
    return sum("spectra" in line for line in lines) > 2


def of_products(line: Line) -> bool:
    """Whether products of attention were measured in one record."""
    return any("/" in name for name in line.get("diagnostics", {}))


def kernels(lines: Sequence[Line]) -> list[str]:
    """The paths of the kernels whose spectra were recorded every time, in natural order.

    Kernels that stay dense where others become factors in training are measured until then alone.
    """
    found = [set(line["spectra"]) for line in lines if line.get("spectra")]
    return sorted(set.intersection(*found) if found else (), key=natural_order)


def _nuclear_bound(line: Line, group: str) -> float:
    # Kernels of three factors have no measure of orthogonality.
    two_factors = line["diagnostics"].get(f"{group}non_orthogonality")
    return mean_diagnostic(line, f"{group}nuclear_bound") if two_factors else math.nan


def _over_time(
    settings: Sequence[Recorded],
    name: str,
    measure: Measure,
    *,
    title: str,
    bound: Measure | None = None,
    always_logarithmic: bool = False,
) -> Figure | None:
    """A panel for each group of which something was recorded; the kernels alone need no title."""
    found = {
        words: [s for s in settings if _curves(s, measure, group)]
        for group, words in _GROUPS.items()
    }
    groups = [(group, words) for group, words in _GROUPS.items() if found[words]]
    if not groups:
        return None
    alone = groups == [("", _GROUPS[""])]
    size = (6.4, 3.6) if alone else (0.8 + 3.1 * len(groups), 3.4)
    drawn = [setting for setting in settings if any(setting in some for some in found.values())]
    colours = colours_of((setting.label, setting.dense) for setting in drawn)
    with panels(1, len(groups), size) as (figure, axes):
        for axis, (group, words) in zip(axes, groups, strict=True):
            _panel(axis, found[words], group, measure, bound, colours, always_logarithmic)
            axis.set_title(title if alone else words)
        mean = "mean over kernels" if alone else "mean"
        separator = ",\n" if always_logarithmic else ", "
        axes[0].set_ylabel(f"{name}{separator}{mean}")
        if title and not alone:
            figure.suptitle(title, fontsize=10)
        legend_below(figure, axes)
    return figure


def _panel(
    axis: Axes,
    settings: Sequence[Recorded],
    group: str,
    measure: Measure,
    bound: Measure | None,
    colours: Mapping[str, str],
    always_logarithmic: bool,
) -> None:
    """One line a setting, with a band over its seeds; `bound` is a broken line beside it."""
    curves = {setting.label: _curves(setting, measure, group) for setting in settings}
    several = len(colours) > 1
    for setting in settings:
        # What is replayed lies on its record: with gaps, and on top, both can be seen.
        style = _BROKEN if setting.replayed and bound is None else "-"
        seeds = f" (n = {len(curves[setting.label])})" if several else ""
        mean_and_band(
            axis, curves[setting.label], colours[setting.label], marker="", linestyle=style,
            label=setting.label + seeds, zorder=2.5 if setting.replayed else 2,
        )  # fmt: skip
    bounds = {s.label: _curves(s, bound, group) for s in settings} if bound is not None else {}
    for label, values in bounds.items():
        if values:
            mean_and_band(
                axis, values, colours[label], marker="", linestyle=_BROKEN, linewidth=1.4,
                label="_bound",
            )  # fmt: skip
    _scale(axis, [*curves.values(), *bounds.values()], always_logarithmic)
    epoch_axis(axis)
    if any(bounds.values()):
        # For the legend alone.
        axis.add_line(Line2D([], [], color="#888888", linestyle=_BROKEN, label="bound"))


def _curves(setting: Recorded, measure: Measure, group: str) -> list[Curve]:
    """A measure over the records of each seed; of the seeds for which there is any."""
    prefix = f"{group}/" if group else ""
    curves = []
    for lines in setting.runs:
        measured = [line for line in lines if line.get("diagnostics")]
        values = np.array([measure(line, prefix) for line in measured], float)
        if np.isfinite(values).any():
            curves.append((np.array([line["epoch"] for line in measured], float), values))
    return curves


def _scale(axis: Axes, curves: Sequence[Sequence[Curve]], always_logarithmic: bool) -> None:
    """Logarithmic where much would be pressed to the ground; from zero where that is not far."""
    values = np.concatenate([values for runs in curves for _, values in runs])
    values = values[np.isfinite(values) & (values > 0)]
    span = values.max() / values.min() if len(values) else 1.0
    if always_logarithmic or span > 30:
        axis.set_yscale("log")
        log_ticks(axis.yaxis, *axis.get_ylim())
    elif span > 2:
        axis.set_ylim(bottom=0)


def _spectra(panel: Panel) -> Curve:
    """Epochs, and the singular values there, (epochs, rank); NaN where a rank was smaller."""
    lines = [line for line in panel.lines if panel.path in line.get("spectra", {})]
    spectra = [line["spectra"][panel.path] for line in lines]
    values = np.full((len(spectra), max(map(len, spectra))), np.nan)
    for row, found in zip(values, spectra, strict=True):
        row[: len(found)] = found
    return np.array([line["epoch"] for line in lines], float), above_zero(values)
