"""`experiments.main` with a model small enough that a whole run takes a second of computing.

    python tiny_main.py [--kill=MOMENT | --little-imagenet] --config=... --workdir=...

Everything but the model is the real thing; `model.name=tiny` selects it. With `--kill=MOMENT` the
process kills itself (SIGKILL) at a place that cannot be hit from outside: `commit`, when the
checkpoint of step 5 is written and about to be renamed to its final name; `manifest`, when its
state is written and its manifest is not; `config`, between the first and the second file of the run
folder. With `--little-imagenet`, imagenet2012 is the set of `large_sets.py`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import lowrank_jax as lrj
from experiments import command_line, main, models
from experiments.models.rank_selection import RankSelection, Stack
from lowrank_jax.linen import Conv, Dense, FactorNormConv


class Tiny(nn.Module):
    """Two strided convolutions, the second one factorized, around a batch norm."""

    num_classes: int
    depth: int = 20
    width: int = 1
    factor_norm: bool = False
    dtype: Any = None
    remat: bool = False  # There is nothing that could be computed again.

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(Conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype)
        x = nn.relu(conv(4, strides=4, name="stem")(x))
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, dtype=self.dtype)
        factorized = functools.partial(conv, strides=2)
        if self.factor_norm:
            factorized = functools.partial(FactorNormConv, norm=norm, **factorized.keywords)
        x = factorized(8, name="conv")(x)
        x = nn.relu(norm(name="norm")(x))
        return Dense(self.num_classes, name="head")(
            x.mean((1, 2), dtype=jnp.promote_types(x.dtype, "float32"))
        )


_KERNELS = [models.Kernels(r"conv/kernel", lrj.regular())]
FACTORIZATION = models.Factorization(lrj.SpatialLowRank, _KERNELS)
ENTRY = models.Entry(
    Tiny,
    "imagenet",
    {"conv": FACTORIZATION, "channel": models.Factorization(lrj.ChannelLowRank, _KERNELS)},
    rank_selection=RankSelection(
        candidates=r"conv/kernel",
        tracked=r"conv/kernel",
        kept="",
        kept_by_pufferfish="",
        stacks=(Stack("first", "stem"), Stack("second", "conv")),
        normed=r"conv/kernel",
    ),
)


def _kill_at_call(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


def _arm(moment: str) -> None:
    if moment == "config":
        from experiments import files

        files.write_text = _kill_at_call(files.write_text, 2)
    elif moment == "manifest":
        from orbax.checkpoint import JsonCheckpointHandler

        JsonCheckpointHandler.async_save = _kill_at_call(JsonCheckpointHandler.async_save, 2)
    elif moment == "commit":
        rename = os.rename

        def rename_or_die(source: str, target: str, **options: Any) -> None:
            if os.path.basename(target) == "5":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target, **options)

        os.rename = rename_or_die
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    models.MODELS["tiny"] = ENTRY
    if sys.argv[1:] and sys.argv[1].startswith("--kill="):
        _arm(sys.argv.pop(1).partition("=")[2])
    if sys.argv[1:] and sys.argv[1] == "--little-imagenet":
        import large_sets

        from experiments.data.catalog import LARGE_IMAGE_SETS

        LARGE_IMAGE_SETS["imagenet2012"] = large_sets.entry()
        sys.argv.pop(1)
    sys.exit(command_line.exit_code(lambda: main.run(sys.argv)))
