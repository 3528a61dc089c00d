"""Section `step`: one training step of each network, by this project, by plain lax, by PyTorch.

All contenders of a network take turns in one run, each in its own process. Every one trains the
same network on batches of one size by SGD with momentum, with Frobenius decay on factor pairs and
plain decay elsewhere, and uses all cores.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmark import markdown
from experiments.benchmark.alternation import Say
from experiments.benchmark.contenders import IMPLEMENTATIONS, Contender, weights
from experiments.benchmark.networks import Network
from experiments.benchmark.options import Options
from experiments.benchmark.race import Race, peak_of_steps, race

INSTALL_TORCH = "pip install -e '.[benchmark]'"


def measure(options: Options, say: Say) -> Iterator[dict[str, Any]]:
    """The section's record after each network (and, on an accelerator, precision)."""
    found: list[dict[str, Any]] = []
    note = _without_torch(options.platform)
    if note:
        say(note)
    precisions = ["float32"] if options.platform == "cpu" else ["float32", "bfloat16"]
    for network in options.networks:
        for precision in precisions:
            say(f"{network.title}, {precision}, batches of {options.batch_size}")
            contenders = [
                options.contender(implementation, network, scale, precision)
                for scale in network.rank_scales
                for implementation in ("ours", *network.implementations)
                if implementation != "torch" or not note
            ]
            found.append(_measured(network, precision, contenders, options, say))
            yield {"note": note, "networks": found}


def _without_torch(platform: str) -> str | None:
    """Why PyTorch takes no part, or None if it does."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed and takes no part; to compare with it: {INSTALL_TORCH}"
    if platform == "tpu":
        return "PyTorch takes no part on a TPU"
    if platform != "cpu":
        import torch

        if not torch.cuda.is_available():
            return "the installed PyTorch cannot use this accelerator and takes no part"
    return None


def _measured(
    network: Network, precision: str, contenders: Sequence[Contender], options: Options, say: Say
) -> dict[str, Any]:
    found = race({one.label: one for one in contenders}, options.alternations, say)
    return {
        "name": network.name,
        "title": network.title,
        "precision": precision,
        "batch_size": options.batch_size,
        "steps_per_turn": network.steps_per_turn,
        "contenders": [_row(contender, found) for contender in contenders],
    }


def _row(contender: Contender, found: Race) -> dict[str, Any]:
    name, samples = contender.label, found.samples
    # The same network elsewhere, and the dense network of the same implementation.
    rivals = {
        "torch": dataclasses.replace(contender, implementation="torch"),
        "lax": dataclasses.replace(contender, implementation="lax"),
        "dense": dataclasses.replace(contender, rank_scale=0.0),
    }
    images = contender.steps * contender.batch_size
    return {
        "implementation": contender.implementation,
        "rank_scale": contender.rank_scale,
        "seconds_per_step": found.per_step(name),
        "images_per_second": images / samples.time(name).median,
        "ratio_to": {
            kind: dataclasses.asdict(samples.ratio(name, rival.label))
            for kind, rival in rivals.items()
            if rival != contender and rival.label in samples.seconds
        },
        **found.facts[name],
        "memory_bytes": found.memory[name],
        "memory_to_torch": _memory_ratio(found, name, rivals["torch"].label),
        "turns_s": samples.seconds[name],
    }


def _memory_ratio(found: Race, name: str, rival: str) -> float | None:
    if name == rival or rival not in found.memory:
        return None
    mine, theirs = peak_of_steps(found.memory[name]), peak_of_steps(found.memory[rival])
    return mine / theirs if mine and theirs else None


def table(record: dict[str, Any]) -> str:
    """The record in Markdown: a table for each network and precision."""
    parts = [record["note"]] if record["note"] else []
    for network in record["networks"]:
        parts.append(
            f"**{network['title']}**, {network['precision']}, batches of {network['batch_size']}, "
            f"{network['steps_per_turn']} step(s) per turn, "
            f"{len(network['contenders'][0]['turns_s'])} alternations"
        )
        header = [
            "weights", "implementation", "time per step (ms)", "time / PyTorch's",
            "time / plain lax", "time / own dense", "images/s", "parameters", "multiply-adds (M)",
            "memory of steps (MB)", "/ PyTorch's", "peak memory (MB)", "on device (MB)",
            "compile time (s)",
        ]  # fmt: skip
        rows = [_cells(row) for row in network["contenders"]]
        parts.append(markdown.table(header, rows, left=2))
    return "\n\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    ratios = row["ratio_to"]
    memory = row["memory_bytes"] or dict.fromkeys(("steps", "peak", "device"))
    return [
        weights(row["rank_scale"]),
        IMPLEMENTATIONS[row["implementation"]],
        markdown.estimate(row["seconds_per_step"], 1e3, 1),
        markdown.estimate(ratios.get("torch"), 1, 2),
        markdown.estimate(ratios.get("lax"), 1, 2),
        markdown.estimate(ratios.get("dense"), 1, 2),
        f"{row['images_per_second']:,.0f}",
        f"{row['parameters']:,}",
        markdown.number(row["multiply_adds"], 1e-6, 2),
        markdown.number(memory["steps"], 1e-6, 0),
        markdown.number(row["memory_to_torch"], 1, 2),
        markdown.number(memory["peak"], 1e-6, 0),
        markdown.number(memory["device"], 1e-6, 0),
        markdown.number(row["compile_s"], 1, 1),
    ]
