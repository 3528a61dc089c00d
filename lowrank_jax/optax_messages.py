"""Errors that Optax has words for are raised by Optax itself."""

from __future__ import annotations

from typing import Any

import optax


def require_params(params: Any) -> None:
    """Raises Optax's own ValueError where ``update`` was called without parameters."""
    if params is None:
        optax.add_decayed_weights(0.0).update({}, optax.EmptyState(), None)
