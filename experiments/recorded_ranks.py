"""What a run folder tells of ranks: those in the end, those that were selected on the way there,
and what becoming low rank did to the accuracy.

    table.json        the ranks in the end, and full ranks by the shapes
    metrics.jsonl     "selection" in the lines until the switch; in that of the switch the accuracy
                      before it, and after it as switched_validation_accuracy or the like
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lowrank_jax as lrj
from experiments import run_folder
from experiments.plot_style import natural_order

Line = Mapping[str, Any]
"""One record of a metrics.jsonl."""

_SWITCHED, _ACCURACY = "switched_", "_accuracy"


class Switch(NamedTuple):
    """The moment at which a run became low rank.

    Attributes:
      epoch: that ended there.
      split: on which accuracy was measured.
      before, after: accuracies, fractions, without training in between.
    """

    epoch: float
    split: str
    before: float
    after: float


def switch(lines: Sequence[Line]) -> Switch | None:
    """When a run became low rank, by its record; None where it did not in the course of training.

    Example:
      >>> line = {"epoch": 3.0, "test_accuracy": 0.9, "switched_test_accuracy": 0.8}
      >>> switch([line])
      Switch(epoch=3.0, split='test', before=0.9, after=0.8)
    """
    for line in lines:
        for key in line:
            if key.startswith(_SWITCHED) and key.endswith(_ACCURACY):
                name = key.removeprefix(_SWITCHED)
                split = name.removesuffix(_ACCURACY)
                return Switch(line["epoch"], split, line[name], line[key])
    return None


def selecting(lines: Sequence[Line], measure: str) -> list[Line]:
    """The lines of a record in which a measure was taken that ranks are selected by."""
    return [line for line in lines if line.get("selection", {}).get(measure)]


def candidates(lines: Sequence[Line]) -> list[str]:
    """The kernels that could be factorized, from the input to the output: those that are measured
    of a dense network at its beginning. None where it has no record of that."""
    first = lines[0] if lines else {}
    return sorted(first.get("diagnostics", {}).get("frobenius_norm", {}), key=natural_order)


def table(folder: Path) -> lrj.Table | None:
    """What a run factorized in the end; None where its folder does not tell.

    Raises:
      RunError: the file is damaged.
    """
    return run_folder.read_table(folder) if (folder / run_folder.TABLE).exists() else None
