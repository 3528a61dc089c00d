"""What each factorized weight of a function is applied to: operation, input, strides, padding.

The function is traced by shapes alone, with every weight replaced by one that notes how it is
applied. So it does not matter what the function is made of, flax or anything else. A noted
application is plain data, which can be compared, stored, and carried out again by itself: to time
its two forms, or to count their multiply-adds.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.tree import path_string
from lowrank_jax.weights import FactorizedWeight, is_factorized


@dataclasses.dataclass(frozen=True)
class Application:
    """One product of an input with a factorized weight, by shapes.

    Attributes:
      operation: ``"dot_general"`` or ``"conv_general_dilated"``.
      kind: the kind of weight.
      axes: its static axes, as pairs.
      factors: its factors by name, as pairs with a ``jax.ShapeDtypeStruct``.
      inputs: shape and dtype of the left operand.
      arguments: the operation's other arguments by name, as pairs; defaults are left out.
    """

    operation: str
    kind: type[FactorizedWeight]
    axes: tuple[tuple[str, int], ...]
    factors: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    inputs: jax.ShapeDtypeStruct
    arguments: tuple[tuple[str, Hashable], ...]

    @property
    def weight(self) -> FactorizedWeight:
        """The weight, with a ``jax.ShapeDtypeStruct`` for each factor."""
        fields = {field.name: None for field in dataclasses.fields(self.kind)}  # type: ignore[arg-type]
        return self.kind(**fields | dict(self.factors) | dict(self.axes))

    @property
    def signature(self) -> str:
        """All of it in one line of text, equal for equal applications."""
        inputs = f"{self.inputs.dtype}[{','.join(map(str, self.inputs.shape))}]"
        arguments = [f"{name}={value}" for name, value in self.arguments]
        return " ".join([self.operation, inputs, repr(self.weight), *arguments])

    def apply(self, x: jax.Array, weight: FactorizedWeight, compose: bool | None) -> jax.Array:
        """Carries it out on arrays of these shapes.

        Raises:
          ValueError: ``compose=False`` where no factored form exists.
        """
        return getattr(weight, self.operation)(x, **dict(self.arguments), compose=compose)


def applications(
    function: Callable[..., Any], params: Any, *args: Any
) -> dict[str, tuple[Application, ...]]:
    """How ``function(params, *args)`` applies each factorized weight in ``params``.

    Args:
      function: traceable. Shapes are those at the place of application, so that a batch axis of
        ``jax.vmap`` is not among them.
      params: a tree with factorized weights; arrays or ``jax.ShapeDtypeStruct``.
      *args: the other arguments, likewise.

    Returns:
      The different applications of each weight by its path in ``params``, in the order of the
      calls. A weight that is not applied (or looked up by ``take`` only, or applied with something
      between its factors, so that it has one form only) is not there.

    >>> from lowrank_jax.weights import LowRank
    >>> params = {"w": LowRank(u=jnp.ones((4, 2)), vt=jnp.ones((2, 3)))}
    >>> numbers = (((1,), (0,)), ((), ()))
    >>> product = lambda params, x: params["w"].dot_general(x, numbers)
    >>> (found,) = applications(product, params, jnp.ones((5, 4)))["w"]
    >>> found.operation, found.inputs.shape, found.weight.rank
    ('dot_general', (5, 4), 2)
    """
    noted: dict[str, dict[Application, None]] = {}

    def note(path: str, application: Application) -> None:
        noted.setdefault(path, {})[application] = None

    def observe(key_path: tuple[Any, ...], leaf: Any) -> Any:
        if not is_factorized(leaf):
            return leaf
        return _Observed(leaf, functools.partial(note, path_string(key_path)))

    observed = jax.tree_util.tree_map_with_path(observe, params, is_leaf=is_factorized)
    jax.eval_shape(function, observed, *args)
    return {path: tuple(found) for path, found in noted.items()}


class _Observed(FactorizedWeight):
    """A weight that notes how it is applied and then applies itself.

    Not a dataclass, so that it does not count among the kinds of weight.
    """

    def __init__(self, weight: Any, note: Callable[[Application], None]) -> None:
        self.weight = weight
        self.note = note

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def rank(self) -> int:
        return self.weight.rank

    def children(self) -> Iterator[tuple[str, Any]]:
        yield from self.weight.children()

    def dense(self, *, precision: lax.PrecisionLike = lax.Precision.HIGHEST) -> jax.Array:
        return self.weight.dense(precision=precision)

    def take(self, indices: jax.Array, *, compose: bool | None = None) -> jax.Array:
        return self.weight.take(indices, compose=compose)

    def dot_general(
        self, x: jax.Array, *args: Any, compose: bool | None = None, **kwargs: Any
    ) -> jax.Array:
        return self._apply("dot_general", x, args, kwargs, compose)

    def conv_general_dilated(
        self, x: jax.Array, *args: Any, compose: bool | None = None, **kwargs: Any
    ) -> jax.Array:
        if kwargs.get("between") is not None:  # No argument of lax's, and no choice of a form.
            return self.weight.conv_general_dilated(x, *args, compose=compose, **kwargs)
        return self._apply("conv_general_dilated", x, args, kwargs, compose)

    def _apply(
        self,
        operation: str,
        x: jax.Array,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        compose: bool | None,
    ) -> jax.Array:
        # A weight's operations take the arguments of lax's, after the two operands.
        signature = inspect.signature(getattr(lax, operation))
        _, _, *bound = signature.bind(x, self.weight, *args, **kwargs).arguments.items()
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        given = {name: value for name, value in bound if value != defaults[name]}
        application = Application(
            operation=operation,
            kind=type(self.weight),
            axes=tuple(self.weight.axes.items()),
            factors=tuple((name, _abstract(value)) for name, value in self.weight.children()),
            inputs=_abstract(x),
            arguments=tuple((name, _hashable(value)) for name, value in given.items()),
        )
        self.note(application)
        return getattr(self.weight, operation)(x, **given, compose=compose)


jax.tree_util.register_pytree_node(
    _Observed,
    lambda observed: ((observed.weight,), observed.note),
    lambda note, children: _Observed(children[0], note),
)


def _abstract(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _hashable(value: Any) -> Any:
    """Lists as tuples, dtypes by name; a named tuple stays what it is."""
    if isinstance(value, list) or type(value) is tuple:
        return tuple(map(_hashable, value))
    if isinstance(value, type | jnp.dtype):
        return jnp.dtype(value).name
    return value
