"""Runs that start from a finished run: what is carried over, what is measured, what is refused.

One chain of tiny runs serves all tests: a dense run; what follows it, factorized at full rank; and
what follows that, merged and pruned.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import tiny_runs
from ml_collections import ConfigDict
from tiny_main import ENTRY
from tiny_runs import contents, outcome, sigterm_at

import lowrank_jax as lrj
from configs import compress_trained
from experiments import arguments, describe, evaluate, models, result, tasks
from experiments import start as starts
from experiments import state as states
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.metrics import read_metrics
from experiments.restored_run import RestoredRun
from experiments.stopping import Stopped
from experiments.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("tiny")


# Without the layout and the forms that are faster to run: these are faster to compile.
EXECUTION = "steps_per_dispatch=1,layout=as_written,forms=count"


def compressed(start: Path, argument: str) -> ConfigDict:
    return compress_trained.get_config(f"start={start},{EXECUTION},{argument}")


class Chain(NamedTuple):
    """The run folders, and what the last two runs said."""

    dense: Path
    full_rank: Path
    pruned: Path
    said: list[str]


PRUNED = "method=prune,ratio=0.6"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Chain:
    folder, said = tmp_path_factory.mktemp("chain"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", ENTRY)
        dense = tiny_runs.train(
            folder / "dense",
            "layout=as_written,forms=count,epochs=8",
            rank_scale=0.0,
            batch_size=64,
        )
        config = compressed(dense, "energy=1,init=spectral")
        full_rank = train_and_evaluate(config, folder / "full_rank", said.append)
        config = compressed(full_rank, PRUNED)
        pruned = train_and_evaluate(config, folder / "pruned", said.append)
    return Chain(dense, full_rank, pruned, said)


@pytest.fixture(scope="module")
def task(chain: Chain) -> tasks.Classification:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", ENTRY)
        return tasks.load(FinishedRun.read(chain.dense).config)


def recorded(folder: Path) -> dict[str, Any]:
    return json.loads((folder / result.FILE_NAME).read_text())


# ------------------------------------------------------------------ what is carried over


@pytest.mark.slow
def test_full_rank_is_the_same_function(chain: Chain, task: tasks.Classification) -> None:
    """The dense run's own state, against the factorized one that the next run starts with."""
    config = arguments.settle(compressed(chain.dense, "energy=1"))
    start = starts.load(config, task.network, task.data)
    assert start is not None
    assert start.trained
    table = states.resolve(config, start.variables.params)
    plan = states.plan(config, task.network, 5, table)
    state = states.create(plan, task.network, start.variables)
    assert [row.rank for row in table.rows] == [12]  # 3 x 3 taps, 4 into 8: min(3 * 4, 3 * 8)
    assert lrj.is_factorized(state.params["conv"]["kernel"])
    trained = RestoredRun.read(chain.dense).state
    split = jax.device_put(task.splits["test"])
    logits = [
        np.asarray(task.logits(one.params, one.model_state, split)) for one in (trained, state)
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5 * np.abs(logits[0]).max())


