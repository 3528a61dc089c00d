"""What a decay acts on in one parameter tree: factorized weights, implicit products, other leaves.

Everything is addressed by path, so a leaf of the updates, which may be missing (``None``) where it
is frozen, finds the gradient that belongs to it. Optax hides what a mask excludes behind
``MaskedNode``, and Equinox what a filter excludes behind ``None``: a weight or product that is
hidden whole is left out, one that is hidden by half is an error, because a product decays as a
whole.

What products read is decayed by the products alone. Of an array of which they read a part, such as
the values in a kernel of queries, keys and values, the rest is decayed plainly, like other leaves.
Of a factorized weight they must read everything: its rest is no weight that had a norm of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowrank_jax.products import Listed, Product, find_leaf, require_products
from lowrank_jax.tree import Components, components, leaf_names, path_string, unbox
from lowrank_jax.weights import is_factorized
from lowrank_jax.weights.explicit_axes import placed_alike

Mask = Any


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a decay acts on in one parameter tree, every leaf by its path.

    Attributes:
      leaves: the floating leaves that belong to weights or products, in float32 or better.
      norms: one function per weight or product: its squared norm, given such leaves.
      others: the floating leaves that belong to neither, in their own precision, as in Optax; zero
        where a product reads a part of them.
      found: whether there is any weight or product, masked ones included.
      masked: whether an enclosing ``optax.masked`` hides parts of the tree.
    """

    leaves: dict[Components, jax.Array]
    norms: tuple[Callable[[dict[Components, jax.Array]], jax.Array], ...]
    others: dict[Components, jax.Array]
    found: bool
    masked: bool

    def penalty(self, leaves: dict[Components, jax.Array]) -> jax.Array:
        return 0.5 * sum((norm(leaves) for norm in self.norms), start=jnp.zeros([]))

    @classmethod
    def of(cls, params: Any, products: Sequence[Product], mask: Mask | None = None) -> Terms:
        products = require_products(products)
        entries = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_kernel)
        kernels = {components(path): _Kernel(components(path), leaf) for path, leaf in entries}
        locate = _Places(kernels, leaf_names(params, _is_kernel))
        decayed = _decayed(params, mask)

        leaves: dict[Components, Any] = {}
        norms: list[Callable[..., jax.Array]] = []
        read: dict[Components, list[Part]] = {}
        in_products: set[Components] = set()
        listed = Listed()
        for product in products:
            places = [locate(path) for path in product.paths]
            pair = [kernels[place] for place in places if place is not None]
            in_products.update(kernel.place for kernel in pair)
            flags = [kernel.decays(decayed) for kernel in pair]
            if _all_or_none(str(product), flags + [False] * places.count(None)):
                u, vt = pair
                product.check(u.shape, vt.shape)
                listed.add(product, [kernel.name for kernel in pair], [u.shape, vt.shape])
                for kernel, view in zip(pair, product.views, strict=True):
                    leaves |= kernel.differentiated()
                    read.setdefault(kernel.place, []).append(view.indices(kernel.shape))
                norms.append(_norm(product.squared_norm, pair))
        for place, kernel in kernels.items():
            is_term = is_factorized(kernel.value) and place not in in_products
            if is_term and kernel.decays(decayed):
                leaves |= kernel.differentiated()
                norms.append(_norm(lambda weight: weight.squared_norm(), [kernel]))
        others = {
            place: kernel.value
            for place, kernel in kernels.items()
            if not (is_factorized(kernel.value) or _is_hidden(kernel.value) or place in leaves)
            and decayed(place)
            and _floats(kernel.value)
        }
        for place, parts in read.items():
            kernel = kernels[place]
            if not _cover(parts, kernel.shape):
                others[place] = kernel.without(parts)
        return cls(
            leaves=_accumulators(leaves),
            norms=tuple(norms),
            others=others,
            found=bool(products) or any(is_factorized(kernel.value) for kernel in kernels.values()),
            masked=any(_is_masked(kernel.value) for kernel in kernels.values()),
        )


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """An array or a factorized weight of the tree (or what hides it), and the place it has."""

    place: Components
    value: Any

    @property
    def name(self) -> str:
        return "/".join(self.place)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense kernel."""
        value = unbox(self.value)
        return value.shape if is_factorized(value) else jnp.shape(value)

    def leaves(self) -> dict[Components, Any]:
        entries = jax.tree_util.tree_leaves_with_path(self.value)
        return {self.place + components(key_path): leaf for key_path, leaf in entries}

    def floating(self) -> dict[Components, Any]:
        return {place: leaf for place, leaf in self.leaves().items() if _floats(leaf)}

    def decays(self, decayed: Callable[[Components], bool]) -> bool:
        """Whether it is in sight, and the mask lets all of it be decayed."""
        allowed = [decayed(place) for place in self.floating() or self.leaves()]
        visible = _visibility(self.value)
        return _all_or_none(self.name, visible) and _all_or_none(self.name, allowed)

    def differentiated(self) -> dict[Components, Any]:
        leaves = self.floating()
        if not leaves:
            raise ValueError(
                f"a product names {self.name}, whose dtype {self.value.dtype} has no gradient"
            )
        return leaves

    def rebuilt(self, leaves: dict[Components, jax.Array]) -> Any:
        # Integer leaves are not differentiated: they are taken from the weight itself.
        current = [leaves.get(place, value) for place, value in self.leaves().items()]
        return jax.tree.unflatten(jax.tree.structure(unbox(self.value)), current)

    def without(self, parts: Sequence[Part]) -> Any:
        """The array, zero where it is read."""
        if is_factorized(self.value):
            raise ValueError(
                f"{self.name}: products read only a part of this {type(self.value).__name__}, and "
                "its rest has no norm of its own: name products that read all of it, merge it, or "
                "leave its products out"
            )
        if isinstance(self.value, jax.ShapeDtypeStruct):
            return self.value
        read = jnp.zeros([], bool)
        for part in parts:
            # A vector for each axis, because the mask itself is as large as the leaf.
            axes = jnp.meshgrid(*_flags(part, self.shape), indexing="ij", sparse=True)
            read = read | functools.reduce(jnp.logical_and, axes)
        # The oldest JAX wants it split as the array is.
        read = placed_alike(self.value, read)
        return jnp.where(read, jnp.zeros([], self.value.dtype), self.value)


Part = tuple[tuple[int, ...], ...]
"""What a view reads: for each axis of a leaf, which of its indices."""


def _flags(part: Part, shape: tuple[int, ...]) -> list[np.ndarray]:
    """For each axis, of each of its indices whether it is read."""
    return [np.isin(np.arange(size), indices) for indices, size in zip(part, shape, strict=True)]


def _cover(parts: Sequence[Part], shape: tuple[int, ...]) -> bool:
    """Whether the parts together are the whole leaf."""
    by_axis = zip(*(_flags(part, shape) for part in parts), strict=True)
    # Indices of an axis that are in the same parts stand for each other.
    classes = [np.unique(np.stack(flags), axis=1) for flags in by_axis]
    read = [
        functools.reduce(np.multiply.outer, [flags[number] for flags in classes])
        for number in range(len(parts))
    ]
    return bool(np.logical_or.reduce(read).all())


def _norm(
    squared_norm: Callable[..., jax.Array], kernels: Sequence[_Kernel]
) -> Callable[..., jax.Array]:
    return lambda leaves: squared_norm(*(kernel.rebuilt(leaves) for kernel in kernels))


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_hidden(x: Any) -> bool:
    """Whether a leaf is out of this transform's sight: masked by Optax, or filtered to None."""
    return x is None or _is_masked(x)


