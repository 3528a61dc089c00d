"""The published comparison with tensor decompositions: WRN-28-10 on CIFAR-10.

Commands:
  python -m experiments.sweep tensor --commands     # one command per run, for a cluster
  python -m experiments.sweep tensor --shard=1/8    # an eighth of the runs, on this machine
  python -m experiments.report runs/sweeps/tensor

Khodak et al., ICLR 2021 (arXiv 2105.01029): low-rank convolutions at two compression ratios, tensor
train and Tucker kernels of about the same sizes; spectral initialization on and off; plain decay,
decay scaled by the compression rate (`crs`), and Frobenius decay. Published with three unseeded
trials; here these are seeds 1, 2, 3.

Cost: 111 runs of 200 epochs of a large network, on an accelerator.
"""

from experiments.grid import Arguments, grid

METHODS = grid(init=["regular", "spectral"], decay=["plain", "crs", "frobenius"])
SIZES = (
    grid(kind="conv", ratio=[0.06667, 0.01667])
    + grid(kind="tensor_train", rank_scale=[0.705, 0.234])
    + grid(kind="tucker", rank_scale=[0.68, 0.211])
)


def get_sweep() -> list[tuple[str, Arguments]]:
    """3 seeds x (1 dense + 6 sizes x 6 methods) = 3 x 37 runs."""
    settings = [{"kind": "conv", "ratio": 0}] + grid(size=SIZES, method=METHODS)
    runs = grid(seed=[1, 2, 3], setting=settings)
    return [("configs/tensor.py:protocol=published", arguments) for arguments in runs]
