"""Reports of runs that select their ranks, beside dense ones and those that are low rank always."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from synthetic_runs import write_run
from synthetic_selections import ALWAYS, LOSS, write_all, write_selecting

from configs import cuttlefish
from experiments import comparison, machines, report
from experiments.metrics import read_metrics
from experiments.time_to_accuracy import first_reached

METHODS = [
    "dense",
    "SI + FD, rank scale 0.08",
    "Pufferfish, norms between factors",
    "Cuttlefish + FD",
]

pytestmark = pytest.mark.usefixtures("saved")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_all(root)
    return root


def settings_below(root):
    loaded = [comparison.load_run(folder) for folder in comparison.find_runs([str(root)])]
    (settings,) = comparison.settings_by_section(loaded).values()
    return settings


def table_after(text, words):
    """The first table behind some words, {first cell: {head: cell}}."""
    lines = text[text.index(words) :].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    heads, _, *body = rows
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in body}


def test_all_settings_of_the_section_and_what_selecting_took(runs, tmp_path):
    text = report.report([str(runs)], tmp_path)
    table = table_after(text, "### Selected ranks")
    assert list(table) == METHODS
    for method in METHODS[:2]:
        cells = table[method]
        assert [cells[head] for head in ("profiling (s)", "rank estimation (s)", "SVD (s)", "E",
                                         "K")] == ["–"] * 5  # fmt: skip
        assert cells["wall time (min)"] == "1.5" and cells["compilation (s)"] == "10.0"
    pufferfish, selected = table[METHODS[2]], table[METHODS[3]]
    assert (pufferfish["E"], pufferfish["K"]) == ("2", "4 of 16")
    # One kernel of stage 2 stays dense beside the four of stage 1.
    assert (selected["E"], selected["K"]) == ("4, 5", "5 of 16 (stage_1)")
    assert selected["parameters"] == (
        f"120,001 ({120001 / 464154:.2%}) to 120,002 ({120002 / 464154:.2%})"
    )
    assert selected["test accuracy (%)"] == "89.15 ± 0.07 (2)"
    assert float(selected["profiling (s)"]) == 40
    assert float(selected["rank estimation (s)"]) == pytest.approx(1.25, abs=0.051)
    assert float(selected["SVD (s)"]) == 2.5
    before = [
        next(line for line in read_metrics(runs / f"cuttlefish{seed}") if line["epoch"] == epoch)
        for seed, epoch in ((1, 4), (2, 5))
    ]
    expected = 100 * np.mean([line["test_accuracy"] for line in before])
    assert float(selected["test accuracy before the switch (%)"]) == pytest.approx(
        expected, abs=6e-3
    )
    assert float(selected["test accuracy after the switch (%)"]) == pytest.approx(
        expected - 100 * LOSS, abs=6e-3
    )
    assert "* Cuttlefish + FD, seed 2: 12 of 12 layers have settled; stage_2" in text


def test_sizes_and_selected_ranks_have_columns_of_their_own(runs, tmp_path):
    text = report.report([str(runs)], tmp_path)
    table = table_after(text, "Sizes are")
    assert {name: [head for head, cell in cells.items() if cell != "–"]
            for name, cells in table.items()} == {
        "dense": ["dense"],
        "SI + FD": ["rank scale 0.08"],
        "Pufferfish, norms between factors": ["selected ranks"],
        "Cuttlefish + FD": ["selected ranks"],
        "parameters": ["dense", "rank scale 0.08", "selected ranks"],
    }  # fmt: skip
    assert table["parameters"]["selected ranks"].startswith("120,001 ")
    for word in ("Pufferfish: dense for", "Cuttlefish: dense until", "norms between factors: a"):
        assert word in text
    assert "channel factors:" not in text


def test_its_figures(runs, saved, tmp_path):
    text = report.report([str(runs)], tmp_path)
    assert list(saved)[:2] == ["selected_ranks.png", "final_ranks.png"]
    assert text.index("(selected_ranks.png)") < text.index("(final_ranks.png)")
    panels = [axis.get_title() for axis in saved["selected_ranks.png"].axes[:-1]]
    assert panels == ["Cuttlefish + FD"]
    names = [text.get_text() for text in saved["final_ranks.png"].legends[0].get_texts()]
    assert names == [f"{method} (n = 2)" for method in METHODS[1:]]
    # No size is common to all that are smaller than the dense network.
    assert saved["nuclear_norm.png"].axes[0].get_title() == "ResNet-18, width 0.25 on fashion_small"
    assert "until the switch, and from there on those that are" in text
    labels = [
        box.get_label() for box in saved["accuracy_against_parameters.png"].axes[0].containers
    ]
    assert [label.split(" (n")[0] for label in labels] == [
        "dense", "SI + FD", "Pufferfish, norms between factors", "Cuttlefish + FD",
    ]  # fmt: skip
    curves = saved["learning_curves.png"].axes[0].get_lines()
    assert len({line.get_color() for line in curves}) == 4


def test_without_them_there_is_nothing_of_it(tmp_path, saved):
    write_run(tmp_path / "runs" / "a", f"{ALWAYS},method=full", 0.9, configs=cuttlefish)
    write_run(tmp_path / "runs" / "b", f"{ALWAYS},method=si_fd", 0.9, configs=cuttlefish)
    text = report.report([str(tmp_path / "runs")], tmp_path / "out")
    assert "elected ranks" not in text and "final_ranks.png" not in saved


def test_what_never_settles_is_told(tmp_path):
    write_selecting(tmp_path / "runs" / "a", "preset=cifar", 0.8, switch=None)
    (cells,) = table_after(
        report.report([str(tmp_path / "runs")], tmp_path / "out"), "### Selected ranks"
    ).values()
    assert (cells["E"], cells["K"]) == ("never", "16 of 16 (stage_1)")
    head = next(head for head in cells if head.endswith("before the switch (%)"))
    assert cells[head] == "–"


def test_without_diagnostics_it_is_not_known_what_stays_dense(tmp_path):
    write_selecting(tmp_path / "runs" / "a", "seed=1", 0.8, diagnostics="none")
    text = report.report([str(tmp_path / "runs")], tmp_path / "out")
    (cells,) = table_after(text, "### Selected ranks").values()
    assert cells["K"] == "– (stage_1)"


def test_a_folder_without_record_and_table_tells_less(runs, tmp_path, saved):
    folder = write_selecting(tmp_path / "runs" / "a", "seed=1", 0.8)
    for name in ("metrics.jsonl", "table.json", "kept_layers.json"):
        (folder / name).unlink()
    text = report.report([str(tmp_path / "runs")], tmp_path / "out")
    (cells,) = table_after(text, "### Selected ranks").values()
    assert (cells["E"], cells["K"]) == ("4", "–")
    assert list(saved) == []


# ------------------------------------------------------------------ settings told apart


def test_selections_are_compared_among_those_of_one_method(tmp_path):
    """Usual values of another method are no difference; neither is the kind of a dense network."""
    write_all(tmp_path, seeds=(1,))
    write_run(tmp_path / "full-conv", f"{ALWAYS},method=full,kind=conv,seed=2", 0.9,
              configs=cuttlefish)  # fmt: skip
    assert [(s.label, len(s.runs)) for s in settings_below(tmp_path)] == [
        (METHODS[0], 2), *((method, 1) for method in METHODS[1:]),
    ]  # fmt: skip
    write_selecting(tmp_path / "kept", "kept=published,seed=1", 0.9)
    write_selecting(tmp_path / "metric", "kept=published,metric=stable,seed=1", 0.9)
    write_selecting(tmp_path / "plain", "decay=plain,seed=1", 0.9)
    labels = [s.label for s in settings_below(tmp_path)]
    assert labels == [
        *METHODS[:3],
        "Cuttlefish, kept=profile, metric=scaled_stable",
        "Cuttlefish + FD, kept=profile, metric=scaled_stable",
        "Cuttlefish + FD, kept=published, metric=scaled_stable",
        "Cuttlefish + FD, kept=published, metric=stable",
    ]
    assert [s.dense for s in settings_below(tmp_path)] == [True, *[False] * 6]


# ------------------------------------------------------------------ times


def test_times_are_said_to_compare_on_one_machine(runs, tmp_path):
    text = report.report([str(runs)], tmp_path / "a")
    assert text.count(machines.ONE_MACHINE) == 3
    assert re.search(r"all of these are of 1 x cpu, .* cores\.", text)
    path = write_run(tmp_path / "runs" / "b", f"{ALWAYS},seed=3", 0.9, configs=cuttlefish)
    result = json.loads((path / "result.json").read_text())
    result["hardware"] |= {"cpu": "Another CPU", "cores": 64}
    (path / "result.json").write_text(json.dumps(result))
    write_run(tmp_path / "runs" / "c", f"{ALWAYS},seed=4", 0.9, configs=cuttlefish)
    text = report.report([str(tmp_path / "runs")], tmp_path / "out")
    assert "**These are of 2 machines: 1 x cpu, " in text and "Another CPU, 64 cores" in text


def test_profiling_comes_before_the_first_step(tmp_path):
    write_selecting(tmp_path / "a", "seed=1", 0.8)
    run = comparison.load_run(tmp_path / "a")
    reached = first_reached(run, read_metrics(run.folder), "test", 0.8 - 1e-9)
    assert reached.epoch == 6
    assert reached.minutes == pytest.approx((90 - 10) / 60)  # All of it, without compilation.
    first = first_reached(run, read_metrics(run.folder), "test", 0.01)
    assert first.minutes == pytest.approx((40 + (90 - 10 - 40) / 6) / 60)
