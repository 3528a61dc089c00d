"""``lift``: an unedited linen model whose flax layers accept factorized weights as kernels.

``lift(Net)`` is a subclass of ``Net`` with the same name, so parameter paths and automatic names do
not change. While one of its methods runs, a method interceptor (``flax.linen.intercept_methods``)
watches the calls of the layers inside; a layer that holds a factorized kernel runs flax's own code
on a :class:`~lowrank_jax.linen.kernels.KernelView` of itself, an embedding looks up a factorized
table as ``embed.py`` says, and everything else runs as it is.
What happens is decided by the stored parameters alone, which are part of every jit cache key; so it
does not matter where a jitted function is traced. With ``compose``, a part of the lifted class
decides as well.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, overload

from flax import errors
from flax import linen as nn
from flax.linen.module import InterceptorContext

from lowrank_jax.linen import embed, factor_norm, layers
from lowrank_jax.linen.attention import MultiHeadDotProductAttention
from lowrank_jax.linen.kernels import (
    KernelView,
    born_factorized,
    flax_code,
    path_of,
    weight_name,
)
from lowrank_jax.weights import is_factorized

Model = TypeVar("Model", bound=nn.Module)
Choices = tuple[tuple[str, bool], ...]


def _on_view(method: Callable[..., Any]) -> Callable[..., Any]:
    """flax's code as a function of the layer, ``compose`` and the method's arguments."""
    code = flax_code(method)
    return lambda layer, compose, *args, **kwargs: code(KernelView(layer, compose), *args, **kwargs)


LIFTED = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)
DROP_INS = (layers.Dense, layers.DenseGeneral, layers.Conv, embed.Embed)
# What runs in the place of their methods where there are weights.
METHODS: dict[Any, Callable[..., Any]] = {
    nn.Dense.__call__: _on_view(nn.Dense.__call__),
    layers.Dense.__call__: _on_view(nn.Dense.__call__),
    nn.DenseGeneral.__call__: _on_view(nn.DenseGeneral.__call__),
    layers.DenseGeneral.__call__: _on_view(nn.DenseGeneral.__call__),
    nn.Conv.__call__: _on_view(nn.Conv.__call__),
    layers.Conv.__call__: _on_view(nn.Conv.__call__),
    factor_norm.FactorNormConv.__call__: factor_norm.convolve,
    nn.Embed.setup: _on_view(nn.Embed.setup),
    nn.Embed.__call__: embed.lookup,
    embed.Embed.__call__: embed.lookup,
    nn.Embed.attend: embed.attend,
    embed.Embed.attend: embed.attend,
}
METHODS_BY_CODE: dict[Any, Any] = {flax_code(method): run for method, run in METHODS.items()}
# These compute with the parameters of the layer they wrap, leaf by leaf.
NORMALIZERS = (nn.WeightNorm, nn.SpectralNorm)


@overload
def lift(model: type[Model], *, compose: Mapping[str, bool] | None = None) -> type[Model]: ...
@overload
def lift(model: Model, *, compose: Mapping[str, bool] | None = None) -> Model: ...
def lift(model: Any, *, compose: Mapping[str, bool] | None = None) -> Any:
    """The same linen model, accepting factorized weights as kernels.

    Wherever a ``nn.Dense``, ``nn.DenseGeneral`` or ``nn.Conv`` inside the model (attention's
    projections and recurrent cells' gates included) looks up its kernel, or a ``nn.Embed`` its
    ``embedding``, the parameters may hold a factorized weight. With dense parameters the model
    computes what it always did, bit by bit.

    Args:
      model: a model, or its class. A model gives a model with the same fields, a class gives a
        subclass with the same name, the same one each time.
      compose: for kernels by path, as in ``{"block_1/conv1/kernel": True}``, whether the dense
        kernel is formed first (True) or the factors are applied one after the other (False). All
        other kernels, and a layer whose own ``compose`` is set (or whose attention's is), decide as
        they do without this argument. Paths begin at the lifted model. In a lifted submodule its
        own lift decides.

    Works under jit, ``nn.scan``, ``nn.remat`` and other transforms, around or inside the model;
    with any method (``method="encode"``), with ``bind``, and as a submodule: ``lift(Net)()``. A
    submodule taken out of a bound model is the flax layer it was; call it through a method.

    Raises:
      ValueError: the model is bound or already attached to a parent, as in ``lift(Net())`` inside a
        compact method: write ``lift(Net)()``.
      TypeError: not a linen model or class; a value of ``compose`` that is not a bool; ``compose``
        for a subclass of a lifted class.

    The lifted model raises ValueError, with the path, where a weight lies in a place that cannot
    use it: another layer's parameter, a grouped or masked convolution, a layer with a
    ``dot_general`` of its own. Its ``apply`` also raises ValueError for a path of ``compose`` at
    which there is no parameter.

    >>> import jax.numpy as jnp
    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.ones((3, 1)), vt=jnp.ones((1, 2)))}
    >>> lift(nn.Dense(2, use_bias=False)).apply({"params": params}, jnp.ones(3)).tolist()
    [3.0, 3.0]
    >>> composing = lift(nn.Dense(2, use_bias=False), compose={"kernel": True})
    >>> composing.apply({"params": params}, jnp.ones(3)).tolist()
    [3.0, 3.0]
    """
    choices = tuple(sorted((compose or {}).items()))
    if wrong := [item for item in choices if not isinstance(item[1], bool)]:
        raise TypeError(f"lift: compose of {wrong[0][0]!r} is {wrong[0][1]!r}, expected a bool")
    if isinstance(model, type) and issubclass(model, nn.Module):
        return _lifted_class(model, choices)  # type: ignore[arg-type]
    if not isinstance(model, nn.Module):
        raise TypeError(f"lift takes a flax.linen model or its class, found {model!r}")
    name = type(model).__name__
    if model.scope is not None:
        raise ValueError(
            f"lift({name}(...)): this {name} is already bound or attached to a parent. Inside a "
            f"compact method write lift({name})(...); otherwise lift first and bind afterwards."
        )
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init}
    return _lifted_class(type(model), choices)(**fields)  # type: ignore[arg-type]


class Lifted:
    """Mixed into every lifted class: the entry points that are not methods of the model."""

    _unlifted: ClassVar[Any]  # The class that was lifted.
    _choices: ClassVar[Choices]  # ``compose`` as sorted pairs.

    def init(self, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_accept_weights(self._choices)):
            return super().init(*args, **kwargs)  # type: ignore[misc]

    def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_accept_weights(self._choices)):
            return super().init_with_output(*args, **kwargs)  # type: ignore[misc]

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        for path, _ in self._choices:
            _check_there(path, variables.get("params", {}))
        with nn.intercept_methods(_accept_weights(self._choices)):
            return super().apply(variables, *args, **kwargs)  # type: ignore[misc]


@functools.cache
def _lifted_class(cls: Any, choices: Choices) -> Any:
    if issubclass(cls, Lifted):
        if not choices:
            return cls
        if "_unlifted" not in vars(cls):
            raise TypeError(
                f"lift(compose=...): {cls.__name__} is a subclass of a lifted class; make it a "
                "subclass of the class that was lifted, and lift it afterwards"
            )
        return _lifted_class(cls._unlifted, choices)
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        # flax would make a new hash of the fields, where the class may have one of its own.
        "__hash__": cls.__hash__,
        "_unlifted": cls,
        "_choices": choices,
    }
    for name, method in _methods(cls):
        namespace[name] = _watched(method)
    return type(cls)(cls.__name__, (Lifted, cls), namespace)


def _check_there(path: str, params: Any) -> None:
    found = params
    for name in path.split("/"):
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"lift(compose=...): there is no parameter at {path!r}")
        found = found[name]


def _methods(cls: type[nn.Module]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods in which submodules can be called, by name."""
    fields = {field.name for field in dataclasses.fields(cls)}
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if (
            inspect.isfunction(method)
            and method is not inspect.getattr_static(nn.Module, name, None)
            and (name == "__call__" or not name.startswith("__"))
            and name != "setup"
            and name not in fields
            and not hasattr(method, "nowrap")
        ):
            yield name, method


