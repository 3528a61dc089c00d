"""Width: channel counts multiplied by one number, for smaller or larger twins of a network."""

from __future__ import annotations


def scaled(channels: int, width: float) -> int:
    """The channel count at a width; at least 1.

    >>> scaled(64, 0.25), scaled(16, 1.0)
    (16, 16)
    """
    return max(1, round(channels * width))
