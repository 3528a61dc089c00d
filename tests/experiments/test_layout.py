"""The layout of a run: where it applies, and that it changes nothing but rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import base
from experiments import arguments, dispatch, tasks
from experiments import mesh as meshes
from experiments import state as states
from experiments.errors import RunError
from experiments.layout import is_batch_minor
from experiments.tasks.task import Batch


def test_where_it_applies():
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), meshes.AXES)
    assert is_batch_minor("auto", one) == (jax.default_backend() == "cpu")
    assert is_batch_minor("batch_minor", one)
    assert not is_batch_minor("as_written", one)


def test_several_devices():
    class Several:
        size = 8

    assert not is_batch_minor("auto", Several())
    with pytest.raises(RunError, match=r"one device.*8.*layout=auto"):
        is_batch_minor("batch_minor", Several())


def planned(layout):
    text = f"data=digits,model.depth=8,rank_scale=0.3,batch_size=8,layout={layout}"
    config = arguments.settle(base.get_config(text))
    task = tasks.load(config)
    return task, states.plan(config, task.network, len(task.batches(0)))


@pytest.mark.slow  # Runs in both layouts are compared in test_train.py.
def test_a_step_in_both_layouts():
    outcomes = []
    for layout in ("batch_minor", "as_written"):
        task, plan = planned(layout)
        assert plan.batch_minor == (layout == "batch_minor")
        run = dispatch.dispatch_function(task, plan, 1, Batch(8))
        state = states.create(plan, task.network)
        zero = jnp.zeros((), jnp.int32)
        outcomes.append(run(state, task.splits, task.order(0), zero, zero))
    for mine, theirs in zip(*map(jax.tree.leaves, outcomes), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4 * max(1.0, np.abs(theirs).max()))


def test_steps_per_dispatch():
    task, scanned = planned("batch_minor")
    _, written_out = planned("as_written")
    batches = task.batches(0)
    assert dispatch.default_steps(scanned, batches) > 1
    assert dispatch.default_steps(written_out, batches) == 1
    assert dispatch.default_steps(scanned, [*batches, Batch(8, length=16)]) == 1
    # What is sent to the devices for a dispatch is at most 256 MiB, of batches of eight.
    assert dispatch.default_steps(scanned, batches, bytes_per_example=2**23) == 4
    assert dispatch.default_steps(scanned, batches, bytes_per_example=2**30) == 1
