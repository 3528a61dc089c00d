"""The plot of a benchmark: the step's time relative to PyTorch's, or to plain lax without PyTorch.

One dot per network, rank and implementation, with its 95 % interval; a line where both are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmark.contenders import IMPLEMENTATIONS, weights
from experiments.plot_style import COLOURS


def ratios(record: Mapping[str, Any]) -> Figure | None:
    """The figure, or None where no ratio was measured."""
    networks = record["sections"].get("step", {}).get("networks", [])
    found = [row["ratio_to"] for network in networks for row in network["contenders"]]
    rival = next((name for name in ("torch", "lax") if any(name in r for r in found)), None)
    if rival is None:
        return None
    several = len({network["precision"] for network in networks}) > 1
    # From top to bottom; one line per network and rank, implementations a little apart on it.
    lines: dict[str, dict[str, Mapping[str, Any]]] = {}
    for network in networks:
        for row in network["contenders"]:
            if rival in row["ratio_to"]:
                precision = f", {network['precision']}" if several else ""
                label = f"{network['title']}{precision}\n{weights(row['rank_scale'])}"
                lines.setdefault(label, {})[row["implementation"]] = row["ratio_to"][rival]
    figure = Figure(figsize=(6.8, 1.6 + 0.62 * len(lines)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(1, color="#666666", linewidth=1, linestyle="--")
    shown = [name for name in IMPLEMENTATIONS if any(name in dots for dots in lines.values())]
    for index, name in enumerate(shown):
        places = [place for place, dots in enumerate(lines.values()) if name in dots]
        dots = [line[name] for line in lines.values() if name in line]
        medians = [dot["median"] for dot in dots]
        # Where there are too few samples for an interval, there is no bar.
        lows = [dot["median"] if dot["low"] is None else dot["low"] for dot in dots]
        highs = [dot["median"] if dot["high"] is None else dot["high"] for dot in dots]
        bars = [np.subtract(medians, lows), np.subtract(highs, medians)]
        axis.errorbar(
            medians, [place + 0.16 * (index - (len(shown) - 1) / 2) for place in places],
            xerr=bars, fmt="os^"[index], markersize=6, capsize=3,
            color=COLOURS[index], label=IMPLEMENTATIONS[name],
        )  # fmt: skip
    axis.set_yticks(range(len(lines)), list(lines))
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"time per step / {IMPLEMENTATIONS[rival]} (below 1 is faster)")
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(shown), frameon=False)
    return figure
