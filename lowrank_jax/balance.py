"""Balance: spectral initialization of implicit products, a change of basis and nothing else.

Per head, queries ``Q`` and keys ``K`` (or values and outputs) are matrices with d columns, and for
any invertible ``T`` the product is the same after

    Q' = Q T,     K' = K T^-ᵀ,        Q' K'ᵀ = Q T T^-1 Kᵀ = Q Kᵀ.

Spectral initialization is the ``T`` that makes both Gram matrices equal and diagonal, as the
factors of a singular value decomposition have them: with ``Q = X A``, ``K = Y B`` (thin QR) and
``A Bᵀ = P S Wᵀ``,

    T = Bᵀ W S^-½,    T^-1 = S^-½ Pᵀ A:       Q' = (X P) S^½,    K' = (Y W) S^½.

**Biases** take part. A module with biases computes ``(x Q + b)(y K + c)ᵀ`` for scores, so that

    b' = b T,      c' = c T^-ᵀ:       (x Q' + b')(y K' + c')ᵀ = (x Q + b) T T^-1 (y K + c)ᵀ,

and ``(y V + b) O`` for values, so that b' = b T with ``V' = V T`` and ``O' = T^-1 O``. A bias is
one more row of its kernel, added after ``T`` was found from the kernels alone. The bias behind the
outputs is not in the heads' space and stays as it is.

**Less than full rank.** With p < d singular values that are not zero, the formulas give the first p
columns of ``T`` and rows of ``T^-1``, on which the product lives. The rest of the space, which the
one annihilates the other's part of, is completed by orthogonal directions. Those in which only one
side is nonzero are orthogonal to everything kept, and scaled to the smallest kept ``S^½``. In a
direction in which both sides are zero, neither would ever get a gradient: there the right side gets
a combination of its kept columns at the same scale, which the zeros on the left cancel. So the
product stays what it is to rounding, and no direction is dead unless the product itself is zero;
such a head is left alone.

**Factorized sides.** Only the factor with the axis of size d changes, and the kernel is not formed:
its triangular factor is folded along the chain of factors, one QR at a time. Grouped queries are
the rows of one matrix, so one ``T`` serves a shared key and all of its queries.

All on the host in float64. Sources: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 5; the
completion is that of ``lowrank_jax.initializers.spectral`` for more columns than the rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from lowrank_jax.products import Listed, Product, find_leaf, require_products
from lowrank_jax.readings import Label, Operand, Reading, subscripts
from lowrank_jax.rules import is_abstract, named, require_values
from lowrank_jax.tree import kernels, leaf_names, map_kernels
from lowrank_jax.views import View
from lowrank_jax.weights import is_factorized
from lowrank_jax.weights.two_factor import TwoFactorWeight


def balance_products(params: Any, products: Sequence[Product]) -> Any:
    """Spectral initialization of products: the same products, of balanced factors.

    For each product and each of its shared indices (a head), both sides and the biases that the
    product names are changed by one invertible matrix, so that the product and whatever a module
    computes from it stay the same, and both Gram matrices along the contracted axis become the
    diagonal matrix of the product's singular values (on its range, where its rank is below d).

    Optimizer moments belong to the old basis, those of the biases too: carry the state along with
    :func:`lowrank_jax.restructure.carry`, as in the example below.

    Works on the host, with a copy in float64 and a flag of one byte for every entry of the leaves
    that products name: about nine bytes per parameter of these.

    Args:
      params: a tree with the leaves that the products name, arrays or weights of two factors; from
        ``ShapeDtypeStruct`` nothing is computed, and they are returned as they are.
      products: such as :func:`lowrank_jax.attention_products` returns, with their biases. Of
        products that are listed without them, the biases are not changed.

    Returns:
      The tree with these leaves changed, in their own dtypes and shardings.

    Raises:
      ValueError: a leaf is not there, does not fit, is not finite or not floating; two products
        share the basis that is to be changed (queries that share keys are one product, with an axis
        split), or the two sides of one; or a factor with the contracted axis serves several heads,
        so that none can change alone.
      TypeError: a leaf is being traced, or ``products`` is no sequence of products.

    >>> params = {"u": jnp.array([[4.0], [3.0]]), "vt": jnp.array([[0.0, 20.0]])}
    >>> balanced = balance_products(params, [Product("u", "vt")])
    >>> balanced["u"].T @ balanced["u"], balanced["vt"] @ balanced["vt"].T
    (Array([[100.]], dtype=float32), Array([[100.]], dtype=float32))

    In the middle of training, what the optimizer remembers of these leaves begins anew:

    >>> import optax
    >>> from lowrank_jax import restructure
    >>> tx, products = optax.adam(1e-3), [Product("u", "vt")]
    >>> state = tx.init(params)
    >>> changed = {path for product in products for path in product.paths_with_biases}
    >>> state = restructure.carry(tx, state, params, balance_products(params, products), changed)
    """
    products, listed = require_products(products), Listed()
    stored, names = kernels(params), leaf_names(params)
    buffers: dict[str, _Buffer] = {}

    def part(view: View, contracted: int, shared: Sequence[int]) -> _Part:
        path = find_leaf(view.path, names, stored)
        if path not in buffers:
            buffers[path] = _Buffer.of(path, stored[path])
        return buffers[path].part(view, contracted, shared)

    for product in products:
        paths = [find_leaf(path, names, stored) for path in product.paths]
        leaves = [stored[path] for path in paths]
        shapes = [tuple(leaf.shape) for leaf in leaves]
        product.check(*shapes)
        listed.add(product, paths, shapes)
        _refuse_square(product, paths, shapes)
        if any(map(is_abstract, leaves)):
            continue
        u, vt = (part(view, *axes) for view, axes in zip(product.views, product.axes, strict=True))
        changed_by_t, changed_by_inverse = [u], [vt]
        for bias, side, parts in (
            (product.u_bias, u, changed_by_t),
            (product.vt_bias, vt, changed_by_inverse),
        ):
            if bias is not None:
                parts.append(part(View.of(bias), -1, range(len(side.sizes) - 1)))
                _require_bias(parts[-1], side)
        for index in np.ndindex(*u.sizes[:-1]):
            t, inverse = change_of_basis(u.triangular(index), vt.triangular(index))
            for one in changed_by_t:
                one.multiply(index, t)
            for one in changed_by_inverse:
                one.multiply(index, inverse.T)

    def visit(path: str, kernel: Any) -> Any:
        return buffers[path].stored_like(kernel) if path in buffers else kernel

    return map_kernels(visit, params)


def _refuse_square(
    product: Product, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> None:
    read = [view.indices(shape) for view, shape in zip(product.views, shapes, strict=True)]
    if paths[0] == paths[1] and read[0] == read[1]:
        raise ValueError(
            f"{product}: both sides are the same entries of {paths[0]}, which a change of basis "
            "would have to change by T and by T^-T: leave this product out"
        )


def change_of_basis(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``T`` and its inverse, ``(d, d)``, that balance a product of two sides.

    Args:
      a, b: ``(rows, d)``, the triangular factors of both sides: ``a @ b.T`` has the singular values
        of the product.

    Returns:
      With p the rank of the product, the leading ``p x p`` blocks of ``(a T)ᵀ (a T)`` and
      ``(b T^-ᵀ)ᵀ (b T^-ᵀ)`` are the diagonal matrix of the singular values, in descending order.

    >>> t, inverse = change_of_basis(np.array([[3.0, 0.0], [0.0, 1.0]]), np.eye(2) * 3)
    >>> (a := np.diag([3.0, 1.0]) @ t).T @ a
    array([[9., 0.],
           [0., 3.]])
    """
    size = a.shape[1]
    left, s, right = np.linalg.svd(a @ b.T, full_matrices=False)
    rank = _rank(s, a.shape, s.max())
    if rank == 0:
        return np.eye(size), np.eye(size)
    root = np.sqrt(s[:rank])
    columns = b.T @ (right[:rank].T / root)
    rows = (left[:, :rank] / root).T @ a
    if rank == size:
        return columns, rows

    # Bases of what the rows annihilate, and of what annihilates the columns, dual to each other.
    rest = np.linalg.svd(rows)[2][rank:].T
    dual = np.linalg.svd(columns.T)[2][rank:]
    dual = np.linalg.solve(dual @ rest, dual)
    # Directions in which the left side alone is nonzero come first, then those of the right side.
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    of_a, norms_a = _directions(a @ rest, norm_a)
    rest, dual = rest @ of_a, of_a.T @ dual
    alone = len(norms_a)
    of_b, norms_b = _directions(b @ dual[alone:].T, norm_b)
    rest[:, alone:], dual[alone:] = rest[:, alone:] @ of_b, of_b.T @ dual[alone:]

    dead = len(rest.T) - alone - len(norms_b)
    fill = root[-1]
    scale = np.concatenate(
        [fill / norms_a, norms_b / fill, np.full(dead, np.sqrt(norm_b / norm_a))]
    )
    rest, dual = rest * scale, dual / scale[:, None]
    if dead:
        mix = fill * _unit_rows(dead, rank) / root
        columns = columns + rest[:, -dead:] @ mix
        dual[-dead:] -= mix @ rows
    return np.concatenate([columns, rest], axis=1), np.concatenate([rows, dual])


