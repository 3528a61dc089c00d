"""What decay does to the kernels: what is drawn is what the records say."""

from __future__ import annotations

import copy
import doctest

import numpy as np
import pytest
from synthetic_runs import KERNELS, write_record

from experiments import mechanism_plots
from experiments.mechanism_plots import Panel, Recorded
from experiments.metrics import read_metrics


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The lines of a few runs: two seeds of one setting, one of another, and one from before."""
    root = tmp_path_factory.mktemp("records")
    made = {"a1": 1.0, "a2": 1.2, "b1": 3.0}
    for name, scale in made.items():
        write_record(root / name, accuracy=0.8, scale=scale)
    write_record(root / "old", accuracy=0.8, diagnostics="epochs")
    return {name: read_metrics(root / name) for name in (*made, "old")}


def means(lines, name):
    """Epochs and means over the kernels, straight from the lines."""
    found = [
        (line["epoch"], sum(line["diagnostics"][name].values()) / len(KERNELS))
        for line in lines
        if "diagnostics" in line
    ]
    return np.array(found)


def solid_and_broken(axis):
    """The values of the lines by their colour, those for the legend left out."""
    lines = [line for line in axis.get_lines() if len(line.get_xdata())]
    solid = {line.get_color(): line for line in lines if line.get_linestyle() == "-"}
    broken = {line.get_color(): line for line in lines if line.get_linestyle() == "--"}
    return solid, broken


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def test_the_nuclear_norm_stands_beside_its_bound(records):
    settings = [Recorded("SI", [records["a1"], records["a2"]]), Recorded("FD", [records["b1"]])]
    figure = mechanism_plots.nuclear_norm(settings, "VGG-19")
    (axis,) = figure.axes
    assert axis.get_title() == "VGG-19"
    assert legend(figure) == ["SI (n = 2)", "FD (n = 1)", "bound"]
    solid, broken = solid_and_broken(axis)
    assert len(solid) == 2 and solid.keys() == broken.keys()
    for setting, colour in zip(settings, solid, strict=True):
        for line, name in ((solid, "nuclear_norm"), (broken, "nuclear_bound")):
            expected = np.mean([means(lines, name) for lines in setting.runs], axis=0)
            np.testing.assert_allclose(line[colour].get_xydata(), expected, rtol=1e-6)


def test_what_has_no_bound_has_no_broken_line(records):
    """A dense network has no factors; half the squared norms of three factors bound nothing."""
    dense, deep = copy.deepcopy(records["a1"]), copy.deepcopy(records["b1"])
    for line in (line for line in dense + deep if "diagnostics" in line):
        line["diagnostics"]["non_orthogonality"] = {}
    for line in (line for line in dense if "diagnostics" in line):
        line["diagnostics"]["nuclear_bound"] = {}
    settings = [Recorded("dense", [dense], dense=True), Recorded("deep", [deep])]
    figure = mechanism_plots.nuclear_norm(settings)
    solid, broken = solid_and_broken(figure.axes[0])
    assert len(solid) == 2 and not broken
    assert legend(figure) == ["dense (n = 1)", "deep (n = 1)"]
    figure = mechanism_plots.nuclear_norm([*settings, Recorded("SI", [records["a2"]])])
    assert len(solid_and_broken(figure.axes[0])[1]) == 1


def test_replayed_norms_lie_on_their_record_and_both_can_be_seen(records):
    settings = [
        Recorded("no decay", [records["b1"]]),
        Recorded("no decay, norms replayed", [records["a1"]], replayed=True),
        Recorded("FD", [records["a1"]]),
    ]
    for draw in (mechanism_plots.frobenius_norm, mechanism_plots.effective_step_size):
        figure = draw(settings)
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        recorded, replayed = lines["FD (n = 1)"], lines["no decay, norms replayed (n = 1)"]
        np.testing.assert_array_equal(recorded.get_xydata(), replayed.get_xydata())
        assert recorded.get_color() != replayed.get_color()
        assert (recorded.get_linestyle(), replayed.get_linestyle()) == ("-", "--")
        assert replayed.get_zorder() > recorded.get_zorder()
        assert legend(figure) == list(lines)
    norms = mechanism_plots.frobenius_norm(settings).axes[0].get_lines()[2].get_xydata()
    np.testing.assert_allclose(norms, means(records["a1"], "frobenius_norm"), rtol=1e-6)


def test_the_effective_step_size_is_read_or_follows_from_the_norms(records):
    def curve(lines):
        (axis,) = mechanism_plots.effective_step_size([Recorded("", [lines])]).axes
        assert axis.get_yscale() == "log"
        return axis.get_lines()[0].get_xydata()

    for name in ("a1", "old"):
        expected = [
            (
                line["epoch"],
                np.mean([line["learning_rate"] / norm**2
                         for norm in line["diagnostics"]["frobenius_norm"].values()]),
            )
            for line in records[name]
            if "diagnostics" in line
        ]  # fmt: skip
        np.testing.assert_allclose(curve(records[name]), expected, rtol=1e-5)
    measured = copy.deepcopy(records["a1"])
    for line in (line for line in measured if "diagnostics" in line):
        line["diagnostics"]["effective_learning_rate"] = {"a": 0.25, "b": 0.75}
    np.testing.assert_array_equal(curve(measured)[:, 1], 0.5)


def test_products_have_panels_of_their_own(records, tmp_path):
    write_record(tmp_path, accuracy=0.8, scale=2.0, products=True)
    lines = read_metrics(tmp_path)
    measured = [line for line in lines if "diagnostics" in line]
    assert all(map(mechanism_plots.of_products, measured))
    images = Recorded("images", [records["a1"]])  # Which has none.
    figure = mechanism_plots.nuclear_norm([Recorded("text", [lines]), images], "Transformer")
    kernels, qk, ov = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [
        "kernels", "queries-keys", "outputs-values",
    ]  # fmt: skip
    assert legend(figure) == ["text (n = 1)", "images (n = 1)", "bound"]
    assert [len(solid_and_broken(axis)[0]) for axis in figure.axes] == [2, 1, 1]
    colour = next(iter(solid_and_broken(kernels)[0]))
    for axis, group in ((qk, "qk"), (ov, "ov")):
        for line, name in zip(
            solid_and_broken(axis), ("nuclear_norm", "nuclear_bound"), strict=True
        ):
            expected = [
                np.mean([*found["diagnostics"][f"{group}/{name}"].values()]) for found in measured
            ]
            np.testing.assert_allclose(line[colour].get_ydata(), expected, rtol=1e-6)
    figure = mechanism_plots.frobenius_norm([Recorded("text", [lines])])
    values = [axis.get_lines()[0].get_ydata()[0] for axis in figure.axes[1:]]
    np.testing.assert_allclose(values, [4 * 2 * 1.5, 0.5 * 2 * 1.5])
    # The learning rate turns kernels, which are what is trained; so there is no such panel.
    (axis,) = mechanism_plots.effective_step_size([Recorded("text", [lines])], "T").axes
    assert axis.get_title() == "T"


def test_points_that_are_not_numbers_are_left_out(records):
    lines = copy.deepcopy(records["old"])
    lines[2]["diagnostics"]["frobenius_norm"][KERNELS[0]] = None
    lines[3]["diagnostics"]["frobenius_norm"][KERNELS[0]] = 0.0  # Its step size is infinite.
    (axis,) = mechanism_plots.frobenius_norm([Recorded("", [lines])]).axes
    assert axis.get_lines()[0].get_xdata().tolist() == [0, 1, 3, 4, 5, 6]
    (axis,) = mechanism_plots.effective_step_size([Recorded("", [lines])]).axes
    assert axis.get_lines()[0].get_xdata().tolist() == [0, 1, 4, 5, 6]


@pytest.mark.parametrize(
    ("norms", "scale", "from_zero"),
    [
        ((5.0, 5.01), "linear", False),  # Differences of a per cent are to be seen.
        ((1.0, 5.0), "linear", True),
        ((0.1, 5.0), "log", False),
        ((0.0, 5.0), "linear", False),
    ],
)
def test_the_scale_suits_how_far_norms_are_apart(norms, scale, from_zero):
    lines = [
        {"epoch": float(epoch), "diagnostics": {"frobenius_norm": {"a": norm}}}
        for epoch, norm in enumerate(norms)
    ]
    (axis,) = mechanism_plots.frobenius_norm([Recorded("a", [lines])]).axes
    assert axis.get_yscale() == scale
    assert (axis.get_ylim()[0] == 0) == from_zero


def test_spectra_over_time_show_singular_values_from_largest_to_smallest(records):
    few, many = KERNELS[0], KERNELS[-1]  # 5 and 22 singular values
    chosen = [Panel("few", records["a1"], few), Panel("many", records["b1"], many)]
    figure = mechanism_plots.spectra_over_time(chosen, "VGG-19")
    axes = figure.axes[:2]
    assert [axis.get_title() for axis in axes] == ["few", "many"]
    for axis, panel in zip(axes, chosen, strict=True):
        lines = [line for line in panel.lines if "spectra" in line]
        values = np.array([line["spectra"][panel.path] for line in lines])
        found = [line.get_xydata() for line in axis.get_lines()]
        for xy in found:
            np.testing.assert_array_equal(xy[:, 0], [line["epoch"] for line in lines])
        shown = np.array([xy[:, 1] for xy in found]).T
        assert shown.shape[1] == min(12, values.shape[1])
        np.testing.assert_array_equal(shown[:, [0, -1]], values[:, [0, -1]])
        assert all(any(np.array_equal(column, v) for v in values.T) for column in shown.T)
        assert (np.diff(shown[-1]) < 0).all()
    ends = [(axis.get_lines()[0].get_color(), axis.get_lines()[-1].get_color()) for axis in axes]
    assert ends[0] == ends[1] and ends[0][0] != ends[0][1]


def test_what_became_zero_leaves_the_logarithmic_axis(records):
    lines = [{"epoch": float(e), "spectra": {"a": [2.0, 10.0**-e, 0.0]}} for e in (0, 3, 6, 9)]
    (axis, _) = mechanism_plots.spectra_over_time([Panel("a", lines, "a")]).axes
    largest, middle, smallest = (line.get_ydata() for line in axis.get_lines())
    np.testing.assert_array_equal(largest, 2)
    np.testing.assert_array_equal(middle, [1, 1e-3, np.nan, np.nan])
    assert np.isnan(smallest).all()


def test_spectra_of_both_ends_alone_are_not_followed(records):
    old, new = Panel("old", records["old"], KERNELS[0]), Panel("new", records["a1"], KERNELS[0])
    assert mechanism_plots.spectra_over_time([old]) is None
    figure = mechanism_plots.spectra_over_time([old, new])
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["new"]


def test_kernels_are_in_natural_order():
    spectra = {"spectra": {"block_10": [], "block_2": [], "block_1": []}}
    lines = [spectra, {}, spectra]
    assert mechanism_plots.kernels(lines) == ["block_1", "block_2", "block_10"]


def test_nothing_recorded_is_nothing_drawn():
    lines = [{"step": 1, "epoch": 1.0, "train_loss": 1.0}]
    unknown = [{"step": 1, "epoch": 1.0, "diagnostics": {"frobenius_norm": {"a": 1.0}}}]
    for draw in (
        mechanism_plots.nuclear_norm,
        mechanism_plots.frobenius_norm,
        mechanism_plots.effective_step_size,
    ):
        assert draw([]) is None
        assert draw([Recorded("a", [lines])]) is None
    assert mechanism_plots.effective_step_size([Recorded("a", [unknown])]) is None


def test_examples_run():
    result = doctest.testmod(mechanism_plots)
    assert result.failed == 0 and result.attempted > 0


def test_spectra_of_kernels_that_become_factors(records):
    """Their number changes, and of kernels that stay dense there are none any more."""
    lines = copy.deepcopy(records["a1"])
    measured = [line for line in lines if "spectra" in line]
    for line in measured[2:]:
        del line["spectra"][KERNELS[0]]
        line["spectra"][KERNELS[1]] = line["spectra"][KERNELS[1]][:2]
    assert mechanism_plots.kernels(lines) == KERNELS[1:]
    figure = mechanism_plots.spectra_over_time([Panel("", lines, KERNELS[1])])
    largest, *_, smallest = figure.axes[0].get_lines()
    assert np.isfinite(largest.get_ydata()).all()
    assert np.isfinite(smallest.get_ydata()).tolist() == [True, True] + [False] * (
        len(measured) - 2
    )
