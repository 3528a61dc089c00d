"""Rank selection: when to turn a network low rank, and at which ranks.

A selector measures the parameters before every epoch, and decides: keep training, or restructure
now with this table. :class:`Cuttlefish` waits until the stable ranks settle and reads the ranks off
them; :class:`Pufferfish` takes a fixed epoch and a fixed fraction; :class:`Fixed` a table. All that
it needs of a training loop, here with a step that stands for one epoch:

>>> import jax, jax.numpy as jnp, optax
>>> import lowrank_jax as lrj
>>> from lowrank_jax import rank_selection
>>> x = jax.random.normal(jax.random.key(0), (64, 16))
>>> params = {"kernel": jax.random.normal(jax.random.key(1), (16, 12)) / 4}
>>> tx = optax.sgd(0.5, momentum=0.9)
>>> loss = lambda params: jnp.mean((lrj.dot_general(x, params["kernel"], (((1,), (0,)), ((), ())))
...                                 - x[:, :1]) ** 2)

>>> candidates = lrj.resolve(params, [lrj.Rule("kernel", lrj.RankScale(1.0))])
>>> detector = rank_selection.ConvergenceDetector(window=3, tail=3, threshold=0.05)
>>> selector = rank_selection.Cuttlefish(candidates, latest_epoch=30, detector=detector)
>>> state, history, decision = tx.init(params), [], rank_selection.Keep()
>>> for epoch in range(40):
...     if isinstance(decision, rank_selection.Keep):
...         history.append(selector.measure(params))  # Plain data: to resume, store it as JSON.
...         decision = selector.decide(history)
...         if isinstance(decision, rank_selection.Restructure):
...             params, state, table = lrj.restructure.switch(tx, params, state, decision.table)
...     updates, state = tx.update(jax.grad(loss)(params), state)
...     params = optax.apply_updates(params, updates)
>>> print(decision.remark)
1 of 1 layers have settled
>>> print(table)
kernel  kind     shape  rank  factors  dense  parameters  of dense
------  -------  -----  ----  -------  -----  ----------  --------
kernel  LowRank  16x12     4        2    192         112     58.3%
1 factorized kernels; parameters 112 of 192 (58.33%)

Everything here runs between steps, on parameters with their values at hand.
"""

from lowrank_jax.rank_selection.accumulative_ranks import accumulative_ranks
from lowrank_jax.rank_selection.convergence import CIFAR, IMAGENET, VIT, ConvergenceDetector
from lowrank_jax.rank_selection.cuttlefish import PRESETS, Cuttlefish
from lowrank_jax.rank_selection.decision import (
    Decision,
    History,
    Keep,
    Measured,
    RankSelector,
    Restructure,
)
from lowrank_jax.rank_selection.fixed import Fixed
from lowrank_jax.rank_selection.kept_layers import KeptLayers, StackTime
from lowrank_jax.rank_selection.pufferfish import Pufferfish
from lowrank_jax.rank_selection.stable_ranks import stable_ranks

__all__ = [
    "CIFAR",
    "IMAGENET",
    "PRESETS",
    "VIT",
    "ConvergenceDetector",
    "Cuttlefish",
    "Decision",
    "Fixed",
    "History",
    "Keep",
    "KeptLayers",
    "Measured",
    "Pufferfish",
    "RankSelector",
    "Restructure",
    "StackTime",
    "accumulative_ranks",
    "stable_ranks",
]
