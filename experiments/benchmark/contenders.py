"""A contender: an implementation of the training step of one network at one rank.

It is plain data, so that it can be sent to the process that carries it out, and nothing here
imports a framework: a process that runs one must not pay for the other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.benchmark.networks import Network

IMPLEMENTATIONS = {
    "ours": "this project",
    "lax": "plain lax convolutions",
    "torch": "PyTorch",
}
"""Names in results, and in tables."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is to be timed.

    Attributes:
      implementation: a key of `IMPLEMENTATIONS`.
      network: which network.
      rank_scale: of its factorized kernels; 0 is the dense network.
      batch_size: examples per step.
      precision: `float32` or `bfloat16`: of the activations; parameters are always float32.
      platform: JAX's name of the kind of device: `cpu`, `gpu`, `tpu`.
      cores: processor cores to use.
      overrides: further keys of the config with their values, for this project alone.
    """

    implementation: str
    network: Network
    rank_scale: float
    batch_size: int
    precision: str
    platform: str
    cores: int
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def steps(self) -> int:
        """Steps in one turn."""
        return self.network.steps_per_turn

    @property
    def label(self) -> str:
        """Told apart from the others of its network."""
        parts = [IMPLEMENTATIONS[self.implementation], weights(self.rank_scale), self.precision]
        return ", ".join(parts + [f"{key}={value}" for key, value in self.overrides])


def weights(rank_scale: float) -> str:
    """How the weights are stored, in words.

    >>> weights(0), weights(0.111)
    ('dense', 'rank scale 0.111')
    """
    return f"rank scale {rank_scale:g}" if rank_scale else "dense"
