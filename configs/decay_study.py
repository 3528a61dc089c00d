"""Plain decay of the factors against Frobenius decay of their product, over coefficients, as in
"Initialization and Regularization of Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi,
ICLR 2021), analysis of Frobenius decay.

Commands:
  python -m experiments.sweep configs/decay_study.py
  python -m experiments.sweep configs/decay_study.py:seed=2
  python -m experiments.sweep configs/decay_study.py:runlocal
  python -m experiments.report runs/sweeps/decay_study
  python -m experiments.main --config=configs/decay_study.py:decay=plain,weight_decay=5e-4

The sweep is the published grid: both decays at 5e-6, 1e-5, 5e-5, 5e-4, 1e-3 and 5e-3, ResNet-20 at
rank scale 1/9 from regular initialization. Its report has accuracy against the coefficient.

Arguments: every key of `configs/base.py`, above all init, data, seed, protocol; those of the sweep
are given to all of its runs. `runlocal=True` is 204 steps on embedded data.

Cost: 12 runs of 200 epochs are work for an accelerator; a run of `runlocal` takes about a minute.
"""

from ml_collections import ConfigDict

from configs import study
from experiments import arguments
from experiments.grid import Arguments, grid

COEFFICIENTS = [5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3]


def get_config(arg: str | None = None) -> ConfigDict:
    """ResNet-20 on CIFAR-10 from regular initialization, with FD."""
    config = study.resnet20("decay_study")
    config.init = "regular"
    return arguments.apply(config, arg, presets={"runlocal": study.runlocal})


def get_sweep() -> list[tuple[str, Arguments]]:
    """Two decays at six coefficients."""
    runs = grid(decay=["plain", "frobenius"], weight_decay=COEFFICIENTS)
    return [("configs/decay_study.py", arguments) for arguments in runs]
