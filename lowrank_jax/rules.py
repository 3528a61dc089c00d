"""Rules: which kernels are factorized, as which kind, at which rank; resolved into a table.

Rules are matched in order against the path of every leaf, the first match wins, and nothing is
silent: a rule that matches nothing or is wholly shadowed, a kernel that does not fit its kind, and
a weight that is factorized in another way already, are errors.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax import svd
from lowrank_jax.factored_svd import factored_svd
from lowrank_jax.ranks import RankRule, Spectrum, require_rank_rule
from lowrank_jax.table import Row, Table, phrase, row_of, size_of
from lowrank_jax.tree import kernels, near_misses
from lowrank_jax.weights import FactorizedWeight, LowRank, is_factorized, kinds
from lowrank_jax.weights.two_factor import TwoFactorWeight


class Rule:
    """Kernels whose whole path matches ``pattern`` are stored as ``kind`` at ``rank``.

    Args:
      pattern: a regular expression for the whole path, e.g. ``r"block_\\d+/conv[12]/kernel"``.
      rank: a rank rule, or ``None`` to keep the matching kernels dense.
      kind: the kind of weight.
      depth: of kinds with two factors, 3 adds the square middle factor.
      **axes: static axes of the kind: ``in_axes`` and ``out_axes`` of ``LowRank``, which a kernel
        that is not a matrix needs, because its shape does not say which axes are inputs;
        ``spatial_axes`` of ``TensorTrain`` and ``Tucker``, for kernels with batch axes.

    Raises:
      TypeError: ``rank`` is a bare number, or an axis is not one of the kind's.
      ValueError: the pattern is no regular expression, or the kind has no such depth.

    >>> from lowrank_jax.ranks import RankScale
    >>> Rule(r".*/kernel", RankScale(0.25))
    Rule('.*/kernel', RankScale(scale=0.25), LowRank)
    """

    def __init__(
        self,
        pattern: str,
        rank: RankRule | None,
        kind: type[FactorizedWeight] = LowRank,
        *,
        depth: int = 2,
        **axes: int,
    ):
        if not isinstance(pattern, str):
            raise TypeError(f"Rule({pattern!r}, …): the pattern must be a string")
        if rank is not None:
            require_rank_rule(rank)
        if kind not in kinds().values():
            raise TypeError(
                f"Rule({pattern!r}): kind={kind!r} is not a kind of weight; known are "
                f"{', '.join(sorted(kinds()))}"
            )
        if depth not in kind.rule_depths:
            raise ValueError(
                f"Rule({pattern!r}): depth={depth!r}, expected "
                f"{' or '.join(map(str, kind.rule_depths))} for {kind.__name__} (3 adds the square "
                "factor in the middle of two)"
            )
        for name, count in axes.items():
            if not isinstance(count, int) or isinstance(count, bool):
                raise TypeError(f"Rule({pattern!r}): {name}={count!r} is not a whole number")
        unknown = sorted(set(axes) - set(kind.static_fields))
        if unknown:
            has = ", ".join(kind.static_fields) or "none"
            raise TypeError(
                f"Rule({pattern!r}): {kind.__name__} has no axes {', '.join(unknown)}; "
                f"it has: {has}"
            )
        try:
            self.regex = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"Rule({pattern!r}): not a regular expression: {error}") from error
        self.pattern, self.rank, self.kind = pattern, rank, kind
        self.depth, self.axes = depth, axes

    def matches(self, path: str) -> bool:
        """Whether the pattern is that of the whole path."""
        return self.regex.fullmatch(path) is not None

    def axes_for(self, shape: Sequence[int]) -> dict[str, int]:
        """The static axes for a kernel of this shape.

        Raises:
          ValueError: the shape does not say which they are, or does not fit the kind.
        """
        return self.kind.static_axes(shape, **self.axes)

    def __repr__(self) -> str:
        extra = "".join(f", {name}={value}" for name, value in self.axes.items())
        if self.depth != 2:
            extra += f", depth={self.depth}"
        return f"Rule({self.pattern!r}, {self.rank}, {self.kind.__name__}{extra})"


def resolve(params: Any, rules: Sequence[Rule]) -> Table:
    """Matches rules against a tree.

    Args:
      params: a tree of arrays, ``ShapeDtypeStruct``, factorized weights, or boxes of them.
      rules: tried in order for every path; the first match wins.

    Returns:
      The table of what will be factorized, weights that already are included.

    Raises:
      ValueError: a rule matches nothing or only what earlier rules took; a kernel cannot be stored
        as asked; a weight is factorized in another way already.
      TypeError: something is no rule, or a rule needs values where only shapes are known.

    >>> from lowrank_jax.ranks import RankScale
    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
    >>> resolve(params, [Rule(".*/kernel", RankScale(0.25))]).parameters
    40
    """
    leaves = kernels(params)
    owners = first_matches(leaves, rules)
    rows, other = [], 0
    for path, leaf in leaves.items():
        owner = owners[path]
        row = row_of(path, leaf) if is_factorized(leaf) else None
        if owner is not None and (owner.rank is not None or row is not None):
            row = _resolve_kernel(path, leaf, owner, row)
        if row is None:
            other += size_of(leaf)
        else:
            rows.append(row)
    return Table(tuple(rows), other)


def first_matches(paths: Collection[str], rules: Sequence[Rule]) -> dict[str, Rule | None]:
    """For every path the first rule that matches it.

    Raises:
      ValueError: a rule matches nothing, or only what earlier rules took.
      TypeError: something is no rule.
    """
    if isinstance(rules, Rule) or not isinstance(rules, Iterable):
        raise TypeError(f"{rules!r} is not a list of rules: write [Rule(pattern, rank, kind), ...]")
    rules = list(rules)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"{rule!r} is not a Rule: write Rule(pattern, rank, kind)")
    owners = {path: next((rule for rule in rules if rule.matches(path)), None) for path in paths}
    for rule in rules:
        if any(owner is rule for owner in owners.values()):
            continue
        shadow = next((path for path in paths if rule.matches(path)), None)
        if shadow is not None:
            raise ValueError(
                f"{rule} is never used: every path it matches, such as {shadow}, is taken by the "
                f"earlier {owners[shadow]}"
            )
        raise ValueError(f"{rule} matches no path; {near_misses(rule.pattern, paths)}")
    return owners


def _resolve_kernel(path: str, leaf: Any, rule: Rule, present: Row | None) -> Row:
    if rule.rank is None:
        raise ValueError(f"{path} is {phrase(present)}, and {rule} keeps it dense: merge it first")
    shape = tuple(np.shape(leaf)) if present is None else present.shape
    with named(path):
        axes = rule.axes_for(shape)
        dtype = jnp.result_type(*jax.tree.leaves(leaf))
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{rule} matches a leaf of {dtype}, and only real kernels factorize")
        spectrum = spectrum_of(leaf, rule.kind, axes)
        rank = rule.rank.rank(rule.kind, shape, axes, rule.depth, spectrum)
        row = row_of(path, rule.kind.template(shape, dtype, rank, rule.depth, **axes))
    if present is not None and row != present:
        raise ValueError(
            f"{path} is factorized already, as {phrase(present)}, and {rule} asks for "
            f"{phrase(row)}: use refactorize to change ranks, or merge first"
        )
    return row


def is_abstract(kernel: Any) -> bool:
    """Whether only the shape and dtype of a kernel or weight are known."""
    return isinstance(jax.tree.leaves(kernel)[0], jax.ShapeDtypeStruct)


def spectrum_of(kernel: Any, kind: type[FactorizedWeight], axes: dict[str, int]) -> Spectrum | None:
    """What gives the singular values of a kernel or weight; None where only its shape is known."""
    if is_abstract(kernel):
        return None

    def spectrum() -> np.ndarray:
        require_values(kernel)
        if isinstance(kernel, TwoFactorWeight):
            return factored_svd(kernel)[1]
        return svd.singular_values(kind.matricize(np.asarray(kernel), **axes))

    return spectrum


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Puts the path of the kernel in question before an error's text."""
    try:
        yield
    except (ValueError, TypeError) as error:
        # Not the error's own class: some of their constructors take no text.
        plain = TypeError if isinstance(error, TypeError) else ValueError
        raise plain(f"{path}: {error}") from error


def require_values(kernel: Any) -> None:
    """Raises unless the values of a kernel or weight are there to be read, and all finite.

    Raises:
      TypeError: it is being traced.
      ValueError: an entry is infinite or no number.
    """
    for leaf in jax.tree.leaves(kernel):
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(
                "its values are being traced (inside jit, grad, vmap or eval_shape) and cannot be "
                "read: call this outside; to plan, pass the result of jax.eval_shape; layers born "
                "factorized use initializers.factorized"
            )
        values = svd.working_precision(leaf)
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise ValueError(f"{bad} of {values.size} entries are not finite")
