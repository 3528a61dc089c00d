"""Section `decay`: the decay update alone, jitted, as a share of a training step.

The three updates and the step take turns. `none` leaves the factors alone and decays the rest
plainly, `plain` decays every leaf, `frobenius` decays the factors' product and the rest plainly:
the words of the configs. Inside the step, the compiler merges the update with others; so what is
measured here is an upper bound.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments import recipe
from experiments.benchmark import jax_step, markdown
from experiments.benchmark.alternation import Say, alternate, timed
from experiments.benchmark.contenders import weights
from experiments.benchmark.median import estimate
from experiments.benchmark.options import Options

DECAYS = ("none", "plain", "frobenius")


def measure(options: Options, say: Say) -> Iterator[dict[str, Any]]:
    """The section's record."""
    reference = options.reference
    say(f"decay updates of {reference.network.title}, {weights(reference.rank_scale)}")
    step = jax_step.build(reference)
    calls = 5 if options.quick else 50
    turns = {decay: timed(update(step, reference, decay), calls) for decay in DECAYS}
    samples = alternate(turns | {"step": timed(step)}, options.alternations, say)
    rows = []
    for decay in DECAYS:
        pairs = zip(samples.seconds[decay], samples.seconds["step"], strict=True)
        shares = [alone * reference.steps / turn for alone, turn in pairs]
        rows.append(
            {
                "decay": decay,
                "seconds": dataclasses.asdict(samples.time(decay)),
                "share_of_step": dataclasses.asdict(estimate(shares)),
            }
        )
    yield {
        "network": reference.network.title,
        "rank_scale": reference.rank_scale,
        "batch_size": reference.batch_size,
        "updates": rows,
    }


def update(step: jax_step.JaxStep, contender: Any, decay: str) -> Callable[[], None]:
    """One decay update on gradients of the step's parameters; each call continues the last."""
    settled = jax_step.config(contender)
    settled.decay = decay
    transform = recipe.decay(settled, step.plan.ratio)
    # A copy, because the step's own parameters are donated to its next call.
    params = jax.tree.map(jnp.copy, step.state.params)
    gradients = jax.tree.map(jnp.zeros_like, params)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(gradients: Any, params: Any) -> Any:
        return transform.update(gradients, transform.init(params), params)[0]

    def work() -> None:
        nonlocal gradients
        gradients = jax.block_until_ready(run(gradients, params))

    return work


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    header = ["decay", "time (ms)", "share of a step (%)"]
    rows = [
        [
            row["decay"],
            markdown.estimate(row["seconds"], 1e3, 3),
            markdown.estimate(row["share_of_step"], 100, 2),
        ]
        for row in record["updates"]
    ]
    where = f"{record['network']}, {weights(record['rank_scale'])}"
    return f"{where}, batches of {record['batch_size']}\n\n{markdown.table(header, rows)}"
