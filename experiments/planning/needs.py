"""What a run needs of each device of a mesh: memory, communication, multiply-adds.

The programs of the run, a dispatch of training steps and an evaluation, are compiled from shapes
alone, and the compiler says what temporary memory they take and what devices send each other. What
lies on the devices between two programs, the training state and the data, is known from shapes and
shardings. So nothing runs.

A compiler decides on temporary memory and on the order of operations for one kind of device; that
of another kind decides otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import config_keys, tasks
from experiments import mesh as meshes
from experiments.dispatch import dispatch_function
from experiments.multiply_adds import multiply_adds
from experiments.planning import copies
from experiments.planning.collectives import collectives
from experiments.planning.planned_run import PlannedRun, planned_run
from experiments.planning.replica_groups import axes_of
from experiments.planning.shards import Shards, device_bytes, shards, whole_bytes

PARTS = ("parameters", "optimizer_state", "model_state")


@dataclasses.dataclass(frozen=True)
class Temporary:
    """What a program takes while it runs, in bytes on each device.

    Attributes:
      inside: for what it computes on the way; gradients and activations are there.
      results: beside arguments that it overwrites.
      copies: that libraries on CPUs make of operands, see `copies.py`; nothing is said of others.
    """

    inside: int
    results: int
    copies: int

    @property
    def total(self) -> int:
        """All three."""
        return self.inside + self.results + self.copies


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      parameters, optimizer_state, model_state: of the training state.
      data: all splits, and the order of the examples; None where the catalogue does not know how
        many there are.
      step, evaluation: what the programs take beside these.
      batch: what the loss is computed from, a part of `step`.
    """

    parameters: int
    optimizer_state: int
    model_state: int
    data: int | None
    step: Temporary
    evaluation: Temporary
    batch: int

    @property
    def state(self) -> int:
        """Of the training state."""
        return self.parameters + self.optimizer_state + self.model_state

    @property
    def peak(self) -> int:
        """The most at any time; without the data where they are not known."""
        return self.state + (self.data or 0) + max(self.step.total, self.evaluation.total)


@dataclasses.dataclass(frozen=True)
class Communication:
    """What devices send each other in a training step, of one kind and along the same axes.

    Attributes:
      kind: of the operation, see `collectives.py`.
      axes: of the mesh.
      count: how often.
      bytes: of the arrays that are exchanged.
      sent: the least that each device sends.
      counted: whether loops with an unknown number of rounds are absent.
    """

    kind: str
    axes: tuple[str, ...]
    count: float
    bytes: float
    sent: float
    counted: bool


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a run needs.

    Attributes:
      name: of the config.
      mesh: the sizes of its axes.
      platform: what it was compiled for.
      batch_size: of a step, over the whole mesh.
      steps: in the dispatch that was compiled.
      memory: of each device.
      unsplit: the size of each part of the state, and of all of it, in bytes, stored once.
      leaves: of the state, the largest first.
      communication: of a step, what is sent most first.
      multiply_adds: of a step over the whole mesh, forward and backward, by the count of
        `experiments/multiply_adds.py`.
      compiler_flops: operations of a step on each device as the compiler counts them: two for a
        multiply-add, elementwise ones as well, and what is in a loop once; None if it does not say.
      remarks: what else there is to know.
    """

    name: str
    mesh: dict[str, int]
    platform: str
    batch_size: int
    steps: int
    memory: Memory
    unsplit: dict[str, int]
    leaves: tuple[Shards, ...]
    communication: tuple[Communication, ...]
    multiply_adds: int
    compiler_flops: float | None
    remarks: tuple[str, ...]

    @property
    def devices(self) -> int:
        """How many there are in the mesh."""
        return math.prod(self.mesh.values())


def needs(config: ConfigDict) -> Needs:
    """What the run of a config needs on the mesh that it names, of the devices there are.

    Raises:
      RunError: the config asks for something that does not exist or does not fit, the mesh among
        it.
    """
    return needs_of(planned_run(config))


def needs_of(run: PlannedRun) -> Needs:
    """What a run needs: compiles its programs."""
    plan, mesh = run.plan, dict(run.plan.mesh.shape)
    state = plan.abstract
    leaves = [
        *shards("parameters", state.params),
        *shards("optimizer_state", (state.step, state.opt_state)),
        *shards("model_state", state.model_state),
    ]
    platform = plan.mesh.devices.flat[0].platform
    step = run.programs.compile(run.cut)
    known = tasks.find(plan.config).sizes_known
    memory = Memory(
        **{part: device_bytes(leaves, part) for part in PARTS},
        data=bytes_of_a_device((run.arrays, run.order)) if known else None,
        step=temporary(step, platform),
        evaluation=temporary(run.programs.compile_evaluation("test"), platform),
        batch=_batch_bytes(run),
    )
    # A loop over steps is counted once by the compiler, steps that are written out each.
    flops = step.cost_analysis().get("flops")
    return Needs(
        name=plan.config.name,
        mesh=mesh,
        platform=platform,
        batch_size=run.cut.batch.size,
        steps=run.cut.steps,
        memory=memory,
        unsplit={part: whole_bytes(leaves, part) for part in PARTS},
        leaves=tuple(sorted(leaves, key=lambda leaf: -leaf.shard_bytes)),
        communication=tuple(_communication(step.as_text(), mesh, run.cut.steps)),
        multiply_adds=_multiply_adds(run),
        compiler_flops=flops,
        remarks=tuple(_remarks(run, memory, leaves)),
    )


def temporary(program: Any, platform: str) -> Temporary:
    """What a program that is compiled for a platform takes beside its arguments."""
    found = program.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    copied = copies.largest(program.as_text()) if platform == "cpu" else 0
    return Temporary(found.temp_size_in_bytes, results, copied)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_of_a_device(tree: Any) -> int:
    """What arrays, or shapes with shardings, take on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _batch_bytes(run: PlannedRun) -> int:
    size = run.micro_batch
    indices = jax.ShapeDtypeStruct((size,), run.order.dtype)
    shape = dataclasses.replace(run.cut.batch, size=size)
    batch = jax.eval_shape(
        lambda arrays, indices: run.task.batch(arrays, indices, jax.numpy.int32(0), shape),
        *(run.arrays, indices),
    )
    parts = meshes.batch_parts(run.plan.mesh)
    return _bytes(batch) // (1 if size % parts else parts)


