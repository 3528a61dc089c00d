"""Reports: grouping, labels, intervals, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_run

from experiments import comparison, report
from experiments.errors import RunError

SEEDS = (1, 2, 3)
DENSE = (0.90, 0.91, 0.92)
LOW = (0.88, 0.90, 0.89)  # differences -2, -1, -3 points


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Dense and low rank, three seeds each; one spectral run on its own."""
    root = tmp_path_factory.mktemp("runs")
    for seed, dense, low in zip(SEEDS, DENSE, LOW, strict=True):
        write_run(root / f"dense{seed}", f"rank_scale=0,seed={seed}", dense, parameters=464154)
        write_run(root / f"low{seed}", f"init=regular,decay=plain,seed={seed}", low)
    write_run(root / "spectral1", "init=spectral,decay=frobenius,seed=1", 0.895)
    return root


def test_t_interval_against_scipy():
    differences = np.array([0.3, -0.1, 0.7, 0.2])
    mean, low, high = comparison.t_interval(differences)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean, low, high], [0.275, expected.low, expected.high], rtol=1e-12)


def test_t_interval_by_hand():
    # With 2 degrees of freedom Student's t is, at level p = (1 + c) / 2: c sqrt(2 / (1 - c^2)).
    t = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    half = t * 1.0 / math.sqrt(3)
    found = comparison.t_interval([1, 2, 3])
    np.testing.assert_allclose(found, (2, 2 - half, 2 + half), rtol=1e-12)
    assert comparison.t_interval([1.0, 2.0]) is None
    assert comparison.t_interval([]) is None


def settings_of(root):
    """The settings of the one section that the runs below a folder make."""
    loaded = [comparison.load_run(folder) for folder in comparison.find_runs([str(root)])]
    (settings,) = comparison.settings_by_section(loaded).values()
    return settings


def test_runs_are_grouped_by_everything_but_the_seed(runs):
    settings = settings_of(runs)
    assert [(s.label, [run.seed for run in s.runs]) for s in settings] == [
        ("dense", [1, 2, 3]),
        ("regular, rank scale 0.111", [1, 2, 3]),
        ("SI + FD, rank scale 0.111", [1]),
    ]
    np.testing.assert_allclose(
        comparison.paired_differences(settings[1], settings[0]), [-2, -1, -3]
    )


def test_operational_keys_do_not_split_a_setting(tmp_path):
    for seed in SEEDS:
        argument = f"seed={seed},workdir=w{seed},steps_per_dispatch={seed},data.dir=d{seed}"
        write_run(tmp_path / str(seed), argument, 0.5)
    # Where there are no factors, the keys of the factors change nothing either.
    write_run(tmp_path / "d1", "rank_scale=0,init=regular,decay=plain,seed=1", 0.6)
    write_run(tmp_path / "d2", "rank_scale=0,overcomplete=zero,seed=2", 0.6)
    prune = "rank_scale=0,method=prune,ratio=0.1"
    write_run(tmp_path / "p1", f"{prune},init=regular,decay=plain,seed=1", 0.6)
    write_run(tmp_path / "p2", f"{prune},overcomplete=zero,seed=2", 0.6)
    found = [(setting.label, len(setting.runs)) for setting in settings_of(tmp_path)]
    assert found == [("dense", 2), ("SI + FD, rank scale 0.111", 3), ("pruning, ratio 0.1", 2)]


def test_runs_from_before_a_key_existed_belong_to_its_first_meaning(tmp_path):
    for seed in SEEDS:
        path = write_run(tmp_path / str(seed), f"seed={seed}", 0.5) / "result.json"
        if seed < 3:
            result = json.loads(path.read_text())
            for key in ("precision", "accumulate_steps", "remat", "profile_steps", "ratio", "kind"):
                del result["config"][key]
            result["config"]["model"]["width"] = 1  # It was a whole number.
            path.write_text(json.dumps(result))
    write_run(tmp_path / "half", "seed=1,precision=bfloat16", 0.5)
    assert [(setting.label, len(setting.runs)) for setting in settings_of(tmp_path)] == [
        ("SI + FD, precision=bfloat16, rank scale 0.111", 1),
        ("SI + FD, precision=float32, rank scale 0.111", 3),
    ]


def test_settings_stand_method_by_method_in_numerical_order(tmp_path):
    for scale in ("9", "0.111", "3"):
        write_run(tmp_path / scale, f"rank_scale={scale},init=regular,weight_decay=0.0005", 0.5)
    write_run(tmp_path / "weak", "rank_scale=3,init=regular,weight_decay=0.00005", 0.5)
    write_run(tmp_path / "plain", "rank_scale=3,decay=plain,weight_decay=0.0005", 0.5)
    assert [setting.label for setting in settings_of(tmp_path)] == [
        "SI, weight_decay=0.0005, rank scale 3",
        "FD, weight_decay=5e-05, rank scale 3",
        "FD, weight_decay=0.0005, rank scale 9",
        "FD, weight_decay=0.0005, rank scale 3",
        "FD, weight_decay=0.0005, rank scale 0.111",
    ]


