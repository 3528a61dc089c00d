"""The plot of the stacks shows their times, and which of them stay dense."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.plot_style import save
from experiments.stack_plot import stack_times
from lowrank_jax.rank_selection import KeptLayers, StackTime

TIMES = (StackTime("stage_1", 0.1, 0.125), StackTime("stage_2", 0.09, 0.06), StackTime("s", 1, 0.5))


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, 0), (1.5, 1), (1.75, 2)])
def test_bars_and_speed_ups(threshold, kept, tmp_path):
    figure = stack_times(KeptLayers(TIMES, threshold))
    (axis,) = figure.axes
    dense, factorized = axis.containers
    np.testing.assert_allclose([bar.get_height() for bar in dense], [100, 90, 1000])
    np.testing.assert_allclose([bar.get_height() for bar in factorized], [125, 60, 500])
    assert [text.get_text() for text in axis.texts] == ["0.80×", "1.50×", "2.00×"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["stage 1", "stage 2", "s"]
    shaded = [patch for patch in axis.patches if patch.get_label() == "stays dense"]
    assert [patch.get_x() for patch in shaded] == [place - 0.5 for place in range(kept)]
    assert f"{threshold:g}×" in axis.get_title()
    save(figure, tmp_path / "stacks.png")
    assert (tmp_path / "stacks.png").read_bytes().startswith(b"\x89PNG")