def _communication(program: str, mesh: dict[str, int], steps: int) -> list[Communication]:
    together: dict[Any, list[Any]] = collections.defaultdict(list)
    for one in collectives(program, math.prod(mesh.values())):
        together[one.kind, axes_of(one.groups, mesh)].append(one)
    found = [
        Communication(
            kind=kind,
            axes=axes,
            count=sum(one.count for one in every) / steps,
            bytes=sum(one.bytes for one in every) / steps,
            sent=sum(one.sent for one in every) / steps,
            counted=all(one.counted for one in every),
        )
        for (kind, axes), every in together.items()
    ]
    return sorted(found, key=lambda one: -one.sent)


def _multiply_adds(run: PlannedRun) -> int:
    function = dispatch_function(run.task, run.plan, 1, run.cut.batch)
    number = jax.ShapeDtypeStruct((), jax.numpy.int32)
    return multiply_adds(function, run.plan.abstract, run.arrays, run.order, number, number)


def _remarks(run: PlannedRun, memory: Memory, leaves: list[Shards]) -> list[str]:
    config, mesh = run.plan.config, dict(run.plan.mesh.shape)
    said = []
    if memory.data is None:
        said.append(f"data: the size of {config.data.name} is not known before it is read")
    if config_keys.selects_ranks(config):
        said.append("planned dense, as it begins: ranks are selected in training")
    if config.forms == "measure" and run.plan.table.rows:
        said.append(
            "kernels are applied in the form that costs fewer multiply-adds, as with forms=count; "
            "forms=measure may find others faster"
        )
    copies = mesh["data"]
    if copies > 1 and run.plan.mesh.size > 1:
        said.append(
            f"the training state is the same on all {copies} devices of the axis data; the axis "
            "fsdp would split it"
        )
    undivided = [leaf for leaf in leaves if leaf.could_be_split(mesh)]
    size = sum(leaf.shard_bytes for leaf in undivided)
    if size > _WORTH_TELLING * memory.state:
        largest = max(undivided, key=lambda leaf: leaf.shard_bytes)
        said.append(
            f"{len(undivided)} leaves of the state, {size / memory.state:.1%} of it, are not split "
            f"over an axis that divides them; the largest is {largest.path} {largest.shape}, "
            f"which {' and '.join(largest.could_be_split(mesh))} could split"
        )
    return said


_WORTH_TELLING = 0.01
