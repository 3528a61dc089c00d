"""Section `variants`: what the options of the training step cost and save.

Each option of the config is a contender beside the plain step of the same network: its time and
memory are ratios to the plain step's, below 1 less. Beside them the persistent compilation cache:
the time to compile the step into an empty one, and to load it from there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from experiments.benchmark import markdown
from experiments.benchmark.alternation import Say
from experiments.benchmark.contenders import Contender, weights
from experiments.benchmark.jax_step import JaxStep
from experiments.benchmark.options import Options
from experiments.benchmark.race import peak_of_steps, race
from experiments.compilation_cache import kept_in

_OPTIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "precision=bfloat16": (("precision", "bfloat16"),),
    "accumulate_steps=4": (("accumulate_steps", 4),),
    "remat=True": (("remat", True),),
}


def measure(options: Options, say: Say) -> Iterator[dict[str, Any]]:
    """The section's record."""
    plain = options.reference
    say(f"options of the step of {plain.network.title}, {weights(plain.rank_scale)}")
    contenders = {"plain": plain} | {
        name: dataclasses.replace(plain, overrides=overrides)
        for name, overrides in _OPTIONS.items()
    }
    found = race(contenders, options.alternations, say)
    rows = [
        {
            "option": name,
            "seconds_per_step": found.per_step(name),
            "ratio_to_plain": dataclasses.asdict(found.samples.ratio(name, "plain")),
            "compile_s": found.facts[name]["compile_s"],
            "memory_bytes": found.memory[name],
        }
        for name in contenders
    ]
    say("  compiling into a cache, and loading from it")
    yield {
        "network": plain.network.title,
        "rank_scale": plain.rank_scale,
        "batch_size": plain.batch_size,
        "options": rows,
        "cache": cache_times(plain),
    }


def cache_times(contender: Contender) -> dict[str, float]:
    """Seconds to prepare the step with an empty compilation cache, and with the cache it left."""
    times = {}
    with tempfile.TemporaryDirectory() as folder, kept_in(folder):
        for name in ("compile_s", "load_s"):
            jax.clear_caches()  # Of this process; the folder stays.
            times[name] = JaxStep(contender).facts["compile_s"]
    return times


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    plain = peak_of_steps(record["options"][0]["memory_bytes"])
    rows = []
    for row in record["options"]:
        peak = peak_of_steps(row["memory_bytes"])
        rows.append(
            [
                row["option"],
                markdown.estimate(row["seconds_per_step"], 1e3, 1),
                markdown.estimate(row["ratio_to_plain"], 1, 2),
                markdown.number(peak, 1e-6, 0),
                markdown.number(peak / plain if peak and plain else None, 1, 2),
                markdown.number(row["compile_s"], 1, 1),
            ]
        )
    header = ["option", "time per step (ms)", "/ plain", "memory (MB)", "/ plain", "compile (s)"]
    times = record["cache"]
    return (
        f"{record['network']}, {weights(record['rank_scale'])}, batches of "
        f"{record['batch_size']}\n\n{markdown.table(header, rows)}\n\n"
        f"With the persistent compilation cache: {times['compile_s']:.1f} s to compile into it, "
        f"{times['load_s']:.1f} s to load from it, tracing included both times."
    )
