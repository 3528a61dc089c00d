"""The stacks of networks: what is timed of them, with pretended times; and the file in the run."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from flax import linen as nn
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import arguments, models, rank_selection, stack_profiling, tasks
from experiments import state as states
from experiments.errors import RunError
from experiments.models.four_stage_resnet import Block
from experiments.models.rank_selection import Stack
from experiments.models.vgg import Layer
from lowrank_jax.rank_selection import KeptLayers, StackTime
from lowrank_jax.tree import kernels

RESNET = {"name": "resnet18", "width": 0.0625}
VGG = {"name": "vgg", "depth": 11, "width": 0.0625}
STACKS = models.find("resnet18").rank_selection.stacks
TIMES = tuple(StackTime(f"stage_{n}", 0.004, 0.004 / n) for n in range(1, 5))


@pytest.fixture(scope="module")
def planned():
    """A task and its dense plan, by model."""
    made = {}

    def plan(model, **keys):
        key = str((model, keys))
        if key not in made:
            config = tiny_runs.config()
            with config.unlocked():
                config.model = ConfigDict(model)
                config.update({"method": "cuttlefish", "kind": "channel", "rank_scale": 0.0})
                config.update({"batch_size": 4, "epochs": 3} | keys)
                config.selection.epoch = 1
            config = arguments.settle(config)
            task = tasks.load(config)
            made[key] = task, states.plan(config, task.network, 5)
        return made[key]

    return plan


class Clock:
    """Pretends that a block takes a second for each parameter of it."""

    def __init__(self, monkeypatch):
        self.timed = []
        monkeypatch.setattr(stack_profiling, "time_gradients", self)

    def __call__(self, contenders, inputs, plan, say):
        self.timed.append((contenders, inputs))
        return {name: float(size(one.params)) for name, one in contenders.items()}


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def candidates(plan):
    return rank_selection.candidates(plan.config, plan.abstract.params)


def normal(tree, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), tree)


# ------------------------------------------------------------------ what is timed


def test_a_run_times_all_its_blocks_once(planned, tmp_path, monkeypatch):
    """With the stem and the head they are the whole network, dense and factorized."""
    task, plan = planned(RESNET)
    clock, lines, interruptions = Clock(monkeypatch), [], []
    kept = stack_profiling.of_run(
        tmp_path, task, plan, lines.append, lambda: interruptions.append(len(clock.timed))
    )
    assert [time.name for time in kept.times] == [stack.name for stack in STACKS]
    assert kept.threshold == plan.config.selection.speed_up
    params, table = plan.abstract.params, candidates(plan)
    blocks = size(params) - size([params[name] for name in ("stem", "stem_norm", "head")])
    assert sum(time.dense_seconds for time in kept.times) == blocks
    saved = table.dense_parameters - table.parameters
    assert saved > 0
    assert sum(time.factorized_seconds for time in kept.times) == blocks - saved
    # The two blocks of the first stage are alike, in the others the first one changes the shape.
    assert len(clock.timed) == 7 and interruptions == list(range(7))
    image = plan.config.batch_size, 32, 32, 4
    shapes = [inputs[0].shape for _, inputs in clock.timed]
    assert shapes[:3] == [image, image, (4, 16, 16, 8)]
    told = [line.split(",")[0] for line in lines]
    assert told == [f"timed {n} of 4 stacks: stage_{n}" for n in range(1, 5)]
    # Started again, it takes the times that are there.
    assert stack_profiling.of_run(tmp_path, task, plan, pytest.fail, pytest.fail) == kept
    assert len(clock.timed) == 7
    assert (tmp_path / "kept_layers.txt").read_text() == f"{kept}\n"


def test_micro_batches_and_other_blocks(planned, monkeypatch):
    """Of VGG; nothing in the first stack is factorized, which is the same twice."""
    task, plan = planned(VGG, accumulate_steps=2)
    clock = Clock(monkeypatch)
    table = candidates(plan)
    late = lrj.Table(tuple(row for row in table.rows if row.path.startswith("layer_7")))
    stacks = [Stack("first", "layer_[1-6]"), Stack("last", "layer_[78]")]
    first, last = stack_profiling.profile(task, plan, late, stacks, lambda line: None)
    assert first.speed_up == 1 and last.speed_up > 1
    assert {inputs[0].shape[0] for _, inputs in clock.timed} == {2}


BLOCKS = {
    "resnet18": (RESNET, "stage_2_block_1", Block(((3, 8, 2), (3, 8, 1)), nn.initializers.zeros)),
    "vgg": (VGG, "layer_5", Layer(32)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_computed_as_in_training(name, planned, monkeypatch):
    """Values and gradients by hand: Flax's batch norm, and dense kernels."""
    model, path, block = BLOCKS[name]
    task, plan = planned(model)
    clock = Clock(monkeypatch)
    stack_profiling.profile(task, plan, candidates(plan), [Stack("one", path)], print)
    (((contenders, inputs)),) = clock.timed
    images = normal(inputs)
    directions = normal(
        jax.eval_shape(contenders["dense"].function, inputs, *contenders["dense"][1:])
    )
    factors = normal(contenders["factorized"].params)
    cases = {"dense": lrj.merge(factors), "factorized": factors}
    assert any(map(lrj.is_factorized, kernels(factors).values()))

    def projected(function):
        def value(images, params):
            return jnp.vdot(function(images, params), directions)

        return jax.jit(jax.value_and_grad(value, (0, 1)))

    def by_hand(images, params):
        rest = {"batch_stats": normal(contenders["dense"].others[0]["batch_stats"])}
        params = lrj.merge(params)
        return block.apply({"params": params, **rest}, *images, True, mutable=["batch_stats"])[0]

    for form, params in cases.items():
        function, _, others = contenders[form]
        found = projected(lambda x, p, f=function, o=others: f(x, p, normal(o)))(images, params)
        expected = projected(by_hand)(images, params)
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * np.abs(other).max())


