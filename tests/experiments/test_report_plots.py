"""Plots of scores: against parameters, over the epochs, and against decay."""

from __future__ import annotations

import dataclasses

import numpy as np
from matplotlib.colors import same_color

from experiments import report_plots
from experiments.plot_style import DENSE_COLOUR
from experiments.report_plots import SettingData


def setting(
    method, size, parameters, accuracies, curves=(), coefficient=1e-4, decay="weight decay"
):
    """Accuracies are given as fractions, and drawn in per cent."""
    scores = [100 * accuracy for accuracy in accuracies]
    dense = method == "dense"
    return SettingData(method, size, dense, parameters, decay, coefficient, scores, curves)


def drawn(axis):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axis.get_lines()}


def test_report_plots_show_means_over_common_epochs():
    epochs = np.arange(1.0, 4.0)
    curves = [(epochs, epochs / 10), (epochs[1:], epochs[1:] / 5)]
    settings = [
        setting("dense", "", 1000, [0.8, 0.9], curves),
        setting("SI", "ratio 0.1", 100, [0.7], []),
    ]
    axis = report_plots.learning_curves(settings, "VGG-19", "test accuracy").axes[0]
    np.testing.assert_allclose(drawn(axis)["dense (n = 2)"], [30, 45])
    axis = report_plots.score_against_parameters(settings, "VGG-19", "test accuracy (%)").axes[0]
    assert (axis.get_title(), axis.get_ylabel()) == ("VGG-19", "test accuracy (%)")
    points = [container.lines[0].get_xydata()[0] for container in axis.containers]
    np.testing.assert_allclose(points, [(1000, 85), (100, 70)])
    assert report_plots.learning_curves(settings[1:], "VGG-19", "test accuracy") is None


def test_a_method_is_a_line_over_its_sizes_and_the_dense_network_a_reference():
    settings = [setting("dense", "", 1000, [0.9, 0.9, 0.9], [])]
    for method, lower in (("regular", 0.1), ("SI", 0.2)):
        for ratio, count in ((0.1, 100), (0.05, 50)):
            accuracies = [0.8 - lower, 0.8 - lower + ratio / 10, 0.8 - lower + ratio / 5]
            settings.append(setting(method, f"ratio {ratio}", count, accuracies, []))
    settings[-1] = dataclasses.replace(settings[-1], scores=settings[-1].scores[:2])
    axis = report_plots.score_against_parameters(settings, "VGG-19", "test accuracy (%)").axes[0]
    found = {container.get_label(): container for container in axis.containers}
    assert list(found) == ["dense (n = 3)", "regular (n = 3)", "SI (n = 2 to 3)"]
    regular, si = (found[name].lines[0].get_xydata() for name in list(found)[1:])
    np.testing.assert_allclose(regular[:, 1], [70.5, 71])
    # Side by side: 4 % to the left and to the right of the 50 and 100 parameters that they have.
    np.testing.assert_allclose(regular[:, 0], [50 / 1.04, 100 / 1.04])
    np.testing.assert_allclose(si[:, 0], [50 * 1.04, 100 * 1.04])
    assert (si[:, 0] > regular[:, 0]).all()  # Side by side.
    (bars,) = found["regular (n = 3)"].lines[2]
    np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], [(70, 71), (70, 72)])
    (reference,) = (line for line in axis.get_lines() if len(set(line.get_xdata())) == 2
                    and line.get_linestyle() == "--")  # fmt: skip
    np.testing.assert_allclose(reference.get_ydata(), [90, 90])
    assert reference.get_color() == found["dense (n = 3)"].lines[0].get_color()


def test_curves_of_a_method_share_a_colour_and_those_of_a_size_a_style():
    curve = [(np.arange(1.0, 4.0), np.arange(1.0, 4.0) / 10)]
    settings = [setting("dense", "", 1000, [0.3], curve)] + [
        setting(method, size, 100, [0.3], curve)
        for method in ("regular", "SI")
        for size in ("ratio 0.1", "ratio 0.05", "ratio 0.04", "ratio 0.03", "ratio 0.02")
    ]
    lines = report_plots.learning_curves(settings, "VGG-19", "test accuracy").axes[0].get_lines()
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}
    colours, styles = zip(*looks.values(), strict=True)
    assert styles[:4] == ("-", "-", "--", ":")
    assert styles[1:6] == styles[6:]
    assert [len(set(colours[part])) for part in (slice(1, 6), slice(6, 11))] == [1, 1]
    assert len(set(colours)) == 3


# ------------------------------------------------------------------ against weight decay

COEFFICIENTS = (5e-6, 5e-5, 5e-4)


def studies():
    """Two methods at three coefficients, two seeds each, with accuracies that are all different."""
    epochs = np.arange(1.0, 4.0)
    return {
        f"{method}, ratio 0.1": [
            setting(
                f"{method}, weight_decay={coefficient:g}",
                "ratio 0.1",
                100,
                [first + 0.01 * place, first + 0.01 * place + 0.04],
                [(epochs, (first + 0.01 * place) * epochs / 4)],
                coefficient,
            )
            for place, coefficient in enumerate(COEFFICIENTS)
        ]
        for method, first in (("regular", 0.5), ("FD", 0.7))
    }


