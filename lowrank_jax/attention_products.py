"""The implicit products of attention: queries with keys, outputs with values, per head.

For head h of multi-head attention, with inputs x and y,

    scores   (x Q_h) (y K_h)ᵀ = x (Q_h K_hᵀ) yᵀ,      values   (y V_h) O_h = y (V_h O_h),

so the four projections act through two products per head alone, each a matrix of rank d, the head
size, at most. With grouped queries, G keys and values serve H = G n heads: head g n + j has the
keys and values g, and the products of a group share that side.

Attention modules are found by the names of their projections, flax's unless a layout says
otherwise. **What a tree does not say**: that nothing stands between a projection and its product.
Rotary positions, normalized queries and keys and the like make scores a function of more than
``Q_h K_hᵀ``. Where queries and keys are normalized by a layer with parameters of its own beside
them, ``query_ln`` or ``key_ln``, "qk" is refused; for everything else ask the model
(``lowrank_jax.linen.attention_products`` does), or leave "qk" out. Nor does a tree say along which
axis modules are stacked: it must be in front, as with ``variable_axes={"params": 0}`` of
``nn.scan``. Where another one gives shapes that do not fit together, it is refused. Source: Khodak
et al., ICLR 2021 (arXiv 2105.01029), section 5; Ainslie et al., "GQA", 2023 (arXiv 2305.13245).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_jax.products import Product
from lowrank_jax.tree import kernels, leaf_names, near_misses
from lowrank_jax.views import View

_SIDES = {"qk": ("query", "key"), "ov": ("value", "out")}


@dataclasses.dataclass(frozen=True)
class Projection:
    """Where the kernel of one projection is, and what its axes are.

    Attributes:
      kernel: path below the attention module, or a ``View`` of it where several projections are
        stored in one kernel or heads are not an axis of their own.
      model: the axis of the model's features, in what is read; all three count from the end.
      heads: the axis of the heads.
      size: the axis of the head size. All other axes are shared, as the one of ``nn.scan``, which
        stands in front.
      bias: path or ``View`` of the bias ``(..., heads, size)``, which need not be there. Its shared
        axes come first, in the kernel's order; where there are as many layers as heads, a bias with
        heads before layers cannot be told from one with layers before heads.

    Raises:
      ValueError: the axes are not three different ones, counted from the end.
      TypeError: the kernel or the bias is neither a path nor a ``View``.
    """

    kernel: str | View
    _: dataclasses.KW_ONLY
    model: int = -3
    heads: int = -2
    size: int = -1
    bias: str | View | None = None

    def __post_init__(self) -> None:
        for leaf in (self.kernel, *(() if self.bias is None else (self.bias,))):
            View.of(leaf)
        axes = self.axes
        if max(axes) >= 0 or len(set(axes)) < 3:
            raise ValueError(
                f"Projection({self.kernel!r}): model, heads and size are the axes {axes}; expected "
                "three different ones, counted from the end: -1 is the last"
            )

    @property
    def axes(self) -> tuple[int, int, int]:
        """Of the model, the heads and the head size."""
        return self.model, self.heads, self.size


@dataclasses.dataclass(frozen=True)
class AttentionLayout:
    """How attention modules store their projections; flax's way by default.

    Attributes:
      query, key, value, out: the projections. The bias of ``out`` is no part of a product.
      normalizations: names below the module that show that queries or keys are normalized.

    Raises:
      ValueError: ``out`` names a bias.
      TypeError: a projection is no ``Projection``.

    >>> def part(index):  # Of one kernel (D, 3 * heads * size).
    ...     whole = View("qkv/kernel").split(-1, (3, 4, 2))
    ...     return Projection(whole.take(-3, index))
    >>> fused = AttentionLayout(query=part(0), key=part(1), value=part(2))
    """

    query: Projection = Projection("query/kernel", bias="query/bias")
    key: Projection = Projection("key/kernel", bias="key/bias")
    value: Projection = Projection("value/kernel", bias="value/bias")
    out: Projection = Projection("out/kernel", heads=-3, size=-2, model=-1)
    normalizations: tuple[str, ...] = ("query_ln", "key_ln")

    def __post_init__(self) -> None:
        for name in ("query", "key", "value", "out"):
            found = getattr(self, name)
            if not isinstance(found, Projection):
                raise TypeError(f"AttentionLayout({name}={found!r}): expected a Projection")
        if self.out.bias is not None:
            raise ValueError(
                f"the bias of out, {self.out.bias!r}, is added after the heads are summed and is "
                "no part of a product: leave it out"
            )


def attention_products(
    params: Any,
    which: Sequence[str] = ("qk", "ov"),
    *,
    layout: AttentionLayout = AttentionLayout(),
) -> tuple[Product, ...]:
    """The query-key and output-value products of every attention module in a tree.

    A module is known by the kernel of its queries, at any depth. Its kernels may be arrays or
    factorized weights, and have leading axes, as ``nn.scan`` adds them. With fewer keys than
    queries, queries are grouped. Each product also names the biases that belong to it.

    Args:
      params: arrays, weights or ``ShapeDtypeStruct``.
      which: ``"qk"``, ``"ov"`` or both.
      layout: where the projections are, if not where flax's modules have them.

    Returns:
      The products, module by module in the tree's order. They assume that nothing but the product
      stands between two projections: no rotary positions, no normalization.

    Raises:
      ValueError: no module was found; one lacks a projection, has a bias the layout does not name,
        or kernels and biases that do not fit together, as when they are stacked along another axis
        than a leading one; "qk" is asked for where queries or keys are normalized.
      TypeError: ``layout`` is no ``AttentionLayout``.

    >>> import numpy as np
    >>> kernels = {"query": (6, 4, 2), "key": (6, 4, 2), "value": (6, 4, 2), "out": (4, 2, 6)}
    >>> params = {"layer": {name: {"kernel": np.ones(shape)} for name, shape in kernels.items()}}
    >>> for product in attention_products(params):
    ...     print(product)
    Product('layer/query/kernel', 'layer/key/kernel')
    Product('layer/value/kernel', 'layer/out/kernel')
    """
    if not which or set(which) - set(_SIDES) or len(set(which)) < len(which):
        raise ValueError(f"which={which!r}: expected one or both of {tuple(_SIDES)}")
    if not isinstance(layout, AttentionLayout):
        raise TypeError(f"layout={layout!r}: expected an AttentionLayout")
    names = leaf_names(params)
    leaves = {names[path]: leaf for path, leaf in kernels(params).items()}
    wanted = View.of(layout.query.kernel).path
    modules = [path.removesuffix(wanted) for path in leaves if f"/{path}".endswith(f"/{wanted}")]
    if not modules:
        raise ValueError(
            f"no attention module: no leaf ends in {wanted}; {near_misses(wanted, leaves)}. Other "
            "names and fused kernels are told by layout=AttentionLayout(...)"
        )
    products = []
    for module in modules:
        _refuse_stacking(module, layout, leaves)
        for pair in which:
            if pair == "qk":
                _refuse_normalized(module, leaves, layout)
            u, vt = (_Side.of(module, name, layout, leaves) for name in _SIDES[pair])
            products.append(_query_key(u, vt) if pair == "qk" else _output_value(u, vt))
            for side in (u, vt):
                side.check_bias(leaves)
    return tuple(products)


def _refuse_normalized(module: str, leaves: Mapping[str, Any], layout: AttentionLayout) -> None:
    for name in layout.normalizations:
        if any(path.startswith(f"{module}{name}/") for path in leaves):
            raise ValueError(
                f"{module}{name} normalizes queries or keys, so that scores are no function of "
                'the product of the two kernels: ask for which=("ov",) alone'
            )


def _refuse_stacking(module: str, layout: AttentionLayout, leaves: Mapping[str, Any]) -> None:
    """Raises where queries and outputs differ in their heads or in what modules are stacked along.

    Queries and keys agree along whatever axis they are stacked; outputs have another order of axes.
    """
    out = View.of(layout.out.kernel).below(module)
    if out.path not in leaves or len(out.shape(leaves[out.path].shape)) < -min(layout.out.axes):
        return
    query, outputs = (_Side.of(module, name, layout, leaves) for name in ("query", "out"))
    if query.sizes_shared != outputs.sizes_shared:
        raise ValueError(
            f"{query.view.named} {query.stored} and {outputs.view.named} {outputs.stored} are read "
            f"with the leading axes and heads {query.sizes_shared} and {outputs.sizes_shared}; "
            "expected the same: the axes along which modules are stacked must be in front"
        )


@dataclasses.dataclass(frozen=True)
class _Side:
    """A projection of one module: how its kernel is read, and its axes counted from the front."""

    view: View
    stored: tuple[int, ...]
    heads: int
    size: int
    shared: tuple[int, ...]
    bias: View | None

    @classmethod
    def of(
        cls, module: str, name: str, layout: AttentionLayout, leaves: Mapping[str, Any]
    ) -> _Side:
        projection: Projection = getattr(layout, name)
        view = View.of(projection.kernel).below(module)
        if view.path not in leaves:
            raise ValueError(
                f"the attention module {module.removesuffix('/') or 'at the root'} has a query "
                f"but no {name}: {view.path} is not there; {near_misses(view.path, leaves)}"
            )
        stored = tuple(leaves[view.path].shape)
        shape = view.shape(stored)
        axes = projection.axes
        if len(shape) < -min(axes):
            raise ValueError(
                f"{view.named} has shape {shape}; expected model, heads and head size as its axes "
                f"{axes}: where heads are no axis of their own, give a layout with a View that "
                "splits them off"
            )
        model, heads, size = (len(shape) + axis for axis in axes)
        leading = [axis for axis in range(len(shape)) if axis not in (model, heads, size)]
        bias = None if projection.bias is None else View.of(projection.bias).below(module)
        if bias is None or bias.path not in leaves:
            beside = "/".join([*view.path.split("/")[:-1], "bias"])
            if name != "out" and beside in leaves:
                raise ValueError(
                    f"{beside} is beside {view.path}, but the layout does not say that it is the "
                    f"{name}'s bias: give its Projection bias=…, since it belongs to the product"
                )
            bias = None
        return cls(view, stored, heads, size, (*leading, heads), bias)

    @property
    def number(self) -> int:
        """Of heads."""
        return self.view.shape(self.stored)[self.heads]

    @property
    def sizes_shared(self) -> tuple[int, ...]:
        """Of the leading axes and the heads."""
        shape = self.view.shape(self.stored)
        return tuple(shape[axis] for axis in self.shared)

    def check_bias(self, leaves: Mapping[str, Any]) -> None:
        """Raises where the bias has other shared axes or another size than the kernel."""
        if self.bias is None:
            return
        shape = self.view.shape(self.stored)
        found = self.bias.shape(leaves[self.bias.path].shape)
        if found != (expected := (*self.sizes_shared, shape[self.size])):
            raise ValueError(
                f"{self.bias.named} has shape {found}; expected {expected}, the leading axes, "
                f"heads and head size of {self.view.named} {shape}: the axes along which modules "
                "are stacked must be in front"
            )

    def grouped(self, other: _Side) -> _Side:
        """With as many heads as the other side, members of a group being an axis that is free."""
        if self.number == other.number:
            return self
        if self.number % other.number:
            raise ValueError(
                f"{self.view.named} has {self.number} heads and {other.view.named} has "
                f"{other.number}, of shapes {self.stored} and {other.stored}; expected as many, or "
                "a divisor of the former"
            )
        sizes = (other.number, self.number // other.number)
        return dataclasses.replace(
            self,
            view=self.view.split(self.heads, sizes),
            size=self.size + (self.size > self.heads),
            shared=tuple(axis + (axis > self.heads) for axis in self.shared),
            bias=None if self.bias is None else self.bias.split(-2, sizes),
        )


def _query_key(query: _Side, key: _Side) -> Product:
    return _product(query.grouped(key), key)


def _output_value(value: _Side, out: _Side) -> Product:
    return _product(value, out.grouped(value))


def _product(u: _Side, vt: _Side) -> Product:
    product = Product(
        u.view.brief,
        vt.view.brief,
        dimension_numbers=(((u.size,), (vt.size,)), (u.shared, vt.shared)),
        u_bias=None if u.bias is None else u.bias.brief,
        vt_bias=None if vt.bias is None else vt.bias.brief,
    )
    product.check(u.stored, vt.stored)
    return product