def test_what_the_run_computes_again_is_computed_again(planned, monkeypatch):
    clock = Clock(monkeypatch)
    for remat in (False, True):
        task, plan = planned(VGG, remat=remat)
        stack_profiling.profile(task, plan, candidates(plan), [Stack("one", "layer_2")], print)
        contenders, inputs = clock.timed.pop()
        for contender in contenders.values():
            jaxpr = jax.make_jaxpr(contender.function)(inputs, *contender[1:])
            names = {equation.primitive.name for equation in jaxpr.eqns}
            assert any("remat" in name or "checkpoint" in name for name in names) == remat


def test_norms_between_the_factors(planned, monkeypatch):
    clock = Clock(monkeypatch)
    task, plan = planned(VGG, factor_norm=True, decay="plain")
    stack_profiling.profile(task, plan, candidates(plan), [Stack("one", "layer_7")], print)
    ((contenders, _),) = clock.timed
    assert "factor_norm" not in contenders["dense"].params["conv"]
    assert contenders["factorized"].params["conv"]["factor_norm"]["scale"].shape == (8,)


def test_the_clock_itself(planned):
    """In the layout that the run has here, batch-minor."""
    task, plan = planned(VGG)
    assert plan.batch_minor
    (time,) = stack_profiling.profile(
        task, plan, candidates(plan), [Stack("last", "layer_8")], print
    )
    assert 0 < time.dense_seconds < math.inf and 0 < time.factorized_seconds < math.inf


def test_a_stack_that_is_not_there(planned):
    task, plan = planned(VGG)
    first, strange = Stack("first", "layer_2"), Stack("middle", r"block_\d")
    with pytest.raises(RunError, match=r"stack middle of vgg: no module .* like block_\\d"):
        stack_profiling.profile(task, plan, candidates(plan), [first, strange], print)
    with pytest.raises(RunError, match=r"stacks of vgg: .* matches no module .* layer_1"):
        stack_profiling.profile(task, plan, candidates(plan), [strange], print)


def test_processes_do_not_decide_each_for_itself(planned, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(RunError, match=r"by one process, and there are 2: .* by selection\.kept"):
        stack_profiling.profile(*planned(VGG), lrj.Table(()), STACKS, print)


# ------------------------------------------------------------------ the run's folder


def test_an_interrupted_profile_leaves_nothing(planned, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    def stop():
        if len(clock.timed) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stack_profiling.of_run(tmp_path, *planned(RESNET), print, stop)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read(tmp_path):
    kept = KeptLayers(TIMES, 2.5)
    assert stack_profiling.read(tmp_path) is None
    stack_profiling.write(tmp_path, kept)
    assert stack_profiling.read(tmp_path) == kept
    stack_profiling.require_stacks(tmp_path, kept, STACKS)
    assert kept.kept == ("stage_1", "stage_2")


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"3", b"\xff", b"{}", b'{"threshold": 1.5, "stacks": []}'],
)
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "kept_layers.json").write_bytes(content)
    with pytest.raises(RunError, match=r"kept_layers\.json is damaged: "):
        stack_profiling.read(tmp_path)


def test_times_of_other_stacks_are_refused(tmp_path):
    stack_profiling.write(tmp_path, KeptLayers(TIMES[1:]))
    message = "is of the stacks stage_2, stage_3, stage_4, and this network has stage_1, stage_2"
    with pytest.raises(RunError, match=message):
        stack_profiling.require_stacks(tmp_path, stack_profiling.read(tmp_path), STACKS)
    data = json.loads((tmp_path / "kept_layers.json").read_text())
    assert [stack["name"] for stack in data["stacks"]] == ["stage_2", "stage_3", "stage_4"]
