"""How inference is timed, with scripted clocks; `test_evaluate.py` measures a run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from experiments import inference_cost
from experiments.benchmark.alternation import Samples
from experiments.inference_cost import FormCost, InferenceCost, Latency


@pytest.mark.parametrize(("call_s", "turns"), [(1e-6, 100), (0.1, 15), (60.0, 3)])
def test_the_turns_take_three_seconds_within_bounds(
    call_s: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {"as_written": call_s, "batch_minor": 2 * call_s})
    found = inference_cost._latencies(contenders(), 1, lambda line: None)
    assert {one.turns for one in found.values()} == {turns}


@pytest.mark.parametrize("faster", ["as_written", "batch_minor"])
def test_each_form_is_timed_in_its_faster_layout(
    faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"as_written": 0.2, "batch_minor": 0.2} | {faster: 0.1}
    scripted(monkeypatch, times)
    found = inference_cost._latencies(contenders(), 1, lambda line: None)
    assert [(one.layout, one.median_s) for one in found.values()] == [(faster, 0.1)] * 2


def scripted(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Calls take as long as their layout says."""
    monkeypatch.setattr(
        inference_cost._Contender, "turn", lambda self, layout, images: lambda: seconds[layout]
    )


def test_median_and_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        form: tuple(np.random.default_rng(at).exponential(size=9))
        for at, form in enumerate(contenders())
    }
    scripted(monkeypatch, {"as_written": 1.0, "batch_minor": 1.0})
    monkeypatch.setattr(inference_cost, "alternate", lambda *_, **__: Samples(seconds))
    found = inference_cost._latencies(contenders(), 1, lambda line: None)
    for form, one in found.items():
        quartiles = (one.lower_quartile_s, one.median_s, one.upper_quartile_s)
        np.testing.assert_allclose(quartiles, np.percentile(seconds[form], (25, 50, 75)))


class Identity:
    """A network for which nothing is computed."""

    def example(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, 1), np.float32)

    def random_inputs(self, key: jax.Array, batch_size: int) -> jax.Array:
        return jax.random.normal(key, (batch_size, 1))

    def apply(self, params: Any, model_state: Any, images: jax.Array) -> jax.Array:
        return images


def contenders() -> dict[str, Any]:
    """Two that are no program of the other's."""
    return {
        form: inference_cost._Contender(
            Identity(),
            {},
            {},
            {"as_written": abs, "batch_minor": abs},  # type: ignore[arg-type]
        )
        for form in ("factored", "merged")
    }


def test_the_table() -> None:
    def cost(parameters: int, median: float) -> FormCost:
        quartiles = 0.9 * median, median, 1.1 * median
        at = [Latency(size, 800, "as_written", 9, *quartiles) for size in (1, 500)]
        return FormCost(parameters, tuple(at))

    hardware = {"platform": "cpu", "cpu": "Some CPU", "cores": 2, "device_kind": "cpu"}
    found = InferenceCost(
        hardware, "float32", True, cost(10_000, 0.01), cost(999, 0.002), cost(10_000, 0.01)
    )
    lines = str(found).splitlines()
    assert lines[0].endswith("inference on Some CPU, 2 cores, float32")
    assert [line.split()[:3] for line in lines[2:8]] == [
        [form, parameters, size]
        for size in ("1", "500")
        for form, parameters in (("dense", "10,000"), ("factored", "999"), ("merged", "10,000"))
    ]
    assert lines[3].split()[3:] == ["800", "as_written", "2", "(1.8", "to", "2.2)"]
    assert "noise" in lines[8]
    on_accelerator = {**hardware, "platform": "gpu", "device_kind": "Some GPU"}
    other = InferenceCost(on_accelerator, "bfloat16", False, *[cost(1, 1.0)] * 3)
    assert "inference on Some GPU, bfloat16" in str(other) and "noise" not in str(other)
