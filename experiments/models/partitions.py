"""How the kernels of Transformers are split over a mesh, the product of two layers at a time.

Attention is split by heads, the feed-forward layers by their hidden units: what the first kernel
gives, the second takes, on the same device, and only its sum goes over the axis `tensor`. The
other axis of each kernel is split over `fsdp`, for memory. Everything else is split by its size.

Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model
Parallelism", arXiv 1909.08053, section 3.
"""

from __future__ import annotations

from jax.sharding import PartitionSpec

from lowrank_jax.sharding import Partition

TRANSFORMER = (
    Partition(r".*attention/(query|key|value)/kernel", PartitionSpec("fsdp", "tensor", None)),
    Partition(r".*attention/out/kernel", PartitionSpec("tensor", None, "fsdp")),
    Partition(r".*feed_forward/up/kernel", PartitionSpec("fsdp", "tensor")),
    Partition(r".*feed_forward/down/kernel", PartitionSpec("tensor", "fsdp")),
)
