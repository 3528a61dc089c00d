"""Figures and tables in Markdown, aligned so that they read well on a console too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOTHING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the first `left` columns are text, the others figures, flush right.

    >>> print(table(["shape", "ms"], [["3x3", "1.5"], ["1x1", "10.2"]]))
    | shape |   ms |
    |-------|-----:|
    | 3x3   |  1.5 |
    | 1x1   | 10.2 |
    """
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    ruler = "|".join(
        "-" * (width + 2) if column < left else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join([line(header), f"|{ruler}|", *(line(row) for row in rows)])


def number(value: float | None, scale: float, digits: int) -> str:
    """A figure times `scale`; a dash where there is none.

    >>> number(1234567, 1e-3, 1), number(None, 1, 1)
    ('1,234.6', '–')
    """
    return NOTHING if value is None else f"{value * scale:,.{digits}f}"


def estimate(found: Mapping[str, float | None] | None, scale: float, digits: int) -> str:
    """A median with its interval, from the fields of an `Estimate`.

    >>> estimate({'median': 0.5, 'low': 0.45, 'high': 0.6}, 1, 2)
    '0.50 [0.45, 0.60]'
    """
    if found is None:
        return NOTHING
    median, low, high = (number(found[name], scale, digits) for name in ("median", "low", "high"))
    return median if found["low"] is None else f"{median} [{low}, {high}]"