def _watched(method: Callable[..., Any]) -> Callable[..., Any]:
    # nowrap: flax's state handling is around the original method already.
    @nn.nowrap
    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        root = self.path if self.scope is not None else ()
        with nn.intercept_methods(_accept_weights(self._choices, root)):
            return method(self, *args, **kwargs)

    return watched


@functools.cache
def _accept_weights(choices: Choices, root: tuple[str, ...] = ()) -> Callable[..., Any]:
    """The interceptor of a lifted model at ``root``. Looks at one call of one module's method."""
    chosen = {(*root, *path.split("/")): compose for path, compose in choices}

    def accept(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        module = context.module
        if module.scope is None:
            return next_fun(*args, **kwargs)
        if isinstance(module, NORMALIZERS):
            _refuse(module, module.layer_instance)
        held, drop_in = _held_weights(module), isinstance(module, DROP_INS)
        compose = _own_compose(module)
        if compose is None:
            compose = chosen.get((*module.path, weight_name(module)))
        run = METHODS_BY_CODE.get(getattr(context.orig_method, "func", None))
        wanted = compose is not None if drop_in else held or born_factorized(module)
        # nn.ConvLocal runs the code of nn.Conv, but is none of these layers.
        if run is not None and wanted and isinstance(module, LIFTED):
            return run(module, compose, *args, **kwargs)
        if not held or drop_in:
            return next_fun(*args, **kwargs)
        if _of_flax(type(module)) and not isinstance(module, LIFTED):
            _refuse(module, module)
        try:
            return next_fun(*args, **kwargs)
        except errors.ScopeParamShapeError as error:
            _refuse(module, module, error)
            raise

    return accept


def _own_compose(module: nn.Module) -> bool | None:
    """What a drop-in layer says itself, or the drop-in attention for its projections."""
    in_attention = isinstance(module.parent, MultiHeadDotProductAttention)
    return getattr(module.parent if in_attention else module, "compose", None)


def _of_flax(cls: type[nn.Module]) -> bool:
    """Whether flax wrote the class; the classes its transforms make of a user's do not count."""
    return cls.__module__.startswith("flax.") and cls.__module__ != nn.transforms.__name__


def _held_weights(module: nn.Module) -> dict[str, Any]:
    """The factorized weights among the module's own parameters, not those of its submodules."""
    params = module.variables.get("params", {})
    return {name: value for name, value in params.items() if is_factorized(value)}


def _refuse(user: nn.Module, owner: nn.Module, cause: Exception | None = None) -> None:
    """Raises if ``owner`` holds a weight, which ``user`` cannot compute with."""
    for name, weight in _held_weights(owner).items():
        raise ValueError(
            f"{path_of(owner, name)}: found a {type(weight).__name__}, but {type(user).__name__} "
            "cannot use a factorized weight; merge it, or leave it out of the rules."
        ) from cause
