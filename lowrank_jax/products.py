"""Implicit products: two ordinary leaves that only ever meet as a product, seen as one LowRank.

Queries and keys of an attention head, its outputs and values, the two matrices of an adapter: none
is written as a factorized layer, all are one. A :class:`Product` names the two leaves by path and
says, in the terms of ``lax.dot_general``, along which axis they are contracted and which axes they
share, so that Frobenius decay can act on the product. Source: Khodak et al., ICLR 2021 (arXiv
2105.01029), section 5 (multi-head attention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.tree import kernels, near_misses
from lowrank_jax.weights import LowRank


@dataclasses.dataclass(frozen=True)
class Product:
    """``scale * contract(u, vt)``, where ``u`` and ``vt`` are paths of array leaves.

    Attributes:
      u: path of the left leaf, e.g. ``"attention/query/kernel"``.
      vt: path of the right leaf.
      dimension_numbers: ``((u_contract, vt_contract), (u_batch, vt_batch))`` as in
        ``lax.dot_general``, with exactly one contracted axis; negative axes count from the end. The
        default is the matrix product.
      scale: a constant factor of the product.

    Raises:
      ValueError: the dimension numbers do not name exactly one contracted axis on each side, or
        batch axes in pairs.

    >>> pair = Product("q", "k", dimension_numbers=(((2,), (2,)), ((1,), (1,))))
    >>> leaves = {"q": jnp.ones((6, 2, 3)), "k": jnp.ones((6, 2, 3))}  # (model, heads, head size)
    >>> pair.weight(leaves["q"], leaves["k"]).shape
    (2, 6, 6)
    """

    u: str
    vt: str
    _: dataclasses.KW_ONLY
    dimension_numbers: Any = (((-1,), (0,)), ((), ()))
    scale: float = 1.0

    def __post_init__(self) -> None:
        try:
            (u_contract, vt_contract), (u_batch, vt_batch) = self.dimension_numbers
            fits = len(u_contract) == len(vt_contract) == 1 and len(u_batch) == len(vt_batch)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"Product({self.u!r}, {self.vt!r}): dimension_numbers={self.dimension_numbers!r}; "
                "expected (((u axis,), (vt axis,)), (u batch axes, vt batch axes))"
            )

    def check(self, u_shape: Sequence[int], vt_shape: Sequence[int]) -> None:
        """Raises ValueError if leaves of these shapes cannot be multiplied as described."""
        ((u_contract,), (vt_contract,)), (u_batch, vt_batch) = self.dimension_numbers
        for path, shape, axes in (
            (self.u, u_shape, (u_contract, *u_batch)),
            (self.vt, vt_shape, (vt_contract, *vt_batch)),
        ):
            fits = all(-len(shape) <= axis < len(shape) for axis in axes)
            if not fits or len({axis % len(shape) for axis in axes}) < len(axes):
                raise ValueError(
                    f"Product({self.u!r}, {self.vt!r}): {path} has shape {tuple(shape)}, but "
                    f"dimension_numbers names its axes {axes}; expected distinct axes that it has"
                )
            if len(shape) == len(axes):
                raise ValueError(
                    f"Product({self.u!r}, {self.vt!r}): {path} has shape {tuple(shape)}; expected "
                    "an axis beside the contracted and the shared ones"
                )
        for what, u_axes, vt_axes in (
            ("contracted", (u_contract,), (vt_contract,)),
            ("shared", tuple(u_batch), tuple(vt_batch)),
        ):
            if [u_shape[axis] for axis in u_axes] != [vt_shape[axis] for axis in vt_axes]:
                raise ValueError(
                    f"{self.u} {tuple(u_shape)} and {self.vt} {tuple(vt_shape)} differ along the "
                    f"{what} axes {u_axes} and {vt_axes}"
                )

    def weight(self, u: jax.Array, vt: jax.Array) -> LowRank:
        """The unscaled product as a ``LowRank`` with the shared axes as batch axes.

        Raises:
          ValueError: the leaves do not fit together along the named axes.
        """
        self.check(u.shape, vt.shape)
        ((u_contract,), (vt_contract,)), (u_batch, vt_batch) = self.dimension_numbers
        batch = len(u_batch)
        left = jnp.moveaxis(u, (*u_batch, u_contract), (*range(batch), u.ndim - 1))
        right = jnp.moveaxis(vt, (*vt_batch, vt_contract), (*range(batch), batch))
        return LowRank(
            u=left,
            vt=right,
            in_axes=u.ndim - batch - 1,
            out_axes=vt.ndim - batch - 1,
        )

    def squared_norm(self, u: jax.Array, vt: jax.Array) -> jax.Array:
        """``||scale * contract(u, vt)||_F^2``, summed over the shared axes: a scalar."""
        return self.scale**2 * self.weight(u, vt).squared_norm()


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
    # The array of an nnx variable has a path of its own below the variable's.
    leaves = [path.removesuffix("/value") for path in kernels(params)]
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


def refuse_duplicates(products: Sequence[Product]) -> None:
    """Raises ValueError if two products multiply the same two leaves: they would count twice."""
    seen: set[frozenset[str]] = set()
    for product in products:
        pair = frozenset((product.u, product.vt))
        if pair in seen:
            raise ValueError(
                f"Product({product.u!r}, {product.vt!r}) is listed twice and would be decayed "
                "twice; list every pair of leaves once"
            )
        seen.add(pair)