def _rank(singular_values: np.ndarray, shape: tuple[int, ...], scale: float) -> int:
    """How many are not zero, seen from numbers of this scale that were stored in float32."""
    tolerance = max(shape) * np.finfo(np.float32).eps * scale
    return int(np.count_nonzero(singular_values > tolerance))


def _directions(side: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """An orthogonal basis, first the directions that the side has, and its norms in these."""
    _, norms, basis = np.linalg.svd(side)
    return basis.T, norms[: _rank(norms, side.shape, scale)]


def _unit_rows(number: int, size: int) -> np.ndarray:
    """``(number, size)``: rows of norm one, orthogonal as far as there is room."""
    # A fixed sample: the same leaves must give the same result every time.
    sample = np.random.default_rng(0).standard_normal((number, size))
    if number <= size:
        return np.linalg.qr(sample.T)[0].T
    return sample / np.linalg.norm(sample, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class _Buffer:
    """A copy of one leaf in float64, which products change in place, each a part of it.

    ``changed`` has its structure and says of every entry whether a product has changed it.
    """

    values: Any
    changed: Any

    @classmethod
    def of(cls, path: str, leaf: Any) -> _Buffer:
        with named(path):
            if is_factorized(leaf) and not isinstance(leaf, TwoFactorWeight):
                raise ValueError(
                    f"no single factor of a {type(leaf).__name__} has the contracted axis: merge "
                    "it, or leave its products out"
                )
            require_values(leaf)
            for array in jax.tree.leaves(leaf):
                if not jnp.issubdtype(array.dtype, jnp.floating):
                    raise ValueError(
                        f"its dtype is {array.dtype}, in which no change of basis can be stored; "
                        "expected floating numbers"
                    )
        return cls(
            values=jax.tree.map(lambda x: np.asarray(x).astype(np.float64), leaf),
            changed=jax.tree.map(lambda x: np.zeros(x.shape, bool), leaf),
        )

    def part(self, view: View, contracted: int, shared: Sequence[int]) -> _Part:
        return _Part.of(view, view.read(self.values), view.read(self.changed), contracted, shared)

    def stored_like(self, leaf: Any) -> Any:
        def put(old: Any, new: np.ndarray, changed: np.ndarray) -> Any:
            if not changed.any():
                return old
            array = jnp.asarray(new, jax.dtypes.canonicalize_dtype(old.dtype))
            sharding = getattr(old, "sharding", None)
            placed = isinstance(sharding, NamedSharding)
            return jax.device_put(array, sharding) if placed else array

        return jax.tree.map(put, leaf, self.values, self.changed)


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a view reads of a buffer, memory shared: one side of a product, or a bias.

    Attributes:
      name: what errors call it.
      reading: of the values.
      contracted: its axis of size d, counted from the front.
      shared: its shared axes.
      last: the values ``(*shared, ..., d)`` of the operand with the contracted axis.
      sizes: of the shared axes and the contracted one.
    """

    name: str
    reading: Reading
    contracted: int
    shared: tuple[int, ...]
    last: np.ndarray
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls,
        view: View,
        reading: Reading,
        changed: Reading,
        contracted: int,
        shared: Sequence[int],
    ) -> _Part:
        labels = [reading.axes[axis] for axis in (*shared, contracted)]
        *others, operand = reading.chain(contracted)
        elsewhere = {label for other in others for label in other.taken} - set(operand.taken)
        if elsewhere or not set(labels) <= set(operand.axes):
            raise ValueError(
                f"{view.named}: the factor that has the contracted axis, of shape "
                f"{operand.array.shape}, serves several of its shared indices or parts, which "
                "cannot be changed alone: merge the weight, or factorize it with other axes"
            )
        last, flags = (_moved(each, labels) for each in (operand, changed.chain(contracted)[-1]))
        if flags.any():
            raise ValueError(
                f"{view.named} is in two products, and a change of basis for the one would change "
                "the other: keys that several queries share are one product, see View.split"
            )
        flags[...] = True
        sizes = (*last.shape[: len(shared)], last.shape[-1])
        return cls(view.named, reading, contracted, tuple(shared), last, sizes)

    def multiply(self, index: tuple[int, ...], matrix: np.ndarray) -> None:
        self.last[index] = self.last[index] @ matrix

    def triangular(self, index: tuple[int, ...]) -> np.ndarray:
        """``(rows, d)``, with the Gram matrix of this side at a shared index; rows at most d."""
        labels = [self.reading.axes[axis] for axis in (*self.shared, self.contracted)]
        reading = self.reading.at(dict(zip(labels[:-1], index, strict=True)))
        carried: Operand | None = None
        for link in reading.links(reading.axes.index(labels[-1]), ()):
            inputs = [link.operand] if carried is None else [carried, link.operand]
            every = dict.fromkeys(label for operand in inputs for label in operand.axes)
            batch = [label for label in every if label in link.batch]
            rows = [x for x in every if x not in link.batch and x not in (link.before, link.after)]
            array = np.einsum(
                subscripts(inputs, (*batch, *rows, link.after)),
                *(operand.array for operand in inputs),
                optimize=True,
            )
            array = array.reshape((*array.shape[: len(batch)], -1, array.shape[-1]))
            carried = Operand(np.linalg.qr(array, mode="r"), (*batch, "rows", link.after))
        assert carried is not None
        return carried.array


def _moved(operand: Operand, labels: Sequence[Label]) -> np.ndarray:
    """The operand's array with these axes first, but for the last of them, which is last."""
    axes = [operand.axes.index(label) for label in labels]
    return np.moveaxis(operand.array, axes, (*range(len(axes) - 1), -1))


def _require_bias(bias: _Part, side: _Part) -> None:
    if bias.sizes != side.sizes:
        raise ValueError(
            f"{bias.name} has shared axes and head size {bias.sizes}; expected those of "
            f"{side.name}, {side.sizes}: shared axes first, the contracted one last"
        )
