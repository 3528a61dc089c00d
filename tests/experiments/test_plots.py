"""The plots: drawn from a record where it has the data, with the values of the record."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from synthetic_runs import write_record

from experiments import files, plots
from experiments.errors import RunError
from experiments.metrics import read_metrics

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, accuracy=0.8)
    return folder


def drawn(axis):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axis.get_lines()}


def test_run_plots_writes_three_pictures(folder):
    paths = plots.run_plots(folder)
    assert [path.name for path in paths] == ["curves.png", "nuclear_norm.png", "spectra.png"]
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(PNG) for content in first)
    assert [path.read_bytes() for path in plots.run_plots(folder)] == first


def test_curves_show_the_record(folder):
    lines = read_metrics(folder)
    loss, accuracy = plots.curves(lines).axes
    np.testing.assert_allclose(drawn(loss)["train"], 2.3 * np.exp(-np.arange(1, 7) / 3))
    assert drawn(accuracy).keys() == {"train", "test"}
    np.testing.assert_allclose(drawn(accuracy)["test"][-1], 80)
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss (nats)")


def test_nuclear_norm_shows_means_and_the_bound(folder):
    lines = read_metrics(folder)
    found = drawn(plots.nuclear_norm(lines).axes[0])
    means = [
        np.mean(list(line["diagnostics"]["nuclear_norm"].values()))
        for line in lines
        if "diagnostics" in line
    ]
    np.testing.assert_allclose(found["nuclear norm"], means, rtol=1e-6)
    assert (found["bound"] >= found["nuclear norm"] * (1 - 1e-6)).all()


def test_spectra_show_first_and_last_record_of_three_kernels(folder):
    figure = plots.spectra(read_metrics(folder))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["block_1/conv1", "block_5/conv2", "block_9/conv2"]
    found = drawn(figure.axes[0])
    assert found.keys() == {"epoch 0", "epoch 6"}
    np.testing.assert_allclose(found["epoch 0"], 2 * np.exp(-np.linspace(0, 1, 5)), rtol=1e-6)


def test_kernels_are_in_natural_order_and_zeros_are_left_out():
    paths = [f"block_{i}/kernel" for i in (10, 2, 1)]
    line = {"step": 0, "epoch": 0.0, "spectra": {path: [1.0, 0.5, 0.0] for path in paths}}
    figure = plots.spectra([line])
    assert [axis.get_title() for axis in figure.axes] == ["block_1", "block_2", "block_10"]
    np.testing.assert_array_equal(drawn(figure.axes[0])["epoch 0"], [1.0, 0.5, np.nan])


def test_what_was_not_recorded_is_not_drawn(tmp_path):
    lines = [{"step": 1, "epoch": 1.0, "train_loss": None}]
    assert plots.nuclear_norm(lines) is None
    assert plots.spectra(lines) is None
    assert plots.curves([]) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0, "train_loss": 1.0}\n')
    assert [path.name for path in plots.run_plots(tmp_path)] == ["curves.png"]


def test_report_plots_show_means_over_common_epochs():
    epochs = np.arange(1.0, 4.0)
    curves = [(epochs, epochs / 10), (epochs[1:], epochs[1:] / 5)]
    settings = [
        plots.SettingData("dense", "", 1000, [0.8, 0.9], curves),
        plots.SettingData("SI", "ratio 0.1", 100, [0.7], []),
    ]
    axis = plots.learning_curves(settings, "VGG-19", "test").axes[0]
    np.testing.assert_allclose(drawn(axis)["dense (n = 2)"], [30, 45])
    axis = plots.accuracy_against_parameters(settings, "VGG-19", "test").axes[0]
    assert (axis.get_title(), axis.get_ylabel()) == ("VGG-19", "test accuracy (%)")
    points = [container.lines[0].get_xydata()[0] for container in axis.containers]
    np.testing.assert_allclose(points, [(1000, 85), (100, 70)])
    assert plots.learning_curves(settings[1:], "VGG-19", "test") is None


def test_a_method_is_a_line_over_its_sizes_and_the_dense_network_a_reference():
    settings = [plots.SettingData("dense", "", 1000, [0.9, 0.9, 0.9], [])]
    for method, lower in (("regular", 0.1), ("SI", 0.2)):
        for ratio, count in ((0.1, 100), (0.05, 50)):
            accuracies = [0.8 - lower, 0.8 - lower + ratio / 10, 0.8 - lower + ratio / 5]
            settings.append(plots.SettingData(method, f"ratio {ratio}", count, accuracies, []))
    settings[-1] = dataclasses.replace(settings[-1], accuracies=settings[-1].accuracies[:2])
    axis = plots.accuracy_against_parameters(settings, "VGG-19", "test").axes[0]
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
    settings = [plots.SettingData("dense", "", 1000, [0.3], curve)] + [
        plots.SettingData(method, size, 100, [0.3], curve)
        for method in ("regular", "SI")
        for size in ("ratio 0.1", "ratio 0.05", "ratio 0.04", "ratio 0.03", "ratio 0.02")
    ]
    lines = plots.learning_curves(settings, "VGG-19", "test").axes[0].get_lines()
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}
    colours, styles = zip(*looks.values(), strict=True)
    assert styles[:4] == ("-", "-", "--", ":")
    assert styles[1:6] == styles[6:]
    assert [len(set(colours[part])) for part in (slice(1, 6), slice(6, 11))] == [1, 1]
    assert len(set(colours)) == 3


def test_a_plot_that_cannot_be_written_is_one_clear_line(folder, tmp_path, monkeypatch):
    def fail(path, content):
        with files.writing(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(RunError, match=r"cannot write .*curves.png: no space left on device"):
        plots.run_plots(folder)
