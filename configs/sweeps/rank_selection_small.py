"""Ranks without tuning in the small: a quarter-width ResNet-18 on clothes, dense, by Pufferfish, by
Cuttlefish, and low rank from the start.

Commands:
  python -m experiments.sweep rank_selection_small
  python -m experiments.report runs/sweeps/rank_selection_small

With `--out=experiments/results/rank_selection_small` it passes over what is finished there.

The published recipe at an eighth of its batch and learning rate, 40 epochs in place of 300, and a
moving average over 5 epochs in place of 15. Two seeds; all of seed 1 comes before seed 2.

Cuttlefish calls a layer settled when its stable rank moves by less than 0.1 per epoch. That is a
constant for 300 epochs; in 40, each of which is a larger part of the training, nothing settles
before the latest epoch. So it runs a second time with the same movement per share of the training,
0.1 * 300 / 40 = 0.75, and more epochs to wait.

Cost: 10 runs, each of 8 to 20 minutes on one CPU core.
"""

from experiments.grid import Arguments, grid

SMALL = (
    "configs/cuttlefish.py:data=fashion_small,width=0.25,epochs=40,batch_size=128,"
    "learning_rate=0.1,warmup_learning_rate=0.0125,window=5"
)


def get_sweep() -> list[tuple[str, Arguments]]:
    """2 seeds x (4 methods, and cuttlefish with another threshold) = 10 runs."""
    of_the_length = {"method": "cuttlefish", "threshold": 0.75, "selection.epoch": 30}
    methods = ["full", "pufferfish", "cuttlefish", "si_fd", of_the_length]
    return [(SMALL, arguments) for arguments in grid(seed=[1, 2], method=methods)]
