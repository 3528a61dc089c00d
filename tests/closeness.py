"""How closely two trees of arrays agree."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def assert_close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """No two entries differ by more than this share of the largest entry of their array."""

    def compare(found: Any, expected: Any) -> None:
        assert found.shape == expected.shape
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        difference = np.abs(found - expected).max(initial=0)
        assert difference <= tolerance * np.abs(expected).max(initial=0)

    jax.tree.map(compare, found, expected)
