"""The table of a factorization: every factorized kernel with its kind, shape, rank and parameters.

Rules resolve to a table, a tree is described by one, and a checkpoint has one beside it, since the
shapes of factors do not say what they are factors of. A table prints, and goes to JSON and back.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lowrank_jax.tree import kernels, near_misses
from lowrank_jax.weights import FactorizedWeight, Rank, is_factorized, kinds


@dataclasses.dataclass(frozen=True)
class Row:
    """One factorized kernel of a table.

    Attributes:
      path: of the kernel in the tree.
      kind: the kind of weight.
      axes: its static axes.
      shape: of the dense kernel, batch axes included.
      rank: of the weight; several numbers for a kind that has several ranks.
      depth: of the weight: how many factors.
      parameters: of its factors.
    """

    path: str
    kind: type[FactorizedWeight]
    axes: dict[str, int]
    shape: tuple[int, ...]
    rank: Rank
    depth: int
    parameters: int

    @property
    def dense_parameters(self) -> int:
        """Parameters of the dense kernel."""
        return math.prod(self.shape)

    @property
    def breaks_even(self) -> bool:
        """Whether the factors have no fewer parameters than the dense kernel."""
        return self.parameters >= self.dense_parameters

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "path": self.path,
            "kind": self.kind.__name__,
            "axes": self.axes,
            "shape": list(self.shape),
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "depth": self.depth,
            "parameters": self.parameters,
            "dense_parameters": self.dense_parameters,
            "breaks_even": self.breaks_even,
        }


@dataclasses.dataclass(frozen=True)
class Table:
    """What is factorized in a tree, and how: the resolved form of rules.

    Attributes:
      rows: the factorized kernels, in the order of the tree.
      other_parameters: the number of parameters in all leaves that are not factorized.
    """

    rows: tuple[Row, ...]
    other_parameters: int = 0

    @property
    def parameters(self) -> int:
        """Parameters of the whole tree, factorized."""
        return self.other_parameters + sum(row.parameters for row in self.rows)

    @property
    def dense_parameters(self) -> int:
        """Parameters of the whole tree, dense."""
        return self.other_parameters + sum(row.dense_parameters for row in self.rows)

    @property
    def ratio(self) -> float:
        """Parameters after, as a share of those before."""
        return self.parameters / self.dense_parameters if self.dense_parameters else 1.0

    def row(self, path: str) -> Row | None:
        """The row of a path, or None if the table leaves it dense."""
        return self._by_path.get(path)

    @functools.cached_property
    def _by_path(self) -> dict[str, Row]:
        return {row.path: row for row in self.rows}

    def differences(self, other: Table) -> list[str]:
        """What would not fit if weights stored under ``other`` were read under this table."""
        lines = []
        for path in dict.fromkeys([*self._by_path, *other._by_path]):
            mine, theirs = self.row(path), other.row(path)
            if mine != theirs:
                lines.append(f"{path}: expected {phrase(mine)}, found {phrase(theirs)}")
        if not lines and self.other_parameters != other.other_parameters:
            lines.append(
                f"parameters outside the factorized kernels: expected {self.other_parameters}, "
                f"found {other.other_parameters}"
            )
        return lines

    def to_json(self) -> str:
        """JSON text; :meth:`from_json` reads it back."""
        rows = [row.as_dict() for row in self.rows]
        return json.dumps({"rows": rows, "other_parameters": self.other_parameters}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Reads what :meth:`to_json` wrote.

        Raises:
          ValueError: the text is not such a table, or names an unknown kind of weight.
        """
        known = kinds()
        try:
            data = json.loads(text)
            rows = []
            for row in data["rows"]:
                if row["kind"] not in known:
                    raise ValueError(
                        f"{row['path']}: unknown kind of weight {row['kind']!r}; known are "
                        f"{', '.join(sorted(known))}"
                    )
                rows.append(
                    Row(
                        path=row["path"],
                        kind=known[row["kind"]],
                        axes=dict(row["axes"]),
                        shape=tuple(row["shape"]),
                        rank=_read_rank(row["rank"]),
                        depth=int(row["depth"]),
                        parameters=int(row["parameters"]),
                    )
                )
            return cls(tuple(rows), int(data["other_parameters"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a factorization table: {error!r}") from error

    def __str__(self) -> str:
        header = ("kernel", "kind", "shape", "rank", "factors", "dense", "parameters", "of dense")
        body = [
            (
                row.path,
                " ".join([row.kind.__name__, *row.kind.named_axes(row.axes)]),
                "x".join(map(str, row.shape)),
                f"{_written(row.rank)}{'*' if row.parameters >= row.dense_parameters else ''}",
                str(row.depth),
                f"{row.dense_parameters:,}",
                f"{row.parameters:,}",
                f"{row.parameters / row.dense_parameters:.1%}",
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        lines = []
        for cells in [header, *body]:
            left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
            lines.append("  ".join(left + right))
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(
            f"{len(self.rows)} factorized kernels; parameters {self.parameters:,} of "
            f"{self.dense_parameters:,} ({self.ratio:.2%})"
        )
        if any(row.parameters >= row.dense_parameters for row in self.rows):
            lines.append("* at or above break-even: no fewer parameters than the dense kernel")
        return "\n".join(lines)


def _read_rank(value: Any) -> Rank:
    return tuple(map(int, value)) if isinstance(value, list) else int(value)


def _written(rank: Rank) -> str:
    return ",".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)


def phrase(row: Row | None) -> str:
    """How a kernel is stored, in words, for errors."""
    if row is None:
        return "a dense kernel"
    axes = "".join(f", {name}={value}" for name, value in row.axes.items())
    shape = "x".join(map(str, row.shape))
    return f"{row.kind.__name__}(rank={row.rank}, depth={row.depth}{axes}) of a {shape} kernel"


def require_kernels(table: Table, leaves: Mapping[str, Any]) -> None:
    """Raises ValueError unless these kernels, by path, are all that the table names, or more."""
    for row in table.rows:
        leaf = leaves.get(row.path)
        if leaf is None:
            raise ValueError(
                f"the table names {row.path}, which is not in the tree; "
                f"{near_misses(row.path, leaves)}"
            )
        if np.shape(leaf) != row.shape:
            raise ValueError(f"{row.path} has shape {np.shape(leaf)}, the table says {row.shape}")


def describe(params: Any) -> Table:
    """The table of what is factorized in a tree now.

    >>> import jax.numpy as jnp
    >>> from lowrank_jax.weights import LowRank
    >>> describe({"w": LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 4))), "b": jnp.ones(4)}).ratio
    0.6
    """
    leaves = kernels(params)
    rows = tuple(row_of(path, leaf) for path, leaf in leaves.items() if is_factorized(leaf))
    return Table(rows, sum(size_of(leaf) for leaf in leaves.values() if not is_factorized(leaf)))


def row_of(path: str, weight: FactorizedWeight) -> Row:
    """The row of a weight that is there already."""
    stored = sum(map(size_of, jax.tree.leaves(weight)))
    return Row(
        path, type(weight), weight.axes, tuple(weight.shape), weight.rank, weight.depth, stored
    )


def size_of(leaf: Any) -> int:
    """Number of entries of an array, of a ``ShapeDtypeStruct``, or of a scalar."""
    return math.prod(np.shape(leaf)) if not hasattr(leaf, "shape") else math.prod(leaf.shape)
