"""The batch-minor layout: a fast path for convolutional networks on CPUs, see ``rewrite.py``."""

from lowrank_jax.batch_minor.rewrite import batch_minor

__all__ = ["batch_minor"]
