"""Plots of ranks: what is drawn is what the record and the table say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import same_color
from synthetic_selections import (
    CHANNELS,
    KERNELS,
    SWITCH,
    TIMES,
    selected_rank,
    stable_rank,
    write_all,
    write_selecting,
)

import lowrank_jax as lrj
from experiments import files, plots, rank_plots, recorded_ranks, stack_profiling
from experiments.errors import RunError
from experiments.metrics import read_metrics
from experiments.rank_plots import FinalRanks, SelectingRun
from lowrank_jax.table import Row

CANDIDATES = [path for path in KERNELS if not path.startswith("stage_1")]
DENSE = CANDIDATES[0]
EPOCHS = np.arange(SWITCH + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_selecting(tmp_path_factory.mktemp("run") / "a", "seed=1", 0.8, dense=(DENSE,))


def of_run(folder):
    return SelectingRun("Cuttlefish", read_metrics(folder), recorded_ranks.table(folder))


def named(axis, name):
    return [line for line in axis.get_lines() if line.get_label() == name]


def until_the_switch(axis):
    return [line for line in axis.get_lines() if len(line.get_xdata()) == len(EPOCHS)]


def test_stable_ranks_stand_beside_the_ranks_that_they_say(folder):
    figure = rank_plots.while_training(of_run(folder))
    stable, selected, bar = figure.axes
    assert (stable.get_ylabel(), selected.get_ylabel()) == ("stable rank", "selected rank")
    for axis, rank in ((stable, stable_rank), (selected, selected_rank)):
        lines = until_the_switch(axis)
        assert len(lines) == len(CANDIDATES)
        for line, path in zip(lines, CANDIDATES, strict=True):
            expected = [(epoch, rank(path, epoch)) for epoch in EPOCHS]
            np.testing.assert_allclose(line.get_xydata(), expected)
        (switch,) = named(axis, "the switch to low rank")
        np.testing.assert_array_equal(switch.get_xdata(), [SWITCH, SWITCH])
        assert axis.get_xlim()[1] >= 6  # To the end of training.
    names = [label.get_text() for label in bar.get_yticklabels()]
    assert names == [path.removesuffix("/kernel") for path in CANDIDATES]
    assert bar.yaxis_inverted()


def test_from_the_switch_on_the_ranks_are_those_of_the_factors(folder):
    run = of_run(folder)
    axis = rank_plots.while_training(run).axes[1]
    (crosses,) = named(axis, "stays dense: factors would be no smaller")
    np.testing.assert_array_equal(crosses.get_xydata(), [(SWITCH, selected_rank(DENSE, SWITCH))])
    after = [line for line in axis.get_lines() if list(line.get_xdata()) == [SWITCH, 6]]
    assert [line.get_ydata()[-1] for line in after] == [row.rank for row in run.table.rows]
    before = until_the_switch(axis)[1:]
    for one, other in zip(before, after, strict=True):
        assert same_color(one.get_color(), other.get_color())
    assert len({tuple(line.get_color()) for line in before}) == len(before)


def test_a_run_that_stays_dense_has_no_switch(tmp_path):
    write_selecting(tmp_path / "run", "seed=1", 0.8, switch=None)
    stable, selected, _ = rank_plots.while_training(of_run(tmp_path / "run")).axes
    for axis in (stable, selected):
        assert [len(line.get_xdata()) for line in axis.get_lines()] == [7] * len(CANDIDATES)


def test_what_measured_nothing_has_no_plot(tmp_path):
    write_selecting(tmp_path / "run", "method=pufferfish", 0.8, profiled=False)
    run = of_run(tmp_path / "run")
    assert rank_plots.while_training(run) is None
    assert rank_plots.selected_ranks([run], "ResNet-18") is None
    assert rank_plots.final_ranks([], KERNELS, "ResNet-18") is None


def test_runs_side_by_side_share_their_colours(folder, tmp_path):
    """Of kernels that only some have, too."""
    write_selecting(tmp_path / "run", "seed=1", 0.8, switch=2)
    other = of_run(tmp_path / "run")
    for line in other.lines:
        for found in line.get("selection", {}).values():
            del found[DENSE]
    figure = rank_plots.selected_ranks([of_run(folder), other], "ResNet-18")
    *axes, _ = figure.axes
    assert [axis.get_title() for axis in axes] == ["Cuttlefish", "Cuttlefish"]
    first = until_the_switch(axes[0])[1:]
    second = [line for line in axes[1].get_lines() if len(line.get_xdata()) == 3]
    for one, two in zip(first, second, strict=True):
        assert same_color(one.get_color(), two.get_color())


def test_final_ranks_are_shares_of_full_rank(tmp_path):
    write_all(tmp_path)
    kinds = {
        label: FinalRanks(label, [recorded_ranks.table(tmp_path / f"{label}{s}") for s in (1, 2)])
        for label in ("si_fd", "pufferfish", "cuttlefish")
    }
    figure = rank_plots.final_ranks([*kinds.values()], KERNELS, "ResNet-18")
    ranks, parameters = figure.axes
    found = {line.get_label(): line.get_ydata() for line in ranks.get_lines()}
    assert list(found) == [f"{label} (n = 2)" for label in kinds]
    kept, rest = found["pufferfish (n = 2)"][:4], found["pufferfish (n = 2)"][4:]
    np.testing.assert_allclose(kept, 1)
    np.testing.assert_allclose(rest, 1 / 4)
    expected = [
        np.mean([selected_rank(path, epoch) for epoch in (4, 5)]) / CHANNELS[int(path[6])]
        for path in CANDIDATES[1:]
    ]
    np.testing.assert_allclose(found["cuttlefish (n = 2)"][4:], [1, *expected])
    # 3 x 3 from 16 to 16 channels, as 48 x r and r x 48.
    np.testing.assert_allclose(found["si_fd (n = 2)"][0], round(0.08 * 48) / 48)
    of_factors = {line.get_label(): line.get_ydata() for line in parameters.get_lines()}
    np.testing.assert_allclose(
        of_factors["si_fd (n = 2)"][0], round(0.08 * 48) * 96 / (9 * 16 * 16)
    )
    # 3 x 3 from 128 to 128 channels at rank 32.
    share = 32 * (9 * 128 + 128) / (9 * 128 * 128)
    np.testing.assert_allclose(of_factors["pufferfish (n = 2)"][-1], share)
    names = [label.get_text() for label in parameters.get_xticklabels()]
    assert names == [path.removesuffix("/kernel") for path in KERNELS]


@pytest.mark.parametrize("rank", [4, 64])
def test_of_many_kernels_some_are_named_and_what_is_larger_than_dense_is_seen(rank):
    rows = [
        Row(f"layer_{i}/up/kernel", lrj.LowRank, {}, (64, 64), rank, 2, 128 * rank)
        for i in range(108)
    ]
    settings = [FinalRanks("Cuttlefish", [lrj.Table(tuple(rows))])]
    axis = rank_plots.final_ranks(settings, [], "ResMLP-36").axes[1]
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert len(names) < 60 and (names[0], names[-1]) == ("layer_0/up", "layer_107/up")
    (line,) = axis.get_lines()
    np.testing.assert_allclose(line.get_ydata(), [rank / 32] * 108)
    assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > rank / 32


def test_a_run_draws_its_ranks_and_the_times_of_its_stacks(folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.update({path.name: figure}))
    plots.run_plots(folder)
    assert {"curves.png", "spectra.png", "selected_ranks.png", "stack_times.png"} <= drawn.keys()
    heights = [bar.get_height() for bar in drawn["stack_times.png"].axes[0].containers[0]]
    np.testing.assert_allclose(heights, [1e3 * time.dense_seconds for time in TIMES.times])
    # Of kernels that were measured all the time, and by as many values as there were.
    titles = [axis.get_title() for axis in drawn["spectra.png"].axes]
    factors = [path.removesuffix("/kernel") for path in CANDIDATES[1:]]
    assert titles == [factors[0], factors[len(factors) // 2], factors[-1]]


def test_damaged_times_are_one_clear_line(folder, tmp_path):
    files.write_text(tmp_path / "kept_layers.json", '{"threshold": 1.5}')
    with pytest.raises(RunError, match=r"kept_layers\.json is damaged: not the times of stacks"):
        stack_profiling.read(tmp_path)
    assert stack_profiling.read(folder) == TIMES
    assert stack_profiling.read(tmp_path / "nowhere") is None
