"""The plot of a network's stacks: what each takes dense and factorized, and which stay dense."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.plot_style import COLOURS, DENSE_COLOUR, legend_below, panels
from lowrank_jax.rank_selection import KeptLayers

_SHADE = "#f3f3f3"


def stack_times(profile: KeptLayers) -> Figure:
    """Two bars for each stack, from the input to the output, with the speed-up on the second."""
    places = np.arange(len(profile.times))
    names = [time.name.replace("_", " ") for time in profile.times]
    dense = 1e3 * np.array([time.dense_seconds for time in profile.times])
    factorized = 1e3 * np.array([time.factorized_seconds for time in profile.times])
    with panels(1, 1, (max(4.4, 2.2 + 1.3 * len(places)), 3.6)) as (figure, [axis]):
        axis.bar(places - 0.2, dense, 0.38, color=DENSE_COLOUR, label="dense")
        bars = axis.bar(places + 0.2, factorized, 0.38, color=COLOURS[0], label="factorized")
        axis.bar_label(bars, [f"{time.speed_up:.2f}×" for time in profile.times], padding=2)
        for place, time in zip(places, profile.times, strict=True):
            if time.name in profile.kept:
                axis.axvspan(place - 0.5, place + 0.5, color=_SHADE, zorder=0, label="stays dense")
        axis.set_xticks(places, names)
        axis.grid(visible=False, axis="x")
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.margins(y=0.12)
        axis.set_ylabel("forward and backward (ms)")
        axis.set_title(f"stacks stay dense until one is {profile.threshold:g}× faster")
        legend_below(figure, [axis])
    return figure
