"""The networks of the benchmark, as plain data that both frameworks build from."""

from __future__ import annotations

import dataclasses

from experiments.errors import RunError


@dataclasses.dataclass(frozen=True)
class Network:
    """A network on 32 x 32 x 3 images with ten classes, and the rank scales it is measured at.

    Attributes:
      name: on the command line and in results.
      title: in tables.
      model: the name of the model in `experiments.models`.
      depth: 6n + 2.
      width: multiplies the model's own channel counts.
      rank_scales: 0 is the dense network.
      steps_per_turn: steps that are timed together; fewer where a step takes seconds.
      implementations: who takes part besides this project; lax alone takes minutes for some.
    """

    name: str
    title: str
    model: str
    depth: int
    width: int
    rank_scales: tuple[float, ...]
    steps_per_turn: int
    implementations: tuple[str, ...] = ("lax", "torch")


RESNET20 = Network("resnet20", "ResNet-20", "resnet", 20, 1, (0.0, 0.111, 0.333), 8)
WIDE_RESNET32 = Network(
    "wide_resnet32",
    "ResNet-32 (64/128/256)",
    "projection_resnet",
    32,
    1,
    (0.111,),
    2,
    ("torch",),
)
TINY = Network("tiny", "ResNet-8", "resnet", 8, 1, (0.0, 0.111), 2)
"""For a look at whether everything works; its figures say nothing."""

NETWORKS = {network.name: network for network in (RESNET20, WIDE_RESNET32, TINY)}


def choose(names: str | None) -> tuple[Network, ...] | None:
    """The networks in a list such as 'resnet20,wide_resnet32'; None for None.

    Raises:
      RunError: a name that is none of them, or no name at all.
    """
    if names is None:
        return None
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in NETWORKS:
            raise RunError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}")
    if not asked:
        raise RunError(f"--network={names!r}: expected at least one of {', '.join(NETWORKS)}")
    return tuple(NETWORKS[name] for name in dict.fromkeys(asked))
