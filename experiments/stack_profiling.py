"""What the stacks of a network take, dense and factorized, as the run would train them.

A stack is some blocks of a network, such as those of one width. Its time is the sum over its
blocks: forward and backward, each by itself, at the shapes that it has in the loss of the run's
first batch, in the layout of the run. Factorized are all candidates, at the ranks of their table;
their kernels are applied in the form that costs fewer multiply-adds. Blocks that are alike are
timed once. What follows from the times is told in `lowrank_jax/rank_selection/kept_layers.py`;
it is kept in the folder of the run, so that a run that is continued decides as it did.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import lowrank_jax as lrj
from experiments import files, models, rank_selection
from experiments import state as states
from experiments.errors import RunError
from experiments.forms import local_batch
from experiments.gradient_timing import Contender, time_gradients
from experiments.models.rank_selection import Stack
from experiments.state import Plan, Variables
from experiments.tasks.task import Task
from experiments.windows import dispatch_shapes
from lowrank_jax.linen.module_calls import ModuleCall, module_calls
from lowrank_jax.linen.normalization import efficient_batch_norm
from lowrank_jax.rank_selection import KeptLayers, StackTime

FILE, FILE_TO_READ = "kept_layers.json", "kept_layers.txt"

Say = Callable[[str], None]


def of_run(
    folder: Path, task: Task, plan: Plan, say: Say, between: Callable[[], None] = lambda: None
) -> KeptLayers:
    """The times of the stacks of a run's network: those in its folder, or else measured now.

    Args:
      folder: of the run.
      task: with its dense network.
      plan: of the run as it begins, dense.
      say: where progress lines go.
      between: called before each measurement; may raise.

    Raises:
      RunError: what is kept is damaged or of another network, or the model has no stacks.
    """
    config = plan.config
    candidates = rank_selection.candidates(config, states.abstract_variables(plan).params)
    facts = models.find(config.model.name).rank_selection
    assert facts is not None  # It has candidates.
    stacks = facts.stacks
    kept = read(folder)
    if kept is None:
        times = profile(task, plan, candidates, stacks, say, between)
        kept = KeptLayers(times, config.selection.speed_up)
        write(folder, kept)
    require_stacks(folder, kept, stacks)
    return kept


def profile(
    task: Task,
    plan: Plan,
    candidates: lrj.Table,
    stacks: Sequence[Stack],
    say: Say,
    between: Callable[[], None] = lambda: None,
) -> tuple[StackTime, ...]:
    """Times each stack on the default device.

    Args:
      task: with its dense network.
      plan: of a dense run.
      candidates: kernels that are factorized, and their ranks.
      stacks: from the input to the output.
      say: where a line for each stack goes.
      between: called before each measurement; may raise.

    Raises:
      RunError: a stack has no blocks in this network, or several processes would have to agree.
    """
    if jax.process_count() > 1:
        raise RunError(
            "the stacks of a network are timed by one process, and there are "
            f"{jax.process_count()}: say which kernels are kept, by selection.kept"
        )
    dense = states.abstract_variables(plan)
    params = lrj.factorize(dense.params, candidates)
    factorized = states.normed(plan.config, candidates, Variables(params, dense.model_state))
    dense_calls, factorized_calls = (_calls(task, plan, one, stacks) for one in (dense, factorized))
    times = []
    for number, stack in enumerate(stacks, start=1):
        calls = list(zip(dense_calls[stack.name], factorized_calls[stack.name], strict=True))
        seconds = {"dense": 0.0, "factorized": 0.0}
        for pair, count in _different(calls):
            between()
            for form, taken in _block_seconds(*pair, plan, say).items():
                seconds[form] += count * taken
        times.append(StackTime(stack.name, seconds["dense"], seconds["factorized"]))
        say(
            f"timed {number} of {len(stacks)} stacks: {stack.name}, {len(calls)} blocks: dense "
            f"{1e3 * seconds['dense']:.2f} ms, factorized {1e3 * seconds['factorized']:.2f} ms"
        )
    return tuple(times)


def _calls(
    task: Task, plan: Plan, variables: Variables, stacks: Sequence[Stack]
) -> dict[str, list[ModuleCall]]:
    """The calls of the blocks of each stack in the loss of a batch, by the stack's name."""

    def loss(variables: Variables, batch: Any) -> Any:
        return task.loss(variables.params, variables.model_state, batch, jax.random.key(0))

    every = "|".join(f"(?:{stack.blocks})" for stack in stacks)
    try:
        calls = module_calls(loss, every, variables, _first_batch(task, plan))
    except ValueError as error:
        raise RunError(f"the stacks of {plan.config.model.name}: {error}") from error
    found = {
        stack.name: [call for call in calls if re.fullmatch(stack.blocks, call.path)]
        for stack in stacks
    }
    if missing := [stack for stack in stacks if not found[stack.name]]:
        raise RunError(
            f"stack {missing[0].name} of {plan.config.model.name}: no module that is called has a "
            f"path like {missing[0].blocks}"
        )
    return found


