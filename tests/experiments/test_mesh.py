"""Placement on meshes: what it is, and that it does not change what is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
from jax.sharding import AbstractMesh, PartitionSpec

from experiments import mesh as meshes
from experiments.errors import RunError


def sizes(data: int = -1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.fixture
def eight_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight devices to count; `Mesh` takes any objects for devices as long as it is only asked."""
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    monkeypatch.setattr(meshes, "Mesh", lambda devices, axes: dict(zip(axes, devices.shape)))  # noqa: B905


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        (sizes(), (8, 1, 1)),
        (sizes(8), (8, 1, 1)),
        (sizes(2, 2, 2), (2, 2, 2)),
        (sizes(-1, 2, 2), (2, 2, 2)),
        (sizes(1, -1, 1), (1, 8, 1)),
        (sizes(2, 1, 1), (2, 1, 1)),
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_sizes(asked: dict[str, int], shape: tuple[int, int, int]) -> None:
    assert tuple(meshes.make(asked).values()) == shape


@pytest.mark.parametrize(
    "asked",
    [
        sizes(3),
        sizes(16),
        sizes(0),
        sizes(-1, -1),
        sizes(-2, -2),
        sizes(-1, 3),
        sizes(-1, 0),
        sizes(-2, -2, 2),
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_sizes_that_do_not_fit(asked: dict[str, int]) -> None:
    with pytest.raises(RunError, match=r"mesh .* does not fit 8 device"):
        meshes.make(asked)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), PartitionSpec()),
        ((64,), PartitionSpec(None)),
        ((6, 64), PartitionSpec("fsdp", "tensor")),
        ((3, 3, 16, 32), PartitionSpec(None, None, "fsdp", "tensor")),
        ((3, 1, 8, 10), PartitionSpec(None, None, "fsdp", "tensor")),
        ((3, 1, 8, 5), PartitionSpec(None, None, "fsdp", None)),  # 5 channels cannot be halved
        ((3, 3, 3, 5), PartitionSpec(None, None, None, None)),
    ],
)
def test_parameter_shardings(
    shape: tuple[int, ...], spec: PartitionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = AbstractMesh((2, 2, 2), meshes.AXES)
    found = meshes.parameter_shardings(mesh, jax.ShapeDtypeStruct(shape, np.float32))  # type: ignore[arg-type]
    assert found.spec == spec


_ON_EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax, tiny_main, tiny_runs
from experiments import models
assert jax.device_count() == 8
models.MODELS["tiny"] = tiny_main.ENTRY
tiny_runs.train(Path(sys.argv[1]), epochs=1, mesh__fsdp=2, mesh__tensor=2)
"""


@pytest.mark.usefixtures("tiny")
def test_the_same_losses_on_one_and_on_eight_devices(tmp_path: Path) -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{tiny_runs.ROOT}{os.pathsep}{Path(__file__).parent}",
    }
    process = subprocess.run(
        [sys.executable, "-c", _ON_EIGHT_DEVICES, str(tmp_path / "eight")],
        cwd=tiny_runs.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    tiny_runs.train(tmp_path / "one", epochs=1)
    one = tiny_runs.outcome(tmp_path / "one")
    config = json.loads((tmp_path / "eight" / "config.json").read_text())
    assert (config["mesh"]["fsdp"], config["mesh"]["tensor"]) == (2, 2)
    many = tiny_runs.outcome(tmp_path / "eight")
    for key in ("train_loss", "validation_loss"):
        curves = [[line[key] for line in run["metrics"][1:]] for run in (one, many)]
        np.testing.assert_allclose(*curves, rtol=1e-5)
    assert many["final"]["loss"] == pytest.approx(one["final"]["loss"], rel=1e-5)
