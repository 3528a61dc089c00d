"""Placement on meshes: what it is, and that it does not change what is computed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny_runs
from absl import flags
from eight_devices import printed_by
from jax.sharding import AbstractMesh, PartitionSpec

import configs
from experiments import arguments, command_line, models, tasks
from experiments import mesh as meshes
from experiments.errors import RunError
from experiments.models import partitions


@pytest.fixture
def eight_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight devices to count; `Mesh` takes any objects for devices as long as it is only asked."""
    devices = [
        SimpleNamespace(process_index=0, platform="cpu", device_kind="cpu") for _ in range(8)
    ]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(meshes, "Mesh", lambda devices, axes: dict(zip(axes, devices.shape)))  # noqa: B905


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ("data:-1", (8, 1, 1)),
        ("data:8", (8, 1, 1)),
        ("data:2,fsdp:2,tensor:2", (2, 2, 2)),
        (" tensor:2, fsdp:2 ,data:-1", (2, 2, 2)),
        ("fsdp:-1", (1, 8, 1)),
        ("data:2", (2, 1, 1)),
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_sizes(asked: str, shape: tuple[int, int, int]) -> None:
    assert tuple(meshes.make(asked).values()) == shape


@pytest.mark.parametrize(
    "asked",
    [
        "data:3",
        "data:16",
        "data:0",
        "data:-1,fsdp:-1",
        "data:-2,fsdp:-2",
        "data:-1,fsdp:3",
        "data:-1,fsdp:0",
        "data:-2,fsdp:-2,tensor:2",
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_sizes_that_do_not_fit(asked: str) -> None:
    with pytest.raises(RunError, match=r"mesh='.*' does not fit 8 device"):
        meshes.make(asked)


@pytest.mark.usefixtures("eight_devices")
def test_every_process_has_a_part() -> None:
    for number, device in enumerate(jax.devices()):
        device.process_index = number // 4
    with pytest.raises(RunError, match=r"mesh='data:4' leaves out process 1: .* first 4 of 8"):
        meshes.make("data:4")


@pytest.mark.parametrize(
    "text", ["", "8", "data", "data:", "data:two", "model:2", "data:2,data:2", "data=2", "data:2;"]
)
def test_what_is_no_mesh(text: str) -> None:
    with pytest.raises(RunError, match="expected AXIS:SIZE"):
        meshes.parse(text)


FILES = Path(configs.__file__).parent.glob("*.py")
CONFIGS = sorted(path for path in FILES if "def get_config" in path.read_text())


LOCAL = [path for path in CONFIGS if '"runlocal"' in path.read_text()]


@pytest.mark.parametrize(
    ("path", "argument"),
    [*((path, "") for path in CONFIGS), *((path, ":runlocal") for path in LOCAL)],
    ids=[*(path.stem for path in CONFIGS), *(f"{path.stem}-local" for path in LOCAL)],
)
@pytest.mark.usefixtures("tiny")
def test_every_config_takes_a_mesh(
    path: Path, argument: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument = f":start={finished}" if path.stem == "compress_trained" else argument
    argv = ["main", f"--config={path}{argument}", "--config.mesh=data:2,fsdp:4"]
    monkeypatch.setattr(sys, "argv", argv)  # Where such flags are looked for.
    config, _ = command_line.read_config(argv, flags.FlagValues(), "")
    assert meshes.parse(config.mesh) == {"data": 2, "fsdp": 4, "tensor": 1}
    # Eight devices can share its batches, or most of them where the last one is odd.
    sizes = [batch.size for batch in tasks.abstract(arguments.settle(config)).batches(0)]
    mesh: Any = AbstractMesh((2, 4, 1), meshes.AXES)
    meshes.require_split(mesh, sizes)
    assert sum(size % 8 > 0 for size in sizes) <= 1


def test_a_mesh_in_an_argument() -> None:
    config = tiny_runs.config("mesh=data:2,fsdp:4,tensor:-1,epochs=7")
    assert (config.mesh, config.epochs) == ("data:2,fsdp:4,tensor:-1", 7)


def test_kernels_of_transformers_are_split_by_heads_and_hidden_units() -> None:
    mesh = AbstractMesh((1, 2, 4), meshes.AXES)
    shapes = {
        "attention": {name: {"kernel": (64, 8, 6)} for name in ("query", "key", "value")}
        | {"out": {"kernel": (8, 6, 64)}},
        "feed_forward": {"up": {"kernel": (64, 128)}, "down": {"kernel": (128, 64)}},
    }
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        {"layer_1": shapes},
        is_leaf=lambda node: isinstance(node, tuple),
    )
    found = meshes.parameter_shardings(mesh, params, partitions.TRANSFORMER)["layer_1"]
    assert found["attention"]["query"]["kernel"].spec == PartitionSpec("fsdp", "tensor", None)
    assert found["attention"]["out"]["kernel"].spec == PartitionSpec("tensor", None, "fsdp")
    assert found["feed_forward"]["up"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found["feed_forward"]["down"]["kernel"].spec == PartitionSpec("tensor", "fsdp")
    with pytest.raises(
        RunError, match=r"tensor:16: layer_1/attention/.*/kernel: axis 1 .* 16 devices"
    ):
        meshes.parameter_shardings(
            AbstractMesh((1, 1, 16), meshes.AXES), params, partitions.TRANSFORMER
        )


def test_an_axis_that_splits_nothing_is_refused() -> None:
    params = {"kernel": jax.ShapeDtypeStruct((6, 10), np.float32)}
    with pytest.raises(RunError, match="no kernel has an axis that can be split over fsdp"):
        meshes.parameter_shardings(AbstractMesh((1, 7, 1), meshes.AXES), params, ())


def test_batches_that_cannot_be_split() -> None:
    mesh: Any = AbstractMesh((2, 2, 2), meshes.AXES)
    assert meshes.require_split(mesh, [128] * 9) is None
    assert meshes.require_split(mesh, [128] * 9 + [30]) == (
        "1 of 10 batches of an epoch are no multiples of 4 examples: each device computes all of "
        "them"
    )
    with pytest.raises(RunError, match="a batch of 126 examples cannot be split over 4 devices"):
        meshes.require_split(mesh, [126] * 9)


def test_models_with_attention_say_how_it_is_split() -> None:
    assert all(bool(entry.partitions) == entry.attention for entry in models.MODELS.values())


# One device and eight, every task: in a process of its own.

TASKS = (
    "classification",
    "translation",
    "masked_language_model",
    "causal_language_model",
    "text_classification",
)


BOUNDS = {"float32": 1e-5, "float64": 1e-10}
# Of float32, of which the others say more, one; the rest with `-m slow`.
CASES = [*(f"{task}-float64" for task in TASKS), "classification-float32"]
MORE = [f"{task}-float32" for task in TASKS if f"{task}-float32" not in CASES]


def differences(folder: Path, cases: list[str]) -> dict[str, Any]:
    script = Path(__file__).with_name("mesh_checks.py")
    imports = (tiny_runs.ROOT, script.parent)
    return printed_by(script, str(folder), *cases, imports=imports, optimized=False)


@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.slow)])
def test_three_steps_are_the_same_on_one_and_on_eight_devices(
    cases: list[str], tmp_path: Path
) -> None:
    assert set(TASKS) == set(tasks.TASKS)
    found = differences(tmp_path, cases)
    assert [found[case]["split"] for case in cases] == [[False, True]] * len(cases)
    bounds = {case: BOUNDS[case.split("-")[1]] for case in cases}
    for what in ("largest", "evaluation"):
        apart = {case: found[case][what] for case in cases}
        assert not {case: apart[case] for case in cases if not apart[case] <= bounds[case]}, what
    # Of four parts of a batch each device measures one; short batches are measured whole.
    shares = {case: found[case]["evaluation_share"] for case in cases}
    assert not {case: share for case, share in shares.items() if not share < 0.6}
