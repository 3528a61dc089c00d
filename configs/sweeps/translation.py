"""The published grid of the translation experiments: 286 settings of the Transformer on IWSLT'14.

Commands:
  python -m experiments.sweep translation --commands     # one command per run, for a cluster
  python -m experiments.sweep translation --shard=1/8    # an eighth of the runs, on this machine
  python -m experiments.report runs/sweeps/translation

Dense, and at a half and a quarter of all ranks and head sizes. Coefficients from 1e-6 to 1e-4
(dense: to 1e-3) of plain decay of everything, or of Frobenius decay of the factors, of outputs and
values, and of queries and keys with them; where anything has Frobenius decay, nothing has plain
decay. Regular or spectral initialization of the factors, and of the attention products. Khodak et
al., ICLR 2021 (arXiv 2105.01029), section on multi-head attention; the grid is that of the public
code, whose released version applies Frobenius decay to the factors wherever it is on.

Cost: 858 runs of 100,000 steps on an accelerator. The authors note 240 minutes a run.
"""

from experiments.grid import Arguments, grid

PUBLISHED = "configs/translation.py:size=published,recipe=published"
COEFFICIENTS = [1e-6, 5e-6, 1e-5, 5e-5, 1e-4]
OF_DENSE = [5e-4, 1e-3]

PRODUCTS_INIT = ["none", "qk_ov"]
PRODUCTS_DECAY = ["ov", "qk_ov"]


def get_sweep() -> list[tuple[str, Arguments]]:
    """3 seeds x (38 dense + 2 x 124 factorized) = 3 x 286 runs."""
    plain = [{"weight_decay": 0.0}, *grid(weight_decay=COEFFICIENTS)]
    runs = grid(
        seed=[1, 2, 3],
        setting=_dense(plain)
        + grid(rank_scale=[0.5, 0.25], init=["regular", "spectral"], decays=_factorized(plain)),
    )
    return [(PUBLISHED, arguments) for arguments in runs]


def _dense(plain: list[Arguments]) -> list[Arguments]:
    decays = plain + _products(COEFFICIENTS)
    large = grid(weight_decay=OF_DENSE) + _products(OF_DENSE)
    both = grid(network={"rank_scale": 0.0}, decays=decays, init=_named("products.init"))
    return both + grid(network={"rank_scale": 0.0}, decays=large)


def _factorized(plain: list[Arguments]) -> list[Arguments]:
    of_factors = grid(decay="frobenius", frobenius_decay=COEFFICIENTS)
    of_both = grid(decay="frobenius", products=_products(COEFFICIENTS))
    of_products = grid(decay="none", products=_products(COEFFICIENTS))
    decays = grid(decay="plain", coefficient=plain) + of_factors + of_both + of_products
    return grid(decays=decays, init=_named("products.init"))


def _products(coefficients: list[float]) -> list[Arguments]:
    """Frobenius decay of attention products, with each coefficient."""
    return [
        {"products.decay": products, "frobenius_decay": coefficient}
        for products in PRODUCTS_DECAY
        for coefficient in coefficients
    ]


def _named(key: str) -> list[Arguments]:
    return [{key: value} for value in PRODUCTS_INIT]