def _first_batch(task: Task, plan: Plan) -> Any:
    """What the loss of as many examples is computed from as a device takes at once, as shapes."""
    shape = dataclasses.replace(task.batches(0)[0], size=local_batch(plan))
    indices = jax.ShapeDtypeStruct((shape.size,), jnp.int32)
    epoch = jax.ShapeDtypeStruct((), jnp.int32)
    batch = functools.partial(task.batch, shape=shape)
    return jax.eval_shape(batch, dispatch_shapes(task.splits, 1, shape.size), indices, epoch)


def _different(
    pairs: Sequence[tuple[ModuleCall, ModuleCall]],
) -> list[tuple[tuple[ModuleCall, ModuleCall], int]]:
    """Each pair of calls, dense and factorized, that is unlike the others, and how many it is."""
    found: list[tuple[tuple[ModuleCall, ModuleCall], int]] = []
    for pair in pairs:
        for at, (known, count) in enumerate(found):
            if all(one.same_work(other) for one, other in zip(pair, known, strict=True)):
                found[at] = known, count + 1
                break
        else:
            found.append((pair, 1))
    return found


def _block_seconds(
    dense: ModuleCall, factorized: ModuleCall, plan: Plan, say: Say
) -> dict[str, float]:
    """The times of one block in both forms."""

    def contender(call: ModuleCall) -> Contender:
        def apply(inputs: Any, params: Any, others: Any) -> Any:
            rest, rngs = others
            with efficient_batch_norm():
                return call.apply({"params": params, **rest}, *inputs, rngs=rngs)

        rest = {name: value for name, value in call.variables.items() if name != "params"}
        key = jax.eval_shape(lambda: jax.random.key(0))
        others = rest, dict.fromkeys(call.rngs, key)
        # What models compute again in the backward pass are the blocks of their stacks.
        function = jax.checkpoint(apply) if plan.config.remat else apply
        return Contender(function, call.variables["params"], others)

    forms = {"dense": contender(dense), "factorized": contender(factorized)}
    return time_gradients(forms, dense.inputs, plan, say)


# ------------------------------------------------------------------ the run's folder


def write(folder: Path, kept: KeptLayers) -> None:
    """Keeps the times of a run's stacks: what is read again comes last.

    Raises:
      RunError: it cannot be written.
    """
    files.write_text(folder / FILE_TO_READ, f"{kept}\n")
    files.write_text(folder / FILE, f"{kept.to_json()}\n")


def read(folder: Path) -> KeptLayers | None:
    """The times of a run's stacks; None if they are not written, yet or at all.

    Raises:
      RunError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return KeptLayers.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}; without it, they are timed again") from error


def require_stacks(folder: Path, kept: KeptLayers, stacks: Sequence[Stack]) -> None:
    """Raises RunError where what was read from the folder of a run is of other stacks."""
    found, expected = [time.name for time in kept.times], [stack.name for stack in stacks]
    if found != expected:
        raise RunError(
            f"{folder / FILE} is of the stacks {', '.join(found)}, and this network has "
            f"{', '.join(expected)}: remove it to time them"
        )
