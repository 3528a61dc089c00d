"""Candidates and histories that are written down instead of measured."""

from __future__ import annotations

import jax

from lowrank_jax.ranks import RankScale
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.table import Table


def candidates(**shapes: tuple[int, int]) -> Table:
    """A table of dense matrices by name, of which only the shapes are known."""
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    return resolve(params, [Rule(".*", RankScale(1.0))])


def history(**stable_ranks):
    """The history in which each layer has had these stable ranks."""
    names = list(stable_ranks)
    return [
        {"stable_rank": dict(zip(names, map(float, values), strict=True))}
        for values in zip(*stable_ranks.values(), strict=True)
    ]
