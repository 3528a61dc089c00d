"""Pre-training in the small, and what it is good for: masked language models on the manual of
PostgreSQL, and from each of them a classifier that tells which part of the manual a paragraph is
from.

Commands:
  python -m experiments.data fetch pgdoc
  python -m experiments.sweep pretraining_small
  python -m experiments.report runs/sweeps/pretraining_small

With `--out=experiments/results/pretraining_small` it passes over what is finished there.

BERT of 128 features and four layers. The dense network; and with attention heads of half the size
regular initialization, spectral initialization (SI) of the attention products, and SI with
Frobenius decay (FD) of them, the paper's FLAMBé. Plain decay has LAMB's usual coefficient, which
is so small that in 1,500 steps it hardly acts; FD has two larger ones, the second seed the one
whose validation loss was lower with the first. Every pre-trained network is fine-tuned as it was
pre-trained, and classifiers of both sizes are trained from nothing beside them. Two seeds; all of
seed 1 comes before seed 2.

Cost: 9 runs of pre-training, 1,500 steps of 16 blocks, and 13 of fine-tuning, an epoch of
paragraphs cut to 64 tokens; about ten and four minutes each on one CPU core.
"""

from experiments.grid import Arguments, FolderOf, grid

PRETRAINING = "configs/pretraining.py:size=small,data=pgdoc,batch_size=16"
FINE_TUNING = "configs/fine_tuning.py:size=small,data=pgdoc,epochs=1,max_length=64"
FROM_NOTHING: list[Arguments] = [
    {"head_scale": 1.0, "products": "none"},
    {"head_scale": 0.5, "products": "none"},
]
COEFFICIENTS = {1: [0.1, 1.0], 2: [0.1]}  # Of FD, by seed.


def get_sweep() -> list[tuple[str, Arguments]]:
    """Seed 1: 5 pre-trained + 5 fine-tuned + 2 from nothing = 12 runs; seed 2: 4 + 4 + 2 = 10."""
    runs = []
    for seed, coefficients in COEFFICIENTS.items():
        methods = [
            *FROM_NOTHING,
            {"head_scale": 0.5, "products.init": "qk_ov", "products.decay": "none"},
            *grid(head_scale=0.5, products="qk_ov", frobenius_decay=coefficients),
        ]
        pretrained = grid(seed=seed, method=methods)
        runs += [(PRETRAINING, arguments) for arguments in pretrained]
        runs += [(FINE_TUNING, {**made, "start": FolderOf(made)}) for made in pretrained]
        runs += [(FINE_TUNING, arguments) for arguments in grid(seed=seed, method=FROM_NOTHING)]
    return runs
