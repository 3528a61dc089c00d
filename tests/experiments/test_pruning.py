"""Magnitude pruning, against a global sort in NumPy, closed forms and published counts."""

from __future__ import annotations

import doctest
import functools
import json
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from eight_devices import printed_by

from configs import cifar_resnet
from experiments import arguments, models, pruning, recipe
from experiments import mesh as meshes
from experiments.errors import RunError
from experiments.models import projection_resnet
from experiments.pruning import PruningSchedule, magnitude_pruning
from lowrank_jax.sharding import partition, partition_state

PATTERN = r"block_\d+/conv1/kernel"
SHAPES = {
    "block_1": {"conv1": {"kernel": (3, 3, 4, 6)}, "norm1": {"scale": (6,)}},
    "block_2": {"conv1": {"kernel": (3, 1, 6, 4)}},
    "head": {"bias": (2,), "kernel": (4, 2)},
}
SIZE, REST = 216 + 72, 6 + 2 + 8
RATIO = 0.25
KEPT = 76 - REST  # A quarter of 304 parameters.

Tree = dict[str, Any]


def tree(seed: int, values: str = "normal") -> Tree:
    """Parameters or updates: normal, or small whole numbers with many ties and zeros."""
    generator = np.random.default_rng(seed)

    def make(shape: tuple[int, ...]) -> jax.Array:
        drawn = generator.standard_normal(shape)
        return jnp.asarray(drawn if values == "normal" else np.round(drawn), jnp.float32)

    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def kernels(params: Tree) -> list[jax.Array]:
    return [params["block_1"]["conv1"]["kernel"], params["block_2"]["conv1"]["kernel"]]


def flat(arrays: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in arrays])


def zeros(params: Tree) -> int:
    return int(np.sum(flat(kernels(params)) == 0))


def others(params: Tree) -> np.ndarray:
    head = params["head"]
    return flat([params["block_1"]["norm1"]["scale"], head["bias"], head["kernel"]])


def wanted(schedule: PruningSchedule, step: int) -> int:
    """Entries that stay after a step: the published formula in exact arithmetic."""
    left = 1 - Fraction(step - schedule.begin_step, schedule.end_step - schedule.begin_step)
    return SIZE - round((1 - left**3) * (SIZE - KEPT))


# The schedule.


@pytest.mark.parametrize(
    ("begin", "end", "step", "share"),
    [
        (0, 4, 0, 0),
        (0, 4, 1, 37 / 64),
        (0, 4, 2, 56 / 64),
        (0, 4, 3, 63 / 64),
        (0, 4, 4, 1),
        (0, 4, 9, 1),
        (3, 5, 2, 0),
        (3, 5, 3, 0),
        (3, 5, 4, 7 / 8),
    ],
)
def test_the_cubic(begin: int, end: int, step: int, share: float) -> None:
    assert PruningSchedule(begin, end, every=1).share(step) == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (PruningSchedule(0, 6, 2), (2, 4, 6)),
        (PruningSchedule(2, 7, 3), (5, 7)),
        (PruningSchedule(5, 6, 10), (6,)),
    ],
)
def test_steps_that_end_with_new_masks(schedule: PruningSchedule, steps: tuple[int, ...]) -> None:
    assert schedule.mask_steps == steps


@pytest.mark.parametrize("total", [1, 2, 39, 79, 81, 391 * 200])
def test_the_schedule_of_a_run(total: int) -> None:
    schedule = PruningSchedule.of_run(total)
    assert 1 <= len(schedule.mask_steps) <= 40
    assert schedule.mask_steps[-1] == schedule.end_step <= max(1, total / 2)


def test_the_published_recipe_ends_pruning_with_its_first_learning_rate() -> None:
    config = arguments.settle(cifar_resnet.get_config("protocol=published"))
    rates = recipe.learning_rate(config, 391)
    end = PruningSchedule.of_run(config.epochs * 391).end_step
    # Step t, counted from 1, is taken at rates(t - 1).
    assert [float(rates(end - 1)), float(rates(end))] == pytest.approx([0.1, 0.01])


# What stays.


