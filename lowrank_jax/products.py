"""Implicit products: two leaves that only ever meet as a product, seen as one LowRank.

Queries and keys of an attention head, its outputs and values, the two matrices of an adapter: none
is written as a factorized layer, all are one. A :class:`Product` names the two leaves by path and
says, in the terms of ``lax.dot_general``, along which axis they are contracted and which axes they
share, so that Frobenius decay can act on the product. A leaf may be read in part or with an axis
split, see :class:`~lowrank_jax.views.View`, and it may be a factorized weight: the product then has
four factors.

With ``G`` the ``d x d`` Gram matrix of each side along the contracted axis, the squared norm is

    ||contract(u, vt)||_F^2 = sum over the shared axes of tr(G_u G_vt),

and neither the product nor the kernel of a factorized side is formed for it. Source: Khodak et al.,
ICLR 2021 (arXiv 2105.01029), section 5 (multi-head attention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.tree import leaf_names, near_misses, stored_path
from lowrank_jax.views import View
from lowrank_jax.weights import FactorizedWeight, LowRank, is_factorized
from lowrank_jax.weights.explicit_axes import placed_alike

Leaf = jax.Array | FactorizedWeight


@dataclasses.dataclass(frozen=True)
class Product:
    """``scale * contract(u, vt)``, where ``u`` and ``vt`` name leaves: arrays or weights.

    Attributes:
      u: path of the left leaf, e.g. ``"attention/query/kernel"``, or a ``View`` of it.
      vt: path of the right leaf, or a ``View`` of it.
      dimension_numbers: ``((u_contract, vt_contract), (u_batch, vt_batch))`` as in
        ``lax.dot_general``, with exactly one contracted axis; negative axes count from the end, and
        the axes are those of what the views give. The default is the matrix product.
      scale: a constant factor of the product.
      u_bias, vt_bias: what the module adds to the left and the right leaf's result, ``(*shared,
        ..., contracted)``. It is no part of the norm: it is what
        :func:`lowrank_jax.balance_products` has to change with the leaves.

    Raises:
      ValueError: the dimension numbers do not name exactly one contracted axis on each side, or
        batch axes in pairs.
      TypeError: a leaf or a bias is neither a path nor a ``View``.

    >>> pair = Product("q", "k", dimension_numbers=(((2,), (2,)), ((1,), (1,))))
    >>> leaves = {"q": jnp.ones((6, 2, 3)), "k": jnp.ones((6, 2, 3))}  # (model, heads, head size)
    >>> pair.weight(leaves["q"], leaves["k"]).shape
    (2, 6, 6)
    """

    u: str | View
    vt: str | View
    _: dataclasses.KW_ONLY
    dimension_numbers: Any = (((-1,), (0,)), ((), ()))
    scale: float = 1.0
    u_bias: str | View | None = None
    vt_bias: str | View | None = None

    def __post_init__(self) -> None:
        biases = (bias for bias in (self.u_bias, self.vt_bias) if bias is not None)
        for leaf in (self.u, self.vt, *biases):
            View.of(leaf)
        try:
            (u_contract, vt_contract), (u_batch, vt_batch) = self.dimension_numbers
            fits = len(u_contract) == len(vt_contract) == 1 and len(u_batch) == len(vt_batch)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"{self}: dimension_numbers={self.dimension_numbers!r}; "
                "expected (((u axis,), (vt axis,)), (u batch axes, vt batch axes))"
            )

    def __str__(self) -> str:
        return f"Product({self.u!r}, {self.vt!r})"

    @property
    def views(self) -> tuple[View, View]:
        """How the two leaves are read."""
        return View.of(self.u), View.of(self.vt)

    @property
    def paths(self) -> tuple[str, str]:
        """The paths of the two leaves; the same one twice where both are parts of one leaf."""
        u, vt = self.views
        return u.path, vt.path

    @property
    def paths_with_biases(self) -> tuple[str, ...]:
        """The paths of the two leaves and of their biases: all that a change of basis changes."""
        biases = (bias for bias in (self.u_bias, self.vt_bias) if bias is not None)
        return (*self.paths, *(View.of(bias).path for bias in biases))

    @property
    def axes(self) -> tuple[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]]:
        """For each side its contracted axis and its shared ones."""
        ((u_contract,), (vt_contract,)), (u_batch, vt_batch) = self.dimension_numbers
        return (u_contract, tuple(u_batch)), (vt_contract, tuple(vt_batch))

    def check(self, u_shape: Sequence[int], vt_shape: Sequence[int]) -> None:
        """Raises ValueError if leaves of these dense shapes cannot be multiplied as described."""
        shapes = tuple(
            view.shape(stored) for view, stored in zip(self.views, (u_shape, vt_shape), strict=True)
        )
        for view, shape, (contracted, shared) in zip(self.views, shapes, self.axes, strict=True):
            axes = (contracted, *shared)
            fits = all(-len(shape) <= axis < len(shape) for axis in axes)
            if not fits or len({axis % len(shape) for axis in axes}) < len(axes):
                raise ValueError(
                    f"{self}: {view.named} has shape {shape}, but "
                    f"dimension_numbers names its axes {axes}; expected distinct axes that it has"
                )
            if len(shape) == len(axes):
                raise ValueError(
                    f"{self}: {view.named} has shape {shape}; expected "
                    "an axis beside the contracted and the shared ones"
                )
        (u_contract, u_batch), (vt_contract, vt_batch) = self.axes
        for what, u_axes, vt_axes in (
            ("contracted", (u_contract,), (vt_contract,)),
            ("shared", u_batch, vt_batch),
        ):
            if [shapes[0][axis] for axis in u_axes] != [shapes[1][axis] for axis in vt_axes]:
                raise ValueError(
                    f"{self}: {self.paths[0]} {shapes[0]} and {self.paths[1]} {shapes[1]} differ "
                    f"along the {what} axes {u_axes} and {vt_axes}"
                )

    def weight(self, u: Leaf, vt: Leaf) -> LowRank:
        """The unscaled product as a ``LowRank`` with the shared axes as batch axes.

        A side that is a factorized weight is composed; the product is not.

        Raises:
          ValueError: the leaves do not fit together along the named axes.
        """
        self.check(u.shape, vt.shape)
        left, right = (view.array(leaf) for view, leaf in zip(self.views, (u, vt), strict=True))
        (u_contract, u_batch), (vt_contract, vt_batch) = self.axes
        batch = len(u_batch)
        return LowRank(
            u=jnp.moveaxis(left, (*u_batch, u_contract), (*range(batch), left.ndim - 1)),
            vt=jnp.moveaxis(right, (*vt_batch, vt_contract), (*range(batch), batch)),
            in_axes=left.ndim - batch - 1,
            out_axes=right.ndim - batch - 1,
        )

    def squared_norm(self, u: Leaf, vt: Leaf) -> jax.Array:
        """``||scale * contract(u, vt)||_F^2``, summed over the shared axes: a scalar.

        Accumulated in float32, or in the leaves' own precision where that is higher.

        Raises:
          ValueError: the leaves do not fit together along the named axes.
        """
        self.check(u.shape, vt.shape)
        left, right = (
            view.read(leaf).gram(contracted, shared)
            for view, leaf, (contracted, shared) in zip(self.views, (u, vt), self.axes, strict=True)
        )
        return self.scale**2 * jnp.sum(left * placed_alike(left, right))


def products_by_suffix(
    params: Any, u_suffix: str, vt_suffix: str, *, scale: float = 1.0
) -> tuple[Product, ...]:
    """The matrix products of all pairs of leaves whose paths agree but for their suffix.

    Args:
      params: the tree.
      u_suffix, vt_suffix: ends of the paths, such as ``"_lora_a"`` and ``"_lora_b"``.
      scale: of every product, such as an adapter's ``alpha / rank``.

    Raises:
      ValueError: there is no such pair, or one half of a pair is missing.

    >>> params = {"dense": {"kernel_lora_a": jnp.ones((8, 2)), "kernel_lora_b": jnp.ones((2, 4))}}
    >>> products_by_suffix(params, "_lora_a", "_lora_b", scale=0.5)[0].vt
    'dense/kernel_lora_b'
    """
    leaves = list(leaf_names(params).values())
    lefts = [path for path in leaves if path.endswith(u_suffix)]
    rights = [path for path in leaves if path.endswith(vt_suffix)]
    if not lefts and not rights:
        raise ValueError(
            f"no leaf ends in {u_suffix!r} or {vt_suffix!r}; {near_misses(u_suffix, leaves)}"
        )
    products = []
    for left in lefts:
        right = left.removesuffix(u_suffix) + vt_suffix
        if right not in leaves:
            raise ValueError(f"{left} has no partner {right}; {near_misses(right, leaves)}")
        products.append(Product(left, right, scale=scale))
    partners = {product.vt for product in products}
    for right in rights:
        if right not in partners:
            raise ValueError(f"{right} has no partner {right.removesuffix(vt_suffix) + u_suffix}")
    return tuple(products)


def require_products(products: Any) -> tuple[Product, ...]:
    """The products of an argument.

    Raises:
      TypeError: it is not a sequence of them.
    """
    listed = () if isinstance(products, Product | str) else tuple(products)
    if isinstance(products, Product | str) or not all(isinstance(p, Product) for p in listed):
        raise TypeError(f"products={products!r}: expected a sequence of Product")
    return listed


def find_leaf(named: str, names: Mapping[str, str], leaves: Mapping[str, Any]) -> str:
    """The path of the leaf that a product names.

    Args:
      named: what the product says: the leaf's path or its name.
      names: the names of leaves by their paths, see :func:`lowrank_jax.tree.leaf_names`.
      leaves: arrays and weights by their paths.

    Raises:
      ValueError: it is not there, or a factor of a weight.
    """
    path = stored_path(named, names)
    if path is not None:
        return path
    for path, leaf in leaves.items():
        if is_factorized(leaf) and named.startswith(f"{path}/"):
            raise ValueError(
                f"a product names {named}, but {path} is a factorized weight: name the weight "
                "itself, and the product has its factors"
            )
    raise ValueError(
        f"a product names {named}, which is not in the parameters; "
        f"{near_misses(named, names.values())}"
    )


class Listed:
    """The products met so far, known by the entries that they multiply, not by how it is said."""

    def __init__(self) -> None:
        self._seen: set[frozenset[Any]] = set()

    def add(
        self, product: Product, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """Adds a product of leaves of these paths in the tree, and of these dense shapes.

        Raises:
          ValueError: one with the same two sides is there: it would count twice.
        """
        pair = frozenset(
            (path, view.indices(shape))
            for view, path, shape in zip(product.views, paths, shapes, strict=True)
        )
        if pair in self._seen:
            raise ValueError(
                f"{product} is listed twice and would count twice; list every pair of leaves once, "
                "however it is read"
            )
        self._seen.add(pair)
