"""What a decay acts on in one parameter tree: factorized weights, implicit products, other leaves.

Everything is addressed by path, so a leaf of the updates, which may be missing (``None``) where it
is frozen, finds the gradient that belongs to it. Optax hides what a mask excludes behind
``MaskedNode``, and Equinox what a filter excludes behind ``None``: a weight or product that is
hidden whole is left out, one that is hidden by half is an error, because a product decays as a
whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowrank_jax.products import Product, refuse_duplicates
from lowrank_jax.tree import Components, components, near_misses, path_string, unbox
from lowrank_jax.weights import FactorizedWeight, is_factorized

Mask = Any


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a decay acts on in one parameter tree, every leaf by its path.

    Attributes:
      leaves: the floating leaves that belong to weights or products, in float32 or better.
      norms: one function per weight or product: its squared norm, given such leaves.
      others: the floating leaves that belong to neither, in their own precision, as in Optax.
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
        refuse_duplicates(products)
        entries = jax.tree_util.tree_leaves_with_path(
            params, is_leaf=lambda x: is_factorized(x) or _is_hidden(x)
        )
        hidden = {components(path): leaf for path, leaf in entries if _is_hidden(leaf)}
        weights = {components(path): leaf for path, leaf in entries if is_factorized(leaf)}
        arrays = {
            components(path): leaf
            for path, leaf in entries
            if not is_factorized(leaf) and not _is_hidden(leaf)
        }
        decayed = _decayed(params, mask)

        leaves: dict[Components, Any] = {}
        norms: list[Callable[..., jax.Array]] = []
        for path, weight in weights.items():
            inner = jax.tree_util.tree_leaves_with_path(weight)
            places = [path + components(key_path) for key_path, _ in inner]
            values = [leaf for _, leaf in inner]
            floating = {
                place: value for place, value in zip(places, values, strict=True) if _floats(value)
            }
            name, allowed = "/".join(path), [decayed(place) for place in floating]
            if _all_or_none(name, _visibility(weight)) and _all_or_none(name, allowed):
                leaves |= floating
                norms.append(_weight_norm(weight, places, values))
        for product in products:
            u = _locate(product.u, arrays, weights, hidden)
            vt = _locate(product.vt, arrays, weights, hidden)
            whole = _all_or_none(
                f"Product({product.u!r}, {product.vt!r})",
                [place is not None and decayed(place) for place in (u, vt)],
            )
            if whole and u is not None and vt is not None:
                product.check(jnp.shape(arrays[u]), jnp.shape(arrays[vt]))
                for place in (u, vt):
                    if not _floats(arrays[place]):
                        raise ValueError(
                            f"a product names {'/'.join(place)}, whose dtype "
                            f"{arrays[place].dtype} has no gradient"
                        )
                leaves |= {u: arrays[u], vt: arrays[vt]}
                norms.append(_product_norm(product, u, vt))
        return cls(
            leaves=_accumulators(leaves),
            norms=tuple(norms),
            others={
                path: leaf
                for path, leaf in arrays.items()
                if path not in leaves and decayed(path) and _floats(leaf)
            },
            found=bool(weights or products),
            masked=any(_is_masked(leaf) for leaf in hidden.values()),
        )


def _weight_norm(
    weight: FactorizedWeight, places: list[Components], values: list[Any]
) -> Callable[..., jax.Array]:
    structure = jax.tree.structure(unbox(weight))

    def squared_norm(leaves: dict[Components, jax.Array]) -> jax.Array:
        # Integer leaves are not differentiated: they are taken from the weight itself.
        current = [leaves.get(place, value) for place, value in zip(places, values, strict=True)]
        return jax.tree.unflatten(structure, current).squared_norm()

    return squared_norm


def _product_norm(product: Product, u: Components, vt: Components) -> Callable[..., jax.Array]:
    return lambda leaves: product.squared_norm(leaves[u], leaves[vt])


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_hidden(x: Any) -> bool:
    """Whether a leaf is out of this transform's sight: masked by Optax, or filtered to None."""
    return x is None or _is_masked(x)


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


def _visibility(weight: FactorizedWeight) -> list[bool]:
    """For each leaf of a weight whether it is there, or hidden; a missing ``m`` is not hidden."""
    required = [
        getattr(weight, field.name)
        for field in dataclasses.fields(weight)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in weight.static_fields
    ]
    leaves = jax.tree.leaves(weight, is_leaf=_is_masked)
    return [False for value in required if value is None] + [not _is_masked(x) for x in leaves]


def _all_or_none(name: str, flags: list[bool]) -> bool:
    if len(set(flags)) > 1:
        raise ValueError(
            f"{name}: the mask covers some of its factors and not others; a product decays as a "
            "whole, so mask all of them or none"
        )
    return bool(flags) and flags[0]


def _locate(
    path: str,
    arrays: Iterable[Components],
    weights: Iterable[Components],
    hidden: Iterable[Components],
) -> Components | None:
    """The leaf a product names, or None if an enclosing mask hides it."""
    names = {"/".join(place): place for place in arrays}
    for candidate in (path, f"{path}/value"):  # A leaf in a partition box, or an nnx variable.
        if candidate in names:
            return names[candidate]
    for place in weights:
        if _within(path, place):
            raise ValueError(
                f"a product names {path}, but {'/'.join(place)} is a factorized weight: it is "
                "decayed by itself; take it out of the products or merge it"
            )
    if any(_within(path, place) for place in hidden):
        return None
    raise ValueError(
        f"a product names {path}, which is not in the parameters; {near_misses(path, names)}"
    )


def _within(path: str, place: Components) -> bool:
    return not place or f"{path}/".startswith("/".join(place) + "/")
