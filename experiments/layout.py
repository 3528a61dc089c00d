"""The layout that images have inside a compiled function.

    as_written    as the model has them: batch first, channels last
    batch_minor   channels first, batch last, by `lowrank_jax.batch_minor`: a multiple faster on a
                  CPU, for one device
    auto          batch_minor on a single CPU device, as_written everywhere else

The layout changes the order of sums, so the last bits, and nothing else.
"""

from __future__ import annotations

from jax.sharding import Mesh

from experiments.errors import RunError
from experiments.looping import on_cpu


def is_batch_minor(layout: str, mesh: Mesh) -> bool:
    """Whether a run with this `layout` stores its images batch-minor.

    Raises:
      RunError: it is asked for on several devices.
    """
    if layout == "batch_minor" and mesh.size > 1:
        raise RunError(
            f"layout=batch_minor is for one device, and the mesh has {mesh.size}: use layout=auto"
        )
    return layout == "batch_minor" or (layout == "auto" and on_cpu() and mesh.size == 1)
