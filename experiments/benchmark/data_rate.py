"""Section `data`: images per second of the input pipeline alone, beside what the step consumes.

The pipeline gathers, crops, mirrors and normalises on the device, inside the step; here it is
jitted by itself and takes turns with the whole step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import jax_step, markdown
from experiments.benchmark.alternation import Say, alternate, timed
from experiments.benchmark.contenders import weights
from experiments.benchmark.median import estimate
from experiments.benchmark.options import Options
from experiments.tasks.task import Batch


def measure(options: Options, say: Say) -> Iterator[dict[str, Any]]:
    """The section's record."""
    reference = options.reference
    say(f"data pipeline beside {reference.network.title}, {weights(reference.rank_scale)}")
    step = jax_step.build(reference)
    turns = {
        "batch": timed(batch(step, reference.batch_size), 2 if options.quick else 10),
        "step": timed(step),
    }
    samples = alternate(turns, options.alternations, say)
    pairs = zip(samples.seconds["step"], samples.seconds["batch"], strict=True)
    per_turn = reference.steps * reference.batch_size
    yield {
        "network": reference.network.title,
        "rank_scale": reference.rank_scale,
        "batch_size": reference.batch_size,
        "images_per_second": reference.batch_size / samples.time("batch").median,
        "step_images_per_second": per_turn / samples.time("step").median,
        "multiple": dataclasses.asdict(
            estimate([turn / reference.steps / alone for turn, alone in pairs])
        ),
    }


def batch(step: jax_step.JaxStep, batch_size: int) -> Callable[[], None]:
    """Making one training batch from the step's images."""
    run = jax.jit(functools.partial(step.task.batch, shape=Batch(batch_size)))
    indices, epoch = step.order[:batch_size], jnp.int32(0)

    def work() -> None:
        jax.block_until_ready(run(step.arrays, indices, epoch))

    return work


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    header = ["pipeline (images/s)", "step (images/s)", "pipeline / step"]
    row = [
        markdown.number(record["images_per_second"], 1, 0),
        markdown.number(record["step_images_per_second"], 1, 0),
        markdown.estimate(record["multiple"], 1, 1),
    ]
    where = f"{record['network']}, {weights(record['rank_scale'])}"
    size = record["batch_size"]
    return f"{where}, batches of {size}\n\n{markdown.table(header, [row], left=0)}"
