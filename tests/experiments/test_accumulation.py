"""Gradient accumulation against closed forms in NumPy, and through the compiled step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_runs
from ml_collections import ConfigDict
from tiny_runs import outcome

import lowrank_jax as lrj
from experiments import mesh
from experiments.accumulation import mean_gradient
from experiments.dispatch import dispatch_function, loop_of
from experiments.errors import RunError
from experiments.looping import Loop, written_out
from experiments.state import Plan, TrainState
from experiments.tasks.task import Batch

X = np.random.default_rng(0).normal(size=(24, 5))
Y = np.random.default_rng(1).normal(size=(24, 3))
FACTORS = {
    "u": np.random.default_rng(2).normal(size=(5, 2)),
    "vt": np.random.default_rng(3).normal(size=(2, 3)),
}


class Regression:
    """A task without coupling between examples: half the squared error of a low-rank map."""

    splits: ClassVar = {"train": None}  # No stream.

    def batch(self, arrays: Any, indices: jax.Array, epoch: jax.Array, shape: Batch) -> Any:
        return arrays[0][indices], arrays[1][indices]

    def loss(self, params: Any, model_state: Any, batch: Any, noise: jax.Array) -> Any:
        x, y = batch
        errors = 0.5 * jnp.sum((lrj.dot_general(x, params, (((1,), (0,)), ((), ()))) - y) ** 2, 1)
        return jnp.mean(errors), (
            {"batches": model_state["batches"] * 10 + len(y)},
            {"loss": jnp.sum(errors), "correct": jnp.sum(errors < 2), "count": len(y)},
        )


def one_epoch(accumulate_steps: int, batch_minor: bool) -> tuple[TrainState, Any]:
    """Two steps of plain gradient descent on batches of twelve; scanned if batch-minor."""
    made, tx = mesh.make("data:1"), optax.sgd(0.1)
    params = lrj.LowRank(**{name: jnp.asarray(value) for name, value in FACTORS.items()})
    state = TrainState(jnp.int32(0), params, {"batches": jnp.int32(0)}, tx.init(params))
    places = jax.tree.map(lambda _: mesh.replicated(made), state)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        places,
    )
    config = ConfigDict({"accumulate_steps": accumulate_steps, "seed": 1})
    plan = Plan(
        config=config,
        table=lrj.Table(()),
        tx=tx,
        schedule=lambda step: 0.1,
        abstract=abstract,
        rank_scale=None,
        mesh=made,
        batch_minor=batch_minor,
        parameters=0,
        dense_parameters=0,
        multiply_adds=0,
        dense_multiply_adds=0,
    )
    assert (loop_of(plan) is jax.lax.scan) == batch_minor
    run = dispatch_function(Regression(), plan, steps=2, batch=Batch(12))
    arrays = (jnp.asarray(X), jnp.asarray(Y))
    return run(jax.device_put(state, places), arrays, jnp.arange(24), jnp.int32(0), jnp.int32(0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_minor", [False, True], ids=["written_out", "scan"])
@pytest.mark.parametrize("accumulate_steps", [1, 2, 3, 12])
def test_steps_are_those_of_whole_batches(accumulate_steps: int, batch_minor: bool) -> None:
    u, vt = FACTORS["u"], FACTORS["vt"]
    losses, hits = [], []
    for x, y in ((X[:12], Y[:12]), (X[12:], Y[12:])):
        error = x @ u @ vt - y
        each = 0.5 * (error**2).sum(1)
        losses.append(each.sum())
        hits.append((each < 2).sum())
        kernel_gradient = x.T @ error / 12
        u, vt = u - 0.1 * kernel_gradient @ vt.T, vt - 0.1 * u.T @ kernel_gradient
    state, sums = one_epoch(accumulate_steps, batch_minor)
    np.testing.assert_allclose(state.params.u, u, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(state.params.vt, vt, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums["loss"], losses, rtol=1e-12)
    np.testing.assert_array_equal(sums["correct"], hits)
    assert int(state.step) == 2
    # The model's state goes through every micro-batch, which is of the right size.
    expected = 0
    for _ in range(2 * accumulate_steps):
        expected = (expected * 10 + 12 // accumulate_steps) % 2**32
    assert int(np.uint32(np.int32(state.model_state["batches"]))) == expected


@pytest.mark.parametrize("loop", [written_out, jax.lax.scan])
def test_the_state_sees_micro_batches_in_order(loop: Loop) -> None:
    def gradient(state: jax.Array, micro_batch: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
        return 0.5 * state + micro_batch, (2.0 * micro_batch, 1)

    found = mean_gradient(gradient, jnp.float32(8), jnp.array([1.0, 2.0, 4.0]), loop)
    np.testing.assert_allclose(found, [((8 / 2 + 1) / 2 + 2) / 2 + 4, 14 / 3, 3], rtol=1e-6)


def test_micro_batches_of_a_whole_run(tmp_path: Path, tiny: None) -> None:
    """With batch norm and augmentation; no example is left out or counted twice."""
    run = outcome(tiny_runs.train(tmp_path / "run", epochs=1, accumulate_steps=2))
    assert run["steps"] == 5
    hits = run["metrics"][-1]["train_accuracy"] * 5 * 256
    assert hits == pytest.approx(round(hits), abs=1e-6)
    assert run["metrics"][-1]["train_loss"] == pytest.approx(np.log(10), rel=0.3)


def test_a_batch_that_cannot_be_split(tmp_path: Path, tiny: None) -> None:
    """Of 1437 images in batches of 256, the last batch of an epoch has 157."""
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="accumulate_steps=3 does not divide a batch of 256 exampl"):
        tiny_runs.train(folder, accumulate_steps=3)
    with pytest.raises(RunError, match="accumulate_steps=4 does not divide a batch of 157 exampl"):
        tiny_runs.train(folder, "protocol=published", accumulate_steps=4)
    assert not folder.exists()
