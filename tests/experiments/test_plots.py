"""The plots of a run: drawn where its record has the data, with the values of the record."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_runs import write_record

from experiments import files, plots
from experiments.errors import RunError
from experiments.measures import of_task
from experiments.metrics import read_metrics

IMAGES = {"task": "classification"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, accuracy=0.8)
    files.write_json(folder / "config.json", IMAGES)
    return folder


def drawn(axis):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axis.get_lines()}


def test_run_plots_writes_five_pictures(folder):
    paths = plots.run_plots(folder)
    names = ("curves", "nuclear_norm", "frobenius_norm", "spectra", "spectra_over_time")
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(PNG) for content in first)
    assert [path.read_bytes() for path in plots.run_plots(folder)] == first


def test_curves_show_the_record(folder):
    lines = read_metrics(folder)
    loss, accuracy = plots.curves(lines, of_task("classification")).axes
    np.testing.assert_allclose(drawn(loss)["train"], 2.3 * np.exp(-np.arange(1, 7) / 3))
    assert drawn(accuracy).keys() == {"train", "test"}
    np.testing.assert_allclose(drawn(accuracy)["test"][-1], 80)
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss (nats)")
    assert accuracy.get_ylabel() == "accuracy (%)"
    loss, accuracy = plots.curves(lines, of_task("translation")).axes
    assert loss.get_ylabel() == "loss per target token (nats)"
    assert accuracy.get_ylabel() == "token accuracy (%)"


def test_spectra_show_first_and_last_record_of_three_kernels(folder):
    figure = plots.spectra(read_metrics(folder))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["block_1/conv1", "block_5/conv2", "block_9/conv2"]
    found = drawn(figure.axes[0])
    assert found.keys() == {"epoch 0", "epoch 6"}
    np.testing.assert_allclose(found["epoch 0"], 2 * np.exp(-np.linspace(0, 1, 5)), rtol=1e-6)


def test_epochs_are_told_in_short():
    lines = [{"step": s, "epoch": s / 215, "spectra": {"a": [2.0, 1.0]}} for s in (0, 800)]
    assert drawn(plots.spectra(lines).axes[0]).keys() == {"epoch 0", "epoch 3.72"}


def test_kernels_are_in_natural_order_and_zeros_are_left_out():
    paths = [f"block_{i}/kernel" for i in (10, 2, 1)]
    line = {"step": 0, "epoch": 0.0, "spectra": {path: [1.0, 0.5, 0.0] for path in paths}}
    figure = plots.spectra([line])
    assert [axis.get_title() for axis in figure.axes] == ["block_1", "block_2", "block_10"]
    np.testing.assert_array_equal(drawn(figure.axes[0])["epoch 0"], [1.0, 0.5, np.nan])


def test_what_was_not_recorded_is_not_drawn(tmp_path):
    lines = [{"step": 1, "epoch": 1.0, "train_loss": None}]
    assert plots.spectra(lines) is None
    assert plots.curves([], of_task("translation")) is None
    files.write_json(tmp_path / "config.json", IMAGES)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0, "train_loss": 1.0}\n')
    assert [path.name for path in plots.run_plots(tmp_path)] == ["curves.png"]


def test_a_run_from_before_spectra_were_followed(tmp_path):
    write_record(tmp_path, accuracy=0.8, diagnostics="epochs")
    files.write_json(tmp_path / "config.json", IMAGES)
    paths = plots.run_plots(tmp_path)
    names = ("curves", "nuclear_norm", "frobenius_norm", "spectra")
    assert [path.name for path in paths] == [f"{name}.png" for name in names]


def test_a_plot_that_cannot_be_written_is_one_clear_line(folder, tmp_path, monkeypatch):
    def fail(path, content):
        with files.writing(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(RunError, match=r"cannot write .*curves.png: no space left on device"):
        plots.run_plots(folder)
