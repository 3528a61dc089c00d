"""Model compression in the small: quarter-width twins of VGG-19 and ResNet-32 on `fashion_small`.

Commands:
  python -m experiments.sweep compression_small
  python -m experiments.report runs/sweeps/compression_small

With `--out=experiments/results/compression_small` it passes over what is finished there.

Six methods: the dense network; factorized with regular or spectral initialization (SI), each with
plain or Frobenius decay (FD); and magnitude pruning of the same kernels. Two ratios, two seeds; all
of seed 1 comes before seed 2, so that an unfinished sweep can be read.

Cost: 44 runs of 390 steps (10 epochs of 39), for two CPU cores.
Nothing is downloaded, and what it shows is about short training of small networks.
"""

from experiments.grid import Arguments, grid

TWINS = "configs/compression.py:width=0.25,data=fashion_small,validation=0,epochs=10"
DENSE = [{"ratio": 0}]
METHODS = [
    {"init": "regular", "decay": "plain"},
    {"init": "spectral", "decay": "plain"},
    {"init": "regular", "decay": "frobenius"},
    {"init": "spectral", "decay": "frobenius"},
    {"method": "prune", "decay": "plain"},
]


def get_sweep() -> list[tuple[str, Arguments]]:
    """2 seeds x 2 models x (1 dense + 2 ratios x 5 methods) = 44 runs."""
    runs = grid(
        seed=[1, 2],
        model=["vgg19", "resnet32"],
        network=DENSE + grid(ratio=[0.1, 0.05], method=METHODS),
    )
    return [(TWINS, arguments) for arguments in runs]
