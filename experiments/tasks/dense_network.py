"""What the dense networks of all tasks have in common: two models, and the forms of the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp

from lowrank_jax.linen import lift


@dataclasses.dataclass(frozen=True)
class DenseNetwork:
    """How to make and how to apply a network, data apart; a task adds how it takes its inputs.

    Attributes:
      model: of Flax.
      ordinary_model: the dense one that ratios are relative to.
    """

    model: Any
    ordinary_model: Any

    @property
    def in_float32(self) -> Self:
        """The same network computed in float32, in whatever precision it was trained."""
        return dataclasses.replace(self, model=self.model.clone(dtype=jnp.float32))

    @property
    def ordinary(self) -> Self:
        """The network that ratios are relative to."""
        return dataclasses.replace(self, model=self.ordinary_model)

    def in_forms(self, compose: Mapping[str, bool]) -> Self:
        """The same network that applies the factorized kernels at these paths composed or not."""
        return dataclasses.replace(self, model=lift(self.model, compose=compose))
