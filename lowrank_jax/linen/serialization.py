"""flax.serialization (state dicts and msgpack) for factorized weights.

The state dict of a weight holds its factors under one key that spells out kind and static axes,

    {"LowRank(in_axes=1, out_axes=1)": {"u": ..., "vt": ...}},

because two kinds can have factors of the same names and shapes and stand for different kernels: the
key is compared on restoring. A missing middle factor is left out. All leaves are arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import serialization

from lowrank_jax.weights import FactorizedWeight, kinds


def register_serialization(kind: type[FactorizedWeight]) -> None:
    """Lets ``flax.serialization`` handle a kind of weight; harmless when done twice.

    The kinds known when ``lowrank_jax.linen`` is imported are registered then; a kind defined later
    needs this call.
    """
    if not serialization.is_serializable(kind):
        serialization.register_serialization_state(kind, _to_state_dict, _from_state_dict)


def _signature(weight: FactorizedWeight) -> str:
    axes = ", ".join(f"{name}={value}" for name, value in weight.axes.items())
    return f"{type(weight).__name__}({axes})"


def _to_state_dict(weight: FactorizedWeight) -> dict[str, Any]:
    factors = {name: serialization.to_state_dict(value) for name, value in weight.children()}
    return {_signature(weight): factors}


def _from_state_dict(target: FactorizedWeight, state: Any) -> FactorizedWeight:
    path, signature = serialization.current_path(), _signature(target)
    found = ", ".join(map(str, state)) if isinstance(state, dict) else f"{type(state).__name__}"
    if not isinstance(state, dict) or list(state) != [signature]:
        raise ValueError(f"{path}: found {found} in the state dict, expected {signature}")
    factors = state[signature]
    expected = dict(target.children())
    if set(factors) != set(expected):
        raise ValueError(
            f"{path}: found the factors {', '.join(sorted(factors))} in the state dict, expected "
            f"{', '.join(sorted(expected))}"
        )
    restored = {}
    for name, value in expected.items():
        restored[name] = serialization.from_state_dict(value, factors[name], name=name)
        shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(x)] for x in (restored[name], value)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path}/{name}: found shape {shapes[0][0]} in the state dict, expected "
                f"{shapes[1][0]}; restore into a target of the saved rank"
            )
    return target.replace(**restored)


def register_known_kinds() -> None:
    """Registers every kind of weight defined so far."""
    for kind in kinds().values():
        register_serialization(kind)