@pytest.mark.parametrize("values", ["normal", "whole"])
@pytest.mark.parametrize(
    "schedule", [PruningSchedule(0, 6, 2), PruningSchedule(2, 7, 3), PruningSchedule(5, 6, 10)]
)
def test_every_step_keeps_what_a_global_sort_keeps(schedule: PruningSchedule, values: str) -> None:
    tx = magnitude_pruning(PATTERN, RATIO, schedule)
    update = jax.jit(tx.update)
    params = tree(0, values)
    state, stays = tx.init(params), np.ones(SIZE, bool)
    for step in range(1, 10):
        changes = tree(step, values)
        judged = flat(kernels(params)) + flat(kernels(changes))
        if step in schedule.mask_steps:
            magnitudes = np.where(stays, np.abs(judged.astype(np.float64)), -1.0)
            order = np.argsort(-magnitudes, kind="stable")  # Of equals the first come first.
            stays = np.isin(np.arange(SIZE), order[: wanted(schedule, step)])
        new, state = update(changes, state, params)
        untouched = others(params) + others(changes)
        params = optax.apply_updates(params, new)
        np.testing.assert_array_equal(flat(state.masks), stays)
        np.testing.assert_array_equal(flat(kernels(params)), np.where(stays, judged, 0))
        np.testing.assert_array_equal(others(params), untouched)
    assert stays.sum() == KEPT


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_of_equal_magnitudes_exactly_as_many_as_wanted_stay(dtype: Any) -> None:
    params = jax.tree.map(lambda x: jnp.copysign(1, x).astype(dtype), tree(0))
    tx = magnitude_pruning(PATTERN, RATIO, PruningSchedule(0, 1, 1))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    found = flat(kernels(optax.apply_updates(params, updates)))
    np.testing.assert_array_equal(found != 0, np.arange(SIZE) < KEPT)


def test_an_entry_that_is_no_number_stays_to_be_seen() -> None:
    params = tree(0)
    kernel = params["block_1"]["conv1"]["kernel"]
    params["block_1"]["conv1"]["kernel"] = kernel.at[0, 0, 0, 0].set(-jnp.nan)
    tx = magnitude_pruning(PATTERN, RATIO, PruningSchedule(0, 1, 1))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    found = flat(kernels(optax.apply_updates(params, updates)))
    assert np.isnan(found[0])
    assert flat(state.masks).sum() == KEPT


# As the end of an optimizer. The coefficients are powers of two: every product is exact, so that
# the bits do not depend on how a compiler fuses them.

SCHEDULE = PruningSchedule(1, 7, 2)
SGD = optax.chain(optax.add_decayed_weights(2**-5), optax.sgd(0.5, momentum=0.5))
PRUNED = optax.chain(SGD, magnitude_pruning(PATTERN, RATIO, SCHEDULE))


def step(tx: Any, carry: tuple[Tree, Any], gradient: Tree) -> tuple[tuple[Tree, Any], Tree]:
    params, state = carry
    updates, state = tx.update(gradient, state, params)
    params = jax.tree.map(lambda p, u: p + u, params, updates)
    return (params, state), params


pruned_step = jax.jit(functools.partial(step, PRUNED))


def test_pruned_entries_stay_zero_and_other_leaves_train_as_ever() -> None:
    dense = jax.jit(functools.partial(step, SGD))
    params = tree(0)
    ours, theirs = (params, PRUNED.init(params)), (params, SGD.init(params))
    gone = np.zeros(SIZE, bool)
    for number in range(1, 13):
        (ours, _), (theirs, _) = pruned_step(ours, tree(number)), dense(theirs, tree(number))
        found = flat(kernels(ours[0]))
        np.testing.assert_array_equal(found[gone], 0)
        gone = found == 0
        if number in SCHEDULE.mask_steps:
            assert SIZE - gone.sum() == wanted(SCHEDULE, number)
        np.testing.assert_array_equal(others(ours[0]), others(theirs[0]))
        if number < SCHEDULE.mask_steps[0]:
            np.testing.assert_array_equal(found, flat(kernels(theirs[0])))
    assert SIZE - gone.sum() == KEPT
    assert pruning.nonzero_parameters(ours[0], PATTERN) == KEPT + REST
    assert pruning.nonzero_parameters(theirs[0], PATTERN) == SIZE + REST


def test_a_scan_with_donated_state_is_the_loop() -> None:
    params = tree(0)
    gradients = [tree(number) for number in range(1, 11)]
    loop = (params, PRUNED.init(params))
    for gradient in gradients:
        loop, _ = pruned_step(loop, gradient)

    scan = jax.jit(
        lambda carry, stacked: jax.lax.scan(functools.partial(step, PRUNED), carry, stacked)[0],
        donate_argnums=0,
    )
    copied = jax.tree.map(jnp.copy, params)
    carry = (copied, PRUNED.init(copied))
    for part in (gradients[:5], gradients[5:]):
        carry = scan(carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *part))
    assert zeros(carry[0]) == SIZE - KEPT
    jax.tree.map(np.testing.assert_array_equal, carry, loop)


