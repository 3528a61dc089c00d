"""The table of a report's section that says what selecting ranks in training took and gave.

    | ResNet-18       | parameters | … |  E |                 K | … before | … after |
    |-----------------|-----------:|---|---:|------------------:|---------:|--------:|
    | dense           |          … | … |  – |                 – |        – |       – |
    | Cuttlefish + FD |          … | … | 14 | 4 of 16 (stage_1) |        … |       … |

E and K are the names of the paper (Wang et al., "Cuttlefish", MLSys 2023, arXiv 2305.02538): the
epochs of dense training, and the kernels that are never factorized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import recorded_ranks, stack_profiling
from experiments.comparison import Run, Setting
from experiments.machines import ONE_MACHINE
from experiments.method_tables import NOTHING, parameters, row, score
from experiments.time_to_accuracy import Records

# The names of the times in `result.json`, and what the table calls them.
_SECONDS = {"profiling": "profiling", "measuring": "rank estimation", "switching": "SVD"}

_WORDS = (
    f"Wall time is end to end, from the start of the run to its end. {ONE_MACHINE}. Part of it are "
    "profiling, the timing of stacks of the network, dense and factorized; rank estimation, the "
    "stable ranks of the kernels at the beginning and after each epoch; SVD, the switch from "
    "kernels to factors; and compilation, of both networks. E: epochs of dense training before the "
    "switch. K: kernels that stay dense, of those that could be factorized (first layers, heads "
    "and the shortcuts of basic blocks never are), and the stacks that were kept for their times. "
    "Times, and accuracies at the switch, are means over the seeds; after the switch is before any "
    "further training."
)


def selection_table(settings: Sequence[Setting], records: Records) -> str:
    """All settings of a section as a Markdown table; '' where none selected ranks.

    Args:
      settings: of one section.
      records: of their runs.
    """
    if not any(_selecting(setting) for setting in settings):
        return ""
    section = settings[0].runs[0].section
    accuracy = section.measure.per_epoch
    splits = {
        switch.split
        for setting in settings
        for run in setting.runs
        if (switch := recorded_ranks.switch(records.get(run.folder, [])))
    }
    of_split = " or ".join(sorted(splits))
    heads = [
        "parameters",
        f"{section.split} {section.measure.label}",
        "wall time (min)",
        *(f"{name} (s)" for name in _SECONDS.values()),
        *("compilation (s)", "E", "K"),
        *(f"{of_split} {accuracy} {when} the switch (%)" for when in ("before", "after")),
    ]
    rows = [row(section.network, heads), f"|---|{'--:|' * len(heads)}"]
    rows += [row(setting.label, _cells(setting, records)) for setting in settings]
    remarks = [line for setting in settings for line in _remarks(setting)]
    notes = ["What the runs said at the switch:\n", *remarks, ""] if remarks else []
    return "\n".join(["### Selected ranks\n", *rows, "", f"{_WORDS}\n", *notes])


def _selecting(setting: Setting) -> list[Run]:
    """Its runs that had ranks to select."""
    return [run for run in setting.runs if run.result.get("selection")]


def _cells(setting: Setting, records: Records) -> list[str]:
    runs = _selecting(setting)
    selections = [run.result["selection"] for run in runs]
    seconds = {name: [selection["seconds"][name] for selection in selections] for name in _SECONDS}
    switches = [
        switch for run in runs if (switch := recorded_ranks.switch(records.get(run.folder, [])))
    ]
    return [
        parameters([setting]),
        score(setting),
        f"{setting.mean('wall_time_s') / 60:.1f}",
        *(_mean(values, 1) for values in seconds.values()),
        f"{setting.mean('compile_time_s'):.1f}",
        _distinct([_epoch(selection["epoch"]) for selection in selections]),
        _distinct([_kept(run, records) for run in runs]),
        _mean([100 * switch.before for switch in switches], 2),
        _mean([100 * switch.after for switch in switches], 2),
    ]


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if values else NOTHING


def _distinct(words: Sequence[str]) -> str:
    """In the order of the seeds; what all of them have, once."""
    return ", ".join(words if len({*words}) > 1 else words[:1]) or NOTHING


def _epoch(epoch: Any) -> str:
    return "never" if epoch is None else f"{epoch:g}"


def _kept(run: Run, records: Records) -> str:
    """E.g. '4 of 16 (stage_1)'."""
    every = recorded_ranks.candidates(records.get(run.folder, []))
    ranks = run.result["selection"]["ranks"]
    dense = [path for path in every if path not in ranks]
    told = f"{len(dense)} of {len(every)}" if every else NOTHING
    profile = stack_profiling.read(run.folder)
    stacks = profile.kept if profile is not None else ()
    return f"{told} ({', '.join(stacks)})" if stacks else told


def _remarks(setting: Setting) -> list[str]:
    """What each of its runs said of its selection, as the items of a list."""
    return [
        f"* {setting.label}, seed {run.seed}: {_in_one_line(remark)}"
        for run in _selecting(setting)
        if (remark := run.result["selection"]["remark"])
    ]


def _in_one_line(remark: str) -> str:
    """A remark of several lines, those that are indented being a list.

    >>> _in_one_line("two move:\\n  a: 1\\n  b: 2\\nc stays dense")
    'two move: a: 1, b: 2; c stays dense'
    """
    text = ""
    for line in remark.splitlines():
        between = (" " if text.endswith(":") else ", ") if line.startswith("  ") else "; "
        text += between + line.strip() if text else line
    return text
