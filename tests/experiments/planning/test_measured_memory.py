"""Planned memory of training steps against what they really take."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_runs

from configs import compression, pretraining, translation
from experiments.benchmark import memory
from experiments.errors import RunError
from experiments.planning import measured
from experiments.planning.planned_run import planned_run

pytestmark = pytest.mark.skipif(
    memory.peak_bytes() is None, reason="this system does not tell how much memory is in use"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "argument"),
    [
        (compression, "depth=8,width=0.5,data=digits,ratio=0.5,batch_size=128"),
        (translation, "runlocal"),
        (pretraining, "task=causal_language_model,runlocal"),
    ],
)
def test_of_three_configs(module: Any, argument: str) -> None:
    found = measured.compare(planned_run(module.get_config(argument)))
    assert found.measured == pytest.approx(found.planned, rel=0.15)


@pytest.mark.usefixtures("tiny")
def test_it_is_said_where_memory_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "forget_peak", lambda: False)
    with pytest.raises(RunError, match="does not tell"):
        measured.compare(planned_run(tiny_runs.config()))
