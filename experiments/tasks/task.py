"""What the training loop asks of a task: its batches, its loss, its metrics, and its network.

    splits                 the data on the host, or streams of it, by split
    remarks(), files()     what is to be said about it, and to be kept of it
    description(), usage() what the network expects, for those to whom it is exported
    batches(epoch)         the shapes of an epoch's batches, in order
    order(epoch)           the examples of an epoch, in order
    batch(arrays, indices, epoch, shape)      what the loss of a batch is computed from
    loss(params, model_state, batch, noise)   the mean that is minimized, and sums to report
    evaluate(params, model_state, split, place)  the same sums over a split
    logits(params, model_state, split)        to compare two forms of a network by
    scores(variables, folder, say)            what is measured once, at the end

The loop knows no more of a task than this, so a new one is a file beside `classification.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax

from experiments.result import Data
from experiments.tasks.held_out import ONE_DEVICE, Place


@dataclasses.dataclass(frozen=True)
class Batch:
    """The shape of a batch; one compiled step each.

    Attributes:
      size: examples.
      length: positions of each example, where the examples are text cut to one length.
    """

    size: int
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the best epoch is found: the split that is looked at, and which of its measures.

    Attributes:
      split: of the data.
      measure: the highest accuracy, or the lowest loss.
      kept: whether the network of the best epoch is kept, to be measured at the end.
    """

    split: str
    measure: Literal["accuracy", "loss"]
    kept: bool = False

    def better(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether the first of two sets of measures, by name, is the better one.

        >>> Selection("validation", "loss").better({"loss": 1.0}, {"loss": 2.0})
        True
        """
        if self.measure == "accuracy":
            return one["accuracy"] > other["accuracy"]
        return one["loss"] < other["loss"]


class Task(Protocol):
    """See the module."""

    @property
    def network(self) -> Any:
        """The dense network: see `experiments.state.plan`, and `in_forms`."""

    @property
    def data(self) -> Data:
        """What was loaded."""

    @property
    def splits(self) -> Mapping[str, Any]:
        """Arrays by split name, or where these do not fit into memory, streams: what
        `experiments/feed.py` makes the arguments of `batch` and `evaluate` of. Always ``train`` and
        ``test``, and ``validation`` if one is held out."""

    @property
    def selects(self) -> Selection | None:
        """How the best epoch is found; ``None``: no selection."""

    @property
    def unit(self) -> str:
        """What is counted in the sums, such as ``"examples"``."""

    def sizes(self) -> Mapping[str, int]:
        """The number of examples of each split."""

    def remarks(self) -> Sequence[str]:
        """Lines about what was found in the data, to be said when a run begins."""

    def files(self) -> Mapping[str, bytes]:
        """What is kept in the run folder beside the checkpoints, by file name."""

    def description(self) -> Mapping[str, Any]:
        """What the network expects, as plain data, for the manifest of an export."""

    def usage(self) -> str:
        """How the network is applied to its `variables`, in lines to be printed."""

    def batches(self, epoch: int) -> Sequence[Batch]:
        """The shapes of an epoch's batches, in order; every epoch has as many."""

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch, int32, a function of the seed alone; of
        a stream, which has them in that order, the places in it."""

    def batch(
        self, arrays: Mapping[str, Any], indices: jax.Array, epoch: jax.Array, shape: Batch
    ) -> Any:
        """What the loss of these training examples is computed from; examples lead every axis."""

    def loss(
        self, params: Any, model_state: Any, batch: Any, noise: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """The mean loss of a batch; beside it the new model state, and sums over what was counted:
        ``loss``, ``correct`` and ``count``. `noise` is the key of what is random in the network."""

    def evaluate(
        self, params: Any, model_state: Any, split: Any, place: Place = ONE_DEVICE
    ) -> dict[str, jax.Array]:
        """The same sums over a split, or the part of it that the feed gives, in evaluation mode;
        other scalars beside them are sums, too, and are reported as means under their names. Its
        batches are split over devices as `place` says."""

    def logits(self, params: Any, model_state: Any, split: Any) -> jax.Array:
        """Logits in evaluation mode of a split, or of enough of it to compare networks by."""

    def scores(
        self, variables: Any, folder: Path, say: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """What is measured once, with the selected network, and written to the run folder; None
        where that is all in the sums."""
