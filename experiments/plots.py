"""Plots: of one run from its `metrics.jsonl`, and of several settings for a report.

Every function takes plain data and returns a `matplotlib.figure.Figure`, or None where the data for
it was not recorded; `save` writes it. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments import files
from experiments.metrics import columns, mean_diagnostic, read_metrics

# Okabe and Ito's palette, told apart with every common kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SPLIT_COLOURS = {"train": COLOURS[0], "validation": COLOURS[1], "test": COLOURS[2]}
_DENSE_COLOUR = "#555555"
_METHOD_COLOURS = (*COLOURS[:-1], "#882255", "#999933")  # Two more of Paul Tol's palette.
_MARKERS = ("o", "s", "^")  # Where there are more methods than colours.
# Of the sizes of a method.
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


@dataclasses.dataclass(frozen=True)
class SettingData:
    """What the report's plots show of one setting; accuracies are fractions, one per seed."""

    method: str
    size: str  # '' for the dense network
    parameters: int
    accuracies: Sequence[float]
    curves: Sequence[tuple[np.ndarray, np.ndarray]]  # (epochs, accuracy) per seed

    @property
    def dense(self) -> bool:
        return not self.size

    @property
    def label(self) -> str:
        return ", ".join(filter(None, [self.method, self.size]))


def run_plots(folder: str | os.PathLike[str]) -> list[Path]:
    """Draws the plots of the run in `folder` into its folder plots/, and returns their paths.

    Raises:
      RunError: if the metrics cannot be read or a plot cannot be written.
    """
    lines = read_metrics(folder)
    figures = {"curves": curves(lines), "nuclear_norm": nuclear_norm(lines)}
    figures["spectra"] = spectra(lines)
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(Path(folder) / "plots" / f"{name}.png")
            save(figure, paths[-1])
    return paths


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes `figure` as PNG; the same figure gives the same bytes."""
    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(content, format="png", metadata={"Software": None})
    files.write_bytes(path, content.getvalue())


def curves(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss and accuracy of each split over the epochs."""
    with _panels(1, 2, (8.6, 3.4)) as (figure, axes):
        drawn = False
        for split, colour in _SPLIT_COLOURS.items():
            for axis, name, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
                epochs, values = columns(lines, f"{split}_{name}")
                if len(epochs):
                    drawn = True
                    axis.plot(epochs, scale * values, color=colour, label=split, **_mark(epochs))
        axes[0].set_ylabel("loss (nats)")
        axes[1].set_ylabel("accuracy (%)")
        for axis in axes:
            _epoch_axis(axis)
        _legend_below(figure, axes[0])
    return figure if drawn else None


