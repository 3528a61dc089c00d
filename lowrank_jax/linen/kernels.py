"""The one mechanism behind the drop-in layers and ``lift``: flax's own code on a kernel of ours.

A flax layer asks ``self`` for three things that must differ when its kernel is a factorized weight:
the stored kernel (``param``), its promotion to a common dtype (``promote_dtype``) and its product
with the inputs (``dot_general``, ``conv_general_dilated``). :class:`KernelView` answers these three
and passes everything else on to the layer, so the layer's own code runs on it unchanged.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import dtypes
from jax import lax

from lowrank_jax import weights
from lowrank_jax.initializers import FactorizedInitializer
from lowrank_jax.linen.partitioning import box_factors
from lowrank_jax.weights import FactorizedWeight, is_factorized


def flax_code(method: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a flax layer's method, without the state handling around it."""
    return inspect.unwrap(method)


def path_of(module: nn.Module, name: str) -> str:
    """Where a parameter of a bound module lies in the tree, as in ``block/conv/kernel``."""
    return "/".join((*module.path, name))


def weight_name(layer: nn.Module) -> str:
    """The one parameter of a flax layer that may be a factorized weight."""
    return "embedding" if isinstance(layer, nn.Embed) else "kernel"


def born_factorized(layer: nn.Module) -> bool:
    """Whether the layer's initializer returns weights, partition boxes around it or not."""
    init = getattr(layer, f"{weight_name(layer)}_init", None)
    return isinstance(inspect.unwrap(init), FactorizedInitializer)  # type: ignore[arg-type]


def promote_dtype(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """flax's ``promote_dtype`` where an argument may be a factorized weight.

    The floating factors of a weight take part in the promotion and are cast; integer leaves are
    indices, not values, and stay.
    """

    def values(arg: Any) -> list[Any]:
        leaves = jax.tree.leaves(arg)
        return [x for x in leaves if not is_index(x)] if is_factorized(arg) else leaves

    def is_index(leaf: Any) -> bool:
        return not jnp.issubdtype(leaf.dtype, jnp.inexact)

    def cast(arg: Any) -> Any:
        if is_factorized(arg):
            return jax.tree.map(lambda x: x if is_index(x) else jnp.asarray(x, target), arg)
        return None if arg is None else jnp.asarray(arg, target)

    everything = [value for arg in args for value in values(arg)]
    target = dtypes.canonicalize_dtype(*everything, dtype=dtype, inexact=inexact)
    return [cast(arg) for arg in args]


def axes_known(layer: nn.Module) -> dict[str, int]:
    """The static axes of a weight born in this layer, as far as the layer's fields say them."""
    if not isinstance(layer, nn.DenseGeneral):
        return {}
    known = {"in_axes": np.size(layer.axis), "out_axes": np.size(layer.features)}
    kind = inspect.unwrap(layer.kernel_init).rule.kind
    return {name: count for name, count in known.items() if name in kind.static_fields}


class KernelView:
    """A layer as flax's code is to see it, while its kernel is an array or a factorized weight.

    Attributes:
      layer: the bound ``nn.Dense``, ``nn.DenseGeneral``, ``nn.Conv`` or ``nn.Embed``.
      compose: as in :func:`lowrank_jax.dot_general`.
    """

    def __init__(self, layer: nn.Module, compose: bool | None = None) -> None:
        vars(self).update(layer=layer, compose=compose)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.layer, name, value)  # In a layer's setup.

    @property
    def promote_dtype(self) -> Callable[..., list[Any]]:
        own = self.layer.promote_dtype
        return promote_dtype if own is dtypes.promote_dtype else own

    @property
    def dot_general(self) -> Callable[..., jax.Array]:
        return self._application("dot_general")

    @property
    def conv_general_dilated(self) -> Callable[..., jax.Array]:
        return self._application("conv_general_dilated")

    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``Module.param`` for a layer; ``args`` are the dense shape and dtype."""
        layer = self.layer
        expected = tuple(args[0])
        born = name == weight_name(layer) and born_factorized(layer)
        if not layer.has_variable("params", name):
            if born:
                self._check_application(path_of(layer, name))
                # Not flax's init_fn: DenseGeneral's flattens the shape and reshapes the result.
                init_fn = box_factors(getattr(layer, f"{name}_init"))
                kwargs |= axes_known(layer)
            return layer.param(name, init_fn, *args, **kwargs)
        stored = jax.eval_shape(nn.meta.unbox, layer.get_variable("params", name))
        # flax compares the leaves of what is stored with those of a fresh initialization, so it is
        # given one that looks like what is stored, once the dense shapes are known to agree.
        if is_factorized(stored):
            self._check_stored(name, stored, expected)
            return layer.param(name, lambda *_: jax.tree.map(zeros_like, stored), **kwargs)
        if isinstance(stored, Mapping):
            raise ValueError(
                f"{path_of(layer, name)}: found a dictionary with {', '.join(sorted(stored))}, "
                f"expected an array or a factorized weight of shape {expected}; restore "
                "checkpoints into a target tree that has the weights."
            )
        if born:
            return layer.param(name, lambda *_: jnp.zeros(expected, stored.dtype), **kwargs)
        return layer.param(name, init_fn, *args, **kwargs)

    def _application(self, field: str) -> Callable[..., jax.Array]:
        own = getattr(self.layer, field)
        if own is None or own is getattr(lax, field):
            return functools.partial(getattr(weights, field), compose=self.compose)
        return own

    def _check_stored(self, name: str, weight: FactorizedWeight, expected: tuple[int, ...]) -> None:
        path, kind = path_of(self.layer, name), type(weight).__name__
        if name != weight_name(self.layer):
            raise ValueError(f"{path}: found a {kind}, expected an array of shape {expected}")
        try:
            found = weight.shape
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if found != expected:
            raise ValueError(
                f"{path}: found a {kind} that stands for a kernel of shape {found}, expected "
                f"{expected}"
            )
        self._check_application(path)

    def _check_application(self, path: str) -> None:
        """Raises where the layer does something to its kernel that no factorized weight can do."""
        layer = self.layer

        def refuse(what: str) -> NoReturn:
            raise ValueError(
                f"{path}: a factorized kernel cannot be used with {what}; keep this kernel dense."
            )

        if getattr(layer, "feature_group_count", 1) != 1:
            refuse(f"feature_group_count={layer.feature_group_count}")
        if getattr(layer, "mask", None) is not None:
            refuse("a mask")
        if layer.promote_dtype is not dtypes.promote_dtype:
            refuse("a promote_dtype of your own")
        for field in ("dot_general", "conv_general_dilated"):
            if getattr(layer, f"{field}_cls", None) is not None:
                refuse(f"a {field}_cls of your own")
            own = getattr(layer, field, None)
            own = own.func if isinstance(own, functools.partial) else own
            if own not in (None, getattr(lax, field), getattr(weights, field)):
                refuse(f"a {field} of your own")


def zeros_like(leaf: Any) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)
