"""Text classification: its sums, and runs that start from a pre-trained encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import little_texts
import numpy as np
import pytest
import tiny_runs

import lowrank_jax as lrj
from experiments import arguments, describe, evaluate, export, tasks
from experiments import start as starts
from experiments.errors import RunError
from experiments.restored_run import RestoredRun
from experiments.stopping import Stopped
from experiments.tasks.text_network import Rows

pytestmark = pytest.mark.usefixtures("every_step_is_told")


@pytest.fixture(scope="module")
def pretrained(
    text_data: str, tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path
) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pretrained"
    return little_texts.train(little_texts.pretrain(text_data), folder)


def test_sums_count_every_paragraph_once(text_data: str) -> None:
    task = tasks.load(arguments.settle(little_texts.fine_tune(text_data, rank_scale=0.0)))
    assert task.labels == ("animals", "plants")
    variables = jax.jit(task.network.init)(jax.random.key(0))
    split = task.splits["test"]
    assert len(split.labels) % task.eval_batch_size
    sums = jax.jit(task.evaluate)(variables["params"], {}, jax.tree.map(jnp.asarray, split))
    logits = np.asarray(task.network.apply(variables["params"], {}, Rows(split.tokens)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -log_p[np.arange(len(log_p)), split.labels]
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=2e-6)
    assert int(sums["correct"]) == (logits.argmax(-1) == split.labels).sum()
    assert int(sums["count"]) == len(split.labels)
    found = task.logits(variables["params"], {}, jax.tree.map(jnp.asarray, split))
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


def test_the_encoder_and_the_vocabulary_are_the_pretrained_ones(
    text_data: str, pretrained: Path
) -> None:
    config = arguments.settle(little_texts.fine_tune(text_data, start=str(pretrained)))
    task = tasks.load(config)
    assert task.vocabulary.model == (pretrained / "vocabulary.model").read_bytes()
    start = starts.load(config, task.network, task.data)
    assert start is not None and not start.trained
    found = start.variables
    before = RestoredRun.read(pretrained).variables
    expected = lrj.merge(before.params)["encoder"]
    jax.tree.map(np.testing.assert_array_equal, found.params["encoder"], expected)
    # At the rank that it was trained at nothing of the encoder is lost.
    plan = starts.states.plan(config, task.network, 1, starts.states.resolve(config, found.params))
    state = starts.states.create(plan, task.network, found)
    after = lrj.merge(state.params)["encoder"]
    tokens = jnp.asarray(task.splits["test"].tokens)
    merged = {"params": {**lrj.merge(state.params), "encoder": expected}}
    np.testing.assert_allclose(
        task.network.model.apply({"params": state.params}, tokens, False),
        task.network.model.apply(merged, tokens, False),
        atol=1e-5,
    )
    up = "layer_0", "feed_forward", "up", "kernel"
    one, other = after, expected
    for part in up:
        one, other = one[part], other[part]
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_fine_tuning_learns_and_resumes_with_the_same_bits(
    text_data: str, pretrained: Path, tmp_path: Path
) -> None:
    def config():
        return little_texts.fine_tune(
            text_data, "learning_rate=0.02,epochs=4", start=str(pretrained)
        )

    said: list[str] = []
    whole = little_texts.train(config(), tmp_path / "whole", said.append)
    result = json.loads((whole / "result.json").read_text())
    assert result["final"]["accuracy"] > result["scores"]["majority_accuracy"] + 0.2
    assert result["start"] is None  # Only a whole network has been anything before.
    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped):
        little_texts.train(config(), stopped, tiny_runs.sigterm_at("step 2/"))
    little_texts.train(config(), stopped)
    assert tiny_runs.outcome(stopped) == tiny_runs.outcome(whole)
    # A finished run needs its start no more.
    moved = pretrained.rename(pretrained.with_name("moved"))
    evaluate.evaluate(RestoredRun.read(whole))
    assert f"accuracy {result['final']['accuracy']:.2%}" in export.export(whole, "merged")
    moved.rename(pretrained)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model__head_scale": 1.0}, "model.head_scale is 0.5 there and 1.0 here"),
        ({"model__d_ff": 32}, "model.d_ff is 16 there and 32 here"),
        ({"vocabulary_size": 310}, "has 300 pieces; give vocabulary_size=300"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    keys: dict, words: str, text_data: str, pretrained: Path
) -> None:
    config = arguments.settle(little_texts.fine_tune(text_data, start=str(pretrained), **keys))
    with pytest.raises(RunError, match=words):
        task = tasks.load(config)
        starts.load(config, task.network, task.data)


def test_starts_of_other_tasks_are_refused(
    text_data: str, pretrained: Path, tmp_path: Path
) -> None:
    argument = "task=causal_language_model"
    config = little_texts.pretrain(text_data, argument, start=str(pretrained))
    config = arguments.settle(config)
    with pytest.raises(RunError, match="task is 'masked_language_model' there"):
        starts.load(config, tasks.network(config))
    # A vocabulary that is not the one of the checkpoint.
    copied = tmp_path / "copied"
    shutil.copytree(pretrained, copied)
    other = tasks.load(
        arguments.settle(little_texts.fine_tune(little_texts.write_text(tmp_path / "t"), ""))
    ).vocabulary.train(["some other words of a text", "x"], 300, control_pieces=("<mask>",))
    (copied / "vocabulary.model").write_bytes(other.model)
    config = arguments.settle(little_texts.fine_tune(text_data, start=str(copied)))
    task = tasks.load(config)
    with pytest.raises(RunError, match="trained with the vocabulary"):
        starts.load(config, task.network, task.data)
    (copied / "vocabulary.model").unlink()
    with pytest.raises(RunError, match=r"it has no vocabulary\.model"):
        tasks.load(config)


def test_a_text_that_changed_since_is_no_text_to_test_on(pretrained: Path, tmp_path: Path) -> None:
    """Which documents are held out has changed with it."""
    data = little_texts.write_text(tmp_path / "text")
    start = little_texts.train(little_texts.pretrain(data), tmp_path / "pretrained")
    (tmp_path / "text" / "plants" / "new.txt").write_text("the tree stands\n\nthe grass grows\n")
    config = arguments.settle(little_texts.fine_tune(data, start=str(start)))
    task = tasks.load(config)
    with pytest.raises(RunError, match="has changed since"):
        starts.load(config, task.network, task.data)
    config = arguments.settle(little_texts.fine_tune(data, start=str(tmp_path / "nowhere")))
    with pytest.raises(RunError, match="nowhere is not a finished run: it does not exist"):
        tasks.load(config)


def test_text_without_labels_is_refused(text_data: str) -> None:
    config = arguments.settle(little_texts.fine_tune(text_data.replace("*/*", "plants/*")))
    with pytest.raises(RunError, match="has no labels"):
        tasks.load(config)


def test_describe_needs_no_training(text_data: str, capsys: pytest.CaptureFixture[str]) -> None:
    argument = f"{little_texts.FINE_TUNING},data={text_data}"
    describe.run(["describe", f"--config=configs/fine_tuning.py:{argument}"])
    assert "encoder/layer_0/feed_forward/up/kernel" in capsys.readouterr().out
