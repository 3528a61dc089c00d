"""Causal language modelling: every next token of a block of text, from those before it.

The first one is predicted from BOS alone, so that a block begins without any context; the
perplexity of a text is thereby a little higher than with a window that slides over it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
from ml_collections import ConfigDict

from experiments.special_tokens import BOS, EOS, PAD
from experiments.tasks import vocabulary_kept
from experiments.tasks.language_modelling import Asked, LanguageModelling
from experiments.tasks.text_network import Rows, TextNetwork


def network(config: ConfigDict) -> TextNetwork:
    """The network of a settled config; the text need not be there.

    Raises:
      RunError: the model is unknown, or refuses a value.
    """
    # The last token of a block is predicted, and predicts nothing.
    return TextNetwork.of(config, config.block_length - 1, vocabulary=config.vocabulary_size)


@dataclasses.dataclass(frozen=True)
class CausalLanguageModelling(LanguageModelling):
    """The task: see `LanguageModelling`."""

    unit: ClassVar[str] = "tokens"
    first_asked: ClassVar[int] = EOS

    build = staticmethod(network)

    def ask(self, blocks: jax.Array, keys: jax.Array) -> Asked:
        """Every token but the first; nothing is random."""
        targets = blocks[:, 1:]
        return Asked(Rows(blocks[:, :-1]), targets, targets != PAD)

    def usage(self) -> str:
        """From token ids to logits."""
        return (
            "    logits = model.apply(variables, tokens, False)\n"
            f"tokens: ids of {vocabulary_kept.FILE_NAME} in the run folder, int32 (batch, length), "
            f"BOS ({BOS}) first; logits at a position are those of the next token"
        )
