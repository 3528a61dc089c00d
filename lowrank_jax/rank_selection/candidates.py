"""Candidates at ranks: the table of a restructuring, and what stays dense.

A kernel of m x n numbers is stored as m r + r n; from the break-even rank ``m n / (m + n)`` on it
has become no smaller, and a factorized layer no faster. Such a candidate stays dense, and a remark
says so. (The published programs do not check this: a layer may grow there.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lowrank_jax.rank_selection.decision import Restructure
from lowrank_jax.ranks import break_even_rank, parameters
from lowrank_jax.table import Row, Table


def require_candidates(table: Table) -> None:
    """Raises ValueError unless the table names kernels, each to be stored at one rank."""
    if not table.rows:
        raise ValueError("the table of candidates is empty: there is nothing to choose ranks for")
    for row in table.rows:
        if row.kind.rank_count > 1:
            raise ValueError(
                f"{row.path}: a {row.kind.__name__} has {row.kind.rank_count} ranks, and one is "
                "chosen here: use a kind with one rank, such as LowRank or ChannelLowRank"
            )


def matrix_shape(row: Row) -> tuple[int, int]:
    """Rows and columns of the matrix as which the kind of a row reads its kernel."""
    kernel = jax.ShapeDtypeStruct(row.shape, jnp.float32)
    rows, columns = jax.eval_shape(lambda x: row.kind.matricize(x, **row.axes), kernel).shape[-2:]
    return rows, columns


def full_rank(row: Row) -> int:
    """The largest rank that a kernel can have: the smaller side of its matrix.

    >>> from lowrank_jax.weights import ChannelLowRank
    >>> full_rank(Row("conv/kernel", ChannelLowRank, {}, (3, 3, 8, 96), 1, 2, 168))
    72
    """
    return min(matrix_shape(row))


def at_ranks(candidates: Table, ranks: Mapping[str, int]) -> Table:
    """The candidates, each at its rank.

    Args:
      candidates: whose own ranks are not read.
      ranks: by path.
    """
    rows = []
    for row in candidates.rows:
        rank = ranks[row.path]
        stored = parameters(row.kind, row.shape, rank, row.depth, **row.axes)
        rows.append(dataclasses.replace(row, rank=rank, parameters=stored))
    return Table(tuple(rows), candidates.other_parameters)


def restructured(table: Table, remark: str) -> Restructure:
    """The decision to store each kernel of a table at its rank, or dense where that is no larger.

    Args:
      table: at the ranks that were chosen.
      remark: why now; a line for each kernel that stays dense is added.
    """
    rows, lines, other = [], [remark] if remark else [], table.other_parameters
    for row in table.rows:
        if row.breaks_even:
            other += row.dense_parameters
            break_even = break_even_rank(row.shape, row.kind, row.depth, **row.axes)
            lines.append(
                f"{row.path} stays dense: from rank {break_even} on factors are no smaller, and "
                f"its rank would be {row.rank}"
            )
        else:
            rows.append(row)
    return Restructure(Table(tuple(rows), other), "\n".join(lines))
