"""A window of a stream, and a batch to measure, on eight devices; prints what they are as JSON.

    python feed_checks.py FOLDER

The folder has the fabricated set of `large_sets.py`. Run in a process of its own, since the number
of CPU devices is fixed when JAX starts.
"""

import json
import sys

import jax
import large_sets
import numpy as np

from experiments import mesh as meshes
from experiments.dispatch import Dispatch
from experiments.feed import Streamed
from experiments.tasks.task import Batch

MOVES = ("all-gather", "all-to-all", "collective-permute")


def main(folder: str) -> None:
    mesh = meshes.make("data:4,fsdp:2")
    splits = large_sets.entry().open(folder).splits(0.0, 1, True, 0)
    feed = Streamed(splits, mesh, 1, eval_batch_size=8)
    (window,) = feed.windows(0, [Dispatch(0, 2, Batch(16), 0)])
    images = window["train"].images
    order = splits["train"].order(0)
    expected = np.concatenate([some for some, _ in splits["train"].read(order[:32], 0)])
    (of_a_device,) = {shard.data.shape[:2] for shard in images.addressable_shards}
    step = jax.jit(type(window["train"]).batch)
    lowered = step.lower(window["train"], jax.device_put(np.int32(16), meshes.replicated(mesh)))
    program = lowered.compile().as_text()
    part = next(iter(feed.held_out("test")))
    (held_out_of_a_device,) = {shard.data.shape[0] for shard in part.images.addressable_shards}
    feed.close()
    found = {
        "images_are_those_of_the_order": np.array_equal(images, expected.reshape(images.shape)),
        "of_a_device": of_a_device,
        "held_out_of_a_device": held_out_of_a_device,
        "sent": [word for word in MOVES if word in program],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
