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
from lowrank_jax.initializers import Initializer, require_initializer, spectral
from lowrank_jax.placement import place_like, place_like_factors
from lowrank_jax.rules import (
    Rule,
    first_matches,
    is_abstract,
    named,
    require_values,
    resolve,
    spectrum_of,
)
from lowrank_jax.table import Row, Table, require_kernels
from lowrank_jax.tree import kernels, map_kernels
from lowrank_jax.weights import FactorizedWeight, Rank, is_factorized
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
      The tree with factorized weights in the dtype of the kernels they replace, and sharded like
      them: each factor axis like the dense axis it comes from, the rank axes not at all.

    Raises:
      ValueError: as :func:`lowrank_jax.resolve`; or a kernel holds anything that is not finite, or
        a table names a path that is not there or has another shape.
      TypeError: a kernel is being traced, or ``init`` is not an initializer.

    >>> from lowrank_jax.ranks import FixedRank
    >>> params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    >>> factorize(params, [Rule("kernel", FixedRank(2))])["kernel"].u.shape
    (4, 2)
    """
    table = _table(params, rules_or_table)
    init = spectral() if init is None else require_initializer(init)

    def visit(path: str, kernel: Any) -> Any:
        row = table.row(path)
        if row is None or is_factorized(kernel):
            return kernel
        if is_abstract(kernel):
            planned = row.kind.template(kernel.shape, kernel.dtype, row.rank, row.depth, **row.axes)
            return place_like(kernel, planned)
        path_key = None if key is None else jax.random.fold_in(key, zlib.crc32(path.encode()))
        with named(path):
            require_values(kernel)
            weight = row.kind.initialize(kernel, row.rank, row.depth, init, path_key, **row.axes)
        return place_like(kernel, weight)

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
        if is_abstract(kernel):
            return jax.eval_shape(lambda weight: weight.dense(), kernel)
        return kernel.dense()

    return map_kernels(visit, params)


def refactorize(
    params: Any,
    rules: Sequence[Rule] | None = None,
    *,
    overcomplete: svd.Overcomplete = "complement",
) -> Any:
    """Gives factorized weights new ranks, or balances their factors.

    The product is the best approximation of the old one at the new rank (the same product, where
    the rank does not shrink); afterwards ``uᵀu = vt vtᵀ`` is diagonal and ``m``, if there is one,
    is the identity. No kernel is formed. Optimizer moments belong to the old factors: see
    :func:`lowrank_jax.restructure.carry`.

    Kinds that are not made of two factors (``TensorTrain``, ``Tucker``) are changed where a rule
    matches them alone, by composing the dense kernel and decomposing it again.

    Args:
      params: a tree with factorized weights, arrays or ``ShapeDtypeStruct``; other leaves are left
        alone.
      rules: new ranks for the weights they match (the first match wins), whose kind, axes and depth
        must be the rules'. ``None`` keeps every rank.
      overcomplete: what stands in directions past the product's rank, as in
        :func:`lowrank_jax.spectral`.

    Raises:
      ValueError: a rule matches nothing, only what earlier rules took, a weight of another kind,
        axes or depth, or a dense kernel; a factor holds anything that is not finite; or
        ``overcomplete="zero"`` meets a kind that is not made of two factors.
      TypeError: a factor is being traced, or a rule needs values where only shapes are known.

    >>> from lowrank_jax.ranks import FixedRank
    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.eye(4), vt=jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0])))}
    >>> refactorize(params, [Rule("kernel", FixedRank(2))])["kernel"].u.shape
    (4, 2)
    """
    svd.require_overcomplete(overcomplete)
    ranks = {} if rules is None else _new_ranks(params, rules)

    def visit(path: str, weight: Any) -> Any:
        if not isinstance(weight, TwoFactorWeight) and path not in ranks:
            return weight
        rank = ranks.get(path, weight.rank)
        with named(path):
            if is_abstract(weight):
                shape, dtype = weight.shape, weight.dtype
                new = weight.template(shape, dtype, rank, weight.depth, **weight.axes)
            else:
                require_values(weight)
                if isinstance(weight, TwoFactorWeight):
                    new = _balanced(weight, rank, overcomplete, path)
                else:
                    new = _decomposed_again(weight, rank, overcomplete)
        return place_like_factors(weight, new)

    return map_kernels(visit, params)


def _new_ranks(params: Any, rules: Sequence[Rule]) -> dict[str, Any]:
    leaves = kernels(params)
    ranks = {}
    for path, rule in first_matches(leaves, rules).items():
        if rule is not None:
            with named(path):
                ranks[path] = _new_rank(leaves[path], rule)
    return ranks


def _new_rank(weight: Any, rule: Rule) -> Rank:
    if not is_factorized(weight) or rule.rank is None:
        raise ValueError(
            f"{rule} cannot refactorize it; expected a factorized weight and a rank (factorize "
            "makes weights, merge makes dense kernels)"
        )
    axes = weight.axes | rule.axes
    if (type(weight), weight.axes) != (rule.kind, axes) or not _has_depth(weight, rule.depth):
        raise ValueError(
            f"it is a {type(weight).__name__} of depth {weight.depth} and axes {weight.axes}, and "
            f"{rule} asks for another: refactorize changes ranks, not kinds; merge and factorize "
            "instead"
        )
    spectrum = spectrum_of(weight, rule.kind, axes)
    return rule.rank.rank(rule.kind, weight.shape, axes, weight.depth, spectrum)


def _has_depth(weight: FactorizedWeight, depth: int) -> bool:
    """Whether this is what a rule means by a depth."""
    asked = weight.template(weight.shape, weight.dtype, weight.rank, depth, **weight.axes)
    return weight.depth == asked.depth


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
    dtype = jax.dtypes.canonicalize_dtype(weight.dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), result)


def _decomposed_again(
    weight: FactorizedWeight, rank: Rank, overcomplete: svd.Overcomplete
) -> FactorizedWeight:
    exact = jax.tree.map(lambda leaf: jnp.asarray(svd.working_precision(leaf)), weight)
    init = spectral(overcomplete)
    new = weight.initialize(exact.dense(), rank, weight.depth, init, None, **weight.axes)
    return jax.tree.map(lambda leaf: leaf.astype(weight.dtype), new)


def _table(params: Any, rules_or_table: Sequence[Rule] | Table) -> Table:
    if not isinstance(rules_or_table, Table):
        return resolve(params, rules_or_table)
    leaves = kernels(params)
    require_kernels(rules_or_table, leaves)
    for row in rules_or_table.rows:
        _check_form(row, leaves[row.path])
    return rules_or_table


def _check_form(row: Row, leaf: Any) -> None:
    if is_factorized(leaf):
        found = (type(leaf), leaf.axes, leaf.rank, leaf.depth)
        if found != (row.kind, row.axes, row.rank, row.depth):
            raise ValueError(
                f"{row.path} is factorized already, as {type(leaf).__name__} of rank {leaf.rank} "
                f"and depth {leaf.depth}; the table says {row.kind.__name__} of rank {row.rank} "
                f"and depth {row.depth}: use refactorize to change ranks, or merge first"
            )
