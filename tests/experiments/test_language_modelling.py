"""Masked and causal language modelling: what is asked, its sums, and whole runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import little_texts
import numpy as np
import pytest
import tiny_runs

import lowrank_jax as lrj
from configs import pretraining
from experiments import arguments, evaluate, export, recipe, tasks
from experiments import start as starts
from experiments.errors import RunError
from experiments.restored_run import RestoredRun
from experiments.run_length import total_steps_of
from experiments.special_tokens import BOS, EOS, MASK, PAD
from experiments.stopping import Stopped
from experiments.tasks.task import Batch
from experiments.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("every_step_is_told")

TASKS = ("masked_language_model", "causal_language_model")


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest, text_data: str):
    config = little_texts.pretrain(text_data, f"task={request.param}", rank_scale=0.0)
    return tasks.load(arguments.settle(config))


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.network.init)(jax.random.key(0))


def log_probabilities(task, variables, inputs) -> np.ndarray:
    apply = jax.jit(task.network.apply)
    logits = np.asarray(apply(variables["params"], {}, inputs), np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# ------------------------------------------------------------------ what is asked


def test_causal_targets_are_the_next_tokens_and_masked_ones_what_was_there(task) -> None:
    blocks = jnp.asarray(task.splits["validation"])
    asked = task.ask(blocks, jax.random.split(jax.random.key(0), len(blocks)))
    for number, row in enumerate(np.asarray(blocks)):
        tokens, counted = np.asarray(asked.inputs[0][number]), np.asarray(asked.counted[number])
        targets = np.asarray(asked.targets[number])[counted]
        if len(asked.inputs) == 1:  # causal
            assert tokens.tolist() == row[:-1].tolist()
            assert targets.tolist() == [token for token in row[1:] if token != PAD]
        else:
            places = np.asarray(asked.inputs.places[number])[counted]
            assert targets.tolist() == row[places].tolist() and (targets > MASK).all()
            others = np.setdiff1d(np.arange(len(row)), places)
            assert tokens[others].tolist() == row[others].tolist()


def test_what_is_asked_about_a_block_does_not_depend_on_its_batch(text_data: str) -> None:
    task = tasks.load(arguments.settle(little_texts.pretrain(text_data, rank_scale=0.0)))
    arrays = {"train": jnp.asarray(task.splits["train"])}

    def masked(indices: list[int], epoch: int, seed: int = 1):
        seeded = dataclasses.replace(task, seed=seed)
        shape = Batch(len(indices))
        return seeded.batch(arrays, jnp.array(indices), jnp.int32(epoch), shape)

    whole, part = masked([3, 9, 1, 4], 2), masked([1, 3], 2)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(one[2], other[0])
        np.testing.assert_array_equal(one[0], other[1])
    assert not np.array_equal(masked([1, 3], 3).inputs.tokens, part.inputs.tokens)
    assert not np.array_equal(masked([1, 3], 2, seed=2).inputs.places, part.inputs.places)


def test_held_out_splits_are_documents_that_are_not_trained_on(task, text_data: str) -> None:
    texts = {
        split: task.vocabulary.decode(int(i) for i in blocks.ravel() if i not in (BOS, EOS, PAD))
        for split, blocks in task.splits.items()
    }
    files = [
        path.read_text().split("\n\n") for path in Path(text_data[6:]).parents[1].glob("*/*.txt")
    ]
    for lines in files:
        found = {split for split, text in texts.items() if lines[1] in text}
        assert len(found) == 1


# ------------------------------------------------------------------ sums


def test_sums_over_a_split_are_those_of_its_tokens(task, variables) -> None:
    blocks = jnp.asarray(task.splits["test"])
    assert len(blocks) % task.eval_batch_size  # The last batch is filled up.
    sums = jax.jit(task.evaluate)(variables["params"], {}, blocks)
    expected = dict.fromkeys(("loss", "correct", "count"), 0.0)
    asked = task._held_out(blocks, jnp.arange(len(blocks)))
    log_p = log_probabilities(task, variables, asked.inputs)
    for place in zip(*np.nonzero(np.asarray(asked.counted)), strict=True):
        target = int(asked.targets[place])
        expected["loss"] -= log_p[place][target]
        expected["correct"] += log_p[place].argmax() == target
        expected["count"] += 1
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=2e-6, err_msg=name)


def test_the_unigram_loss(task) -> None:
    """Against counting by hand; held-out blocks are asked the same whatever the batches are."""
    first = EOS if task.unit == "tokens" else MASK + 1
    seen = Counter(int(t) for t in task.splits["train"].ravel() if t >= first)
    total = sum(seen.values()) + task.vocabulary.size - first
    blocks = jnp.asarray(task.splits["test"])
    asked = task._held_out(blocks, jnp.arange(len(blocks)))
    targets = np.asarray(asked.targets)[np.asarray(asked.counted)]
    expected = -np.mean([math.log((seen[int(t)] + 1) / total) for t in targets])
    assert task.unigram_loss("test") == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize(
    ("task_name", "argument"),
    [
        ("causal_language_model", "rank_scale=0,products=qk,frobenius_decay=0.1"),
        pytest.param(
            *("masked_language_model", "kind=projections,products=none"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_and_one_that_was_stopped_end_with_the_same_bits(
    task_name: str, argument: str, text_data: str, tmp_path: Path, compilation_cache: Path
) -> None:
    given = f"task={task_name},dropout=0.1"
    config = little_texts.pretrain(text_data, f"{given},{argument}")
    whole = little_texts.train(config, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped):
        little_texts.train(config, stopped, tiny_runs.sigterm_at("step 3/7"))
    little_texts.train(config, stopped)
    assert tiny_runs.outcome(stopped) == tiny_runs.outcome(whole)

    result = json.loads((whole / "result.json").read_text())
    again = evaluate.evaluate(RestoredRun.read(whole))
    assert again["factored"]["loss"] == pytest.approx(result["final"]["loss"], rel=1e-5)
    assert result["scores"].keys() == {"split", "unigram_loss"}
    assert "model.apply(variables, tokens" in export.export(whole, "merged")


def test_a_language_model_goes_on_from_another_one(
    text_data: str, tmp_path: Path, compilation_cache: Path
) -> None:
    """What was trained dense goes on at half the rank, with the same vocabulary."""
    argument = "products=none,rank_scale=0,steps=3"
    dense = little_texts.train(little_texts.pretrain(text_data, argument), tmp_path / "dense")
    config = arguments.settle(
        little_texts.pretrain(text_data, "products=none,init=spectral", start=str(dense))
    )
    task = tasks.load(config)
    start = starts.load(config, task.network, task.data)
    assert start is not None and start.trained
    trained = RestoredRun.read(dense).variables.params
    jax.tree.map(np.testing.assert_array_equal, start.variables.params, trained)
    assert task.vocabulary.model == (dense / "vocabulary.model").read_bytes()


def test_a_text_that_was_changed_is_refused(tmp_path: Path, compilation_cache: Path) -> None:
    data = little_texts.write_text(tmp_path / "text")
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        little_texts.train(little_texts.pretrain(data), folder, tiny_runs.sigterm_at("step 3/7"))
    (tmp_path / "text" / "animals" / "3.txt").write_text("Another text altogether.\n")
    with pytest.raises(RunError, match="fingerprint"):
        little_texts.train(little_texts.pretrain(data), folder)


def test_bad_text_is_counted_and_told(tmp_path: Path) -> None:
    data = little_texts.write_text(tmp_path)
    (tmp_path / "animals" / "empty.txt").write_bytes(b"")
    for path in sorted(tmp_path.glob("plants/*.txt")):
        path.write_bytes(path.read_bytes() + b"\n\n\xff\xfe no text\n")
    task = tasks.load(arguments.settle(little_texts.pretrain(data)))
    (remark,) = task.remarks()
    assert "1 empty documents" in remark and "undecodable paragraphs" in remark
    held_out = task.counts["evaluation_undecodable_paragraphs"]
    assert held_out > 0 and task.counts["undecodable_paragraphs"] + held_out == 12


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("batch_size=5000", "batch size 5000 with .* expected 1 to"),
        ("block_length=17", "rows of 17 tokens: the model has 16 positions"),
        ("block_length=1", "a row needs at least 2 ids"),
        ("heads=3", "heads that divide d_model"),
        ("accumulate_steps=2", "accumulate_steps=2 with task=masked_language_model"),
        ("kind=conv", "kind=conv"),
        ("model=gpt", "model=gpt is for causal_language_model"),
        ("warmup_steps=7", "warmup_steps=7 in a run of 7 steps"),
        ("vocabulary_size=20", "too few for the characters of this text"),
    ],
)
def test_what_does_not_fit_is_refused(text_data: str, argument: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        config = arguments.settle(little_texts.pretrain(text_data, argument))
        recipe.require_peak(config, total_steps_of(config, len(tasks.load(config).batches(0))))


def test_counts_of_the_published_size() -> None:
    """BERT-base without its pooler, and with half the attention heads' size as configured."""
    config = arguments.settle(pretraining.get_config("head_scale=1"))
    network = tasks.network(config)
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    assert lrj.describe(params).parameters == 109_514_298
    config = arguments.settle(pretraining.get_config())
    params = jax.eval_shape(tasks.network(config).init, jax.random.key(0))["params"]
    smaller = 12 * (4 * 768 * 384 + 3 * 384)
    assert lrj.describe(params).parameters == 109_514_298 - smaller


@pytest.mark.slow
@pytest.mark.parametrize("task_name", TASKS)
def test_text_is_learned(task_name: str, tmp_path: Path) -> None:
    """Better than the unigram model by a margin in nats, on text that was not trained on."""
    config = pretraining.get_config(f"runlocal,task={task_name}")
    folder = train_and_evaluate(config, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    margin = {"masked_language_model": 0.2, "causal_language_model": 1.0}[task_name]
    assert result["final"]["loss"] < result["scores"]["unigram_loss"] - margin
