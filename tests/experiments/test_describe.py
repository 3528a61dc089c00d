"""`python -m experiments.describe`: the published counts, without data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import data, describe, tasks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load data fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("describe loaded data")

    monkeypatch.setattr(data, "load", refuse)
    monkeypatch.setattr(tasks.classification, "load", refuse)


def described(argument: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    describe.run(["describe", f"--config=configs/cifar_resnet.py:{argument}", "--json"])
    return json.loads(capsys.readouterr().out)


# ResNet-32 on ten classes, as published.
@pytest.mark.parametrize(
    ("argument", "parameters"),
    [
        ("rank_scale=0", 464154),
        ("rank_scale=0.037", 38970),
        ("rank_scale=0.111", 107370),
        ("rank_scale=0.333", 318234),
        ("rank_scale=1.0", 947994),
        ("rank_scale=1.0,variant=deep", 1431834),
        ("rank_scale=3.0", 2837274),
    ],
)
@pytest.mark.usefixtures("no_data")
def test_published_counts(
    argument: str, parameters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = described(argument, capsys)
    assert found["parameters"] == parameters
    assert found["dense_parameters"] == 464154
    assert found["ratio"] == pytest.approx(parameters / 464154, rel=1e-12)


@pytest.mark.usefixtures("no_data")
def test_the_wide_network_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Counted by hand at depth 8: six convolutions of size 3 and two projections of size 1."""
    found = described("model=projection_resnet,depth=8,rank_scale=0.111", capsys)
    kernels = [(3, a, b) for a, b in [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256)]]
    kernels += [(3, 256, 256), (1, 64, 128), (1, 128, 256)]
    norms = 2 * (64 + 2 * 64 + 3 * 128 + 3 * 256)
    others = 27 * 64 + norms + 256 * 10 + 10
    low_rank = sum(round(0.111 * k * after) * k * (before + after) for k, before, after in kernels)
    assert found["dense_parameters"] == others + sum(k * k * a * b for k, a, b in kernels)
    assert found["parameters"] == others + low_rank
    assert len(found["rows"]) == 8


@pytest.mark.parametrize(
    ("data_set", "pixels", "classes"), [("cifar10", 32, 10), ("tiny_imagenet", 64, 200)]
)
@pytest.mark.usefixtures("no_data")
def test_multiply_adds(
    data_set: str, pixels: int, classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted by hand: ResNet-8 has one block a stage, two convolutions each."""
    found = described(f"depth=8,rank_scale=0,data={data_set}", capsys)
    kernels = [(1, 3, 16), (1, 16, 16), (1, 16, 16)]
    kernels += [(2, 16, 32), (2, 32, 32), (4, 32, 64), (4, 64, 64)]
    weights = sum(9 * before * after for _, before, after in kernels)
    norms = 2 * (3 * 16 + 2 * 32 + 2 * 64)
    assert found["parameters"] == weights + norms + (64 + 1) * classes
    # With zero padding, every tap counts, the ones on the border as well.
    convolutions = sum((pixels // s) ** 2 * 9 * before * after for s, before, after in kernels)
    assert found["multiply_adds"] == found["dense_multiply_adds"]
    assert found["multiply_adds"] == pytest.approx(convolutions + 64 * classes, rel=1e-3)


@pytest.mark.usefixtures("no_data")
def test_the_text_tells_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    describe.run(["describe", "--config=configs/cifar_resnet.py:depth=20,data=cifar100"])
    text = capsys.readouterr().out
    found = described("depth=20,data=cifar100", capsys)
    for key in ("parameters", "dense_parameters", "multiply_adds", "dense_multiply_adds"):
        assert f"{found[key]:,}" in text or str(found[key]) in text
    assert len(found["rows"]) == 18
    for row in found["rows"]:
        assert row["path"] in text


def test_as_a_command_with_no_data_anywhere(tmp_path: Path) -> None:
    environment = os.environ | {"LOWRANK_JAX_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = ["-m", "experiments.describe", "--config=configs/cifar_resnet.py:depth=8", "--json"]
    process = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert {"parameters", "dense_parameters", "ratio", "multiply_adds"} <= set(
        json.loads(process.stdout)
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(("model", "parameters"), [("resnet18", 3338122), ("vgg19", 8107466)])
def test_what_pufferfish_factorizes_is_known_beforehand(
    model: str, parameters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published counts, batch norms between factors included."""
    config = f"--config=configs/cuttlefish.py:method=pufferfish,model={model}"
    describe.run(["describe", config, "--json"])
    assert json.loads(capsys.readouterr().out)["parameters"] == parameters


def test_of_cuttlefish_it_is_told_that_ranks_are_selected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["describe", "--config=configs/cuttlefish.py"]
    describe.run(command)
    assert "dense at first; ranks are selected in training, of up to 16" in capsys.readouterr().out
    describe.run([*command, "--json"])
    undecided = json.loads(capsys.readouterr().out)["undecided"]
    assert len(undecided) == 16 and "stage_4_block_2/conv2/kernel" in undecided
