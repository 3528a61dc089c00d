"""How long a run is: a number of epochs, or of steps.

`epochs` is the length of a run unless `steps` says it; then the last epoch may end before all of
its batches were taken.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def total_steps_of(config: ConfigDict, steps_per_epoch: int) -> int:
    """The optimizer steps of a run.

    >>> total_steps_of(ConfigDict({"steps": 0, "epochs": 3}), 39)
    117
    """
    return config.steps or config.epochs * steps_per_epoch


def epochs_left(step: int, total_steps: int, steps_per_epoch: int) -> range:
    """The epochs of which a run that has done `step` steps has something to do.

    >>> epochs_left(40, 100, 39), epochs_left(100, 100, 39)
    (range(1, 3), range(0, 0))
    """
    if step >= total_steps:
        return range(0)
    return range(step // steps_per_epoch, -(-total_steps // steps_per_epoch))
