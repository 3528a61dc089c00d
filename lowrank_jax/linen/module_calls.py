"""The calls of submodules inside a linen model, each as something that is carried out by itself.

The model is traced by shapes alone, while a method interceptor (``flax.linen.intercept_methods``)
notes which submodules are called, with what inputs. Nothing in the model has to be written for it,
and nothing is computed; so one block of a network can be timed or differentiated without the rest.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.linen.module import InterceptorContext

from lowrank_jax.linen.lift import lift
from lowrank_jax.tree import near_misses


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """One call of a submodule.

    Attributes:
      path: of the module inside the model, as in ``block_1/conv1``.
      module: a copy that is attached to nothing; lifted, so that it accepts factorized weights.
      method: the name of the method.
      variables: the module's part of the model's variables, by collection, as shapes.
      inputs: shape and dtype of the arrays among the arguments, in their order.
      rngs: the names of the random streams that the model was given.
      mutable: the collections of ``variables`` that the call may change.
    """

    path: str
    module: nn.Module
    method: str
    variables: Mapping[str, Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    rngs: tuple[str, ...]
    mutable: tuple[str, ...]
    _arguments: _Arguments

    def apply(
        self,
        variables: Mapping[str, Any],
        *inputs: Any,
        rngs: dict[str, jax.Array] | None = None,
    ) -> Any:
        """What the module returns for these variables and inputs; all other arguments as noted.

        Args:
          variables: like ``self.variables``, arrays in the place of shapes. Kernels may be others
            than in the model: factorized weights, say.
          *inputs: like ``self.inputs``.
          rngs: a key for each of ``self.rngs``.
        """
        args, kwargs = self._arguments.filled(inputs)
        changes = list(self.mutable)
        outputs, _ = self.module.apply(
            variables, *args, rngs=rngs, method=self.method, mutable=changes, **kwargs
        )
        return outputs

    def same_work(self, other: ModuleCall) -> bool:
        """Whether both are equal in all but their path and the values of their arrays."""
        return self._work() == other._work()

    def _work(self) -> tuple[Any, ...]:
        # Not the variables as they are: weights do not compare.
        leaves, structure = jax.tree.flatten(self.variables)
        work = self.module, self.method, leaves, structure, self.inputs, self._arguments
        return (*work, self.rngs, self.mutable)


@dataclasses.dataclass(frozen=True)
class _Arguments:
    """Positional and keyword arguments of a call without the arrays among them.

    Attributes:
      leaves: what is no array, and `_ARRAY` in the place of each array.
      structure: of the pair.
    """

    leaves: tuple[Any, ...]
    structure: Any

    def filled(self, arrays: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        places = sum(leaf is _ARRAY for leaf in self.leaves)
        if len(arrays) != places:
            raise TypeError(f"expected {places} inputs, found {len(arrays)}")
        rest = iter(arrays)
        leaves = [next(rest) if leaf is _ARRAY else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.structure, leaves)


_ARRAY = object()


def module_calls(function: Callable[..., Any], pattern: str, *args: Any) -> tuple[ModuleCall, ...]:
    """The calls of some submodules in ``function(*args)``, in their order.

    Args:
      function: traceable; applies a linen model.
      pattern: a regular expression for the whole path of a module, from the root of the model.
      *args: arrays or ``jax.ShapeDtypeStruct``, in trees.

    Returns:
      One for each call. A module that is called twice has two; what is called inside a module that
      matches is a part of that call. What flax's transforms do around a module is not: of
      ``nn.remat`` nothing is seen, and inside ``nn.scan`` and ``nn.vmap`` the call is that of one
      turn, noted as often as flax traces it (let the pattern match the module around them).

    Raises:
      ValueError: no module that is called has such a path.

    >>> import jax.numpy as jnp
    >>> model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> (call,) = module_calls(model.apply, "layers_2", variables, jnp.ones((5, 3)))
    >>> call.inputs[0].shape, call.variables["params"]["kernel"].shape
    ((5, 4), (4, 2))
    >>> call.apply({"params": variables["params"]["layers_2"]}, jnp.zeros((5, 4))).shape
    (5, 2)
    """
    found: list[ModuleCall] = []
    seen: dict[str, None] = {}
    inside = False

    def note(
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        nonlocal inside
        module = context.module
        if inside or module.scope is None or context.method_name == "setup":
            return next_function(*args, **kwargs)
        path = "/".join(module.path)
        seen[path] = None
        if not re.fullmatch(pattern, path):
            return next_function(*args, **kwargs)
        found.append(_noted(path, context, args, kwargs))
        inside = True
        try:
            return next_function(*args, **kwargs)
        finally:
            inside = False

    def watched(*args: Any) -> Any:
        with nn.intercept_methods(note):
            return function(*args)

    # A function of its own each time: the trace of one that is known would be taken from a cache.
    jax.eval_shape(watched, *args)
    if not found:
        inner = [path for path in seen if path]  # Without the root.
        message = f"{pattern!r} matches no module that is called; {near_misses(pattern, inner)}"
        raise ValueError(message)
    return tuple(found)


def _noted(
    path: str, context: InterceptorContext, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ModuleCall:
    bound = context.module
    module, variables = bound.unbind()
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    others = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
    return ModuleCall(
        path=path,
        module=lift(module),
        method=context.method_name,
        variables=jax.tree.map(_shape, variables),
        inputs=tuple(map(_shape, arrays)),
        rngs=tuple(bound.scope.rngs) if bound.scope else (),
        mutable=tuple(name for name in variables if bound.is_mutable_collection(name)),
        _arguments=_Arguments(others, structure),
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
