"""What all plots share: the mean over seeds with its band, legends that fit, the palette."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments import plot_style


def band_of(axis):
    """The lower and the upper edge of the one band on an axis, by epoch."""
    (band,) = axis.collections
    (path,) = band.get_paths()
    edges: dict[float, set[float]] = {}
    for x, y in path.vertices:
        edges.setdefault(float(x), set()).add(float(y))
    return {x: (min(y), max(y)) for x, y in edges.items()}


def drawn(curves):
    with plot_style.panels(1, 1, (4, 3)) as (_, (axis,)):
        plot_style.mean_and_band(axis, curves, "#000000", label="mean")
    (line,) = axis.get_lines()
    return line.get_xydata(), band_of(axis)


def test_the_mean_and_its_band():
    epochs = np.arange(3.0)
    line, band = drawn([(epochs, np.array([1.0, 2.0, 5.0])), (epochs, np.array([3.0, 2.0, 9.0]))])
    np.testing.assert_allclose(line, [(0, 2), (1, 2), (2, 7)])
    assert band == {0: (1, 3), 1: (2, 2), 2: (5, 9)}


def test_a_run_with_points_left_out_meets_the_others_at_its_own():
    few = (np.array([0.0, 2.5, 4.0]), np.array([1.0, 1.0, 1.0]))
    many = (np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([3.0, 9.0, 4.0, 8.0, 5.0]))
    line, band = drawn([many, few])
    np.testing.assert_allclose(line, [(0, 2), (2.5, (6 + 1) / 2), (4, 3)])  # 6 is between 4 and 8
    assert band == {0: (1, 3), 2.5: (1, 6), 4: (1, 5)}


def test_nothing_is_drawn_where_a_run_was_not_trained_or_is_not_finite():
    short = (np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    long = (np.array([0.0, 1.0, 1.5, 2.0, 3.0]), np.array([0.0, 3.0, np.nan, 4.0, 5.0]))
    line, _ = drawn([short, long])
    np.testing.assert_allclose(line, [(1, 2), (2, 3)])
    line, _ = drawn([(np.array([0.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])), long])
    np.testing.assert_allclose(line, [(0, 0.5), (2, 3)])
    line, _ = drawn([long])
    np.testing.assert_allclose(line, [(0, 0), (1, 3), (2, 4), (3, 5)])


@pytest.mark.parametrize(("last", "most"), [(0.28, 6), (1.3, 6), (3.7, 11), (200.0, 11)])
def test_ticks_are_few_and_where_there_are_some_at_whole_epochs(last, most):
    with plot_style.panels(1, 1, (4, 3)) as (_, (axis,)):
        axis.plot([0, last], [1, 2])
        plot_style.epoch_axis(axis)
    ticks = axis.get_xticks()
    assert 2 <= len(ticks) <= most
    assert axis.get_xlim()[0] == 0
    if last >= 2:
        np.testing.assert_array_equal(ticks, np.round(ticks))


@pytest.mark.parametrize("width", [4.0, 6.4, 10.0])
@pytest.mark.parametrize("length", [3, 30, 120])
def test_legends_fit_into_the_figure(width, length):
    with plot_style.panels(1, 1, (width, 3)) as (figure, (axis,)):
        for index in range(9):
            axis.plot([0, 1], [0, index], label=f"{index} " + ("norms " * length)[:length])
        plot_style.legend_below(figure, [axis])
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert axis.get_window_extent().height > 0.6 * 3 * figure.dpi  # It takes nothing from the plot.


def test_a_legend_names_what_is_on_several_axes_once():
    with plot_style.grid(2, 3, 2, "accuracy") as (figure, axes):
        for axis, labels in zip(axes, (["dense", "SI"], ["dense", "FD"]), strict=True):
            for label in labels:
                axis.plot([0, 1], [0, 1], label=label)
        plot_style.legend_below(figure, axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "SI", "FD"]


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (3, 1), (4, 2), (6, 2)])
def test_a_grid_has_as_many_panels_as_asked_for(number, rows):
    with plot_style.grid(number, 3, 2, "accuracy") as (figure, axes):
        pass
    assert len(axes) == number
    assert [axis for axis in figure.axes if axis.get_visible()] == axes
    assert [bool(axis.get_ylabel()) for axis in axes] == [i % 3 == 0 for i in range(number)]
    assert axes[0].get_gridspec().nrows == rows


def test_more_than_the_palette_starts_again_and_only_one_is_grey():
    names = [(str(index), False) for index in range(9)] + [("dense", True), ("other dense", True)]
    colours = plot_style.colours_of(names)
    assert len({colours[str(index)] for index in range(8)}) == 8
    assert colours["8"] == colours["0"]
    assert colours["dense"] == plot_style.DENSE_COLOUR != colours["other dense"]


def test_examples_run():
    result = doctest.testmod(plot_style)
    assert result.failed == 0 and result.attempted > 0