def _is_kernel(x: Any) -> bool:
    return is_factorized(x) or _is_hidden(x)


def _floats(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)


def _accumulators(leaves: dict[Components, Any]) -> dict[Components, jax.Array]:
    def widen(leaf: Any) -> Any:
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return jnp.asarray(leaf).astype(dtype)

    return {path: widen(leaf) for path, leaf in leaves.items()}


def _decayed(params: Any, mask: Mask | None) -> Callable[[Components], bool]:
    """Whether the mask lets the leaf at a path be decayed."""
    if mask is None:
        return lambda path: True
    if callable(mask):
        mask = mask(params)
    spread = jax.tree.map(lambda m, subtree: jax.tree.map(lambda _: m, subtree), mask, params)
    flags = jax.tree_util.tree_leaves_with_path(spread)
    by_path = {components(path): _flag(path, flag) for path, flag in flags}
    return lambda path: by_path[path]


def _flag(path: Any, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"the mask at {path_string(path)} is {value!r}, not True or False")
    return bool(value)


def _visibility(value: Any) -> list[bool]:
    """For each leaf of an array or weight whether it is there, or hidden.

    A missing ``m`` is not hidden.
    """
    if not is_factorized(value):
        return [not _is_hidden(value)]
    required = [
        getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.default is dataclasses.MISSING and field.name not in value.static_fields
    ]
    leaves = jax.tree.leaves(value, is_leaf=_is_masked)
    return [False for factor in required if factor is None] + [not _is_masked(x) for x in leaves]


def _all_or_none(name: str, flags: list[bool]) -> bool:
    if len(set(flags)) > 1:
        raise ValueError(
            f"{name}: the mask covers some of its factors and not others; a product decays as a "
            "whole, so mask all of them or none"
        )
    return bool(flags) and flags[0]


class _Places:
    """Where the array or weight is that a product names."""

    def __init__(self, kernels: dict[Components, _Kernel], names: dict[str, str]) -> None:
        hidden = (kernel.name for kernel in kernels.values() if _is_hidden(kernel.value))
        self.hidden = {spelling for path in hidden for spelling in (path, names[path])}
        self.visible = {
            kernel.name: kernel for kernel in kernels.values() if not _is_hidden(kernel.value)
        }
        self.values = {path: kernel.value for path, kernel in self.visible.items()}
        self.names = {path: name for path, name in names.items() if path in self.visible}

    def __call__(self, named: str) -> Components | None:
        """Its place, or None if an enclosing mask hides it."""
        if any(not path or f"{named}/".startswith(f"{path}/") for path in self.hidden):
            return None
        return self.visible[find_leaf(named, self.names, self.values)].place
