"""Section `initialization`: how long spectral initialization takes, by network and kernel shape.

`lowrank_jax.factorize` decomposes kernel by kernel, so the time of a network is the sum over its
kernels, and each distinct shape is measured once. The rank changes nothing: the whole decomposition
is computed and cut off. Shapes are those of the kernels that the published systems factorize
(Khodak et al., ICLR 2021, arXiv 2105.01029); of BERT-base, all matrices of its twelve layers
(Devlin et al., NAACL 2019, arXiv 1810.04805, section 3), and by itself its token embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import lowrank_jax as lrj
from experiments.benchmark import markdown
from experiments.benchmark.alternation import Say, alternate, timed
from experiments.benchmark.median import FEWEST
from experiments.benchmark.options import Options

Shape = tuple[int, ...]

_RANK_SCALE = 0.111


def _conv3x3(counts: dict[tuple[int, int], int]) -> dict[Shape, int]:
    return {(3, 3, *channels): count for channels, count in counts.items()}


NETWORKS: dict[str, dict[Shape, int]] = {
    "ResNet-32": _conv3x3({(16, 16): 10, (16, 32): 1, (32, 32): 9, (32, 64): 1, (64, 64): 9}),
    "VGG-19": _conv3x3(
        {
            (64, 64): 1, (64, 128): 1, (128, 128): 1, (128, 256): 1, (256, 256): 3,
            (256, 512): 1, (512, 512): 7,
        }
    ),
    "WRN-28-10": _conv3x3(
        {(16, 160): 1, (160, 160): 7, (160, 320): 1, (320, 320): 7, (320, 640): 1, (640, 640): 7}
    )
    | {(1, 1, 16, 160): 1, (1, 1, 160, 320): 1, (1, 1, 320, 640): 1},
    "BERT-base": {(768, 768): 48, (768, 3072): 12, (3072, 768): 12},
    "BERT-base token embedding": {(30522, 768): 1},
}  # fmt: skip
"""Kernel shapes, Flax's way round, with how many of them a network has."""


def measure(options: Options, say: Say) -> Iterator[dict[str, Any]]:
    """The section's record."""
    chosen = dict(list(NETWORKS.items())[:1]) if options.quick else NETWORKS
    shapes = sorted({shape for kernels in chosen.values() for shape in kernels}, key=np.prod)
    say(f"spectral initialization of {len(shapes)} kernel shapes")
    turns = {_name(shape): timed(initialization(shape)) for shape in shapes}
    # The largest take seconds, and differ by far more than noise: the fewest that give an interval.
    samples = alternate(turns, min(options.alternations, FEWEST), say)
    times = {shape: samples.time(_name(shape)) for shape in shapes}
    yield {
        "networks": [
            {
                "name": name,
                "kernels": sum(kernels.values()),
                "seconds": sum(times[shape].median * count for shape, count in kernels.items()),
            }
            for name, kernels in chosen.items()
        ],
        "shapes": [
            {"shape": list(shape), "seconds": dataclasses.asdict(times[shape])} for shape in shapes
        ],
    }


def initialization(shape: Shape) -> Callable[[], None]:
    """Factorizing one kernel of this shape."""
    generator = np.random.default_rng(0)
    kernel = jax.numpy.asarray(generator.normal(size=shape).astype(np.float32))
    kind: Any = lrj.SpatialLowRank if len(shape) == 4 else lrj.LowRank
    rules = [lrj.Rule("kernel", lrj.RankScale(_RANK_SCALE), kind)]

    def work() -> None:
        jax.block_until_ready(lrj.factorize({"kernel": kernel}, rules))

    return work


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    networks = [
        [row["name"], str(row["kernels"]), markdown.number(row["seconds"], 1, 2)]
        for row in record["networks"]
    ]
    shapes = [
        [" x ".join(map(str, row["shape"])), markdown.estimate(row["seconds"], 1e3, 1)]
        for row in record["shapes"]
    ]
    return "\n\n".join(
        (
            markdown.table(["network", "kernels", "time (s)"], networks),
            markdown.table(["kernel", "time (ms)"], shapes),
        )
    )


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))
