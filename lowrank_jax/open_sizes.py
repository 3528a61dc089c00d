"""Sizes that are left open, as ``jax.export`` leaves a batch: what JAX raises where one is needed.

Source: https://docs.jax.dev/en/latest/export/shape_poly.html
"""

try:
    from jax.errors import InconclusiveDimensionOperation
except ImportError:  # Older versions of JAX have it elsewhere.
    from jax.core import InconclusiveDimensionOperation

__all__ = ["InconclusiveDimensionOperation"]
