"""The sections: with contenders of made-up speed where training would take long."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from made_up import Fake, options, silent
from made_up import outcome as whole

from experiments.benchmark import (
    data_rate,
    decay_cost,
    initialization_time,
    outcome,
    plot,
    steps,
    targets,
    variants,
)
from experiments.benchmark.networks import RESNET20
from experiments.errors import RunError
from experiments.models import resnet


def test_step_ratios(faked, with_torch):
    (record,) = steps.measure(options(), silent)
    (network,) = record["networks"]
    rows = {(row["implementation"], row["rank_scale"]): row for row in network["contenders"]}
    assert len(rows) == faked.closed == 9
    low = rows["ours", 0.111]
    found = {name: ratio["median"] for name, ratio in low["ratio_to"].items()}
    assert found == pytest.approx({"torch": 0.6, "lax": 0.2, "dense": 0.3})
    assert low["images_per_second"] == pytest.approx(128 / 0.3)
    assert low["memory_to_torch"] == 1.5
    assert low["seconds_per_step"] == pytest.approx({"median": 0.3, "low": 0.3, "high": 0.3})
    assert rows["torch", 0.0]["ratio_to"].keys() == {"lax"}
    assert rows["torch", 0.0]["memory_to_torch"] is None
    lines = steps.table(record).splitlines()
    line = next(x for x in lines if "0.111" in x and "this project" in x)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "rank scale 0.111", "this project", "300.0 [300.0, 300.0]", "0.60 [0.60, 0.60]",
        "0.20 [0.20, 0.20]", "0.30 [0.30, 0.30]", "427", "1,000", "2.00", "300", "1.50", "600",
        "–", "3.5",
    ]  # fmt: skip


def test_several_steps_to_a_turn(faked, with_torch, monkeypatch):
    monkeypatch.setattr(Fake, "turn", lambda self: 1.0)
    network = dataclasses.replace(RESNET20, steps_per_turn=4)
    (record,) = steps.measure(options(networks=(network,)), silent)
    row = record["networks"][0]["contenders"][0]
    assert row["seconds_per_step"]["median"] == pytest.approx(1.0 / 4)
    assert row["images_per_second"] == pytest.approx(4 * 128 / 1.0)


def test_without_torch_everything_else_runs(faked, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    (record,) = steps.measure(options(), said.append)
    assert "pip install -e '.[benchmark]'" in said[0]
    assert said[0] in steps.table(record)
    implementations = [row["implementation"] for row in record["networks"][0]["contenders"]]
    assert Counter(implementations) == {"ours": 3, "lax": 3}
    figure = plot.ratios(whole({"step": record}))
    assert "plain lax" in figure.axes[0].get_xlabel()


def test_every_contender_is_ended_when_one_fails(faked, with_torch, monkeypatch):
    def turn(self):
        if self._who == ("lax", 0.333):
            raise RunError("no memory")
        return 1.0

    monkeypatch.setattr(Fake, "turn", turn)
    with pytest.raises(RunError, match="no memory"):
        list(steps.measure(options(), silent))
    assert faked.closed == 9


def test_targets_are_judged_by_the_median(faked, with_torch):
    (record,) = steps.measure(options(), silent)
    share = {"median": 0.03, "low": 0.01, "high": 0.05}
    decay = {
        "network": "ResNet-20",
        "updates": [{"decay": "frobenius", "share_of_step": share}],
    }
    text = targets.table(whole({"step": record, "decay": decay}))
    verdicts = {}
    for line in text.splitlines()[2:]:
        quantity, *_, verdict = [cell.strip() for cell in line.strip("|").split("|")]
        verdicts[quantity] = verdict
    name = "ResNet-20, float32"
    assert verdicts == {
        f"{name}, dense: time / PyTorch's": "met",
        f"{name}, rank scale 0.111: time / PyTorch's": "met",
        f"{name}, rank scale 0.111: time / own dense": "stretch met",
        f"{name}, rank scale 0.111: memory / PyTorch's": "missed by 15 %",
        f"{name}, rank scale 0.333: time / PyTorch's": "missed by 9 %",
        f"{name}, rank scale 0.333: memory / PyTorch's": "missed by 15 %",
        "Frobenius decay, ResNet-20: share of a step": "missed by 50 %",
    }
    page = outcome.document(whole({"step": record}), "a.png")
    assert "2 cores of Slow; JAX 0.10.2, Python 3.11.7; commit aaaaaaaaaaaa with uncom" in page
    assert "## Targets" in page and "![" in page
    assert "## Targets" not in outcome.document(whole({"step": record}, quick=True), None)


def test_the_plot_shows_medians_and_intervals(faked, with_torch, monkeypatch):
    turns, speeds = itertools.count(), {"ours": 1.0, "lax": 3.0, "torch": 2.0}
    monkeypatch.setattr(Fake, "turn", lambda self: speeds[self._who[0]] * (1 + next(turns) % 2))
    (record,) = steps.measure(options(alternations=20), silent)
    (axis,) = plot.ratios(whole({"step": record})).axes
    ours, lax = axis.containers
    assert (ours.get_label(), lax.get_label()) == ("this project", "plain lax convolutions")
    rows = [r for r in record["networks"][0]["contenders"] if r["implementation"] == "ours"]
    for row, (x, _), bar in zip(
        rows, ours.lines[0].get_xydata(), ours.lines[2][0].get_segments(), strict=True
    ):
        ratio = row["ratio_to"]["torch"]
        assert (x, bar[0][0], bar[1][0]) == pytest.approx(
            (ratio["median"], ratio["low"], ratio["high"])
        )
    assert axis.lines[0].get_xdata() == [1, 1]
    assert plot.ratios(whole({})) is None


def test_variants(faked, monkeypatch):
    monkeypatch.setattr(variants, "cache_times", lambda plain: {"compile_s": 9.0, "load_s": 0.5})
    (record,) = variants.measure(options(), silent)
    assert [row["option"] for row in record["options"]] == [
        "plain", "precision=bfloat16", "accumulate_steps=4", "remat=True",
    ]  # fmt: skip
    assert {row["ratio_to_plain"]["median"] for row in record["options"]} == {1.0}
    assert "9.0 s to compile into it, 0.5 s to load" in variants.table(record)


@pytest.mark.slow
def test_decay_and_data_beside_a_real_step():
    quick = options(quick=True, alternations=1)
    (decay,) = decay_cost.measure(quick, silent)
    for row in decay["updates"]:
        assert row["seconds"]["median"] > 0 and row["seconds"]["low"] is None
        assert row["share_of_step"]["median"] > 0
    assert "frobenius" in decay_cost.table(decay)
    (data,) = data_rate.measure(quick, silent)
    assert data["multiple"]["median"] == pytest.approx(
        data["images_per_second"] / data["step_images_per_second"]
    )
    assert "pipeline / step" in data_rate.table(data)


def test_initialization_times_add_up():
    (record,) = initialization_time.measure(options(quick=True, alternations=1), silent)
    times = {tuple(row["shape"]): row["seconds"]["median"] for row in record["shapes"]}
    (network,) = record["networks"]
    assert network["kernels"] == 30
    counts = initialization_time.NETWORKS["ResNet-32"]
    assert network["seconds"] == pytest.approx(sum(times[s] * n for s, n in counts.items()))
    assert "3 x 3 x 16 x 32" in initialization_time.table(record)


def test_kernel_shapes_are_those_of_the_networks():
    def size(name):
        kernels = initialization_time.NETWORKS[name]
        return sum(int(np.prod(shape)) * count for shape, count in kernels.items())

    model = resnet.ResNet(num_classes=10, depth=32)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
    kernels = [
        block[name]["kernel"].shape
        for block in variables["params"].values()
        for name in ("conv1", "conv2")
        if name in block
    ]
    assert Counter(kernels) == initialization_time.NETWORKS["ResNet-32"]
    # The published totals, less what is not factorized: stem, batch norms and head.
    norms = 2 * (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512)
    assert size("VGG-19") == 20035018 - 27 * 64 - norms - (512 * 10 + 10)
    norms = 2 * (16 + 7 * 160 + 160 + 7 * 320 + 320 + 7 * 640 + 640)
    assert size("WRN-28-10") == 36479194 - 27 * 16 - norms - (640 * 10 + 10)
    assert sum(initialization_time.NETWORKS["WRN-28-10"].values()) == 27
    assert size("BERT-base") == 12 * (4 * 768**2 + 2 * 768 * 3072)
