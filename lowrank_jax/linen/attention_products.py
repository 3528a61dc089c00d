"""The implicit products of a linen model's attention, found by running it on shapes.

A tree alone shows where projections are, not what stands between them. The model knows: it is
traced abstractly, each ``nn.MultiHeadDotProductAttention`` that is called (drop-in or not) says its
path and whether it does something to queries and keys before their product, and the products are
those of :func:`lowrank_jax.attention_products` for these modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.linen.module import InterceptorContext

from lowrank_jax.attention_products import attention_products as products_in_tree
from lowrank_jax.linen.attention import MultiHeadDotProductAttention
from lowrank_jax.linen.kernels import flax_code
from lowrank_jax.linen.lift import lift
from lowrank_jax.products import Product
from lowrank_jax.tree import kernels

PROJECTIONS = ("query", "key", "value", "out")
# Code in which nothing but ``positions`` and ``normalize_qk`` comes between projections.
KNOWN_CODE = tuple(
    flax_code(layer.__call__)
    for layer in (nn.MultiHeadDotProductAttention, nn.SelfAttention, MultiHeadDotProductAttention)
)


def attention_products(
    model: nn.Module,
    params: Any,
    *inputs: Any,
    which: Sequence[str] = ("qk", "ov"),
    **kwargs: Any,
) -> tuple[Product, ...]:
    """The query-key and output-value products of every attention module that a model calls.

    Args:
      model: a linen model, lifted or not, with any of flax's attention classes or the drop-in one.
      params: its parameters: arrays, weights or ``ShapeDtypeStruct``.
      *inputs: what the model is called with; arrays may be ``ShapeDtypeStruct``.
      which: ``"qk"``, ``"ov"`` or both.
      **kwargs: further arguments of ``model.apply``, such as ``method`` or ``train=True``; arrays
        may be ``ShapeDtypeStruct`` here too. Random keys and variables other than parameters need
        not be given.

    Returns:
      The products with their biases, in the order of the tree. An ``attention_fn`` of the model's
      own must use queries and keys through their product alone: it cannot be looked into.

    Raises:
      ValueError: the model calls no such module, or one of a subclass with a ``__call__`` of its
        own, which may do anything; "qk" is asked for and a module has ``positions`` or
        ``normalize_qk``; or kernels are stacked along another axis than a leading one.

    >>> model = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)
    >>> x = jax.ShapeDtypeStruct((5, 8), "float32")
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    >>> for product in attention_products(model, params, x):
    ...     print(product)
    Product('query/kernel', 'key/kernel')
    Product('value/kernel', 'out/kernel')
    """
    modules = _called(model, params, inputs, kwargs)
    if not modules:
        raise ValueError(
            f"{type(model).__name__} calls no nn.MultiHeadDotProductAttention with these "
            "arguments; for attention of your own name the pairs by lowrank_jax.Product, or a "
            "layout by lowrank_jax.attention_products"
        )
    if "qk" in which:
        for path, (module, _) in modules.items():
            if getattr(module, "positions", None) is not None:
                raise ValueError(
                    f"{'/'.join(path)}: positions={module.positions!r} are applied to queries and "
                    "keys, so that scores are no function of the product of the two kernels: ask "
                    'for which=("ov",) alone'
                )
    found: dict[str, Any] = {}
    for path, (_, shapes) in modules.items():
        found = _with_subtree(found, path, _subtree(params, path))
        _check_stacking(path, shapes, kernels(_subtree(params, path)))
    return products_in_tree(found, which)


Shapes = dict[str, tuple[int, ...]]


def _called(
    model: nn.Module, params: Any, inputs: Any, kwargs: dict[str, Any]
) -> dict[tuple[str, ...], tuple[Any, Shapes]]:
    """By path, the attention modules called and the shapes of their kernels as they see them."""
    called: dict[tuple[str, ...], tuple[Any, Shapes]] = {}

    def note(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        result, module = next_fun(*args, **kwargs), context.module
        attends = context.method_name == "__call__"
        if isinstance(module, nn.MultiHeadDotProductAttention) and attends:
            _require_known_code(module)
            seen = kernels(module.variables["params"])
            shapes = {name: tuple(seen[f"{name}/kernel"].shape) for name in PROJECTIONS}
            called[module.path] = module, shapes
        return result

    options: dict[str, Any] = {"rngs": jax.random.key(0), "mutable": nn.DenyList("params")}
    leaves, structure = jax.tree.flatten((params, inputs, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}

    def apply(arrays: dict[int, Any]) -> Any:
        filled = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        params, inputs, kwargs = jax.tree.unflatten(structure, filled)
        with nn.intercept_methods(note):
            return lift(model).apply({"params": params}, *inputs, **(options | kwargs))

    # Under jit, nn.jit would run each kind of block once, and never again.
    with jax.disable_jit():
        jax.eval_shape(apply, arrays)
    return called


def _require_known_code(module: nn.MultiHeadDotProductAttention) -> None:
    kind = type(module)
    if flax_code(kind.__call__) not in KNOWN_CODE:
        raise ValueError(
            f"{'/'.join(module.path) or 'the model'}: {kind.__name__} is a subclass with a "
            "__call__ of its own, which may do anything to queries and keys: use "
            "lowrank_jax.linen.MultiHeadDotProductAttention with positions=…, or, if queries and "
            "keys meet as they are, lowrank_jax.attention_products with a layout=…"
        )


def _subtree(params: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        params = params[name]
    return params


def _with_subtree(tree: Mapping[str, Any], path: tuple[str, ...], subtree: Any) -> dict[str, Any]:
    if not path:
        return dict(subtree)
    inner = _with_subtree(tree.get(path[0], {}), path[1:], subtree)
    return {**tree, path[0]: inner}


def _check_stacking(path: tuple[str, ...], shapes: Shapes, stored: dict[str, Any]) -> None:
    for name, shape in shapes.items():
        found = tuple(stored[f"{name}/kernel"].shape)
        if found[-len(shape) :] != shape:
            raise ValueError(
                f"{'/'.join((*path, name))}/kernel: kernels of shape {shape} are stacked as "
                f"{found}; expected the axes of nn.scan and nn.vmap in front, as with "
                'variable_axes={"params": 0}'
            )
