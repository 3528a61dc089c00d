"""What a run of the benchmark is asked to do."""

from __future__ import annotations

import dataclasses

from experiments.benchmark.contenders import Contender
from experiments.benchmark.median import FEWEST
from experiments.benchmark.networks import RESNET20, TINY, Network
from experiments.errors import RunError


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings that every section gets.

    Attributes:
      alternations: turns of each contender.
      networks: whose steps are measured.
      batch_size: examples per step.
      quick: only to see that everything works: a tiny network, tiny batches, small kernels.
      platform, cores: of this machine, as in `Contender`.
    """

    alternations: int
    networks: tuple[Network, ...]
    batch_size: int
    quick: bool
    platform: str
    cores: int

    @classmethod
    def of(
        cls,
        alternations: int | None,
        networks: tuple[Network, ...] | None,
        quick: bool,
        platform: str,
        cores: int,
    ) -> Options:
        """From a command line, where None is the default.

        Raises:
          RunError: fewer than one alternation.
        """
        if alternations is None:
            alternations = FEWEST if quick else 20
        if alternations < 1:
            raise RunError(f"--alternations={alternations}: expected a whole number, at least 1")
        if networks is None:
            networks = (TINY,) if quick else (RESNET20,)
        return cls(alternations, networks, 8 if quick else 128, quick, platform, cores)

    def contender(
        self, implementation: str, network: Network, rank_scale: float, precision: str = "float32"
    ) -> Contender:
        """A contender on this machine."""
        return Contender(
            implementation,
            network,
            rank_scale,
            self.batch_size,
            precision,
            self.platform,
            self.cores,
        )

    @property
    def reference(self) -> Contender:
        """The step that parts of a step are compared with: ResNet-20 at rank scale 0.111."""
        return self.contender("ours", TINY if self.quick else RESNET20, 0.111)
