"""Three steps of tasks on one device and on eight, and an evaluation of what comes out; prints by
how much parameters and measures differ.

    python mesh_checks.py FOLDER TASK-PRECISION...

In float64 with plain gradient descent: Adam divides by the size of a gradient, and makes steps of
any size of the rounding errors of one that is zero, as that of the biases of keys is.

Run in a process of its own, since the number of CPU devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import little_texts
import little_translations
import numpy as np
import tiny_main
import tiny_runs
from ml_collections import ConfigDict

from experiments import arguments, models, tally, tasks
from experiments import feed as feeds
from experiments import mesh as meshes
from experiments import state as states
from experiments.dispatch import dispatch_function, dispatches
from experiments.programs import Programs

MESH = "data:2,fsdp:2,tensor:2"


def configs(folder: Path) -> dict[str, ConfigDict]:
    """A little run of every task, factorized."""
    text = little_texts.write_text(folder / "text")
    pairs = little_translations.write_text(folder / "pairs")
    return {
        "classification": tiny_runs.config(),
        "translation": little_translations.config(pairs),
        "masked_language_model": little_texts.pretrain(text),
        "causal_language_model": little_texts.pretrain(text, "task=causal_language_model"),
        "text_classification": little_texts.fine_tune(text),
    }


class Outcome(NamedTuple):
    """After three steps.

    Attributes:
      params: as arrays of the host.
      split: whether any was split over devices.
      means: of the evaluation.
      flops: of the evaluation on each device, as the compiler counts them.
    """

    params: Any
    split: bool
    means: dict[str, float]
    flops: float


def after_three_steps(task: Any, config: ConfigDict, mesh: str, dtype: Any) -> Outcome:
    """Trains and evaluates."""
    config = config.copy_and_resolve_references()
    config.mesh = mesh
    plan = states.plan(config, task.network, len(task.batches(0)))
    state = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        states.create(plan, task.network),
    )
    state = jax.device_put(state, states.shardings(plan))
    everywhere = meshes.replicated(plan.mesh)
    arrays, order, zero = jax.device_put((task.splits, task.order(0), jnp.int32(0)), everywhere)
    cuts = dispatches(task.batches(0), limit=1)
    alike = [cut for cut in cuts if cut.batch == cuts[0].batch][:3]
    step = dispatch_function(task, plan, 1, cuts[0].batch)
    for cut in alike:
        example = jax.device_put(jnp.int32(cut.example), everywhere)
        state, _ = step(state, arrays, order, zero, example)
    split = any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    programs = Programs(task, plan, feeds.of(task, plan.mesh), tally.new(1))
    flops = programs.compile_evaluation("test").cost_analysis()["flops"]
    return Outcome(jax.device_get(state.params), split, programs.means("test", state), flops)


def difference(task: Any, config: ConfigDict, dtype: Any) -> dict[str, Any]:
    """Of parameters and of measures on one device and on eight: the largest, of entries of unit
    size."""
    one, many = (after_three_steps(task, config, mesh, dtype) for mesh in ("data:1", MESH))
    pairs = list(zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True))
    assert all(a.dtype == b.dtype == dtype for a, b in pairs)
    return {
        "largest": max(apart(a, b) for a, b in pairs),
        "evaluation": max(apart(one.means[name], many.means[name]) for name in one.means),
        "evaluation_share": many.flops / one.flops,
        "split": [one.split, many.split],
    }


def apart(a: Any, b: Any) -> float:
    """The largest difference, of entries of unit size."""
    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a))))


def main(folder: Path, cases: list[str]) -> None:
    assert jax.device_count() == 8
    models.MODELS["tiny"] = tiny_main.ENTRY
    found: dict[str, Any] = {}
    every = configs(folder)
    for case in cases:
        name, precision = case.split("-")
        config = arguments.settle(every[name])
        if precision == "float64":  # No run computes in it: there is no word for it.
            config.precision, config.optimizer, config.learning_rate = precision, "sgd", 0.1
        task = tasks.load(config, folder / name)
        with jax.enable_x64(precision == "float64"):
            found[case] = difference(task, config, jnp.dtype(precision))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
