"""Needs on eight devices, against real arrays, closed forms and the compiler's own sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from eight_devices import printed_by

HERE = Path(__file__).parent
MESHES = ("data:8", "data:2,fsdp:2,tensor:2")
MATRIX = 64 * 32 * 4
IMAGE, TRAINED = 8 * 8, 1293  # Of digits, nine tenths.


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the script of this folder prints."""
    script = HERE / "on_eight_devices.py"
    return printed_by(script, imports=(tiny_runs.ROOT, HERE.parent), optimized=False)


def test_the_gradient_of_parallel_data_is_exchanged_once(found: dict[str, Any]) -> None:
    parameters = 4 * (16 * 5 + 5 * 24 + 24)
    assert {(kind, *axes) for kind, axes, *_ in found["gradient"]} == {("all-reduce", "data")}
    assert sum(size for *_, size in found["gradient"]) == parameters


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("psum", ["all-reduce", ["fsdp"], 1, MATRIX]),
        ("psum_of_all", ["all-reduce", ["data", "fsdp"], 1, MATRIX]),
        ("gather", ["all-gather", ["fsdp"], 1, 4 * MATRIX]),
        ("scatter", ["reduce-scatter", ["fsdp"], 1, MATRIX]),
        ("all_to_all", ["all-to-all", ["data"], 1, MATRIX]),
        ("permute", ["collective-permute", ["fsdp"], 1, MATRIX]),
        ("loop", ["all-reduce", ["data"], 6, 6 * MATRIX]),
    ],
)
def test_what_a_program_asks_for_is_what_is_found(
    found: dict[str, Any], name: str, expected: list[Any]
) -> None:
    assert found["as_written"][name] == [expected]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_has_what_real_arrays_have_there(found: dict[str, Any], mesh: str) -> None:
    planned = found["planned"][mesh]
    memory = planned["needs"]["device_memory"]
    assert planned["real"] == {part: memory[part] for part in planned["real"]}
    assert memory["peak"] == sum(planned["real"].values()) + memory["data"] + max(
        memory["step"], memory["evaluation"]
    )
    of_mesh = planned["needs"]["mesh_memory"]
    assert of_mesh == {name: 8 * size for name, size in memory.items()}


@pytest.mark.parametrize("mesh", MESHES)
def test_the_compiler_sees_the_same_arguments(found: dict[str, Any], mesh: str) -> None:
    """The state, the training images and their labels, the order, and two numbers."""
    planned = found["planned"][mesh]
    given = sum(planned["real"].values()) + TRAINED * (IMAGE + 4) + TRAINED * 4 + 2 * 4
    assert planned["arguments"] == given


def test_the_leaves_add_up(found: dict[str, Any]) -> None:
    for planned in found["planned"].values():
        leaves, needs = planned["needs"]["leaves"], planned["needs"]
        for part, size in needs["unsplit_memory"].items():
            mine = [leaf for leaf in leaves if leaf["part"] == part]
            assert sum(leaf["bytes"] for leaf in mine) == size
            assert sum(leaf["shard_bytes"] for leaf in mine) == needs["device_memory"][part]
    # 3 x 3 x 3 x 4: of the axes only the last one is divided by 2.
    (stem,) = [leaf for leaf in leaves if leaf["path"] == "stem/kernel"]
    assert (stem["shape"], stem["shard_shape"]) == ([3, 3, 3, 4], [3, 3, 3, 2])
    assert stem["axes"] == [[], [], [], ["tensor"]]


def test_work_is_divided_and_the_whole_of_it_is_the_same(found: dict[str, Any]) -> None:
    data, mixed = (found["planned"][mesh]["needs"] for mesh in MESHES)
    assert data["multiply_adds"] == mixed["multiply_adds"]
    # The first layer's 27 x 4 at 8 x 8 places of 256 images, forward and for its kernel's gradient.
    assert data["multiply_adds"] > 2 * 256 * 64 * 27 * 4
    assert data["batch_size"] == 256 and data["devices"] == 8
    assert data["device_memory"]["batch"] == 256 / 8 * (32 * 32 * 3 * 4 + 4)


def test_gradients_go_over_the_data_axis(found: dict[str, Any]) -> None:
    needs = found["planned"]["data:8"]["needs"]
    assert {tuple(one["axes"]) for one in needs["communication"]} == {("data",)}
    exchanged = sum(one["bytes"] for one in needs["communication"] if one["kind"] == "all-reduce")
    # Stem, norm, head; and the factorized convolution as the kernel of 3 x 3 x 4 x 8 that its
    # factors are composed to, since at this rank that is smaller than they are.
    gradient = 4 * (27 * 4 + 2 * 8 + 8 * 10 + 10 + 9 * 4 * 8)
    # Batch norm's statistics and the sums that are reported come on top.
    assert gradient < exchanged <= gradient + 4 * (4 * 8 + 3)
    assert any("all 8 devices of the axis data" in remark for remark in needs["remarks"])


def test_the_text_tells_it(found: dict[str, Any]) -> None:
    text = found["planned"]["data:2,fsdp:2,tensor:2"]["text"]
    assert "data:2,fsdp:2,tensor:2: 8 device(s), compiled for cpu" in text
    stem = next(line for line in text.splitlines() if line.startswith("stem/kernel"))
    assert "3x3x3x4" in stem and "3x3x3x2" in stem and stem.endswith("axis 3: tensor")
    assert "sent by each device" in text and "reduce-scatter in place of all-reduce" in text
