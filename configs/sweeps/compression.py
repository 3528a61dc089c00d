"""The published model compression experiments: VGG-19 and the wide ResNet-32, on three data sets.

Commands:
  python -m experiments.sweep compression --commands     # one command per run, for a cluster
  python -m experiments.sweep compression --shard=1/8    # an eighth of the runs, on this machine
  python -m experiments.report runs/sweeps/compression

Khodak et al., ICLR 2021 (arXiv 2105.01029), section on model compression: dense baselines, and
three compression ratios with spectral initialization on and off, Frobenius decay on and off.
Published with three unseeded trials; here these are seeds 1, 2, 3.

Cost: 234 runs of 200 epochs on an accelerator. The authors note 36 to 80 minutes a run on CIFAR,
200 to 630 on Tiny ImageNet.
"""

from experiments.grid import Arguments, grid

METHODS = grid(init=["regular", "spectral"], decay=["plain", "frobenius"])


def get_sweep() -> list[tuple[str, Arguments]]:
    """3 seeds x 6 networks and data sets x (1 dense + 3 ratios x 4 methods) = 3 x 78 runs."""
    usual = [{"ratio": 0}] + grid(ratio=[0.1, 0.05, 0.02], method=METHODS)
    easier = [{"ratio": 0}] + grid(ratio=[0.15, 0.1, 0.05], method=METHODS)
    settings = (
        grid(data=["cifar10", "cifar100"], model=["resnet32", "vgg19"], network=usual)
        + grid(data="tiny_imagenet", model="resnet32", network=easier)
        + grid(data="tiny_imagenet", model="vgg19", network=usual)
    )
    runs = grid(seed=[1, 2, 3], setting=settings)
    return [("configs/compression.py:protocol=published", arguments) for arguments in runs]
