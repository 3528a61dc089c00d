"""The figures of a report: which there are, of which settings, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_runs import write_run

from experiments import comparison, report, report_figures
from experiments.comparison import Setting
from experiments.metrics import read_metrics
from experiments.result import Replay

SCALES = {"none": 1.4, "frobenius": 0.7, "replayed": 0.7}  # of the kernels


pytestmark = pytest.mark.usefixtures("saved")


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """The three runs of a replay, for two seeds."""
    root = tmp_path_factory.mktemp("replay")
    for seed in (1, 2):
        words = {"none": "decay=none", "frobenius": "decay=frobenius,record_norms=True"}
        words["replayed"] = f"decay=none,replay=runs/seed{seed}-decayfrobenius"
        for name, argument in words.items():
            run = Replay(f"runs/seed{seed}-decayfrobenius", 1.5e-7 * seed)
            write_run(
                root / f"{name}{seed}", f"{argument},seed={seed}", 0.8, diagnostics="steps",
                scale=SCALES[name] * (1 + 0.1 * seed), replay=run if name == "replayed" else None,
            )  # fmt: skip
    return root


def study(root, coefficients=(5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3), **how):
    """Regular initialization with both decays over some coefficients."""
    for decay in ("plain", "frobenius"):
        for place, coefficient in enumerate(coefficients):
            write_run(
                root / f"{decay}{coefficient:g}",
                f"init=regular,decay={decay},weight_decay={coefficient}",
                0.6 + 0.01 * place + 0.1 * (decay == "plain"),
                **how,
            )


def names_in(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_three_runs_of_a_replay(replayed, saved, tmp_path):
    text = report.report([str(replayed)], tmp_path)
    mechanisms = text[text.index("### Mechanisms") : text.index("### Runs")]
    files = [f"{name}.png" for name in ("nuclear_norm", "frobenius_norm", "effective_step_size",
                                        "spectra_over_time")]  # fmt: skip
    assert [mechanisms.index(f"]({name})") for name in files] == sorted(
        mechanisms.index(f"]({name})") for name in files
    )
    assert list(saved) == ["learning_curves.png", *files]  # All are of one size.
    assert "differ by at most 3.0e-07" in mechanisms
    assert "are drawn; a report of fewer runs" not in text
    figure = saved["frobenius_norm.png"]
    assert names_in(figure) == [
        "SI, no decay (n = 2)", "SI, no decay, norms replayed (n = 2)", "SI + FD (n = 2)",
    ]  # fmt: skip
    assert figure.axes[0].get_title() == "ResNet-32 on cifar10, rank scale 0.111"
    for line, name in zip(
        figure.axes[0].get_lines(), ("none", "replayed", "frobenius"), strict=True
    ):
        records = [read_metrics(replayed / f"{name}{seed}") for seed in (1, 2)]
        expected = [
            np.mean([np.mean(list(found["diagnostics"]["frobenius_norm"].values()))
                     for found in lines])
            for lines in zip(*([x for x in lines if "diagnostics" in x] for lines in records),
                             strict=True)
        ]  # fmt: skip
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    spectra = saved["spectra_over_time.png"]
    assert "`block_5/conv2`" in mechanisms
    for axis, name in zip(spectra.axes, ("none1", "replayed1", "frobenius1"), strict=False):
        last = read_metrics(replayed / name)[-1]["spectra"]["block_5/conv2/kernel"]
        found = [line.get_ydata()[-1] for line in axis.get_lines()]
        assert set(found) <= set(last) and (found[0], found[-1]) == (last[0], last[-1])


def test_replaying_is_a_method_and_the_seed_of_the_record_no_setting(replayed, tmp_path):
    loaded = [comparison.load_run(folder) for folder in comparison.find_runs([str(replayed)])]
    (settings,) = comparison.settings_by_section(loaded).values()
    assert [(setting.label, len(setting.runs)) for setting in settings] == [
        ("SI, no decay, rank scale 0.111", 2),
        ("SI, no decay, norms replayed, rank scale 0.111", 2),
        ("SI + FD, rank scale 0.111", 2),
    ]
    # Another initialization replays another run, which its name need not tell.
    write_run(tmp_path / "a", "decay=none,init=regular,replay=runs/other", 0.8)
    write_run(tmp_path / "b", "decay=none,replay=runs/decayfrobenius-seed1", 0.8)
    labels = [s.method for s in settings_below(tmp_path)]
    assert labels == ["regular, no decay, norms replayed", "SI, no decay, norms replayed"]
    write_run(tmp_path / "c", "decay=none,replay=runs/stronger", 0.8)
    labels = [s.method for s in settings_below(tmp_path)]
    assert labels == [
        "regular, no decay, norms replayed",
        "SI, no decay, norms replayed, replay=runs/decayfrobenius",
        "SI, no decay, norms replayed, replay=runs/stronger",
    ]


def settings_below(root):
    loaded = [comparison.load_run(folder) for folder in comparison.find_runs([str(root)])]
    (settings,) = comparison.settings_by_section(loaded).values()
    return settings


def test_a_decay_study(saved, tmp_path):
    """With records from before spectra were followed."""
    study(tmp_path / "runs", diagnostics="epochs")
    write_run(tmp_path / "runs" / "dense", "rank_scale=0", 0.9, 464154)
    text = report.report([str(tmp_path / "runs")], tmp_path / "out")
    assert list(saved) == [
        "learning_curves_by_weight_decay.png", "accuracy_against_weight_decay.png",
        "nuclear_norm.png", "frobenius_norm.png", "effective_step_size.png",
    ]  # fmt: skip
    (axis,) = saved["accuracy_against_weight_decay.png"].axes
    found = {container.get_label(): container.lines[0] for container in axis.containers}
    assert list(found) == [
        "regular, rank scale 0.111 (n = 1)", "FD, rank scale 0.111 (n = 1)",
        "dense, weight_decay=0.0001 (n = 1)",
    ]  # fmt: skip
    regular, fd, dense = (line.get_ydata() for line in found.values())
    np.testing.assert_allclose(regular, 70 + np.arange(6))
    np.testing.assert_allclose(fd, 60 + np.arange(6))
    np.testing.assert_allclose(dense, 90)
    # Too many for the others: of both methods from the smallest to the largest coefficient.
    shown = names_in(saved["frobenius_norm.png"])
    assert shown == [
        f"{method}, weight_decay={coefficient} (n = 1)"
        for method in ("regular", "FD")
        for coefficient in ("5e-06", "1e-05", "0.0005", "0.005")
    ]
    assert "Of 12 settings 8 are drawn" in text
    for method in ("regular", "FD"):
        for coefficient in ("5e-05", "0.001"):
            assert f"{method}, weight_decay={coefficient}, rank scale 0.111" in text


def test_a_study_needs_three_coefficients_and_all_else_equal(tmp_path):
    study(tmp_path, (1e-4, 5e-4))
    write_run(tmp_path / "spectral", "init=spectral,decay=plain,weight_decay=0.001", 0.5)
    write_run(tmp_path / "size", "init=regular,rank_scale=0.5,weight_decay=0.001", 0.5)
    assert comparison.decay_studies(settings_below(tmp_path)) == {}
    write_run(tmp_path / "third", "init=regular,decay=frobenius,weight_decay=0.001", 0.5)
    ((name, group),) = comparison.decay_studies(settings_below(tmp_path)).items()
    assert name == "FD, rank scale 0.111"
    assert [s.runs[0].config["weight_decay"] for s in group] == [1e-4, 5e-4, 1e-3]


def test_a_study_of_several_sizes_keeps_the_accuracy_against_parameters(saved, tmp_path):
    for scale, count in ((0.111, 100), (0.333, 300)):
        for coefficient in (0.0, 1e-4, 5e-4, 1e-3):
            argument = f"rank_scale={scale},weight_decay={coefficient}"
            write_run(tmp_path / f"{scale}-{coefficient}", argument, 0.5, count)
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert list(saved) == [
        "accuracy_against_parameters.png", "learning_curves_by_weight_decay.png",
        "accuracy_against_weight_decay.png",
    ]  # fmt: skip
    assert "A coefficient of 0 has no place on its axis." in text
    (axis,) = saved["accuracy_against_weight_decay.png"].axes
    assert [len(container.lines[0].get_xdata()) for container in axis.containers] == [3, 3]


def test_without_diagnostics_there_are_no_mechanisms(saved, tmp_path):
    write_run(tmp_path / "runs" / "dense", "rank_scale=0", 0.9, 464154)
    write_run(tmp_path / "runs" / "low", "seed=1", 0.8)
    (tmp_path / "runs" / "low" / "metrics.jsonl").unlink()
    text = report.report([str(tmp_path / "runs")], tmp_path / "out")
    assert "### Mechanisms" not in text and "### Runs" in text
    assert list(saved) == ["accuracy_against_parameters.png", "learning_curves.png"]


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ({"a": 2, "b": 1}, 8, {"a": [0, 1], "b": [0]}),
        ({"a": 6, "b": 6}, 8, {"a": [0, 1, 3, 5], "b": [0, 1, 3, 5]}),
        ({"a": 1, "b": 7, "c": 2}, 3, {"a": [0], "b": [3], "c": [0]}),
        ({"a": 9}, 2, {"a": [0, 8]}),
        ({"a": 1, "b": 1, "c": 5}, 2, {"a": [0], "b": [0]}),
        ({}, 3, {}),
    ],
)
def test_settings_are_shared_out_between_methods(counts, most, expected):
    settings = [
        Setting(name, {"place": str(i)}, None, ()) for name in counts for i in range(counts[name])
    ]
    found = report_figures.spread(settings, most)
    kept = {}
    for setting in found:
        kept.setdefault(setting.name, []).append(int(setting.apart["place"]))
    assert kept == expected
    assert found == [setting for setting in settings if setting in found]
