"""Masked language modelling (Devlin et al., NAACL 2019; arXiv 1810.04805): which subwords were
masked, as `experiments/data/masking.py` draws them, from what stands before and behind them.

Every block of text is a row of its own. The next-sentence task of the publication is left out, as
in RoBERTa (Liu et al. 2019, arXiv 1907.11692).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.data.masking import mask, number_of_places
from experiments.special_tokens import BOS, MASK
from experiments.tasks import vocabulary_kept
from experiments.tasks.language_modelling import Asked, LanguageModelling
from experiments.tasks.text_network import TextNetwork


class MaskedRows(NamedTuple):
    """The network's input: token ids `(batch, length)`, and the places `(batch, asked)` whose
    logits are wanted; int32."""

    tokens: Any
    places: Any


class Network(TextNetwork):
    """See `TextNetwork`."""

    def example(self, batch_size: int) -> MaskedRows:
        """The shape of the model's input."""
        (tokens,) = super().example(batch_size)
        shape = (batch_size, number_of_places(self.length))
        return MaskedRows(tokens, jax.ShapeDtypeStruct(shape, jnp.int32))

    def random_inputs(self, key: jax.Array, batch_size: int) -> MaskedRows:
        """Input of the shape of `example`, to time the model with."""
        (tokens,) = super().random_inputs(key, batch_size)
        _, places = self.example(batch_size)
        return MaskedRows(tokens, jax.random.randint(key, places.shape, 0, self.length))


def network(config: ConfigDict) -> Network:
    """The network of a settled config; the text need not be there.

    Raises:
      RunError: the model is unknown, or refuses a value.
    """
    return Network.of(config, config.block_length, vocabulary=config.vocabulary_size)


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelling(LanguageModelling):
    """The task: see `LanguageModelling`."""

    unit: ClassVar[str] = "masked tokens"
    first_asked: ClassVar[int] = MASK + 1

    build = staticmethod(network)

    def ask(self, blocks: jax.Array, keys: jax.Array) -> Asked:
        """Some subwords of each block, masked."""
        masked = jax.vmap(mask, in_axes=(0, 0, None))(keys, blocks, self.vocabulary.size)
        return Asked(MaskedRows(masked.tokens, masked.places), masked.targets, masked.counted)

    def usage(self) -> str:
        """From token ids to logits."""
        return (
            "    logits = model.apply(variables, tokens, places, False)\n"
            f"tokens: ids of {vocabulary_kept.FILE_NAME} in the run folder, int32 (batch, "
            f"{self.network.length}), BOS ({BOS}) first and MASK ({MASK}) where a token is hidden; "
            "places: int32 (batch, any), the positions whose logits are wanted"
        )
