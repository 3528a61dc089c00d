"""Diagnostics in, decision out: what every way of choosing ranks has in common.

Training starts dense. Before every epoch a selector measures the parameters, and what it has
measured so far, the *history*, decides: train on as it is, or restructure now. The history is plain
data, and the decision a pure function of it: a run that stores its history as JSON resumes with the
same decision, and the decision on a stored history says which form the stored parameters have.

Ranks are chosen for *candidates*: a table of dense kernels, resolved as the kinds of weight that
they are to become. Kernels that shall stay dense are left out by the rules that make it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from lowrank_jax.table import Table

Measured = dict[str, dict[str, float]]
"""What was measured at one moment: ``{measure: {path: value}}``, ready for JSON."""

History = Sequence[Measured]
"""What was measured so far: first at the initialization, then after each epoch of training."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Train the next epoch on parameters of the form they have.

    Attributes:
      remark: for the log; empty if there is nothing to say.
    """

    remark: str = ""

    def __str__(self) -> str:
        return self.remark


@dataclasses.dataclass(frozen=True)
class Restructure:
    """Factorize now what the table names, and select no more.

    Attributes:
      table: for :func:`lowrank_jax.restructure.switch`.
      remark: for the log: why now, and which candidates stay dense.
    """

    table: Table
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.remark}\n{self.table}".lstrip()


Decision = Keep | Restructure


class RankSelector(Protocol):
    """When to factorize, and at which ranks.

    Attributes:
      candidates: the kernels that may be factorized, as the kinds of weight they would become.
    """

    @property
    def candidates(self) -> Table: ...

    def measure(self, params: Any) -> Measured:
        """What the decisions depend on, measured on parameters whose candidates are dense.

        Raises:
          ValueError, TypeError: as :func:`lowrank_jax.rank_selection.stable_ranks`.
        """
        ...

    def decide(self, history: History) -> Decision:
        """What to do before epoch ``len(history) - 1``, counted from 0.

        A pure function. Once it says :class:`Restructure`, it says so of every longer history.

        Raises:
          ValueError: the history is empty, or not what this selector has measured.
        """
        ...


def epochs_trained(history: History) -> int:
    """How many epochs came before the last measurement.

    Raises:
      ValueError: nothing was measured.
    """
    if not history:
        raise ValueError("the history is empty: measure the initialization before training")
    return len(history) - 1


def require_epoch(name: str, epoch: int) -> None:
    """Raises ValueError unless this many epochs can be trained."""
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise ValueError(f"{name}={epoch!r}: expected a whole number of epochs >= 0")