def test_energy_cuts_the_spectrum_of_the_trained_kernel(
    chain: Chain, task: tasks.Classification
) -> None:
    """Against the singular values of the kernel as a matrix, (width, in) x (height, out)."""
    start = starts.load(
        arguments.settle(compressed(chain.dense, "energy=0.8")), task.network, task.data
    )
    assert start is not None
    kernel = np.asarray(start.variables.params["conv"]["kernel"], np.float64)
    values = np.linalg.svd(kernel.transpose(1, 2, 0, 3).reshape(12, 24), compute_uv=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    for energy in (0.5, 0.8, 0.95):
        config = arguments.settle(compressed(chain.dense, f"energy={energy}"))
        (row,) = describe.describe(config).table.rows
        assert row.rank == 1 + int(np.sum(shares < energy)) < 12


def test_the_same_images_are_held_out(chain: Chain, task: tasks.Classification) -> None:
    for folder in (chain.full_rank, chain.pruned):
        splits = tasks.load(FinishedRun.read(folder).config).splits
        assert splits.keys() == {"train", "validation", "test"}
        for name, (images, _) in splits.items():
            np.testing.assert_array_equal(images, task.splits[name][0])


# ------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("which", ["full_rank", "pruned"])
def test_before_training(which: str, chain: Chain) -> None:
    """Both steps keep the function: the accuracy at step 0 is the start's final one."""
    folder = getattr(chain, which)
    start = chain.dense if which == "full_rank" else chain.full_rank
    before, found = recorded(start), recorded(folder)["start"]
    assert found["run"] == str(start)
    assert (found["factorized"] is None) == (which == "pruned")  # Entries go later, step by step.
    for scores in filter(None, (found, found["factorized"])):
        assert scores["accuracy"] == before["final"]["accuracy"]
        assert scores["loss"] == pytest.approx(before["final"]["loss"], rel=1e-5)
    assert before["start"] is None or which == "pruned"

    first, last = read_metrics(folder)[0], read_metrics(start)[-1]
    assert (first["step"], first["epoch"]) == (0, 0)
    for split in ("validation", "test"):
        for words in (f"start_{split}", split):
            assert first[f"{words}_accuracy"] == last[f"{split}_accuracy"]
            assert first[f"{words}_loss"] == pytest.approx(last[f"{split}_loss"], rel=1e-5)
    assert (found["accuracy"], found["loss"]) == (
        first["start_test_accuracy"],
        first["start_test_loss"],
    )


def test_what_is_said(chain: Chain) -> None:
    text = "\n".join(chain.said)
    assert f"start: {chain.dense}\n" in text and f"start: {chain.full_rank}\n" in text
    for folder in (chain.full_rank, chain.pruned):
        start, final = recorded(folder)["start"], recorded(folder)["final"]
        told = f"test accuracy {start['accuracy']:.2%} (loss {start['loss']:.3f}) at the start"
        assert text.count(told) >= 2  # At step 0 and at the end.
        assert f"final test accuracy {final['accuracy']:.2%}" in text


def test_pruning_goes_on_from_the_merged_network(chain: Chain) -> None:
    found = recorded(chain.pruned)
    assert (found["parameters"], found["dense_parameters"]) == (round(0.6 * 502), 502)
    state = RestoredRun.read(chain.pruned).state
    kernel = np.asarray(state.params["conv"]["kernel"])
    assert np.count_nonzero(kernel) == found["parameters"] - (502 - kernel.size)


def test_a_finished_run_is_evaluated_without_its_start(chain: Chain, tmp_path: Path) -> None:
    """Its ranks, which came from singular values, are in its own table."""
    folder = Path(shutil.copytree(chain.full_rank, tmp_path / "run"))
    shutil.move(chain.dense, tmp_path / "elsewhere")
    try:
        found = evaluate.evaluate(RestoredRun.read(folder))
        assert found["factored"]["accuracy"] == recorded(folder)["final"]["accuracy"]
    finally:
        shutil.move(tmp_path / "elsewhere", chain.dense)


# ------------------------------------------------------------------ interruptions


def test_a_continued_run_has_the_same_bits(chain: Chain, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", compressed(chain.full_rank, PRUNED)
    with pytest.raises(Stopped):
        train_and_evaluate(config, folder, sigterm_at("step 20/40"))
    before = contents(folder)
    shutil.move(chain.full_rank, tmp_path / "elsewhere")
    try:
        with pytest.raises(RunError, match="full_rank is not a finished run: it does not exist"):
            train_and_evaluate(config, folder)
    finally:
        shutil.move(tmp_path / "elsewhere", chain.full_rank)
    assert contents(folder) == before
    train_and_evaluate(config, folder, lambda line: None)
    assert outcome(folder) == outcome(chain.pruned)
    assert recorded(folder)["start"] == recorded(chain.pruned)["start"]


# ------------------------------------------------------------------ what is refused


def refused(config: ConfigDict, task: tasks.Classification, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        starts.load(arguments.settle(config), task.network, task.data)
    assert "\n" not in str(caught.value)


def change(folder: Path, name: str, **fields: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a finished run: it does not exist"),
        (lambda run: (run / "result.json").unlink(), "is not a finished run: it has no result"),
        (lambda run: (run / "result.json").write_text("[]"), "damaged"),
        (lambda run: (run / "table.json").write_text("{}"), r"cannot read .*table\.json"),
        (lambda run: shutil.rmtree(run / "checkpoints" / "160"), "checkpoint"),
        (lambda run: change(run, "data.json", fingerprint="0" * 64), "other data"),
    ],
)
def test_broken_starts(
    damage: Any, message: str, chain: Chain, task: tasks.Classification, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(chain.dense, tmp_path / "run"))
    config = compressed(run, "energy=0.9")
    damage(run)
    refused(config, task, message)


def test_a_file_is_no_start(chain: Chain, task: tasks.Classification, tmp_path: Path) -> None:
    config = compressed(chain.dense, "")
    config.start = str(tmp_path / "file")
    (tmp_path / "file").write_text("")
    refused(config, task, "file is not a finished run: it is a file")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("width=2", "model.width is 1.0 there and 2.0 here"),
        ("protocol=published,validation=0", "protocol is 'ours' there and 'published' here"),
        ("data=fashion_small", "data.name is 'digits' there and 'fashion_small' here"),
        ("seed=2", r"validation=0.1 and seed=2 hold out images .*trained on.*and seed=1\. Take"),
        ("validation=0.2", r"validation=0.2 and seed=1 hold out images .*it has validation=0.1 "),
        ("kind=tucker,energy=0,rank_scale=1", "kind is 'conv' there and 'tucker' here"),
    ],
)
def test_starts_that_do_not_agree(
    argument: str,
    message: str,
    chain: Chain,
    task: tasks.Classification,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = ENTRY.factorizations["conv"]
    kinds = {"conv": conv, "tucker": conv._replace(fields={"separable": True})}
    monkeypatch.setitem(models.MODELS, "tiny", ENTRY._replace(factorizations=kinds))
    refused(compressed(chain.dense, argument), task, message)


def test_another_seed_needs_no_validation(chain: Chain, task: tasks.Classification) -> None:
    """Where nothing is held out, nothing can have been trained on."""
    config = arguments.settle(compressed(chain.dense, "seed=2,validation=0"))
    one = starts.load(config, task.network, task.data)
    other = starts.load(arguments.settle(compressed(chain.dense, "")), task.network, task.data)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ------------------------------------------------------------------ the ratio


@pytest.mark.parametrize(
    ("parameters", "got"), [(251, None), (276, None), (226, None), (277, "0.5518"), (225, "0.4482")]
)
def test_a_ratio_that_is_missed_is_told(parameters: int, got: str | None) -> None:
    config = arguments.settle(tiny_runs.config(rank_scale=0.0, ratio=0.5))
    network = tasks.classification.Network.of(config, 10, 32)
    plan = dataclasses.replace(
        states.plan(config, network, 5), parameters=parameters, dense_parameters=502
    )
    if got is None:
        assert plan.missed_ratio is None
    else:
        assert str(plan.missed_ratio).startswith(f"asked for ratio 0.5, got {got}: ranks are")
