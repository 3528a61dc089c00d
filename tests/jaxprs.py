"""Reading jaxprs: how large the arrays get that a computation makes on its way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of all jaxprs inside it (of jit, scan, remat, ...)."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def largest_intermediate(function: Callable[..., Any], *args: Any) -> int:
    """Number of elements of the largest array that any equation of ``function(*args)`` makes.

    The arguments do not count; results do.
    """
    sizes = [
        math.prod(variable.aval.shape)
        for equation in equations(jax.make_jaxpr(function)(*args))
        for variable in equation.outvars
        if hasattr(variable.aval, "shape")
    ]
    return max(sizes, default=0)
