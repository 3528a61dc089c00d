"""Counts the multiply-adds of a function by walking its jaxpr.

    matrix product:  batch * rows * columns * contracted size
    convolution:     output elements * kernel positions * input channels of a group

Padding counts like any other input, inserted zeros of a dilated input too (the usual convention of
dense tables); additions, norms and nonlinearities do not count. Nothing is computed: arguments may
be `jax.ShapeDtypeStruct`s, and a `lax.scan` counts as often as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def multiply_adds(function: Callable[..., Any], *args: Any) -> int:
    """The number of multiply-adds in one call of `function(*args)`.

    Args:
      function: any traceable function, jitted or not.
      args: its arguments, pytrees of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: for products inside a `lax.while_loop`, whose number of rounds is unknown.

    Example:
      >>> x = jax.ShapeDtypeStruct((2, 3), 'float32')
      >>> y = jax.ShapeDtypeStruct((3, 5), 'float32')
      >>> multiply_adds(lambda x, y: x @ y, x, y)
      30
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _matrix_product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    counts = [_count(jaxpr) for jaxpr in _inner(equation)]
    if name == "scan":
        return equation.params["length"] * sum(counts)
    if name == "cond":  # one branch runs; which one is not known here
        return max(counts)
    if name == "while" and any(counts):
        raise ValueError(
            "multiply-adds inside a while_loop cannot be counted: its number of rounds is unknown; "
            "use lax.scan or a fori_loop with static bounds"
        )
    return sum(counts)


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs that an equation (jit, scan, cond, remat, custom_vjp, ...) carries."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _matrix_product(equation: JaxprEqn) -> int:
    (lhs_contracting, _), _ = equation.params["dimension_numbers"]
    lhs = _shape(equation.invars[0])
    contracted = math.prod(lhs[axis] for axis in lhs_contracting)
    return math.prod(_shape(equation.outvars[0])) * contracted


def _convolution(equation: JaxprEqn) -> int:
    # The kernel's input axis holds the channels of one group only, so groups need no case.
    kernel = _shape(equation.invars[1])
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(_shape(equation.outvars[0])) * (math.prod(kernel) // out_features)