def test_runs_from_trained_networks_are_a_setting_of_their_own(tmp_path):
    write_run(tmp_path / "scratch", "rank_scale=0.5", 0.5)
    for seed, before, after in ((1, 0.9, 0.7), (2, 0.91, 0.72)):
        start = f"runs/dense-seed{seed}"  # Each seed has a trained network of its own.
        folder = tmp_path / f"compressed{seed}"
        write_run(folder, f"rank_scale=0,energy=0.9,start={start},seed={seed}", 0.85)
        result = json.loads((folder / "result.json").read_text())
        factorized = {"accuracy": after, "loss": 1.0}
        result["start"] = {
            "run": start, "accuracy": before, "loss": 1.0, "factorized": factorized,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    settings = {setting.label: len(setting.runs) for setting in settings_of(tmp_path)}
    assert settings == {
        "SI + FD, start=runs/dense, energy 0.9": 2,
        "SI + FD, start=none, rank scale 0.5": 1,
    }
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert "| compressed2 | runs/dense-seed2 | 91.00 | 72.00 | 85.00 |" in text.splitlines()
    assert not any(line.startswith("| scratch | ") and line.count("|") == 6
                   for line in text.splitlines())  # fmt: skip


def test_the_report_states_the_numbers(runs, tmp_path):
    text = report.report([str(runs)], tmp_path)
    assert text == (tmp_path / "report.md").read_text()
    assert "## ResNet-32 on cifar10, test accuracy" in text
    row = next(x for x in text.splitlines() if x.startswith("| regular, rank scale 0.111"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["107,370", "0.2313", "20.00 M", "3"]
    assert cells[5:] == ["89.00", "1.00", "88.00 – 90.00", "1.5"]
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    interval = f"| 3 | -2.00 | {-2 - half:+.2f} to {-2 + half:+.2f} | not told apart |"
    assert f"| regular, rank scale 0.111 {interval}" in text
    assert "| 1 | -0.50 | – | no claim (fewer than 3 seeds in common) |" in text
    for name in ("accuracy_against_parameters.png", "learning_curves.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_report(runs, tmp_path):
    folders = sorted(str(path) for path in runs.iterdir())
    first = report.report(folders, tmp_path / "a")
    assert report.report(folders[::-1], tmp_path / "b") == first
    assert report.report([f"{runs}/*", str(runs)], tmp_path / "c") == first
    for name in ("report.md", "learning_curves.png", "accuracy_against_parameters.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_baseline_can_be_chosen(runs, tmp_path):
    text = report.report([str(runs)], tmp_path, baseline="regular")
    assert "Differences from **regular, rank scale 0.111**" in text
    assert "| dense | 3 | +2.00 |" in text
    with pytest.raises(RunError, match="no setting 'wide' among: dense; regular, rank"):
        report.report([str(runs)], tmp_path, baseline="wide")
    with pytest.raises(RunError, match="baseline 'rank scale' fits several settings"):
        report.report([str(runs)], tmp_path, baseline="rank scale")


def test_other_data_or_splits_get_a_table_of_their_own(runs, tmp_path):
    root = tmp_path / "runs"
    write_run(root / "a", "rank_scale=0,seed=1", 0.9)
    write_run(root / "b", "rank_scale=0,seed=2", 0.8, fingerprint="0" * 64)
    write_run(root / "c", "rank_scale=0,seed=3", 0.7, split="validation")
    text = report.report([str(root)], tmp_path / "out")
    assert "cannot be compared" in text
    assert text.count("## ResNet-32 on cifar10, test accuracy") == 2
    assert "## ResNet-32 on cifar10, validation accuracy" in text
    assert text.count("One setting, fewer than three seeds: no claim.") == 3
    assert (tmp_path / "out" / "learning_curves_3.png").exists()


def test_one_seed_twice_is_refused(runs, tmp_path):
    write_run(tmp_path / "again", "rank_scale=0,seed=2", 0.9)
    with pytest.raises(RunError, match=r"dense2.* and .*again|again.* and .*dense2") as error:
        report.report([str(runs), str(tmp_path)], tmp_path / "out")
    assert "the same experiment with the same seed 2" in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "result.json is not valid JSON"),
        (lambda content: "[]", "result.json is not a complete result: seed is None"),
        (
            lambda content: json.dumps(json.loads(content) | {"final": {"split": "test"}}),
            "result.json is not a complete result: final.accuracy is None",
        ),
    ],
)
def test_a_broken_result_is_named(tmp_path, capsys, damage, message):
    path = write_run(tmp_path / "run", "seed=1", 0.5) / "result.json"
    path.write_text(damage(path.read_text()))
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(path) in captured.err
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_runs_exit_with_2(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert report.main([str(tmp_path / "*.x")]) == 2
    assert "*.x does not exist" in capsys.readouterr().err
