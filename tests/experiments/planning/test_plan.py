"""`python -m experiments.plan`: what it prints, what it refuses, and when devices stand in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_runs

from configs import cifar_resnet, fine_tuning, pretraining, translation
from experiments import arguments, plan, tasks
from experiments.dispatch import dispatch_function
from experiments.errors import RunError
from experiments.planning import stand_ins
from experiments.planning.as_text import size
from experiments.planning.planned_run import planned_run
from experiments.programs import Programs

ROOT = Path(__file__).resolve().parents[3]
COMMAND = ["plan", *tiny_runs.FLAGS]
RANK = 12  # round(0.5 * 8 * 3): half of full rank, as spatial factorizations count it.


@pytest.fixture
def run_plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command on a tiny run, with further flags."""

    def run(*flags: str) -> None:
        # Overrides of keys are looked for there.
        monkeypatch.setattr(sys, "argv", [*COMMAND, *flags])
        plan.run(sys.argv)

    return run


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load data fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("data were loaded")

    monkeypatch.setattr(tasks.classification, "load", refuse)


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to compile fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was compiled")

    monkeypatch.setattr(Programs, "compile", refuse)


@pytest.mark.usefixtures("tiny", "no_data")
def test_text_and_json_tell_the_same(
    run_plan: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan("--json")
    found = json.loads(capsys.readouterr().out)
    run_plan()
    text = capsys.readouterr().out
    assert found["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert found["compiled_for"] == jax.default_backend()
    # Stem, a factorized convolution, norm and head, by hand.
    parameters = 27 * 4 + (3 * 4 + 3 * 8) * RANK + 2 * 8 + 8 * 10 + 10
    memory = found["device_memory"]
    assert memory["parameters"] == 4 * parameters
    assert memory["optimizer_state"] >= memory["parameters"]  # Momentum.
    assert memory["model_state"] == 4 * 2 * 8
    assert found["communication"] == []
    assert found["device_memory"] == found["mesh_memory"]
    assert f"multiply-adds of a step: {found['multiply_adds']:,}" in text
    for name in ("parameters", "step", "evaluation", "peak"):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert size(memory[name]) in line
    assert "communication: none" in text
    copies = memory["copies"]
    assert (f", {size(copies)} copies that libraries make" in text) == (copies > 0)


@pytest.mark.usefixtures("tiny", "nothing_compiles")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh=data"], "expected AXIS:SIZE"),
        (["--mesh=rows:2"], "expected AXIS:SIZE"),
        (["--mesh=data:2,data:4"], "expected AXIS:SIZE"),
        (["--mesh=data:0"], "does not fit"),
        (["--mesh=data:-1,fsdp:-1"], "does not fit"),
        (["--mesh=data:-1,fsdp:3"], "does not fit 1 device"),
        (["--config.model.name=none"], "unknown model"),
        (["--config.data.name=none"], "unknown data set"),
        (["--config.batch_size=5000"], "batch size 5000"),
        (["surplus"], "unexpected argument"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(
    flags: list[str], message: str, run_plan: Callable[..., None]
) -> None:
    with pytest.raises(RunError, match=message):
        run_plan(*flags)


@pytest.mark.usefixtures("tiny", "nothing_compiles")
def test_devices_stand_in_where_there_are_too_few(
    run_plan: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(stand_ins, "run_on", lambda *call: asked.append(call) or 0)
    run_plan("--mesh=data:2,fsdp:4")
    assert asked == [(8, "experiments.plan", [*COMMAND[1:], "--mesh=data:2,fsdp:4"])]
    assert "8 CPU devices stand in" in capsys.readouterr().err
    monkeypatch.setattr(stand_ins, "run_on", lambda *call: 2)
    with pytest.raises(SystemExit, match="2"):
        run_plan("--config.mesh=fsdp:2")


def test_the_devices_that_stand_in_replace_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        stand_ins.subprocess, "call", lambda command, env: calls.append((command, env)) or 0
    )
    monkeypatch.setenv("XLA_FLAGS", "--a=b --xla_force_host_platform_device_count=2 --c=d")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert stand_ins.run_on(6, "module", ["--flag"]) == 0
    ((command, environment),) = calls
    assert command == [sys.executable, "-m", "module", "--flag"]
    flags = environment["XLA_FLAGS"].split()
    assert sorted(flags) == ["--a=b", "--c=d", "--xla_force_host_platform_device_count=6"]
    assert environment["JAX_PLATFORMS"] == "cpu" and "JAX_NUM_CPU_DEVICES" not in environment


def test_as_a_command_for_more_devices_than_there_are() -> None:
    """A batch of 256 on three devices: told by the process with the three devices."""
    process = subprocess.run(
        [sys.executable, "-m", "experiments.plan", tiny_runs.FLAGS[0], "--mesh=data:3"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert "3 CPU devices stand in" in process.stderr
    assert "batch of 256 examples cannot be split over 3 devices" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("name", ["digits", "fashion_small"])
@pytest.mark.parametrize("protocol", ["ours", "published"])
@pytest.mark.usefixtures("tiny")
def test_the_catalogue_knows_the_shapes_of_images(name: str, protocol: str) -> None:
    config = arguments.settle(tiny_runs.config(data__name=name, protocol=protocol))
    known, loaded = tasks.abstract(config), tasks.load(config)

    def facts(task: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), task.splits)

    assert facts(known) == facts(loaded)
    assert known.batches(0) == loaded.batches(0)


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize(
    ("module", "argument", "task"),
    [
        (cifar_resnet, "runlocal,rank_scale=0.5", "classification"),
        (translation, "runlocal", "translation"),
        (pretraining, "runlocal", "masked_language_model"),
        (pretraining, "task=causal_language_model,runlocal", "causal_language_model"),
        (fine_tuning, "runlocal", "text_classification"),
    ],
)
def test_every_task_can_be_traced_without_data(module: Any, argument: str, task: str) -> None:
    """A training step gives a state of the same shapes, and sums for each step."""
    planned = planned_run(module.get_config(argument))
    assert planned.plan.config.task == task
    step = dispatch_function(planned.task, planned.plan, 1, planned.cut.batch)
    number = jax.ShapeDtypeStruct((), "int32")
    given = (planned.plan.abstract, planned.arrays, planned.order, number, number)
    state, sums = jax.eval_shape(step, *given)
    before, after = (
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (given[0], state)
    )
    assert before == after
    assert {leaf.shape for leaf in jax.tree.leaves(sums)} == {(1,)}
