"""The sections of the benchmark, in the order they run in.

A new section is a file with `measure` and `table`, and an entry here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from experiments.benchmark import data_rate, decay_cost, initialization_time, steps, variants
from experiments.benchmark.alternation import Say
from experiments.benchmark.options import Options
from experiments.errors import RunError


class Section(NamedTuple):
    """A part of the benchmark.

    Attributes:
      title: its heading.
      measure: yields its record, plain data for JSON; several times where it grows, and each time
        what there is is saved.
      table: the record in Markdown.
    """

    title: str
    measure: Callable[[Options, Say], Iterator[dict[str, Any]]]
    table: Callable[[dict[str, Any]], str]


SECTIONS = {
    "step": Section("Training step", steps.measure, steps.table),
    "decay": Section("Decay update", decay_cost.measure, decay_cost.table),
    "initialization": Section(
        "Spectral initialization", initialization_time.measure, initialization_time.table
    ),
    "variants": Section("Options of the step", variants.measure, variants.table),
    "data": Section("Data pipeline", data_rate.measure, data_rate.table),
}


def choose(names: str | None) -> list[str]:
    """The sections in a list such as 'step,decay', in their own order; all for None.

    Raises:
      RunError: a name that is none of them, or no name at all.
    """
    if names is None:
        return list(SECTIONS)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in SECTIONS:
            near = difflib.get_close_matches(name, SECTIONS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise RunError(f"unknown section {name!r}{hint}; known are {', '.join(SECTIONS)}")
    if not asked:
        raise RunError(f"--only={names!r}: expected at least one of {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in asked]
