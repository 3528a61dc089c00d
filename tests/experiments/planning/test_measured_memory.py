"""Planned memory of training steps against what they really take, as programs are compiled for
users."""

from __future__ import annotations

import json
import subprocess
import sys
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

_CONVOLUTIONS = "depth=8,width=0.5,data=digits,ratio=0.5,batch_size=128"
_TEXT = "task=causal_language_model,runlocal"


@pytest.mark.optimized
@pytest.mark.usefixtures("tiny")
def test_of_a_tiny_run() -> None:
    run = planned_run(tiny_runs.config(batch_size=1024, layout="as_written"))
    found = measured.compare(run)
    assert found.measured == pytest.approx(found.planned, rel=0.15)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize(
    ("module", "argument"),
    [
        (compression, _CONVOLUTIONS),
        (compression, f"{_CONVOLUTIONS},layout=as_written"),
        (translation, "runlocal"),
        (pretraining, _TEXT),
    ],
)
def test_of_configs(module: Any, argument: str) -> None:
    found = measured.compare(planned_run(module.get_config(argument)))
    assert found.measured == pytest.approx(found.planned, rel=0.15)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize(
    ("name", "argument"), [("compression", _CONVOLUTIONS), ("pretraining", _TEXT)]
)
def test_on_eight_devices(name: str, argument: str) -> None:
    command = [sys.executable, "-m", "experiments.plan", f"--config=configs/{name}.py:{argument}"]
    done = subprocess.run(
        [*command, "--mesh=data:8", "--measure", "--json"],
        cwd=tiny_runs.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["training"]
    assert found["measured"] == pytest.approx(found["planned"], rel=0.15)


@pytest.mark.usefixtures("tiny")
def test_it_is_said_where_memory_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "forget_peak", lambda: False)
    with pytest.raises(RunError, match="does not tell"):
        measured.compare(planned_run(tiny_runs.config()))
