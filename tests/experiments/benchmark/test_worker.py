"""A contender in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from experiments.benchmark import jax_step, memory, worker
from experiments.benchmark.contenders import Contender
from experiments.benchmark.networks import TINY
from experiments.errors import RunError


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """The processes compile without optimizing."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")


OURS = Contender("ours", TINY, 0.111, 8, "float32", "cpu", 1)


@pytest.mark.slow
def test_a_worker_takes_turns_and_tells_its_memory():
    running = worker.start(OURS)
    try:
        assert running.facts["parameters"] == 20330
        assert running.facts["compile_s"] > 0
        assert running.turn() > 0
        found = running.memory()
        assert found["device"] is None
        if memory.resident_bytes() is not None:
            assert found["peak"] >= found["import"] > 2**20
        if memory.forget_peak():
            assert 0 < found["steps"] <= found["peak"]
        running._process.kill()
        with pytest.raises(RunError, match=r"the process of this project, .* exit code -9"):
            running.turn()
    finally:
        running.close()
    assert not running._process.is_alive()


def test_a_contender_that_cannot_be_built_tells_why():
    network = dataclasses.replace(TINY, depth=9)
    with pytest.raises(RunError, match="a ResNet of depth 9 does not exist"):
        worker.start(dataclasses.replace(OURS, network=network))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_a_worker_with_torch():
    running = worker.start(dataclasses.replace(OURS, implementation="torch"))
    try:
        assert running.facts["parameters"] == 20330
        assert running.facts["compile_s"] is None
        assert running.turn() > 0
    finally:
        running.close()


def test_on_a_tpu_contenders_are_loaded_here(monkeypatch):
    class Step:
        facts = {"parameters": 1}  # noqa: RUF012
        turns = 0

        def __call__(self) -> None:
            self.turns += 1

    step = Step()
    monkeypatch.setattr(jax_step, "build", lambda contender: step)
    running = worker.start(dataclasses.replace(OURS, platform="tpu"))
    assert running.turn() >= 0 and step.turns == 1
    assert running.facts == {"parameters": 1} and running.memory() is None
    running.close()


def test_peak_memory_is_what_was_touched():
    if not memory.forget_peak():
        pytest.skip("the system does not let the peak be reset")
    before = memory.resident_bytes()
    block = bytearray(b"\1") * (64 * 2**20)
    del block
    assert memory.peak_bytes() - before >= 60 * 2**20
    assert memory.forget_peak()
    assert memory.peak_bytes() - before < 30 * 2**20
