"""The published experiments on CIFAR ResNets: low-rank, full-rank, wide and deep factorizations.

Commands:
  python -m experiments.sweep cifar_resnet --commands     # one command per run, for a cluster
  python -m experiments.sweep cifar_resnet --shard=1/8    # an eighth of the runs, on this machine
  python -m experiments.report runs/sweeps/cifar_resnet

Khodak et al., ICLR 2021 (arXiv 2105.01029), section on ResNets and on overcomplete training; the
grid is that of the public code. Its 168 settings are 166 ordinary ones and two triples (without
decay of the factors; with Frobenius decay; without it, but with the norms of the second replayed).

Cost: 516 runs of 200 epochs on an accelerator. The authors note 50 (depth 20) to 180 (depth 110)
minutes a run.
"""

from experiments.grid import Arguments, FolderOf, grid

DATA = ["cifar10", "cifar100"]
DECAY = ["plain", "frobenius"]
INIT = ["regular", "spectral"]

# As published: ranks beyond a kernel's own never train.
PUBLISHED = "configs/cifar_resnet.py:protocol=published,overcomplete=zero"
DENSE = grid(data=DATA, depth=[20, 32, 44, 56, 110], rank_scale=0)
SIZES = (
    grid(rank_scale=[0.037, 0.111, 0.333], init=INIT)
    + grid(rank_scale=1.0, variant=["flat", "deep"], init=INIT)
    + grid(rank_scale=[3.0, 9.0], init="regular")
)
FACTORIZED = grid(data=DATA, depth=[32, 56, 110], size=SIZES, decay=DECAY)

SMALL = {"data": "cifar10", "depth": 20, "rank_scale": 0.111}
COEFFICIENTS = grid(
    network=SMALL, init="regular", decay=DECAY, weight_decay=[5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3]
)
FREE = grid(network=SMALL, init=INIT, decay="none")
RECORDED = grid(network=SMALL, init=INIT, decay="frobenius", record_norms=True)


def get_sweep() -> list[tuple[str, Arguments]]:
    """3 seeds x (10 dense + 144 factorized + 12 coefficients + 2 triples) = 3 x 172 runs."""
    runs = []
    for seed in (1, 2, 3):
        runs += grid(seed=seed, setting=DENSE + FACTORIZED + COEFFICIENTS + FREE + RECORDED)
        free, recorded = grid(seed=seed, setting=FREE), grid(seed=seed, setting=RECORDED)
        for one, other in zip(free, recorded, strict=True):
            runs.append(one | {"replay": FolderOf(other)})
    return [(PUBLISHED, arguments) for arguments in runs]
