"""How all plots look: colours, panels, lines with a band over seeds, ticks, legends, and the PNG.

Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments import files

# Okabe and Ito's palette, told apart with every common kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METHOD_COLOURS = (*COLOURS[:-1], "#882255", "#999933")  # Two more of Paul Tol's palette.
DENSE_COLOUR = "#555555"
# For what has an order: dark to light, without the yellow that is lost on white.
ORDERED: Colormap = LinearSegmentedColormap.from_list(
    "ordered", matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256))
)
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

_INCHES_OF_A_LETTER = 0.083  # of a legend, on average
_LETTERS_OF_A_LINE = 7  # that stand for the sample of a line, and the gap to the next column

Curve = tuple[np.ndarray, np.ndarray]
"""Epochs, ascending, and the values there, of one run."""


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes `figure` as PNG; the same figure gives the same bytes."""
    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(content, format="png", metadata={"Software": None})
    files.write_bytes(path, content.getvalue())


@contextlib.contextmanager
def panels(
    rows: int, columns: int, size: tuple[float, float], sharey: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many inches with its axes, row by row from left to right."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        yield figure, list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


@contextlib.contextmanager
def grid(
    number: int, width: float, height: float, name: str
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many panels, up to three in a row, which share the named vertical axis.

    Args:
      number: of panels.
      width, height: of a panel, in inches.
      name: of the vertical axis.
    """
    columns = min(3, number)
    rows = math.ceil(number / columns)
    size = (1.4 + width * columns, 0.6 + height * rows)
    with panels(rows, columns, size, sharey=True) as (figure, axes):
        yield figure, axes[:number]
        for axis in axes[number:]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel(name)


def colours_of(names: Iterable[tuple[str, bool]]) -> dict[str, str]:
    """A colour for each name; the first that is said to be of a dense network is grey.

    Example:
      >>> colours_of([("dense", True), ("regular", False), ("dense", True)])
      {'dense': '#555555', 'regular': '#0072B2'}
    """
    colours: dict[str, str] = {}
    for name, dense in names:
        grey = dense and DENSE_COLOUR not in colours.values()
        taken = sum(colour != DENSE_COLOUR for colour in colours.values())
        new = DENSE_COLOUR if grey else METHOD_COLOURS[taken % len(METHOD_COLOURS)]
        colours.setdefault(name, new)
    return colours


def mean_and_band(axis: Axes, curves: Sequence[Curve], colour: Any, **look: Any) -> None:
    """The mean of some runs, in a band that spans them; what is not finite is left out.

    They are drawn where all of them were trained, at the epochs of the one with the fewest points:
    what took too long was not measured, so that the others may have points between.
    """
    finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
    epochs = min((x for x, _ in finite), key=len)
    first, last = max(x[0] for x, _ in finite), min(x[-1] for x, _ in finite)
    epochs = epochs[(epochs >= first) & (epochs <= last)]
    values = np.array([np.interp(epochs, x, y) for x, y in finite])
    axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(epochs, values.mean(0), color=colour, **(mark(epochs) | look))


def mark(epochs: np.ndarray) -> dict[str, Any]:
    """Points are marked where they are few: a single one would not show as a line."""
    return {"marker": "o", "markersize": 4} if len(epochs) <= 20 else {}


def epoch_axis(axis: Axes) -> None:
    """Of an axis on which everything is drawn; whole epochs have ticks, where there are some."""
    axis.set_xlabel("epoch")
    axis.set_xlim(left=0)
    whole = axis.get_xlim()[1] >= 2
    axis.xaxis.set_major_locator(MaxNLocator(integer=True) if whole else MaxNLocator(4))


def wrapped(title: str, letters: int) -> str:
    """A title in lines of at most so many letters, broken at spaces and after slashes.

    Example:
      >>> wrapped("SI + FD: decoder_10/feed_forward/down", 24)
      'SI + FD: decoder_10/\\nfeed_forward/down'
    """
    lines = textwrap.wrap(title.replace("/", "/ "), letters)
    return "\n".join(line.replace("/ ", "/") for line in lines)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Plain numbers (50k, 0.2) at the powers of ten, and at 2 and 5 times them where few fit."""
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_formatter(NullFormatter())


def above_zero(values: np.ndarray) -> np.ndarray:
    """NaN in the place of zeros (padding, what training removed): a logarithmic axis has none."""
    largest = np.nanmax(values, initial=0.0)
    return np.where(values > 1e-6 * largest, values, np.nan)


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend of what is drawn on any of the axes, for which the figure becomes higher."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    letters = int(figure.get_figwidth() / _INCHES_OF_A_LETTER)
    # The number of seeds stays on one line.
    whole = (label.replace("n = ", "n\xa0=\xa0") for label in entries)
    wraps = (textwrap.wrap(label, letters - _LETTERS_OF_A_LINE) for label in whole)
    labels = ["\n".join(lines).replace("\xa0", " ") for lines in wraps]
    widest = max(len(line) for label in labels for line in label.split("\n"))
    columns = min(4, len(labels), letters // (widest + _LETTERS_OF_A_LINE))
    lines = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * lines + 0.1)
    figure.legend(list(entries.values()), labels, loc="outside lower center", ncols=columns)


def natural_order(path: str) -> list[tuple[int, str]]:
    """A sort key by which block_2 comes before block_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _number(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