def test_planned_by_shapes_and_restored_by_orbax(tmp_path: Path) -> None:
    params = tree(0)
    shapes = jax.eval_shape(lambda: params)
    abstract = jax.eval_shape(PRUNED.init, shapes)
    assert abstract[-1].masks == tuple(jax.ShapeDtypeStruct(x.shape, bool) for x in kernels(shapes))
    jax.tree.map(np.testing.assert_array_equal, PRUNED.init(shapes)[-1], PRUNED.init(params)[-1])

    carry = (params, PRUNED.init(params))
    for number in range(1, 4):  # Between two updates of the masks.
        carry, _ = pruned_step(carry, tree(number))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", (shapes, abstract))
    jax.tree.map(np.testing.assert_array_equal, restored, carry)
    jax.tree.map(
        np.testing.assert_array_equal,
        pruned_step(restored, tree(4))[0],
        pruned_step(carry, tree(4))[0],
    )


def on_eight_devices() -> None:
    """Prints the parameters after ten steps, split over data, fsdp and tensor."""
    mesh = meshes.make("data:2,fsdp:2,tensor:2")
    params = tree(0)
    carry = (params, PRUNED.init(params))
    placed = partition(params, mesh)
    places = placed, partition_state(carry[1], params, placed)
    everywhere = meshes.replicated(mesh)
    split_step = jax.jit(
        functools.partial(step, PRUNED),
        in_shardings=(places, everywhere),
        out_shardings=(places, everywhere),
        donate_argnums=0,
    )
    carry = jax.device_put(carry, places)
    split = not any(mask.sharding.is_fully_replicated for mask in carry[1][-1].masks)
    for number in range(1, 11):
        carry, _ = split_step(carry, jax.device_put(tree(number), everywhere))
    print(json.dumps({"split": split, "entries": flat(kernels(carry[0])).tolist()}))


def test_the_same_entries_on_eight_devices() -> None:
    imports = tuple(Path(folder) for folder in sys.path if folder)
    found = printed_by(Path(__file__), imports=imports, optimized=False)
    assert found["split"]
    params = tree(0)
    carry = (params, PRUNED.init(params))
    for number in range(1, 11):
        carry, _ = pruned_step(carry, tree(number))
    np.testing.assert_array_equal(np.float32(found["entries"]), flat(kernels(carry[0])))


# The budget.


def test_the_budget_of_a_published_network() -> None:
    """ResNet-32 "x2" of arXiv 2105.01029: 7,427,914 parameters, 32 prunable kernels."""
    model = models.build({"name": "projection_resnet", "depth": 32, "width": 1}, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    pattern = projection_resnet.FACTORIZED
    assert len(pruning.prunable(params, pattern)) == 32
    norms = 2 * (64 + 10 * (64 + 128 + 256) + 128 + 256)
    rest = 9 * 3 * 64 + norms + 256 * 10 + 10
    for ratio, everything in ((0.1, 742_791), (0.05, 371_396), (0.02, 148_558)):
        assert pruning.kept_entries(params, pattern, ratio) == everything - rest


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan"), REST / (SIZE + REST)])
def test_ratios_that_cannot_be_reached(ratio: float) -> None:
    with pytest.raises(RunError, match=rf"^ratio={ratio} .* 16 of the 304") as caught:
        magnitude_pruning(PATTERN, ratio, SCHEDULE).init(tree(0))
    (smallest,) = re.findall(r"at least ([\d.]+),", str(caught.value))
    assert pruning.kept_entries(tree(0), PATTERN, float(smallest)) == 1


def test_the_smallest_budget_leaves_one_entry() -> None:
    params = tree(0)
    tx = magnitude_pruning(PATTERN, (REST + 1) / (SIZE + REST), PruningSchedule(0, 1, 1))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    found, before = flat(kernels(optax.apply_updates(params, updates))), flat(kernels(params))
    assert np.flatnonzero(found).tolist() == [np.abs(before).argmax()]


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(RunError, match=r"matches no path; near misses: block_1/conv1/kernel"):
        magnitude_pruning(r"block_\d+/conv7/kernel", RATIO, SCHEDULE).init(tree(0))


def test_without_parameters() -> None:
    tx = magnitude_pruning(PATTERN, RATIO, SCHEDULE)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(tree(1), tx.init(tree(0)))


@pytest.mark.parametrize(("begin", "end", "every"), [(-1, 2, 1), (2, 2, 1), (3, 2, 1), (0, 2, 0)])
def test_schedules_that_make_no_sense(begin: int, end: int, every: int) -> None:
    with pytest.raises(RunError, match="expected 0 <= begin_step < end_step and every >= 1"):
        PruningSchedule(begin, end, every)


def test_examples() -> None:
    found = doctest.testmod(pruning)
    assert found.attempted > 5
    assert found.failed == 0


if __name__ == "__main__":
    on_eight_devices()
