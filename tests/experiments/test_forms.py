"""How kernels are applied: decided by count or by (pretended) measurements, kept, and used."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_runs
from tiny_runs import outcome

from configs import cifar_resnet
from experiments import arguments, form_cache, form_timing, forms, gradient_timing, run_folder
from experiments import state as states
from experiments.dispatch import dispatch_function
from experiments.errors import RunError
from experiments.form_cache import FormCache, Seconds
from experiments.forms import Form, Forms
from experiments.multiply_adds import multiply_adds
from experiments.tasks.classification import Network
from experiments.tasks.task import Batch

CONV = "conv/kernel"  # The factorized kernel of the tiny network.


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache of the test is; empty."""
    monkeypatch.setenv("LOWRANK_JAX_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "forms.json"


class Clock:
    """Pretends to time applications: the input's channels decide which form is faster."""

    def __init__(self, composed_from: float) -> None:
        self.composed_from = composed_from
        self.timed: list[str] = []

    def __call__(self, application: Any, plan: Any) -> Seconds:
        self.timed.append(application.signature)
        slow = application.inputs.shape[-1] >= self.composed_from
        return Seconds(factored=2.0 if slow else 0.5, composed=1.0)


def pretend(monkeypatch: pytest.MonkeyPatch, composed_from: float = 0) -> Clock:
    clock = Clock(composed_from)
    monkeypatch.setattr(forms, "time_forms", clock)
    return clock


def resnet(argument: str, **keys: Any) -> tuple[Network, states.Plan]:
    config = cifar_resnet.get_config(f"runlocal,depth=8,{argument}")
    config.update({"batch_size": 4} | keys)
    config = arguments.settle(config)
    network = Network.of(config, 10, 32)
    return network, states.plan(config, network, 5)


# ------------------------------------------------------------------ deciding


def test_one_measurement_for_each_doubtful_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-8 at 0.333: convolutions 16-16 twice, 16-32, 32-32, 32-64, 64-64 channels."""
    clock = pretend(monkeypatch, composed_from=32)
    lines: list[str] = []
    network, plan = resnet("rank_scale=0.333")
    found = forms.decide(plan, network, lines.append)
    assert len(set(clock.timed)) == len(clock.timed) == found.shapes_measured == len(lines) == 5
    channels = {1: (16, 16), 2: (16, 32), 3: (32, 64)}
    assert found.compose == {
        f"block_{block}/conv{number}/kernel": channels[block][number - 1] >= 32
        for block in channels
        for number in (1, 2)
    }
    assert found.summary.startswith("3 factored, 3 composed (5 shapes measured in")
    # Another run of the same machine measures nothing and decides alike.
    again = forms.decide(plan, network, lines.append)
    assert len(clock.timed) == 5 and again.rows == found.rows
    assert again.summary == "3 factored, 3 composed (by earlier measurements)"


@pytest.mark.parametrize("argument", ["rank_scale=0.111", "rank_scale=3.0", "rank_scale=0"])
def test_what_is_clear_is_not_measured(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = pretend(monkeypatch)
    network, plan = resnet(argument)
    found = forms.decide(plan, network, print)
    assert clock.timed == [] and found.compose == {}
    expected = {"rank_scale=0.111": {"factored"}, "rank_scale=3.0": {"composed"}}
    assert {row.form for row in found.rows} == expected.get(argument, set())


def test_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form with fewer multiply-adds, which is what a weight takes when left alone."""
    clock = pretend(monkeypatch)
    network, plan = resnet("rank_scale=0.333", forms="count")
    found = forms.decide(plan, network, print)
    assert clock.timed == [] and found.compose == {} and len(found.rows) == 6
    every = {row.path: row.form == "composed" for row in found.rows}
    params, model_state = states.abstract_variables(plan)

    def count(network: Network) -> int:
        return multiply_adds(network.apply, params, model_state, network.example(4))

    assert count(network.in_forms(every)) == count(network) == 4 * plan.multiply_adds
    # By hand: the first layer has 32² pixels, 16 channels in and out, rank 16, three taps twice.
    row = found.rows[0]
    assert row.factored_multiply_adds == 4 * 32**2 * 2 * 3 * 16 * 16
    assert row.composed_multiply_adds == 4 * 32**2 * 9 * 16 * 16 + 9 * 16 * 16 * 16


def test_batches_of_one_micro_batch_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = pretend(monkeypatch)
    network, plan = resnet("rank_scale=0.333", accumulate_steps=2)
    forms.decide(plan, network, print)
    assert all("float32[2," in signature for signature in clock.timed)


@dataclasses.dataclass(frozen=True)
class Task:
    network: Network


def test_the_plan_counts_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    network, plan = resnet("rank_scale=0.333")
    _, used, found = forms.choose(Task(network), plan, print)
    stem_and_head = (32**2 * 9 * 3 * 16) + 64 * 10
    kernels = sum(row.composed_multiply_adds for row in found.rows) // 4
    assert used.multiply_adds == pytest.approx(stem_and_head + kernels, rel=1e-6)
    assert used.multiply_adds > plan.multiply_adds
    assert used.dense_multiply_adds == plan.dense_multiply_adds


def test_the_clock_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms are timed, as often as is said; both layouts."""
    monkeypatch.setattr(gradient_timing, "_SECONDS", 0.0)
    for layout in ("as_written", "batch_minor"):
        network, plan = resnet("rank_scale=0.333", batch_size=2, layout=layout)
        params, model_state = states.abstract_variables(plan)
        found = forms.applications(network.apply, params, model_state, network.example(2))
        (one,) = found["block_3/conv2/kernel"]
        seconds = form_timing.time_forms(one, plan)
        assert 0 < seconds.factored < math.inf and 0 < seconds.composed < math.inf


def test_table_and_json() -> None:
    rows = (
        Form("a/kernel", "composed", "measured", "x", 2, 3, 0.002, 0.001),
        Form("long/path/kernel", "composed", "counted", "y", None, 3),
    )
    found = Forms(rows, shapes_measured=1, seconds=2.0)
    assert Forms.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    assert found.compose == {"a/kernel": True}
    header, first, second, _ = str(found).splitlines()
    assert first.split() == ["a/kernel", "composed", "measured", "66.7%", "2.00", "1.00"]
    assert second.split() == ["long/path/kernel", "composed", "counted", "one", "form", "-", "-"]
    assert len(header) == len(first) == len(second)
    for wrong in ({}, {"rows": [{}]}, {"rows": [], "shapes_measured": None, "seconds": 0}):
        with pytest.raises(ValueError, match="not the forms of a run"):
            Forms.from_dict(wrong)


# ------------------------------------------------------------------ the cache


def test_the_cache_keeps_layouts_apart(cache_file: Path) -> None:
    FormCache("as_written", print).put("a", Seconds(1.0, 2.0))
    FormCache("as_written", print).put("b", Seconds(3.0, 4.0))
    cache = FormCache("as_written", print)
    assert (cache.get("a"), cache.get("b")) == (Seconds(1.0, 2.0), Seconds(3.0, 4.0))
    assert FormCache("batch_minor", print).get("a") is None
    assert all(jax.__version__ in key for key in json.loads(cache_file.read_text()))


def test_what_another_process_wrote_meanwhile_stays() -> None:
    one, other = FormCache("as_written", print), FormCache("as_written", print)
    one.put("a", Seconds(1.0, 2.0))
    other.put("b", Seconds(3.0, 4.0))
    assert FormCache("as_written", print).get("a") == Seconds(1.0, 2.0)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_cache_is_a_line_and_replaced(cache_file: Path, content: str) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(content)
    lines: list[str] = []
    cache = FormCache("as_written", lines.append)
    assert cache.get("a") is None
    cache.put("a", Seconds(1.0, 2.0))
    assert len(lines) == 1 and str(cache_file) in lines[0] and "measuring again" in lines[0]
    assert FormCache("as_written", pytest.fail).get("a") == Seconds(1.0, 2.0)


@pytest.mark.parametrize("entry", [3, {}, {"factored": "x", "composed": 1}, {"factored": -1.0}])
def test_a_damaged_entry_is_measured_again(cache_file: Path, entry: Any) -> None:
    FormCache("as_written", print).put("a", Seconds(1.0, 2.0))
    (key,) = json.loads(cache_file.read_text())
    cache_file.write_text(json.dumps({key: entry}))
    assert FormCache("as_written", pytest.fail).get("a") is None


def test_an_unwritable_cache_is_a_line(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_file.parent.write_text("a file where the folder should be")
    clock = pretend(monkeypatch)
    lines: list[str] = []
    network, plan = resnet("rank_scale=0.333")
    found = forms.decide(plan, network, lines.append)
    assert len(clock.timed) == len(found.compose) - 1 == 5
    assert sum("measurements are not kept" in line for line in lines) == 1


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(form_cache, "_path", homeless)
    lines: list[str] = []
    cache = FormCache("as_written", lines.append)
    cache.put("a", Seconds(1.0, 2.0))
    assert len(lines) == 1 and cache.get("a") == Seconds(1.0, 2.0)


# ------------------------------------------------------------------ runs


@pytest.fixture
def doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network's one kernel is measured: its count would say composed."""
    monkeypatch.setattr(forms, "_CLEARLY_COMPOSED", math.inf)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny", "doubtful")
def test_a_run_keeps_its_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_file: Path
) -> None:
    """Continued where the clock and the cache say the opposite, it ends with the same bits."""
    clock = pretend(monkeypatch, composed_from=math.inf)
    whole = tiny_runs.train(tmp_path / "whole")
    stored = run_folder.read_forms(whole, run_folder.read_table(whole))
    assert stored is not None and stored.compose == {CONV: False} and len(clock.timed) == 1
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if line.startswith("step 5/10"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_runs.train(tmp_path / "run", say=stop, checkpoint_every_epochs=1)
    assert any("forms: 1 factored, 0 composed" in line for line in lines)
    os.unlink(cache_file)
    other = pretend(monkeypatch, composed_from=0)
    tiny_runs.train(tmp_path / "run", say=lines.append)
    assert other.timed == []
    assert outcome(tmp_path / "run") == outcome(whole)
    counts = json.loads((whole / "result.json").read_text())["multiply_adds"]
    assert counts == json.loads((tmp_path / "run" / "result.json").read_text())["multiply_adds"]

    # Asked for another rule, the run is refused; without the file it says so.
    with pytest.raises(RunError, match="forms is 'measure' there and 'count' here"):
        tiny_runs.train(tmp_path / "run", forms="count")
    (whole / "result.json").unlink()
    (whole / "forms.json").unlink()
    tiny_runs.train(whole, say=lines.append)
    assert "forms.json is missing: decided again, the bits may differ" in lines


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "content",
    [
        "{",
        pytest.param("[]", marks=pytest.mark.slow),
        pytest.param('{"rows": [{"path": 3}]}', marks=pytest.mark.slow),
    ],
)
def test_damaged_forms_of_a_run(content: str, tmp_path: Path) -> None:
    folder = tiny_runs.train(tmp_path / "run", epochs=1)
    (folder / "result.json").unlink()
    (folder / "forms.json").write_text(content)
    with pytest.raises(RunError, match=r"forms\.json"):
        tiny_runs.train(folder, epochs=1)


@pytest.mark.usefixtures("tiny")
def test_a_dense_run_has_none(tmp_path: Path) -> None:
    lines: list[str] = []
    folder = tiny_runs.train(tmp_path / "run", say=lines.append, epochs=1, rank_scale=0.0)
    assert not (folder / "forms.json").exists()
    assert not any("forms:" in line for line in lines)


@pytest.mark.usefixtures("tiny", "doubtful")
def test_the_compiled_step_has_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import tasks

    config = arguments.settle(tiny_runs.config())
    plain = tasks.load(config)
    plan = states.plan(config, plain.network, 5)
    texts = []
    for composed_from in (0, math.inf):
        monkeypatch.setattr(form_cache.FormCache, "get", lambda *_: None)
        pretend(monkeypatch, composed_from)
        task, used, found = forms.choose(plain, plan, lambda line: None)
        assert found.compose == {CONV: composed_from == 0}
        step = dispatch_function(task, used, 1, Batch(config.batch_size))
        zero = jax.ShapeDtypeStruct((), "int32")
        lowered = step.lower(used.abstract, plain.splits, plain.order(0), zero, zero)
        texts.append(lowered.as_text())
    assert texts[0] != texts[1]
