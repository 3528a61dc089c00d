"""``batch_minor``: a function computed with its images stored as (channels, height, width, batch).

On a CPU the layout of images decides the speed of a convolutional network: with the batch last, a
shift by a pixel is a copy of long aligned runs, sums over all pixels of a channel run over
contiguous memory, and every convolution is one long matrix product. Models are written with the
batch first all the same. This file changes the layout in between: it traces the function and
evaluates its equations one by one,

    convolutions        by ``convolutions.py``, depthwise ones by ``depthwise.py``; their results
                        are batch-minor
    elementwise, reductions, pads, slices, ...
                        in the layout their operands have, axes renamed
    anything else       as it is, operands taken back to their own layout first

so a model, its loss and its gradient need no change. Equations inside ``jax.jit`` and other calls,
``jax.checkpoint`` and ``lax.scan`` are treated the same way; those inside ``lax.cond`` and
``lax.while_loop`` are left as they are. What is computed does not depend on any of this; only the
order of summation does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from lowrank_jax.batch_minor import equations

Function = TypeVar("Function", bound=Callable[..., Any])

# Axis k of a batch-minor image is axis _STORED[k] of the image; the permutation is its own inverse.
_STORED = (3, 1, 2, 0)

# fmt: off
_ELEMENTWISE = frozenset((
    "abs", "add", "add_any", "and", "atan2", "ceil", "clamp", "convert_element_type", "copy",
    "cos", "div", "eq", "erf", "erfc", "exp", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not",
    "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sqrt",
    "square", "sub", "tanh", "xor",
))
_REDUCTIONS = frozenset((
    "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
))
# fmt: on
_CALLS = frozenset(("closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit"))
_CHECKPOINTS = frozenset(("checkpoint", "remat", "remat2"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Image:
    """An array of four axes whose values are stored batch-minor."""

    stored: jax.Array


def batch_minor(function: Function) -> Function:
    """The same function, computed with its images stored batch-minor: faster on a CPU.

    Convolutions of images (Flax's: batch, height, width, channels) and their gradients become
    matrix products, depthwise ones (one output channel for each input channel) sums of shifted
    images; other grouped convolutions stay as they are. Apply it to the outermost function of a
    step, after differentiation and under ``jit``:
    ``jax.jit(batch_minor(jax.value_and_grad(loss)))``. It is for one device: shardings inside the
    function are not looked after.

    Args:
      function: of pytrees of arrays; traceable, as for ``jax.jit``.

    Returns:
      A function with the same arguments and results, equal up to rounding.

    Raises:
      TypeError: when it is differentiated, which would bypass the derivatives that the function
        inside defines.

    >>> from flax import linen as nn
    >>> model, images = nn.Conv(4, (3, 3)), jnp.ones((2, 8, 8, 3))
    >>> variables = model.init(jax.random.key(0), images)
    >>> fast = jax.jit(batch_minor(model.apply))
    >>> bool(jnp.allclose(fast(variables, images), model.apply(variables, images), atol=1e-5))
    True
    """

    @functools.wraps(function)
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))

        def flat(*leaves: Any) -> Any:
            args, kwargs = jax.tree.unflatten(structure, leaves)
            return function(*args, **kwargs)

        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        results = _not_differentiable(functools.partial(_evaluate_closed, closed))(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rewritten  # type: ignore[return-value]


def _not_differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise TypeError(
            "batch_minor(...) cannot be differentiated; differentiate first: "
            "batch_minor(jax.grad(loss)), not jax.grad(batch_minor(loss))"
        )

    return guarded


def _evaluate_closed(closed: ClosedJaxpr, *args: Any) -> list[jax.Array]:
    return [_logical(value) for value in _evaluate(closed.jaxpr, closed.consts, args)]


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr; arguments and results may be images."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        operands = [value(variable) for variable in equation.invars]
        results = _rewritten(equation, operands)
        if results is None:
            results = _as_it_is(jaxpr, equation, [_logical(operand) for operand in operands])
        values.update(zip(equation.outvars, results, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _rewritten(equation: JaxprEqn, operands: list[Any]) -> list[Any] | None:
    """The results of one equation; None if it is to be evaluated as it is."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params.get("call_jaxpr")
        if isinstance(inner, ClosedJaxpr):
            return _evaluate(inner.jaxpr, inner.consts, operands)
    if name in _CHECKPOINTS:
        if params["differentiated"] and params["prevent_cse"]:
            # Keeps the compiler from sharing what is to be computed a second time.
            operands = lax.optimization_barrier(operands)
        return _evaluate(params["jaxpr"], (), operands)
    if name == "scan":
        return _scan(equation, operands)
    if name == "conv_general_dilated":
        shape = equations.shape(equation.outvars[0])
        if equations.maps_images(equation):
            x, kernel = _stored(operands[0]), _logical(operands[1])
            return [_Image(equations.image_convolution(x, kernel, shape[1:3], params))]
        if equations.makes_kernel(equation):
            x, y = map(_stored, operands)
            sizes = [shape[axis] for axis in params["dimension_numbers"].out_spec[2:]]
            return [equations.kernel_from_images(x, y, sizes, params)]
    if any(isinstance(operand, _Image) for operand in operands):
        if name in _ELEMENTWISE:
            stored = [
                _stored(x) if isinstance(x, _Image) or jnp.ndim(x) == 4 else x for x in operands
            ]
            return [_Image(equation.primitive.bind(*stored, **params))]
        if name in _REARRANGED:
            return _REARRANGED[name](equation, operands)
        if name in _REDUCTIONS:
            return _reduce(equation, operands[0].stored)
    return None


def _as_it_is(jaxpr: Jaxpr, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    # As a jaxpr of one equation: how a primitive is bound differs between versions of JAX.
    given = {
        variable: operand
        for variable, operand in zip(equation.invars, operands, strict=True)
        if not isinstance(variable, Literal)
    }
    alone = jaxpr.replace(
        constvars=[],
        invars=list(given),
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def _logical(operand: Any) -> Any:
    """The array in its own layout."""
    return jnp.transpose(operand.stored, _STORED) if isinstance(operand, _Image) else operand


def _stored(operand: Any) -> jax.Array:
    """The values of an array of four axes in the batch-minor layout."""
    return operand.stored if isinstance(operand, _Image) else jnp.transpose(operand, _STORED)


def _permuted(values: Sequence[Any]) -> tuple[Any, ...]:
    """One value per axis of an image, in the order of the stored axes."""
    return tuple(values[axis] for axis in _STORED)


def _reduce(equation: JaxprEqn, stored: jax.Array) -> list[Any]:
    axes = equation.params["axes"]
    params = equation.params | {"axes": tuple(sorted(_STORED[axis] for axis in axes))}
    if "out_sharding" in params:
        params["out_sharding"] = None
    reduced = equation.primitive.bind(stored, **params)
    left = [axis for axis in _STORED if axis not in axes]  # As they lie in the result.
    return [jnp.transpose(reduced, [left.index(axis) for axis in sorted(left)])]


def _pad(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    config = _permuted(equation.params["padding_config"])
    return [_Image(lax.pad(_stored(operands[0]), operands[1], config))]


def _slice(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    strides = params["strides"] and _permuted(params["strides"])
    starts, limits = _permuted(params["start_indices"]), _permuted(params["limit_indices"])
    return [_Image(lax.slice(operands[0].stored, starts, limits, strides))]


def _concatenate(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    axis = _STORED[equation.params["dimension"]]
    return [_Image(lax.concatenate([_stored(operand) for operand in operands], axis))]


def _rev(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    axes = [_STORED[axis] for axis in equation.params["dimensions"]]
    return [_Image(lax.rev(operands[0].stored, axes))]


def _split(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    sizes, axis = equation.params["sizes"], _STORED[equation.params["axis"]]
    return [_Image(part) for part in lax.split(operands[0].stored, sizes, axis)]


def _pool(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    """A pooling or its gradient: every parameter of one value per axis is permuted."""
    params = {
        name: _permuted(value) if isinstance(value, tuple) else value
        for name, value in equation.params.items()
    }
    return [_Image(equation.primitive.bind(*map(_stored, operands), **params))]


_REARRANGED: dict[str, Callable[[JaxprEqn, list[Any]], list[Any]]] = {
    "pad": _pad,
    "slice": _slice,
    "concatenate": _concatenate,
    "rev": _rev,
    "split": _split,
    "reduce_window_max": _pool,
    "reduce_window_min": _pool,
    "reduce_window_sum": _pool,
    "select_and_scatter_add": _pool,
}


def _scan(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    """A scan over the rewritten body; what it carries and stacks keeps its own layout."""
    params = equation.params
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    logical = [_logical(operand) for operand in operands]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _evaluate_closed(params["jaxpr"], *logical[:fixed], *carry, *x)
        return results[: params["num_carry"]], results[params["num_carry"] :]

    carry, stacked = lax.scan(
        body,
        logical[fixed:carried],
        logical[carried:],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *stacked]
