"""The dense network of a task on text: from rows of tokens, all of one length."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import models
from experiments.errors import RunError
from experiments.models.head_size import with_head_size
from experiments.special_tokens import MASK
from experiments.tasks.dense_network import DenseNetwork
from lowrank_jax.linen import lift


class Rows(NamedTuple):
    """The input: int32 `(batch, length)`."""

    tokens: Any


@dataclasses.dataclass(frozen=True)
class TextNetwork(DenseNetwork):
    """The dense network, data apart.

    Attributes:
      model: from token ids to logits.
      ordinary_model: the one that ratios are relative to, with attention heads of full size.
      length: of a row.
    """

    length: int

    @classmethod
    def of(cls, config: ConfigDict, length: int, **sizes: int) -> Self:
        """The network of a settled config.

        Args:
          config: settled.
          length: of a row.
          sizes: the fields of the model that the data decide, e.g. `vocabulary`.

        Raises:
          RunError: the model is unknown, or refuses a value.
        """
        if config.model.max_length < length:
            raise RunError(
                f"rows of {length} tokens: the model has {config.model.max_length} positions; "
                "raise model.max_length"
            )

        def build(head_scale: float) -> Any:
            return models.build_for(
                config.task,
                with_head_size(config.model, head_scale),
                sizes,
                kind=config.kind,
                precision=config.precision,
                remat=config.remat,
            )

        return cls(lift(build(config.model.head_scale)), build(1.0), length)

    def init(self, key: jax.Array) -> Any:
        """The dense variables of the model: ``params``."""
        inputs = jax.tree.map(lambda rows: jnp.zeros(rows.shape, rows.dtype), self.example(1))
        return self.model.init(key, *inputs, False)

    def example(self, batch_size: int) -> Any:
        """The shape of the model's input."""
        return Rows(jax.ShapeDtypeStruct((batch_size, self.length), jnp.int32))

    def random_inputs(self, key: jax.Array, batch_size: int) -> Any:
        """Input of the shape of `example`, to time the model with: no token is padding."""
        shape = (batch_size, self.length)
        return Rows(jax.random.randint(key, shape, MASK + 1, self.model.vocabulary, jnp.int32))

    def apply(self, params: Any, model_state: Any, inputs: Any) -> Any:
        """Logits in evaluation mode."""
        return self.model.apply({"params": params, **model_state}, *inputs, False)
