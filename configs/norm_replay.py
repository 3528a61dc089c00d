"""Norm replay: is what Frobenius decay does done by the norms alone? As in "Initialization and
Regularization of Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi, ICLR 2021), analysis
of Frobenius decay.

Three runs of one seed: without any decay of the factors; with Frobenius decay, the norm of every
product recorded after every step; and without decay again, but with the recorded norms set after
every step. What the third has in common with the second is the effective step size.

Commands:
  python -m experiments.sweep configs/norm_replay.py
  python -m experiments.sweep configs/norm_replay.py:init=regular,seed=2
  python -m experiments.sweep configs/norm_replay.py:runlocal
  python -m experiments.report runs/sweeps/norm_replay

A single one of the three, RUN being the folder of the second:
  python -m experiments.main --config=configs/norm_replay.py:decay=none
  python -m experiments.main --config=configs/norm_replay.py
  python -m experiments.main --config=configs/norm_replay.py:decay=none,replay=RUN

Arguments: every key of `configs/base.py`, above all init, weight_decay, data, seed, protocol, each
given to all three runs. `runlocal=True` is 204 steps on embedded data.

The third run ends with an error if a norm is further than 1e-5 from the recorded one. RUN has to
be finished and the same but for its decay, and to stay as it is until the third run is finished.

Cost: three runs of 200 epochs are work for an accelerator; with `runlocal` they take a few minutes.
"""

from ml_collections import ConfigDict

from configs import study
from experiments import arguments
from experiments.grid import Arguments, FolderOf

FILE = "configs/norm_replay.py"
RECORDED: Arguments = {"decay": "frobenius"}


def get_config(arg: str | None = None) -> ConfigDict:
    """ResNet-20 on CIFAR-10 with SI and FD, its norms recorded."""
    config = study.resnet20("norm_replay")
    config.record_norms = True
    return arguments.apply(config, arg, presets={"runlocal": study.runlocal})


def get_sweep() -> list[tuple[str, Arguments]]:
    """The three runs."""
    replayed = {"decay": "none", "replay": FolderOf(RECORDED)}
    return [(FILE, {"decay": "none"}), (FILE, RECORDED), (FILE, replayed)]