def test_the_score_against_weight_decay():
    reference = setting("dense", "", 1000, [0.9], coefficient=1e-4)
    found = studies()
    # They may stand in any order; zero has no place on the axis.
    found["FD, ratio 0.1"] = [setting("FD", "ratio 0.1", 100, [0.1], (), 0.0)] + found[
        "FD, ratio 0.1"
    ][::-1]
    figure = report_plots.score_against_decay(found, [reference], "VGG-19", "test BLEU")
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_title()) == ("log", "VGG-19")
    assert (axis.get_xlabel().split(" (")[0], axis.get_ylabel()) == ("weight decay", "test BLEU")
    containers = {container.get_label(): container for container in axis.containers}
    assert list(containers) == ["regular, ratio 0.1 (n = 2)", "FD, ratio 0.1 (n = 2)",
                                "dense (n = 1)"]  # fmt: skip
    for (label, container), first, aside in zip(
        list(containers.items())[:2], (50, 70), (1 / 1.04, 1.04), strict=True
    ):
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(line.get_xdata(), np.multiply(aside, COEFFICIENTS))
        np.testing.assert_allclose(line.get_ydata(), [first + 2, first + 3, first + 4])
        ends = [bar[:, 1] for bar in bars.get_segments()]
        np.testing.assert_allclose(
            ends, [(first + i, first + i + 4) for i in range(3)], err_msg=label
        )
    np.testing.assert_allclose(containers["dense (n = 1)"].lines[0].get_xydata(), [(1e-4, 90)])
    assert containers["dense (n = 1)"].lines[0].get_color() == DENSE_COLOUR
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    assert ticks == ["5e-6", "5e-5", "1e-4", "5e-4"]
    assert report_plots.score_against_decay({}, [reference], "VGG-19", "test BLEU") is None


def test_learning_curves_by_weight_decay_stand_side_by_side():
    curve = [(np.arange(1.0, 4.0), np.array([0.6, 0.7, 0.8]))]
    references = [setting("dense", "", 1000, [0.8], curve), setting("wider", "", 2000, [0.8])]
    figure = report_plots.learning_curves_by_decay(
        studies(), references, "VGG-19", "validation accuracy"
    )
    assert [axis.get_title() for axis in figure.axes] == ["regular, ratio 0.1", "FD, ratio 0.1"]
    looks = []
    for axis, first in zip(figure.axes, (50, 70), strict=True):
        lines = drawn(axis)
        names = [f"weight decay {coefficient:g}" for coefficient in COEFFICIENTS]
        assert list(lines) == ["dense", *names]
        np.testing.assert_allclose(lines["dense"], [60, 70, 80])
        for place, name in enumerate(names):
            np.testing.assert_allclose(lines[name], (first + place) * np.arange(1, 4) / 4)
        looks.append([line.get_color() for line in axis.get_lines()])
    assert all(same_color(a, b) for a, b in zip(*looks, strict=True))
    assert len({tuple(np.atleast_1d(colour)) for colour in looks[0]}) == 4
    unmeasured = {"FD": [setting("FD", "ratio 0.1", 100, [0.7])] * 3}
    assert report_plots.learning_curves_by_decay(unmeasured, [], "VGG-19", "test accuracy") is None


def test_coefficients_of_both_decays_are_told_apart_by_no_name():
    found = studies()
    found["FD, ratio 0.1"] = [
        dataclasses.replace(point, decay="Frobenius decay") for point in found["FD, ratio 0.1"]
    ]
    (axis,) = report_plots.score_against_decay(found, [], "VGG-19", "test BLEU").axes
    assert axis.get_xlabel().startswith("coefficient of decay (")
    del found["regular, ratio 0.1"]
    (axis,) = report_plots.score_against_decay(found, [], "VGG-19", "test BLEU").axes
    assert axis.get_xlabel().startswith("Frobenius decay (")
    (axis,) = report_plots.learning_curves_by_decay(found, [], "VGG-19", "token accuracy").axes
    assert list(drawn(axis)) == [f"Frobenius decay {c:g}" for c in COEFFICIENTS]
    assert axis.get_ylabel() == "token accuracy (%)"


def test_one_number_of_parameters_is_nothing_to_draw_against():
    settings = [setting(method, "ratio 0.1", 100, [0.7]) for method in ("regular", "SI")]
    assert report_plots.score_against_parameters(settings, "VGG-19", "test accuracy (%)") is None


def test_what_has_no_size_need_not_be_dense():
    """A method that selects its ranks is a point in a colour of its own, and no reference."""
    curve = [(np.arange(1.0, 4.0), np.arange(1.0, 4.0) / 10)]
    settings = [
        setting("dense", "", 1000, [0.9], curve),
        setting("SI", "ratio 0.1", 100, [0.7], curve),
        setting("Cuttlefish", "", 200, [0.8], curve),
    ]
    axis = report_plots.score_against_parameters(settings, "ResNet-18", "accuracy (%)").axes[0]
    broken = [line for line in axis.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in broken] == [90]
    points = {box.get_label(): box.lines[0] for box in axis.containers}
    np.testing.assert_allclose(points["Cuttlefish (n = 1)"].get_xydata(), [(200 * 1.04, 80)])
    assert points["Cuttlefish (n = 1)"].get_color() != DENSE_COLOUR
    lines = report_plots.learning_curves(settings, "ResNet-18", "accuracy").axes[0].get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "-", "-"]
    assert len({line.get_color() for line in lines}) == 3
