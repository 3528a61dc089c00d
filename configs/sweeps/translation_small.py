"""Translation in the small: ten settings of a Transformer on the text of LibreOffice's help, German
to English, which comes in two Debian packages.

Commands:
  python -m experiments.data fetch lohelp
  python -m experiments.sweep translation_small
  python -m experiments.report runs/sweeps/translation_small

With `--out=experiments/results/translation_small` it passes over what is finished there.

The dense network; at a quarter of all ranks and head sizes regular and spectral initialization
(SI), each with plain or Frobenius decay (FD); and both for the attention products as well. The
coefficient of plain decay would be too large for FD, since the factors of embeddings are large: FD
has it once, and otherwise two smaller ones. Two seeds; all of seed 1 comes before seed 2. Adam with
decoupled decay, since 3,000 steps are fewer than the warm-up of the published recipe.

Cost: 20 runs of 3,000 steps (four epochs), each a quarter of an hour on two CPU cores.
"""

from experiments.grid import Arguments, grid

SMALL = (
    "configs/translation.py:size=small,recipe=adam,data=lohelp,steps=3000,batch_size=1500,"
    "max_length=64,model.max_length=128,weight_decay=0.1"
)
DENSE = [{"rank_scale": 0.0}]
METHODS = [
    {"init": "regular", "decay": "plain"},
    {"init": "spectral", "decay": "plain"},
    {"init": "regular", "decay": "frobenius"},
    *grid(
        method=[
            {"init": "regular", "decay": "frobenius"},
            {"init": "spectral", "decay": "frobenius"},
            {"init": "spectral", "decay": "frobenius", "products": "qk_ov"},
        ],
        frobenius_decay=[1e-2, 1e-3],
    ),
]


def get_sweep() -> list[tuple[str, Arguments]]:
    """2 seeds x (1 dense + 9 factorized) = 20 runs."""
    runs = grid(seed=[1, 2], network=DENSE + grid(rank_scale=0.25, method=METHODS))
    return [(SMALL, arguments) for arguments in runs]
