"""Translation: bucketed batches of token rows, label-smoothed cross-entropy, BLEU at the end.

With target distribution p over V tokens and smoothing e, the loss of one target token t is

    (1 - e) * (-log p_t) + e / V * sum_v (-log p_v),

padding left out (Szegedy et al., CVPR 2016, arXiv 1512.00567, section 7). What is minimized is its
mean over the target tokens of a batch. Beside it are reported, per target token, the accuracy of
the likeliest next token and `nll`, the loss without smoothing.

The best epoch is the one of the lowest validation loss. At the end its network translates the test
set by beam search, which is scored against the references as they are (`experiments/bleu.py`) and
written to `translations.txt`. The vocabulary is kept in the run folder, `vocabulary.model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import files
from experiments.bleu import bleu
from experiments.data.buckets import Buckets
from experiments.data.translation_data import TokenPairs, TranslationData, load_translation
from experiments.data.vocabulary import UnlearnedVocabulary, Vocabulary
from experiments.decoding.translate import translate
from experiments.result import Data
from experiments.special_tokens import BOS, EOS, PAD
from experiments.state import Variables
from experiments.tasks import vocabulary_kept
from experiments.tasks.held_out import ONE_DEVICE, Place
from experiments.tasks.task import Batch, Selection
from experiments.tasks.text_network import TextNetwork
from experiments.tasks.vocabulary_kept import (
    KeepsVocabulary,
    require_text_config,
    vocabulary_of,
)

TRANSLATIONS = "translations.txt"


class Rows(NamedTuple):
    """Token ids of sentence pairs, padded: source and target, int32 ``(..., length)``."""

    source: Any
    target: Any


class Network(TextNetwork):
    """See `TextNetwork`. The target rows of its input are what the model is given, and `length` is
    that of the rows that multiply-adds are counted for."""

    def example(self, tokens: int) -> Rows:
        """The shape of the model's input with about this many tokens on each side."""
        shape = (max(1, tokens // self.length), min(tokens, self.length))
        return Rows(*(jax.ShapeDtypeStruct(shape, jnp.int32) for _ in range(2)))

    def random_inputs(self, key: jax.Array, tokens: int) -> Rows:
        """Input of the shape of `example`, to time the model with: no token is padding."""
        highest, keys = self.model.vocab_source, jax.random.split(key)
        shapes = self.example(tokens)
        return Rows(
            *(
                jax.random.randint(key, rows.shape, EOS + 1, highest, rows.dtype)
                for key, rows in zip(keys, shapes, strict=True)
            )
        )


def network(config: ConfigDict) -> Network:
    """The network of a settled config; the text need not be there.

    Raises:
      RunError: the model is unknown, or refuses a value.
    """
    size = config.vocabulary_size
    return Network.of(config, config.max_length, vocab_source=size, vocab_target=size)


@dataclasses.dataclass(frozen=True)
class Translation(KeepsVocabulary):
    """The task, its data on the host.

    Attributes:
      network: the dense network.
      data: name, origin and fingerprint of what was loaded, and of its vocabulary.
      text: the data.
      splits: of ``train`` the rows; of ``validation`` and ``test`` batches of rows, one `Rows` of
        arrays ``(batches, rows, length)`` for each length.
      buckets: of the training rows.
      seed: of the data order.
      label_smoothing: see the module.
      decoding: `beam`, `length_penalty` and `max_length` of the beam search at the end.
    """

    network: Network
    data: Data
    text: TranslationData
    splits: dict[str, Any]
    buckets: Buckets
    seed: int
    label_smoothing: float
    decoding: Mapping[str, Any]
    selects: ClassVar[Selection] = Selection("validation", "loss", kept=True)
    unit: ClassVar[str] = "tokens"

    @classmethod
    def load(cls, config: ConfigDict, folder: Path | None = None) -> Translation:
        """From a settled config, and what is kept in the folder of the run.

        Raises:
          RunError: the text cannot be had, the vocabulary's size does not suit it, or the config
            asks for what is for images.
        """
        require_text_config(config, ("linear",))
        made = network(config)
        text = load_translation(
            **config.data,
            vocabulary=vocabulary_of(config, folder),
            max_length=config.max_length,
        )
        train = text.splits["train"]
        splits: dict[str, Any] = {"train": Rows(train.source, train.target)}
        for split in ("validation", "test"):
            splits[split] = list(_batches(text.splits[split], config.batch_size))
        return cls(
            vocabulary=text.vocabulary,
            counts=text.counts,
            network=made,
            data=Data(text.name, text.origin, text.fingerprint, text.vocabulary.digest),
            text=text,
            splits=splits,
            buckets=Buckets(train.lengths, config.batch_size),
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            decoding=config.decoding.to_dict(),
        )

    @classmethod
    def abstract(cls, config: ConfigDict) -> Translation:
        """The task with shapes of rows in their place, a batch of each length; how many there are
        is not known.

        Raises:
          RunError: the config asks for what is for images.
        """
        require_text_config(config, ("linear",))
        buckets = Buckets.of_every_length(config.max_length, config.batch_size)
        vocabulary = UnlearnedVocabulary(config.vocabulary_size)

        def rows(*shape: int) -> Rows:
            return Rows(*(jax.ShapeDtypeStruct(shape, jnp.int32) for _ in range(2)))

        held_out = [rows(1, bucket.size, bucket.length) for bucket in buckets.buckets]
        examples = sum(bucket.size for bucket in buckets.buckets)
        name = config.data.name
        return cls(
            vocabulary=vocabulary,
            counts={},
            network=network(config),
            data=Data(name, "shapes alone", "", ""),
            text=TranslationData(name, "shapes alone", vocabulary, {}, {}, "", {}),
            splits={
                "train": rows(examples, config.max_length),
                "validation": held_out,
                "test": held_out,
            },
            buckets=buckets,
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            decoding=config.decoding.to_dict(),
        )

    def sizes(self) -> dict[str, int]:
        """The number of sentence pairs of each split."""
        return {split: len(pairs.source) for split, pairs in self.text.splits.items()}

    def usage(self) -> str:
        """From token ids to logits."""
        return (
            "    logits = model.apply(variables, source, target_in, False)\n"
            f"token ids of {vocabulary_kept.FILE_NAME} in the run folder: source ends with EOS "
            f"({EOS}), target_in begins with BOS ({BOS}), both filled up with PAD ({PAD})"
        )

    def batches(self, epoch: int) -> list[Batch]:
        """The shapes of an epoch's batches, in order."""
        return [Batch(b.size, b.length) for b in self.buckets.batches(self.seed, epoch)]

    def order(self, epoch: int) -> jax.Array:
        """The training pairs of an epoch, batch after batch."""
        return jnp.asarray(self.buckets.order(self.seed, epoch))

    def batch(
        self, arrays: Mapping[str, Any], indices: jax.Array, epoch: jax.Array, shape: Batch
    ) -> Rows:
        """The rows of these pairs, as long as the batch is."""
        return Rows(*(side[indices, : shape.length] for side in arrays["train"]))

    def loss(
        self, params: Any, model_state: Any, batch: Rows, noise: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Mean smoothed cross-entropy per target token; beside it sums over the batch."""
        logits: Any = self.network.model.apply(
            {"params": params, **model_state},
            batch.source,
            _given(batch.target),
            True,
            rngs={"dropout": noise},
        )
        sums = self._sums(logits, batch.target)
        del sums["nll"]
        return sums["loss"] / sums["count"], (model_state, sums)

    def evaluate(
        self,
        params: Any,
        model_state: Any,
        split: Sequence[Rows],
        place: Place = ONE_DEVICE,
    ) -> dict[str, jax.Array]:
        """Sums over a held-out split: ``loss``, ``nll``, ``correct`` and ``count``, of tokens."""

        def measure(rows: Rows) -> dict[str, jax.Array]:
            rows = place.put(rows)
            inputs = Rows(rows.source, _given(rows.target))
            return self._sums(self.network.apply(params, model_state, inputs), rows.target)

        every = [
            jax.tree.map(lambda sums: jnp.sum(sums, axis=0), jax.lax.map(measure, rows))
            for rows in split
        ]
        return jax.tree.map(lambda *sums: sum(sums), *every)

    def logits(self, params: Any, model_state: Any, split: Sequence[Rows]) -> jax.Array:
        """Logits of the first batch of each length, one after the other: ``(tokens, V)``."""
        firsts = [Rows(rows.source[0], _given(rows.target[0])) for rows in split]
        every = [self.network.apply(params, model_state, rows) for rows in firsts]
        return jnp.concatenate([logits.reshape(-1, logits.shape[-1]) for logits in every])

    def scores(
        self, variables: Variables, folder: Path, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """BLEU and exact matches of the test set, translated by beam search."""
        sources, references = self.text.texts["test"]
        say(f"translating {len(sources)} test sentences with a beam of {self.decoding['beam']}")
        rows = self.text.splits["test"].source
        found = translations(self.network, self.vocabulary, self.decoding, variables, rows, say)
        files.write_text(folder / TRANSLATIONS, _side_by_side(sources, references, found))
        score = bleu(found, references)
        return {"split": "test", **dataclasses.asdict(score)}

    def _sums(self, logits: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
        real = target != PAD
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        nll = normalizer - chosen
        # The mean over the vocabulary of -log p.
        spread = normalizer - jnp.mean(logits, axis=-1)
        loss = (1 - self.label_smoothing) * nll + self.label_smoothing * spread
        correct = jnp.argmax(logits, axis=-1) == target
        return {
            "loss": jnp.sum(jnp.where(real, loss, 0.0)),
            "nll": jnp.sum(jnp.where(real, nll, 0.0)),
            "correct": jnp.sum(real & correct),
            "count": jnp.sum(real),
        }


def translations(
    network: Network,
    vocabulary: Vocabulary,
    decoding: Mapping[str, Any],
    variables: Variables,
    source: np.ndarray,
    say: Callable[[str], None],
) -> list[str]:
    """The text of the best hypothesis for each source row.

    Args:
      network, vocabulary: of a run.
      decoding: `beam`, `length_penalty` and `max_length`.
      variables: of the network.
      source: token ids `(rows, length)`, filled up with PAD.
      say: where progress lines go.
    """
    rows = translate(
        network.in_float32.model,
        {"params": variables.params, **variables.model_state},
        source,
        beam=decoding["beam"],
        length_penalty=decoding["length_penalty"],
        longest=decoding["max_length"],
        progress=lambda done: say(f"translated {done} of {len(source)}"),
    )
    # A vocabulary can spell the end of a line, and a translation is one line.
    return [" ".join(vocabulary.decode(row).split("\n")) for row in rows]


def _given(target: jax.Array) -> jax.Array:
    """What the model is given to predict a target row from: BOS and the targets but the last."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)


def _batches(pairs: TokenPairs, tokens: int) -> Iterable[Rows]:
    """All pairs of a split in batches of about one length; what fills up the last is padding."""
    buckets = Buckets(pairs.lengths, tokens)
    for number, bucket in enumerate(buckets.buckets):
        members = buckets.members(number)
        count = -(-len(members) // bucket.size)
        sides = []
        for side in (pairs.source, pairs.target):
            rows = np.full((count * bucket.size, bucket.length), PAD, np.int32)
            rows[: len(members)] = side[members, : bucket.length]
            sides.append(rows.reshape(count, bucket.size, bucket.length))
        yield Rows(*sides)


def _side_by_side(*columns: Sequence[str]) -> str:
    """Source, reference and translation of each sentence, one below the other."""
    return "".join(
        f"source       {source}\nreference    {reference}\ntranslation  {found}\n\n"
        for source, reference, found in zip(*columns, strict=True)
    )