def nuclear_norm(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The mean nuclear norm of the recorded kernels and its bound over the epochs.

    The bound, half the squared Frobenius norm of the factors, is what plain weight decay of the
    factors penalizes; the two agree where the factors are balanced and orthogonal.
    """
    measured = [line for line in lines if "nuclear_norm" in line.get("diagnostics", {})]
    if not measured:
        return None
    epochs = np.array([line["epoch"] for line in measured])
    norm = np.array([mean_diagnostic(line, "nuclear_norm") for line in measured])
    bound = np.array([mean_diagnostic(line, "nuclear_bound") for line in measured])
    with _panels(1, 1, (5.6, 3.6)) as (figure, axes):
        axis = axes[0]
        if np.isfinite(bound).any():
            axis.fill_between(epochs, norm, bound, color=COLOURS[1], alpha=0.12, linewidth=0)
            axis.plot(epochs, bound, "--", color=COLOURS[1], label="bound", **_mark(epochs))
        axis.plot(epochs, norm, color=COLOURS[0], label="nuclear norm", **_mark(epochs))
        axis.set_ylabel("mean over kernels")
        axis.set_ylim(0, 1.08 * np.nanmax([*norm, *bound]))
        _epoch_axis(axis)
        _legend_below(figure, axis)
    return figure


def spectra(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Singular values of the first, middle and last kernel at the first and the last record."""
    measured = [line for line in lines if line.get("spectra")]
    if not measured:
        return None
    paths = sorted(measured[0]["spectra"], key=_natural)
    chosen = list(dict.fromkeys([paths[0], paths[len(paths) // 2], paths[-1]]))
    shown = [(measured[0], COLOURS[5], "--")]
    if len(measured) > 1:
        shown.append((measured[-1], COLOURS[0], "-"))
    with _panels(1, len(chosen), (1.4 + 2.9 * len(chosen), 3.4), sharey=True) as (figure, axes):
        for axis, path in zip(axes, chosen, strict=True):
            for line, colour, style in shown:
                values = np.array([np.nan if v is None else v for v in line["spectra"][path]])
                # Zeros (padding, or what training removed) have no place on a logarithmic axis.
                values = np.where(values > 1e-6 * np.nanmax(values), values, np.nan)
                index = np.arange(1, len(values) + 1) / len(values)
                label = f"epoch {line['epoch']:g}"
                axis.plot(index, values, style, color=colour, label=label, **_mark(index))
            axis.set_yscale("log")
            axis.set_xlim(0, 1.03)
            axis.set_title(path.removesuffix("/kernel"))
            axis.set_xlabel("index / rank")
        axes[0].set_ylabel("singular value")
        _log_ticks(axes[0].yaxis, *axes[0].get_ylim())
        _legend_below(figure, axes[0])
    return figure


def accuracy_against_parameters(settings: Sequence[SettingData], title: str, split: str) -> Figure:
    """Mean final accuracy against the number of parameters, one line a method.

    Bars reach from the worst to the best seed. The dense network is a point, and a broken line to
    compare the others with.
    """
    colours = _method_colours(settings)
    with _panels(1, 1, (6.4, 3.8 + 0.2 * len(colours))) as (figure, axes):
        axis = axes[0]
        lines = list(dict.fromkeys(s.method for s in settings if not s.dense))
        for method, colour in colours.items():
            points = [setting for setting in settings if setting.method == method]
            points.sort(key=lambda setting: setting.parameters)
            sizes = np.array([float(setting.parameters) for setting in points])
            accuracies = [100 * np.array(setting.accuracies, float) for setting in points]
            means = np.array([values.mean() for values in accuracies])
            # Never below zero, which rounding of the mean could make of no spread.
            below = np.maximum(0, means - [values.min() for values in accuracies])
            above = np.maximum(0, [values.max() for values in accuracies] - means)
            look = "o"
            if method in lines:
                place = lines.index(method)
                look = _MARKERS[place // len(_METHOD_COLOURS) % len(_MARKERS)] + "-"
                # Methods of one size stand side by side, so that none hides another; the outermost
                # are 4 % off.
                if len(lines) > 1:
                    sizes *= 1.04 ** (2 * place / (len(lines) - 1) - 1)
            for mean in [] if method in lines else means:
                axis.axhline(mean, linestyle="--", linewidth=1, color=colour)
            axis.errorbar(
                sizes, means, yerr=[below, above], fmt=look, markersize=6, capsize=4,
                color=colour, label=f"{method} ({_seeds(accuracies)})",
            )  # fmt: skip
        axis.set_xscale("log")
        smallest = min(setting.parameters for setting in settings)
        largest = max(setting.parameters for setting in settings)
        axis.set_xlim(smallest / 1.5, largest * 1.5)
        _log_ticks(axis.xaxis, *axis.get_xlim())
        axis.margins(y=0.15)
        axis.set_xlabel("parameters (points that would hide each other are moved by up to 4 %)")
        axis.set_title(title)
        axis.set_ylabel(f"{split} accuracy (%)")
        _legend_below(figure, axis, columns=1)
    return figure


def learning_curves(settings: Sequence[SettingData], title: str, split: str) -> Figure | None:
    """Mean accuracy of each setting over the epochs; the band spans its seeds.

    A method has its colour, a size its kind of line.
    """
    settings = [setting for setting in settings if any(len(x) for x, _ in setting.curves)]
    if not settings:
        return None
    colours = _method_colours(settings)
    sizes = list(dict.fromkeys(setting.size for setting in settings if not setting.dense))
    in_legend = 1 if len(settings) <= 6 else 2
    height = 3.8 + 0.2 * math.ceil(len(settings) / in_legend)
    with _panels(1, 1, (6.4, height)) as (figure, axes):
        axis = axes[0]
        for setting in settings:
            colour = colours[setting.method]
            style = "-" if setting.dense else _STYLES[sizes.index(setting.size) % len(_STYLES)]
            epochs, values = _common(setting.curves)
            axis.fill_between(
                epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
            )
            label = f"{setting.label} (n = {len(values)})"
            axis.plot(
                epochs, values.mean(0), linestyle=style, color=colour, label=label, **_mark(epochs)
            )
        axis.set_title(title)
        axis.set_ylabel(f"{split} accuracy (%)")
        _epoch_axis(axis)
        _legend_below(figure, axis, in_legend)
    return figure


def _method_colours(settings: Sequence[SettingData]) -> dict[str, str]:
    """A colour for each method; those that are dense are grey."""
    colours: dict[str, str] = {}
    for setting in settings:
        taken = sum(colour != _DENSE_COLOUR for colour in colours.values())
        new = _DENSE_COLOUR if setting.dense else _METHOD_COLOURS[taken % len(_METHOD_COLOURS)]
        colours.setdefault(setting.method, new)
    return colours


def _seeds(accuracies: Sequence[np.ndarray]) -> str:
    """E.g. 'n = 3', or 'n = 1 to 3' where points have different numbers of seeds."""
    fewest, most = min(map(len, accuracies)), max(map(len, accuracies))
    return f"n = {most}" if fewest == most else f"n = {fewest} to {most}"


@contextlib.contextmanager
def _panels(
    rows: int, number: int, size: tuple[float, float], sharey: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with its axes from left to right, in this module's style."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        yield figure, list(figure.subplots(rows, number, squeeze=False, sharey=sharey).flat)


def _common(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The epochs that all curves have, and their accuracies in per cent, (curves, epochs)."""
    drawn = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves if len(x)]
    epochs = sorted(set.intersection(*(set(curve) for curve in drawn)))
    values = np.array([[100 * curve[epoch] for epoch in epochs] for curve in drawn])
    return np.array(epochs), values


def _mark(epochs: np.ndarray) -> dict[str, Any]:
    """Points are marked where they are few: a single one would not show as a line."""
    return {"marker": "o", "markersize": 4} if len(epochs) <= 20 else {}


def _epoch_axis(axis: Axes) -> None:
    axis.set_xlabel("epoch")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    """Plain numbers (50k, 0.2) at the powers of ten, and at 2 and 5 times them where few fit."""
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _legend_below(figure: Figure, axis: Axes, columns: int = 4) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _natural(path: str) -> list[tuple[int, str]]:
    """A sort key by which block_2 comes before block_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]
