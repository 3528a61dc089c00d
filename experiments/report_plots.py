"""Plots of several settings for a report: their score against the number of parameters and against
the coefficient of decay, and their accuracy over the epochs.

Bars and bands reach from the worst to the best seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plot_style import (
    METHOD_COLOURS,
    ORDERED,
    Curve,
    colours_of,
    epoch_axis,
    grid,
    legend_below,
    log_ticks,
    mean_and_band,
    panels,
)

_MARKERS = ("o", "s", "^")  # Where there are more methods than colours.
# Of the sizes of a method.
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))

_MOVED = "(points that would hide each other are moved by up to 4 %)"


@dataclasses.dataclass(frozen=True)
class SettingData:
    """What the plots show of one setting.

    Attributes:
      method, size: in words; the size is '' for a dense network, and where ranks are selected.
      dense: whether it is a dense network.
      parameters: of the network.
      decay: which decay the coefficient is of, in words.
      coefficient: of decay.
      scores: in their unit, one per seed.
      curves: accuracy over the epochs, fractions, one per seed.
    """

    method: str
    size: str
    dense: bool
    parameters: int
    decay: str
    coefficient: float
    scores: Sequence[float]
    curves: Sequence[Curve]

    @property
    def label(self) -> str:
        return ", ".join(filter(None, [self.method, self.size]))


Studies = Mapping[str, Sequence[SettingData]]
"""Settings that differ in one coefficient of decay alone, by what they have in common."""


def score_against_parameters(
    settings: Sequence[SettingData], title: str, score: str
) -> Figure | None:
    """Mean score (named `score`) against the number of parameters, one line a method.

    The dense network is a point, and a broken line to compare the others with. None where all have
    the same number of parameters.
    """
    if len({setting.parameters for setting in settings}) < 2:
        return None
    colours = colours_of((setting.method, setting.dense) for setting in settings)
    with panels(1, 1, (6.4, 3.6)) as (figure, (axis,)):
        lines = list(dict.fromkeys(s.method for s in settings if not s.dense))
        for method, colour in colours.items():
            points = [setting for setting in settings if setting.method == method]
            points.sort(key=lambda setting: setting.parameters)
            if method in lines:
                counts = [point.parameters for point in points]
                _line(axis, counts, points, method, colour, lines.index(method), len(lines))
                continue
            for point in points:
                _reference(axis, point.parameters, point, colour)
        axis.set_xscale("log")
        smallest = min(setting.parameters for setting in settings)
        largest = max(setting.parameters for setting in settings)
        axis.set_xlim(smallest / 1.5, largest * 1.5)
        log_ticks(axis.xaxis, *axis.get_xlim())
        axis.set_xlabel(f"parameters {_MOVED}")
        axis.set_title(title)
        axis.set_ylabel(score)
        legend_below(figure, [axis])
    return figure


def score_against_decay(
    studies: Studies, references: Sequence[SettingData], title: str, score: str
) -> Figure | None:
    """Mean score (named `score`) against the coefficient of decay, one line a study.

    A reference, a dense network, is a point, and a broken line to compare the others with. A
    coefficient of zero has no place on the logarithmic axis and is left out. None where there is no
    study.
    """
    if not studies:
        return None
    colours = colours_of(
        [(reference.label, True) for reference in references]
        + [(name, points[0].dense) for name, points in studies.items()]
    )
    drawn = [*references, *itertools.chain.from_iterable(studies.values())]
    coefficients = sorted({point.coefficient for point in drawn if point.coefficient > 0})
    with panels(1, 1, (6.4, 3.6)) as (figure, (axis,)):
        for place, (name, settings) in enumerate(studies.items()):
            points = [point for point in settings if point.coefficient > 0]
            points.sort(key=lambda point: point.coefficient)
            x = [point.coefficient for point in points]
            _line(axis, x, points, name, colours[name], place, len(studies))
        for reference in references:
            _reference(axis, reference.coefficient, reference, colours[reference.label])
        axis.set_xscale("log")
        ticks = [np.format_float_scientific(c, trim="-", exp_digits=1) for c in coefficients]
        axis.set_xticks(coefficients, ticks)
        axis.minorticks_off()
        axis.set_xlabel(f"{_decay_of(studies)} {_MOVED}")
        axis.set_title(title)
        axis.set_ylabel(score)
        legend_below(figure, [axis])
    return figure


def learning_curves(settings: Sequence[SettingData], title: str, accuracy: str) -> Figure | None:
    """Mean accuracy of each setting over the epochs; the argument `accuracy` is its name.

    A method has its colour, a size its kind of line.
    """
    settings = [setting for setting in settings if _measured(setting)]
    if not settings:
        return None
    colours = colours_of((setting.method, setting.dense) for setting in settings)
    sizes = list(dict.fromkeys(setting.size for setting in settings if setting.size))
    with panels(1, 1, (6.4, 3.6)) as (figure, (axis,)):
        for setting in settings:
            style = _STYLES[sizes.index(setting.size) % len(_STYLES)] if setting.size else "-"
            label = f"{setting.label} (n = {sum(len(epochs) > 0 for epochs, _ in setting.curves)})"
            _learning_curve(axis, setting, label, colours[setting.method], style)
        axis.set_title(title)
        axis.set_ylabel(f"{accuracy} (%)")
        epoch_axis(axis)
        legend_below(figure, [axis])
    return figure


def learning_curves_by_decay(
    studies: Studies, references: Sequence[SettingData], title: str, accuracy: str
) -> Figure | None:
    """Mean accuracy over the epochs, a panel for each study, and in it a line a coefficient.

    A coefficient has its colour, from dark (smallest) to light; references, dense networks, stand
    in every panel.
    """
    drawn = {name: [p for p in points if _measured(p)] for name, points in studies.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return None
    coefficients = sorted({point.coefficient for points in drawn.values() for point in points})
    references = [reference for reference in references if _measured(reference)]
    grey = colours_of((reference.label, True) for reference in references)
    decay = _decay_of(drawn)
    with grid(len(drawn), 3.4, 3, f"{accuracy} (%)") as (figure, axes):
        for axis, (name, points) in zip(axes, drawn.items(), strict=True):
            for reference in references:
                _learning_curve(axis, reference, reference.label, grey[reference.label], "--")
            for point in points:
                place = coefficients.index(point.coefficient) / max(1, len(coefficients) - 1)
                label = f"{decay} {point.coefficient:g}"
                _learning_curve(axis, point, label, ORDERED(place), "-")
            axis.set_title("\n".join(textwrap.wrap(name, 40)))
            epoch_axis(axis)
        figure.suptitle(title, fontsize=10)
        legend_below(figure, axes)
    return figure


def _decay_of(studies: Studies) -> str:
    """What the coefficients of some studies are called together."""
    kinds = {point.decay for points in studies.values() for point in points}
    return kinds.pop() if len(kinds) == 1 else "coefficient of decay"


def _line(
    axis: Axes,
    x: Sequence[float],
    points: Sequence[SettingData],
    name: str,
    colour: Any,
    place: int,
    number: int,
) -> None:
    """Mean scores at `x`, with bars; the line at `place` of a number of them.

    Points of a common place stand side by side, so that none hides another; the outermost are 4 %
    off.
    """
    scores = [np.array(point.scores, float) for point in points]
    beside = 1.04 ** (2 * place / (number - 1) - 1) if number > 1 else 1.0
    look = _MARKERS[place // len(METHOD_COLOURS) % len(_MARKERS)] + "-"
    _bars(axis, beside * np.array(x, float), scores, name, fmt=look, color=colour)


def _reference(axis: Axes, x: float, point: SettingData, colour: Any) -> None:
    """A point, and a broken line at its mean score across the plot."""
    scores = np.array(point.scores, float)
    axis.axhline(scores.mean(), linestyle="--", linewidth=1, color=colour)
    _bars(axis, np.array([float(x)]), [scores], point.label, fmt="o", color=colour)


def _bars(axis: Axes, x: np.ndarray, scores: Sequence[np.ndarray], name: str, **look: Any) -> None:
    means = np.array([values.mean() for values in scores])
    # Never below zero, which rounding of the mean could make of no spread.
    below = np.maximum(0, means - [values.min() for values in scores])
    above = np.maximum(0, [values.max() for values in scores] - means)
    label = f"{name} ({_seeds(scores)})"
    axis.errorbar(x, means, yerr=[below, above], markersize=6, capsize=4, label=label, **look)
    axis.margins(y=0.15)


def _measured(setting: SettingData) -> bool:
    return any(len(epochs) for epochs, _ in setting.curves)


def _learning_curve(
    axis: Axes, setting: SettingData, label: str, colour: Any, linestyle: Any
) -> None:
    curves = [(epochs, 100 * values) for epochs, values in setting.curves if len(epochs)]
    mean_and_band(axis, curves, colour, linestyle=linestyle, label=label)


def _seeds(scores: Sequence[np.ndarray]) -> str:
    """E.g. 'n = 3', or 'n = 1 to 3' where points have different numbers of seeds."""
    fewest, most = min(map(len, scores)), max(map(len, scores))
    return f"n = {most}" if fewest == most else f"n = {fewest} to {most}"
