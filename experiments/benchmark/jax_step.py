"""This project's training step as a contender: what `experiments.train` dispatches, and no more.

The step comes from `experiments.state` and `experiments.dispatch`, on random uint8 images that lie
on the device. So it gathers, crops, mirrors and normalises its batch inside the step, which the
PyTorch twin does not: that gets ready-made batches.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import base
from experiments import arguments, forms
from experiments import mesh as meshes
from experiments import state as states
from experiments.benchmark.contenders import Contender
from experiments.data.pipeline import ImagePipeline
from experiments.dispatch import default_steps, dispatch_function
from experiments.result import Data
from experiments.tasks.classification import Classification, Network
from experiments.tasks.task import Batch

CLASSES = 10
IMAGE_SIZE = 32
_TURNS_PER_EPOCH = 8


def config(contender: Contender) -> ConfigDict:
    """The settled config of a contender: `configs/base.py` with its network, rank and batch."""
    found = base.get_config()
    network = contender.network
    with found.unlocked():
        found.model = ConfigDict(
            {"name": network.model, "depth": network.depth, "width": network.width}
        )
    found.name = "benchmark"
    found.rank_scale = contender.rank_scale
    found.batch_size = contender.batch_size
    found.precision = contender.precision
    if contender.implementation == "lax":
        found.layout, found.forms = "as_written", "count"
    for key, value in contender.overrides:
        found[key] = value
    return arguments.settle(found)


def task(contender: Contender, settled: ConfigDict) -> Classification:
    """Classification of random images: eight turns make an epoch."""
    generator = np.random.default_rng(0)
    examples = contender.batch_size * contender.steps * _TURNS_PER_EPOCH
    images = generator.integers(0, 256, (examples, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, examples, dtype=np.int32)
    return Classification(
        network=Network.of(settled, CLASSES, IMAGE_SIZE),
        pipeline=ImagePipeline(mean=(0.5,), std=(0.25,), size=IMAGE_SIZE),
        data=Data("random images", "made here", ""),
        splits={"train": (images, labels), "test": (images[:1], labels[:1])},
        seed=settled.seed,
        batch_size=settled.batch_size,
        eval_batch_size=settled.eval_batch_size,
        batch_norm_parts=1,
        partial_batch=False,
        selects=None,
    )


class JaxStep:
    """The compiled steps with their state; a call is one turn, each dispatch of it ended by reading
    its losses.

    Attributes:
      facts: see `experiments.benchmark.worker.Step`.
      task, plan, arrays, order: what the step works on, for the parts that are timed alone.
    """

    def __init__(self, contender: Contender) -> None:
        settled = config(contender)
        self.task = task(contender, settled)
        self.plan = states.plan(settled, self.task.network, len(self.task.batches(0)))
        self.task, self.plan, chosen = forms.choose(self.task, self.plan, lambda line: None)
        everywhere = meshes.replicated(self.plan.mesh)
        self.arrays = jax.device_put(self.task.splits, everywhere)
        self.order = jax.device_put(self.task.order(0), everywhere)
        self._epoch = jax.device_put(jnp.zeros((), jnp.int32), everywhere)
        # Turns of equal dispatches, so that one function is compiled.
        at_most = min(default_steps(self.plan, self.task.batches(0)), contender.steps)
        steps = next(k for k in range(at_most, 0, -1) if contender.steps % k == 0)
        self._dispatches = contender.steps // steps
        self._starts = [
            jax.device_put(jnp.int32(dispatch * steps * contender.batch_size), everywhere)
            for dispatch in range(self._dispatches * _TURNS_PER_EPOCH)
        ]
        started = time.perf_counter()
        function = dispatch_function(self.task, self.plan, steps, Batch(contender.batch_size))
        self._run = function.lower(
            self.plan.abstract, self.arrays, self.order, self._epoch, self._starts[0]
        ).compile()
        compile_s = time.perf_counter() - started
        self.state = states.create(self.plan, self.task.network)
        self._dispatched = 0
        self.facts: dict[str, Any] = {
            "parameters": self.plan.table.parameters,
            "multiply_adds": self.plan.multiply_adds,
            "compile_s": compile_s,
            "forms": chosen.summary if chosen.rows else None,
            "device": jax.devices()[0].device_kind,
        }

    def __call__(self) -> None:
        for _ in range(self._dispatches):
            start = self._starts[self._dispatched % len(self._starts)]
            self._dispatched += 1
            self.state, sums = self._run(self.state, self.arrays, self.order, self._epoch, start)
            jax.block_until_ready(self.state)
            np.asarray(sums["loss"])

    def device_peak_bytes(self) -> int | None:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None


@functools.cache
def build(contender: Contender) -> JaxStep:
    """The step of a contender; the same one each time, since compiling takes long."""
    return JaxStep(contender)
