"""factorize, merge, refactorize: the same tree with its kernels stored in another way.

    factorize   dense kernel      -> factorized weight   (spectral initialization by default)
    merge       factorized weight -> dense kernel
    refactorize factorized weight -> factorized weight of another rank, or rebalanced

All are functions of the tree alone. ``factorize`` works on shapes as well as on values, so that a
training state can be planned without memory. Source: Khodak et al., ICLR 2021 (arXiv 2105.01029),
section 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax import svd
from lowrank_jax.factored_svd import factored_svd
from lowrank_jax.initializers import Initializer, spectral
from lowrank_jax.rules import Row, Rule, Table, check_values, resolve
from lowrank_jax.tree import kernels, map_kernels, near_misses
from lowrank_jax.weights import is_factorized
from lowrank_jax.weights.two_factor import TwoFactorWeight


def factorize(
    params: Any,
    rules_or_table: Sequence[Rule] | Table,
    init: Initializer | None = None,
    key: Any = None,
) -> Any:
    """Replaces the kernels that rules or a table name by factorized weights.

    Args:
      params: a tree of arrays or ``ShapeDtypeStruct`` (then the result is abstract too). Partition
        boxes move inside the weights. Weights that are factorized as asked are left alone.
      rules_or_table: rules, resolved against ``params`` here, or the table they gave earlier.
      init: what the factors are; :func:`lowrank_jax.spectral` by default.
      key: ``jax.random`` key for initializers that draw; each kernel's own key depends on its path.

    Returns:
      The tree with factorized weights in the dtype of the kernels they replace.

    Raises:
      ValueError: as :func:`lowrank_jax.resolve`; or a kernel holds anything that is not finite, or
        a table names a path that is not there or has another shape.
      TypeError: a kernel is being traced.

    >>> from lowrank_jax.ranks import FixedRank
    >>> params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    >>> factorize(params, [Rule("kernel", FixedRank(2))])["kernel"].u.shape
    (4, 2)
    """
    table = _table(params, rules_or_table)
    init = spectral() if init is None else init

    def visit(path: str, kernel: Any) -> Any:
        row = table.row(path)
        if row is None or is_factorized(kernel):
            return kernel
        if isinstance(kernel, jax.ShapeDtypeStruct):
            return row.kind.template(kernel.shape, kernel.dtype, row.rank, row.depth, **row.axes)
        check_values(path, kernel)
        path_key = None if key is None else jax.random.fold_in(key, zlib.crc32(path.encode()))
        try:
            return row.kind.initialize(
                kernel, row.rank, row.depth, init, path_key, **row.axes
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    return map_kernels(visit, params)


def merge(params: Any) -> Any:
    """Replaces every factorized weight by the dense kernel it stands for.

    >>> from lowrank_jax.weights import LowRank
    >>> merge({"kernel": LowRank(u=jnp.ones((2, 1)), vt=jnp.ones((1, 3)))})["kernel"].shape
    (2, 3)
    """

    def visit(path: str, kernel: Any) -> Any:
        if not is_factorized(kernel):
            return kernel
        if isinstance(jax.tree.leaves(kernel)[0], jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda weight: weight.dense(), kernel)
        return kernel.dense()

    return map_kernels(visit, params)


def refactorize(
    params: Any, rules: Sequence[Rule] | None = None, *, overcomplete: svd.Overcomplete = "complement"
) -> Any:
    """Gives factorized weights new ranks, or balances their factors, without forming a kernel.

    The product is the best approximation of the old one at the new rank (the same product, where
    the rank does not shrink); afterwards ``uᵀu = vt vtᵀ`` are diagonal and ``m``, where there is one,
    is the identity. Optimizer moments belong to the old factors: see
    :func:`lowrank_jax.restructure.carry`.

    Args:
      params: a tree with factorized weights; other leaves are left alone.
      rules: new ranks for the weights they match, whose kind and depth must be the rules'. ``None``
        keeps every rank.
      overcomplete: what stands in directions past the product's rank, as in
        :func:`lowrank_jax.spectral`.

    Raises:
      ValueError: a rule matches no weight, a weight of another kind or depth, or a dense kernel.

    >>> from lowrank_jax.ranks import FixedRank
    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.eye(4), vt=jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0])))}
    >>> refactorize(params, [Rule("kernel", FixedRank(2))])["kernel"].u.shape
    (4, 2)
    """
    ranks = {} if rules is None else _new_ranks(params, rules)

    def visit(path: str, weight: Any) -> Any:
        if not isinstance(weight, TwoFactorWeight):
            return weight
        check_values(path, weight)
        return _balanced(weight, ranks.get(path, weight.rank), overcomplete, path)

    return map_kernels(visit, params)


def _new_ranks(params: Any, rules: Sequence[Rule]) -> dict[str, int]:
    # Rules are resolved against what the weights stand for: the same tree with its weights merged
    # in shape, and the singular values of the factored form where a rule asks for them.
    leaves = kernels(params)
    weights = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, TwoFactorWeight)}
    ranks = {}
    for rule in rules:
        matched = [path for path in leaves if rule.matches(path)]
        if not matched:
            raise ValueError(f"{rule} matches no path; {near_misses(rule.pattern, weights)}")
        for path in matched:
            weight = weights.get(path)
            if weight is None or rule.rank is None:
                raise ValueError(
                    f"{path}: {rule} cannot refactorize it; expected a two-factor weight and a "
                    "rank (factorize makes weights, merge makes dense kernels)"
                )
            if (type(weight), weight.depth) != (rule.kind, rule.depth):
                raise ValueError(
                    f"{path} is a {type(weight).__name__} of depth {weight.depth}, and {rule} asks "
                    f"for {rule.kind.__name__} of depth {rule.depth}: refactorize changes ranks, not "
                    "kinds; merge and factorize instead"
                )
            check_values(path, weight)
            ranks.setdefault(
                path,
                rule.rank.rank(
                    rule.kind,
                    weight.shape,
                    weight.axes,
                    weight.depth,
                    lambda weight=weight: factored_svd(weight)[1],
                ),
            )
    return ranks


def _balanced(
    weight: TwoFactorWeight, rank: int, overcomplete: svd.Overcomplete, path: str
) -> TwoFactorWeight:
    u, s, vt = factored_svd(weight)
    batch = s.shape[:-1]
    # The noise depends on the path alone: refactorizing is a function of the tree.
    noise = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(
        (*batch, svd.noise_rows(vt.shape[-1], rank), vt.shape[-1])
    )
    left = np.empty((*u.shape[:-1], rank), u.dtype)
    right = np.empty((*batch, rank, vt.shape[-1]), vt.dtype)
    for index in np.ndindex(*batch):
        left[index], right[index] = svd.balanced_factors(
            u[index], s[index], vt[index], rank, overcomplete, noise[index]
        )
    m = None if weight.m is None else np.broadcast_to(np.eye(rank), (*batch, rank, rank))
    result = weight.from_matrices(left, right, m, weight.shape, **weight.axes)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, weight.dtype), result)


def _table(params: Any, rules_or_table: Sequence[Rule] | Table) -> Table:
    if not isinstance(rules_or_table, Table):
        return resolve(params, rules_or_table)
    leaves = kernels(params)
    for row in rules_or_table.rows:
        _check_row(row, leaves)
    return rules_or_table


def _check_row(row: Row, leaves: dict[str, Any]) -> None:
    leaf = leaves.get(row.path)
    if leaf is None:
        raise ValueError(f"the table names {row.path}, which is not in the tree; "
                         f"{near_misses(row.path, leaves)}")
    if tuple(leaf.shape) != row.shape:
        raise ValueError(f"{row.path} has shape {tuple(leaf.shape)}, the table says {row.shape}")
    if is_factorized(leaf):
        found = (type(leaf), leaf.axes, leaf.rank, leaf.depth)
        if found != (row.kind, row.axes, row.rank, row.depth):
            raise ValueError(
                f"{row.path} is factorized already, as {type(leaf).__name__} of rank {leaf.rank} "
                f"and depth {leaf.depth}; the table says {row.kind.__name__} of rank {row.rank} and "
                f"depth {row.depth}: use refactorize to change ranks, or merge first"
            )
