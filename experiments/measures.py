"""What finished runs are judged by, task by task: accuracy, BLEU, or perplexity.

Reports and plots ask here for the name and the unit of the score, how it is read from a
`result.json`, and what stands beside it. The accuracy that a run records after each epoch is that
of images, or that of target tokens of which all before are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Result = Mapping[str, Any]
"""The content of a `result.json`."""


@dataclasses.dataclass(frozen=True)
class Beside:
    """What stands in tables beside the score; left out where it is 0 or missing everywhere.

    Attributes:
      name: with its unit.
      of: its value in the result of a run, if it has any.
      digits: after the point.
    """

    name: str
    of: Callable[[Result], float | None]
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class Measure:
    """What the runs of a task are judged by.

    Attributes:
      name: of the score.
      unit: of the score, in parentheses; '' if it has none.
      points: what differences of the score are in.
      moment: when it is measured.
      key: of `result.json`, where the score is, or what it is computed from.
      computed: the score from what is written there.
      factor: from the score to its unit.
      beside: what is told beside the score.
      notes: sentences about the score in some results.
      lower_is_better: of the score.
      per_epoch: what the accuracy is called that is recorded after each epoch.
      loss: what the loss is called that is recorded after each epoch.
      counted: what a batch has `batch_size` of.
    """

    name: str
    unit: str
    points: str
    moment: str
    key: str
    factor: float
    per_epoch: str
    loss: str
    counted: str
    beside: Sequence[Beside] = ()
    notes: Callable[[Sequence[Result]], list[str]] = lambda results: []
    lower_is_better: bool = False
    computed: Callable[[float], float] = float

    @property
    def label(self) -> str:
        """The score and its unit.

        Example:
          >>> [of_task(task).label for task in ("classification", "translation")]
          ['accuracy (%)', 'BLEU']
        """
        return f"{self.name}{self.unit}"

    @property
    def title(self) -> str:
        """The name at the beginning of a sentence."""
        return self.name[0].upper() + self.name[1:]

    def written(self, result: Result) -> float:
        """The score of a run, without `factor`."""
        return self.computed(value_at(result, self.key))

    def told(self, result: Result) -> str:
        """The score of a run in words.

        Example:
          >>> of_task("classification").told({"final": {"accuracy": 0.5}})
          'accuracy 50.00%'
          >>> of_task("causal_language_model").told({"final": {"loss": 3.0}})
          'perplexity 20.09'
        """
        score = self.factor * self.written(result)
        return f"{self.name} {score:.2f}{'%' if self.factor == 100 else ''}"


def value_at(content: Any, key: str) -> Any:
    """What a nested dict has at a dotted key; None where it has nothing.

    Example:
      >>> value_at({"final": {"split": "test"}, "best": None}, "final.split")
      'test'
    """
    for part in key.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def _signature(results: Sequence[Result]) -> list[str]:
    """The signature of sacreBLEU, which says how it was computed; several make no comparison."""
    found = sorted({str(value_at(result, "scores.signature")) for result in results})
    notes = [
        "BLEU is sacreBLEU's, of the test set translated by beam search with the network of the "
        f"best validation loss; signature {', '.join(f'`{signature}`' for signature in found)}. "
        "Tokenised BLEU is of lower-cased tokens, without smoothing (`experiments.bleu`)."
    ]
    if len(found) > 1:
        notes.append(
            "**Warning: the runs differ in the signature: their scores cannot be compared.**"
        )
    return notes


_ACCURACY = Measure(
    name="accuracy",
    unit=" (%)",
    points="percentage points",
    moment="final",
    key="final.accuracy",
    factor=100,
    per_epoch="accuracy",
    loss="loss",
    counted="examples",
)

_BLEU = Measure(
    name="BLEU",
    unit="",
    points="BLEU points",
    moment="best-epoch",
    key="scores.sacrebleu",
    factor=1,
    per_epoch="token accuracy",
    loss="loss per target token",
    counted="tokens",
    beside=(
        Beside("tokenised BLEU", lambda result: value_at(result, "scores.tokenised")),
        Beside("exact match (%)", lambda result: value_at(result, "scores.exact_match"), digits=1),
        Beside("best validation loss", lambda result: value_at(result, "best.loss"), digits=3),
    ),
    notes=_signature,
)


_UNIGRAM = Beside("unigram loss", lambda result: value_at(result, "scores.unigram_loss"), digits=3)

_MASKED_ACCURACY = dataclasses.replace(
    _ACCURACY,
    name="masked accuracy",
    per_epoch="masked accuracy",
    loss="loss per masked token",
    counted="blocks",
    beside=(
        Beside("masked loss", lambda result: value_at(result, "final.loss"), digits=3),
        _UNIGRAM,
    ),
)

_PERPLEXITY = Measure(
    name="perplexity",
    unit="",
    points="units of perplexity",
    moment="final",
    key="final.loss",
    computed=lambda loss: float(np.exp(loss)),
    factor=1,
    notes=lambda results: ["Of two perplexities the lower one is the better one."],
    lower_is_better=True,
    per_epoch="next-token accuracy",
    loss="loss per token",
    counted="blocks",
    beside=(Beside("loss", lambda result: value_at(result, "final.loss"), digits=3), _UNIGRAM),
)

_TEXT_ACCURACY = dataclasses.replace(
    _ACCURACY,
    beside=(
        Beside(
            "most frequent class (%)",
            lambda result: 100 * (value_at(result, "scores.majority_accuracy") or 0),
        ),
    ),
)


MEASURES = {
    "causal_language_model": _PERPLEXITY,
    "classification": _ACCURACY,
    "masked_language_model": _MASKED_ACCURACY,
    "text_classification": _TEXT_ACCURACY,
    "translation": _BLEU,
}


def of_task(task: str) -> Measure:
    """The measure of the runs of a task."""
    return MEASURES[task]


def of_result(result: Result) -> Measure:
    """The measure of the task that a `result.json` names; of images if it names none."""
    return MEASURES.get(str(value_at(result, "config.task")), _ACCURACY)
