"""Frobenius decay: decay of the norm of the product, as Optax transforms for any parameter tree.

    frobenius decay      update + weight_decay * grad of 1/2 ||dense||_F^2
    plain decay          update + weight_decay * parameter

Plain decay on both factors penalizes ``(||u||² + ||vt||²) / 2``, whose smallest value over all
factorings of a kernel is its nuclear norm: another regularizer than the dense model's. Frobenius
decay is the dense model's weight decay, computed without the dense kernel from the r x r Gram
matrices; with ``A = uᵀu`` and ``B = vt vtᵀ`` the two gradients are ``u B`` and ``A vt``. No kind of
weight writes these formulas: the gradient is ``jax.grad`` of its ``squared_norm``.

Where the transform stands in the chain decides whether it is coupled: before the momentum of
``sgd`` it is the published form; after ``scale_by_adam`` the decoupled one, as in AdamW.

Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_jax.products import Product, refuse_duplicates
from lowrank_jax.tree import Components, components, near_misses, unbox
from lowrank_jax.weights import FactorizedWeight, is_factorized

Coefficient = float | jax.Array | Callable[[Any], Any]
Mask = Any


class DecayState(NamedTuple):
    """State of a decay whose coefficient is a schedule: the number of updates made."""

    count: jax.Array  # type: ignore[assignment]


def frobenius_decay(
    weight_decay: Coefficient, products: Sequence[Product] = (), mask: Mask | None = None
) -> optax.GradientTransformation:
    """Adds ``weight_decay * grad of 1/2 ||dense||_F^2`` for every factorized weight and product.

    Leaves that belong to neither are passed on unchanged.

    Args:
      weight_decay: the coefficient, or a schedule of it (a function of the number of updates).
      products: pairs of ordinary leaves to be decayed as products.
      mask: a tree of booleans (a prefix of the parameters will do, so one made for the dense model
        stays valid), or a function of the parameters that makes one; ``False`` excludes.

    Raises:
      ValueError: at ``init``, if nothing in the tree is factorized; if a product names a leaf that
        is not there; if a mask covers half a weight or half a product.

    Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 3.2.

    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.ones((3, 1)), vt=2 * jnp.ones((1, 2)))}
    >>> tx = frobenius_decay(0.5)
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> tx.update(zeros, tx.init(params), params)[0]["kernel"].u[0]  # 0.5 * u (vt vtᵀ)
    Array([4.], dtype=float32)
    """
    return _decay(weight_decay, None, products, mask)


def decay(
    weight_decay: Coefficient,
    frobenius_decay: Coefficient | None = None,
    products: Sequence[Product] = (),
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Frobenius decay where the tree is factorized, plain decay everywhere else.

    On a dense tree this is ``optax.add_decayed_weights``, so one recipe serves the dense model and
    its factorized versions.

    Args:
      weight_decay: the coefficient of plain decay, or a schedule of it.
      frobenius_decay: that of Frobenius decay; the same by default.
      products: pairs of ordinary leaves that are decayed as products (and not plainly).
      mask: as in :func:`frobenius_decay`: ``True`` is decayed, by whichever rule fits.

    Raises:
      ValueError: as :func:`frobenius_decay`, except that a dense tree is welcome.

    >>> tx = optax.chain(decay(1e-4), optax.sgd(0.1, momentum=0.9))
    """
    if frobenius_decay is None:
        frobenius_decay = weight_decay
    return _decay(frobenius_decay, weight_decay, products, mask)


def frobenius_penalty(params: Any, products: Sequence[Product] = ()) -> jax.Array:
    """``1/2 sum ||dense||_F^2`` over the factorized weights and products: a scalar.

    The penalty whose gradient :func:`frobenius_decay` adds, for losses, logs and tests.

    >>> from lowrank_jax.weights import LowRank
    >>> float(frobenius_penalty({"kernel": LowRank(u=jnp.ones((3, 1)), vt=jnp.ones((1, 2)))}))
    3.0
    """
    terms = _Terms.of(params, products)
    return terms.penalty(terms.leaves)


def _decay(
    frobenius: Coefficient,
    plain: Coefficient | None,
    products: Sequence[Product],
    mask: Mask | None,
) -> optax.GradientTransformation:
    products = tuple(products)
    scheduled = callable(frobenius) or callable(plain)

    def init(params: Any) -> Any:
        terms = _Terms.of(params, products, mask)
        if plain is None and not terms.found and not terms.masked:
            raise ValueError(
                "frobenius_decay found no factorized weight in the parameters, and no products "
                "were given: factorize them first, or use lowrank_jax.decay, which accepts "
                "dense trees"
            )
        return DecayState(jnp.zeros([], jnp.int32)) if scheduled else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:  # Optax's own message, from Optax itself.
            optax.add_decayed_weights(0.0).update(updates, optax.EmptyState(), None)
        terms = _Terms.of(params, products, mask)
        added: dict[Components, jax.Array] = {}

        def add(coefficient: Coefficient, gradients: Callable[[], dict[Components, Any]]) -> None:
            value = coefficient(state.count) if callable(coefficient) else coefficient
            if isinstance(value, int | float) and value == 0:
                return
            added.update({path: value * g for path, g in gradients().items()})

        add(frobenius, lambda: jax.grad(terms.penalty)(terms.leaves))
        if plain is not None:
            add(plain, lambda: terms.others)

        def visit(key_path: Any, update: Any) -> Any:
            term = added.get(components(key_path))
            if term is None:
                return update
            # Rounded once, from float32: bfloat16 updates stay bfloat16.
            return update + jnp.asarray(term, jnp.result_type(update))

        updates = jax.tree_util.tree_map_with_path(visit, updates)
        if scheduled:
            state = DecayState(optax.safe_increment(state.count))
        return updates, state

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class _Terms:
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
    def of(cls, params: Any, products: Sequence[Product], mask: Mask | None = None) -> _Terms:
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
    by_path = {components(path): bool(flag) for path, flag in flags}
    return lambda path: by_path[path]


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
