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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowrank_jax.decay_terms import Mask, Terms
from lowrank_jax.optax_messages import require_params
from lowrank_jax.products import Product, require_products
from lowrank_jax.tree import Components, components

Coefficient = float | jax.Array | Callable[[Any], Any]


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
      products: pairs of leaves to be decayed as products. A factorized weight among them is decayed
        by its products alone, which must read all of it.
      mask: a tree of booleans (a prefix of the parameters will do, so one made for the dense model
        stays valid), or a function of the parameters that makes one; ``False`` excludes. Under
        ``optax.inject_hyperparams`` name it in ``static_args``: optax takes a callable for a
        schedule otherwise.

    Raises:
      ValueError: at ``init``, if nothing in the tree is factorized; if a product names a leaf that
        is not there, or is listed twice; if products read only a part of a factorized weight; if a
        mask covers half a weight or half a product.
      TypeError: a coefficient is no number or schedule, or ``products`` no sequence of products.

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
      products: pairs of leaves that are decayed as products, and neither plainly nor, where they
        are factorized weights, by themselves. Of an array that they read in part, the rest is
        decayed plainly.
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
    terms = Terms.of(params, products)
    return terms.penalty(terms.leaves)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.ndarray | jax.Array)


def _decay(
    frobenius: Coefficient,
    plain: Coefficient | None,
    products: Sequence[Product],
    mask: Mask | None,
) -> optax.GradientTransformation:
    for name, value in (("frobenius_decay", frobenius), ("weight_decay", plain)):
        if not (value is None or callable(value) or _is_number(value)):
            raise TypeError(f"{name}={value!r}: expected a number or a schedule")
    products = require_products(products)
    scheduled = callable(frobenius) or callable(plain)

    def init(params: Any) -> Any:
        terms = Terms.of(params, products, mask)
        if plain is None and not terms.found and not terms.masked:
            raise ValueError(
                "frobenius_decay found no factorized weight in the parameters, and no products "
                "were given: factorize them first, or use lowrank_jax.decay, which accepts "
                "dense trees"
            )
        return DecayState(jnp.zeros([], jnp.int32)) if scheduled else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        require_params(params)
        terms = Terms.of(params, products, mask)
        added: dict[Components, jax.Array] = {}

        def add(coefficient: Coefficient, gradients: Callable[[], dict[Components, Any]]) -> None:
            value = coefficient(state.count) if callable(coefficient) else coefficient
            if isinstance(value, int | float) and value == 0:
                return
            for path, gradient in gradients().items():
                term = value * gradient
                added[path] = added[path] + term if path in added else term

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
