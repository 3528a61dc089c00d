"""The tables of a report's section that papers print: methods down, sizes across, scores in it, the
network in its corner; and compact models beside the networks that were trained for them.

    | VGG-19      | dense            | ratio 0.1        | ratio 0.05       |
    |-------------|-----------------:|-----------------:|-----------------:|
    | dense       | 91.20 ± 0.11 (3) |                – |                – |
    | SI + FD     |                – | 90.35 ± 0.20 (3) | 88.92 ± 0.31 (3) |
    | parameters  |          464,154 |  46,425 (10.00%) |   23,190 (5.00%) |

A size is what was asked for; the parameters are those that came of it. Methods that select ranks
in training ask for none, and share a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import setting_names
from experiments.comparison import Setting

NOTHING = "–"


def method_table(settings: Sequence[Setting]) -> str:
    """The settings of one section as a Markdown table, with what its words mean below it.

    Args:
      settings: in the order in which methods are to stand; sizes stand from large to small.
    """
    methods = list(dict.fromkeys(setting.method for setting in settings))
    columns = sorted({_column(setting) for setting in settings})
    cells = {(setting.method, _column(setting)): setting for setting in settings}
    section = settings[0].runs[0].section
    rows = [
        f"| {section.network} | {' | '.join(head for *_, head in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for method in methods:
        found = [cells.get((method, column)) for column in columns]
        rows.append(row(method, [score(setting) if setting else NOTHING for setting in found]))
    for name, pruned in (("parameters", False), ("nonzero parameters, pruning", True)):
        if any(setting.pruned == pruned for setting in settings):
            counted = [
                [s for s in settings if _column(s) == column and s.pruned == pruned]
                for column in columns
            ]
            rows.append(row(name, [parameters(column) for column in counted]))
    split, measure = section.split.capitalize(), section.measure
    notes = [f"{split} {measure.label}: mean ± standard deviation over seeds (number of seeds)."]
    notes += measure.notes([run.result for setting in settings for run in setting.runs])
    words = setting_names.explanations(methods)
    if words:
        notes.append(f"{'; '.join(words)}.")
    if any(setting.pruned for setting in settings):
        notes.append(
            "Pruning: its parameters are those that are not zero. Neither masks nor the indices of "
            "a sparse format are counted, and the kernels stay dense in memory and time."
        )
    return "\n".join([*rows, "", *notes]) + "\n"


def compact_table(settings: Sequence[Setting]) -> str:
    """What was trained with more parameters than it is used with, as a Markdown table; '' if none.

    Args:
      settings: of one section; of the others only the dense network is told of, above them.
    """
    merged = [setting for setting in settings if _compact(setting)]
    if not merged:
        return ""
    section = settings[0].runs[0].section
    rows = [
        "Trained with more parameters than it is used with: after training the factors are merged "
        "into the dense kernels that they stand for. Logits differ by at most the given share of "
        "the largest.\n",
        f"| {section.network} | training parameters | compact parameters | seeds | "
        f"{section.split} {section.measure.per_epoch} of the factors (%) | merged (%) "
        "| difference of the logits |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for setting in [*(s for s in settings if s.dense), *merged]:
        compact = _compact(setting)
        count, mean, difference = [NOTHING] * 3
        if compact:
            counts = sorted({found["parameters"] for found in compact})
            count = " to ".join(f"{found:,}" for found in counts)
            mean = f"{100 * np.mean([found['accuracy'] for found in compact]):.2f}"
            difference = f"{max(found['logit_difference'] for found in compact):.1e}"
        rows.append(
            row(
                setting.label,
                [
                    *(f"{setting.parameters:,}", count, str(len(setting.runs))),
                    *(f"{100 * setting.accuracies.mean():.2f}", mean, difference),
                ],
            )
        )
    return "\n".join(rows) + "\n"


def _compact(setting: Setting) -> list[Mapping[str, Any]]:
    """What the results of its runs say about the network that the factors were merged into."""
    return [compact for run in setting.runs if (compact := run.result.get("compact"))]


def row(name: str, cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {name} | {' | '.join(cells)} |"


def score(setting: Setting) -> str:
    """Mean ± standard deviation over the seeds, and their number."""
    scores = setting.scores
    deviation = f" ± {scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
    return f"{scores.mean():.2f}{deviation} ({len(scores)})"


def parameters(settings: Sequence[Setting]) -> str:
    """The number, and its share of the dense network's; from fewest to most where they differ."""
    counts = {run.result["parameters"]: run.result["ratio"] for s in settings for run in s.runs}
    ends = [f"{count:,} ({counts[count]:.2%})" for count in sorted(counts)]
    return " to ".join([ends[0], *ends[1:][-1:]]) if ends else NOTHING


def _column(setting: Setting) -> tuple[int, str, float, str]:
    """What to sort columns by, and the head of the column at its end.

    Dense networks come first, then each kind of size from large to small, and the ranks that are
    selected in training last.
    """
    if setting.size:
        key, value = setting.size
        return 1, key, -value, setting_names.size_name(setting.size)
    return (2, "", 0.0, "selected ranks") if setting.selects_ranks else (0, "", 0.0, "dense")
