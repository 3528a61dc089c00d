"""Grids: all combinations of the values of some dimensions, which is how sweeps are written.

    sizes = [{"ratio": 0}] + grid(ratio=[0.1, 0.05], init=["regular", "spectral"])
    grid(seed=[1, 2, 3], model=["vgg19", "resnet32"], size=sizes)

A dimension is a key of the config with its values, or, where what varies is more than one key, any
name with the arguments themselves. So grids are dimensions of larger grids, and the combinations
that exist are put together with `+`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

Arguments = dict[str, Any]
"""The arguments of one run, by key."""


@dataclasses.dataclass(frozen=True)
class FolderOf:
    """The folder of an earlier run of the same sweep, as the value of an argument.

    A run with such an argument waits for that run, and has the name of the argument alone in its
    own name.

    Attributes:
      arguments: of that run, all of them.
    """

    arguments: Arguments


def grid(**dimensions: Any) -> list[Arguments]:
    """Every combination of the dimensions' values; the last dimension varies fastest.

    Args:
      dimensions: a value, or a list of values. A value that is a mapping is taken apart: its keys
        are arguments, and the name of its dimension tells the reader alone.

    Raises:
      ValueError: two dimensions give the same key.

    Example:
      >>> grid(depth=20, method=[{"rank_scale": 0}, {"rank_scale": 0.5, "init": "regular"}])
      [{'depth': 20, 'rank_scale': 0}, {'depth': 20, 'rank_scale': 0.5, 'init': 'regular'}]
    """
    choices: list[list[Mapping[str, Any]]] = []
    for name, values in dimensions.items():
        listed = values if isinstance(values, list) else [values]
        choices.append([v if isinstance(v, Mapping) else {name: v} for v in listed])
    combinations = []
    for parts in itertools.product(*choices):
        merged: Arguments = {}
        for part in parts:
            if twice := sorted(merged.keys() & part.keys()):
                raise ValueError(
                    f"two dimensions of a grid give {twice[0]!r}: {merged[twice[0]]!r} and "
                    f"{part[twice[0]]!r}; keep one of them"
                )
            merged |= part
        combinations.append(merged)
    return combinations
