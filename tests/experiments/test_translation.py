"""The translation task: its batches, its loss, its sums, and whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import little_translations
import numpy as np
import pytest
import tiny_runs

import lowrank_jax as lrj
from configs import translation as translation_config
from experiments import arguments, checkpoint, evaluate, export, measures, tasks
from experiments import state as states
from experiments import translate as translate_command
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.restored_run import RestoredRun
from experiments.special_tokens import BOS, EOS, PAD
from experiments.stopping import Stopped
from experiments.tasks.task import Batch, Selection
from experiments.tasks.translation import Rows, Translation


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return little_translations.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def task(text: Path) -> Translation:
    return tasks.load(arguments.settle(little_translations.config(text, rank_scale=0.0)))


@pytest.fixture(scope="module")
def variables(task: Translation):
    return jax.jit(task.network.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Path:
    return little_translations.train(tmp_path_factory.mktemp("run") / "run", text)


# ------------------------------------------------------------------ batches


def test_an_epoch_has_every_pair_at_most_once_in_rows_of_its_length(task: Translation) -> None:
    pairs = task.text.splits["train"]
    for epoch in (0, 3):
        order, batches = np.asarray(task.order(epoch)), task.batches(epoch)
        assert len(batches) == len(task.batches(0)) and len(set(batches)) > 1
        assert len(order) == sum(batch.size for batch in batches) == len(set(order.tolist()))
        start = 0
        for shape in batches:
            indices = order[start : start + shape.size]
            start += shape.size
            rows = task.batch(task.splits, jnp.asarray(indices), jnp.int32(epoch), shape)
            for side, whole, lengths in (
                (rows.source, pairs.source, pairs.source_length),
                (rows.target, pairs.target, pairs.target_length),
            ):
                assert side.shape == (shape.size, shape.length)
                for row, index in zip(np.asarray(side), indices, strict=True):
                    assert (row != PAD).sum() == lengths[index]
                    assert (row[: lengths[index]] == whole[index, : lengths[index]]).all()
                    assert row[lengths[index] - 1] == EOS
    assert not np.array_equal(task.order(0), task.order(3))


# ------------------------------------------------------------------ loss and sums


def reference(task: Translation, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """The sums of one unpadded sentence, token by token in float64."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth, size = task.label_smoothing, logits.shape[-1]
    nll = -log_p[np.arange(len(target)), target]
    loss = (1 - smooth) * nll + smooth / size * -log_p.sum(-1)
    hits = (logits.argmax(-1) == target).sum()
    return {"loss": loss.sum(), "nll": nll.sum(), "correct": hits, "count": len(target)}


def alone(task: Translation, variables, split: str) -> dict[str, float]:
    """The sums over a split, every sentence by itself and without padding."""
    pairs = task.text.splits[split]
    totals = dict.fromkeys(("loss", "nll", "correct", "count"), 0.0)
    for row in range(len(pairs.source)):
        source = pairs.source[row, : pairs.source_length[row]]
        target = pairs.target[row, : pairs.target_length[row]]
        given = np.concatenate([[BOS], target[:-1]])
        logits = task.network.model.apply(variables, source[None], given[None], False)[0]
        for name, value in reference(task, logits, target).items():
            totals[name] += value
    return totals


def test_sums_over_a_split_are_those_of_its_sentences_alone(task: Translation, variables) -> None:
    split = "test"
    assert task.label_smoothing == 0.1
    sums = jax.jit(task.evaluate)(variables["params"], {}, task.splits[split])
    expected = alone(task, variables, split)
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=2e-6, err_msg=name)
    assert task.sizes()[split] == len(task.text.splits[split].source)


def test_the_loss_is_the_mean_over_the_targets_of_the_batch(text: Path, variables) -> None:
    config = little_translations.config(text, rank_scale=0.0, model__dropout=0.0)
    task = tasks.load(arguments.settle(config))
    source = np.array([[5, 6, EOS, PAD], [7, EOS, PAD, PAD]], np.int32)
    target = np.array([[9, EOS, PAD, PAD], [8, 7, 6, EOS]], np.int32)
    loss, (_, sums) = task.loss(
        variables["params"], {}, Rows(source, target), noise=jax.random.key(1)
    )
    total = 0.0
    for s, t in (([5, 6, EOS], [9, EOS]), ([7, EOS], [8, 7, 6, EOS])):
        given = jnp.array([[BOS, *t[:-1]]])
        logits = task.network.model.apply(variables, jnp.array([s]), given, False)[0]
        total += reference(task, logits, np.array(t))["loss"]
    assert int(sums["count"]) == 6
    np.testing.assert_allclose(loss, total / 6, rtol=2e-6)
    np.testing.assert_allclose(sums["loss"], total, rtol=2e-6)


def test_dropout_is_a_function_of_its_key(task: Translation, variables) -> None:
    rows = Rows(*(side[0] for side in task.splits["test"][0]))

    def loss(noise: int) -> float:
        return float(task.loss(variables["params"], {}, rows, jax.random.key(noise))[0])

    assert loss(1) == loss(1) != loss(2)


# ------------------------------------------------------------------ the published size


@pytest.mark.parametrize(
    ("scale", "parameters"), [(0.0, 11_890_448), (0.5, 6_379_280), (0.25, 3_197_712)]
)
def test_published_counts(scale: float, parameters: int) -> None:
    config = arguments.settle(translation_config.get_config(f"rank_scale={scale},products=qk_ov"))
    plan = states.plan(config, tasks.network(config), batches_per_epoch=1)
    assert config.vocabulary_size == 10_000
    assert (plan.parameters, plan.dense_parameters) == (parameters, 11_890_448)


# ------------------------------------------------------------------ runs


def test_a_run_keeps_its_vocabulary_and_scores_its_translations(
    finished: Path, text: Path, task: Translation
) -> None:
    result = json.loads((finished / "result.json").read_text())
    vocabulary = Vocabulary((finished / "vocabulary.model").read_bytes())
    assert result["data"]["vocabulary"] == vocabulary.digest == task.vocabulary.digest
    assert result["best"]["split"] == "validation"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == -(-7 // len(task.batches(0))) > 1
    assert result["best"]["loss"] == min(losses)
    scores = result["scores"]
    assert scores["split"] == "test" and "version:" in scores["signature"]
    told = (finished / "translations.txt").read_text().splitlines()
    german = (text / "test.de").read_text().splitlines()
    assert [line.split(maxsplit=1)[1] for line in told if line.startswith("source")] == german
    # The products of queries and keys, and of outputs and values, by module.
    modules = {"encoder_0/attention", "decoder_0/attention", "decoder_0/cross_attention"}
    for group in ("qk", "ov"):
        assert lines[0]["diagnostics"][f"{group}/frobenius_norm"].keys() == modules
        # Spectral initialization: the bound is the nuclear norm, factors are orthogonal.
        norms, bounds = (
            lines[0]["diagnostics"][f"{group}/{name}"] for name in ("nuclear_norm", "nuclear_bound")
        )
        assert bounds == pytest.approx(norms, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("every_step_is_told")
@pytest.mark.parametrize("moment", ["step 1/", pytest.param("translating", marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_the_same_bits(
    finished: Path, text: Path, tmp_path: Path, moment: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        little_translations.train(folder, text, tiny_runs.sigterm_at(moment))
    assert not (folder / "result.json").exists()
    little_translations.train(folder, text)
    assert tiny_runs.outcome(folder) == tiny_runs.outcome(finished)
    again, whole = (json.loads((f / "result.json").read_text()) for f in (folder, finished))
    assert again["scores"] == whole["scores"]


def test_the_command_translates_lines(finished: Path, text: Path, tmp_path: Path) -> None:
    german = (text / "test.de").read_bytes().splitlines()
    found, remarks = translate_command.translate(finished, [*german, b"", b"\xff", b"Hund " * 40])
    told = (finished / "translations.txt").read_text().splitlines()
    expected = [line.partition(" ")[2].strip() for line in told if line.startswith("translation")]
    assert found[: len(german)] == expected
    assert found[len(german)] == "" and len(found) == len(german) + 3
    assert remarks == [
        "1 of 7 lines are not UTF-8", "1 of 7 lines have 32 tokens or more, and were cut"
    ]  # fmt: skip
    broken = shutil.copytree(finished, tmp_path / "run")
    (broken / "vocabulary.model").write_bytes(retrained(text).model)
    with pytest.raises(RunError, match="not the vocabulary that the run was trained with"):
        translate_command.translate(broken, german)
    shutil.rmtree(broken / "selected")
    with pytest.raises(RunError, match="train anew, in another --workdir"):
        translate_command.translate(broken, german)


def test_a_finished_run_is_evaluated_and_exported(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    found = evaluate.evaluate(RestoredRun.read(run))
    result = json.loads((run / "result.json").read_text())
    assert found["factored"]["loss"] == pytest.approx(result["final"]["loss"], rel=1e-5)
    assert found["merged"]["loss"] == pytest.approx(result["final"]["loss"], rel=1e-4)
    assert found["logit_difference"] <= 1e-5
    told = export.export(run, "merged")
    manifest = lrj.export.read_manifest(run / "export" / "merged.safetensors")
    assert manifest["metadata"]["vocabulary"]["digest"] == result["data"]["vocabulary"]
    assert "model.apply(variables, source, target_in, False)" in told
    with pytest.raises(RunError, match="for networks of images"):
        export.export(run, "program")


def test_a_run_whose_best_network_is_damaged_says_so_before_it_goes_on(
    finished: Path, text: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "result.json").unlink()
    # As if the first epoch had been the best one.
    manifest = folder / "checkpoints" / "7" / "manifest" / "metadata"
    content = json.loads(manifest.read_text())
    content["progress"]["best"]["step"] = 5
    del content["checksum"]
    content["checksum"] = checkpoint._checksum(content)
    manifest.write_text(json.dumps(content))
    shutil.rmtree(folder / "selected")
    said: list[str] = []
    with pytest.raises(RunError, match="train anew, in another --workdir"):
        little_translations.train(folder, text, said.append)
    assert not any(line.startswith("continuing") for line in said)


@pytest.mark.parametrize("what", ["text", "vocabulary"])
def test_other_text_or_vocabulary_is_refused(
    finished: Path, text: Path, tmp_path: Path, what: str
) -> None:
    if what == "text":
        folder = little_translations.write_text(tmp_path, test_en=[b"the tree"] * 4)
        with pytest.raises(RunError, match="on other data: files with fingerprint"):
            little_translations.train(finished, folder)
    else:
        with pytest.raises(RunError, match="has 290 pieces; give vocabulary_size=290"):
            little_translations.train(finished, text, vocabulary_size=291)
        # One of the same size that is not the one of the checkpoints.
        run = shutil.copytree(finished, tmp_path / "run")
        (run / "vocabulary.model").write_bytes(retrained(text).model)
        with pytest.raises(RunError, match="another vocabulary"):
            little_translations.train(run, text)


def test_the_vocabulary_is_learned_once(
    finished: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run is looked at again by the vocabulary that it keeps."""
    monkeypatch.setattr(Vocabulary, "train", None)
    task = tasks.load(arguments.settle(little_translations.config(text)), finished)
    assert task.vocabulary.model == (finished / "vocabulary.model").read_bytes()


def retrained(text: Path) -> Vocabulary:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((text / "train.de").read_text().splitlines()),
        model_writer=model, vocab_size=290, model_type="bpe", byte_fallback=True, pad_id=0,
        unk_id=1, bos_id=2, eos_id=3, hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    return Vocabulary(model.getvalue())


def test_bad_lines_are_counted_and_told(text: Path, tmp_path: Path) -> None:
    lines = (text / "train.de").read_bytes().splitlines()
    lines[3], lines[5], lines[8] = b"", b"Ha\xff\xfeus", b"Hund " * 40
    folder = little_translations.write_text(tmp_path, train_de=lines, test_de=[b"", b"\xff"] * 2)
    task = tasks.load(arguments.settle(little_translations.config(folder)))
    (remark,) = task.remarks()
    assert remark == (
        "text: 1 undecodable, 1 empty, 1 over long, 2 evaluation undecodable, 2 evaluation empty"
    )
    # Every line of the test set is translated and scored.
    assert task.sizes()["test"] == len(task.text.texts["test"][1]) == 4
    assert sum(rows.target.shape[0] * rows.target.shape[1] for rows in task.splits["test"]) >= 4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"protocol": "published"}, "recipe=published"),
        ({"accumulate_steps": 2}, "smaller batch_size"),
        ({"kind": "conv"}, "no convolutions"),
        ({"model__heads": 3}, "heads that divide d_model"),
        ({"model__head_scale": 0.01}, "a head size of at least 1"),
        ({"rank_scale": 0.0, "ratio": 0.5, "model__head_scale": 0.5}, "reached by ranks alone"),
        ({"model__max_length": 8}, "raise model.max_length"),
        ({"model__name": "resnet"}, "for translation there is transformer"),
        ({"vocabulary_size": 100_000}, "the largest possible is"),
        ({"vocabulary_size": 100}, "the smallest possible is"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(text: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        tasks.load(arguments.settle(little_translations.config(text, **keys)))


def test_images_are_no_text() -> None:
    from configs import quickstart

    config = quickstart.get_config("model.name=transformer")
    with pytest.raises(RunError, match="model=transformer is for translation"):
        tasks.network(arguments.settle(config))


@pytest.mark.slow
def test_numbers_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny network translates nine tenths of held-out numbers without a fault."""
    from experiments.train import train_and_evaluate

    made = translation_config.get_config("runlocal")
    assert made.steps == 800
    train_and_evaluate(made, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    with capsys.disabled():
        print(f"\nnumwords: {result['scores']} in {result['wall_time_s']:.0f} s")
    assert result["scores"]["exact_match"] >= 90


def test_the_best_epoch_is_the_one_of_the_lowest_loss() -> None:
    by_loss, by_accuracy = Selection("validation", "loss"), Selection("validation", "accuracy")
    low, high = {"loss": 1.0, "accuracy": 0.1}, {"loss": 2.0, "accuracy": 0.2}
    assert by_loss.better(low, high) and not by_loss.better(high, low)
    assert by_accuracy.better(high, low) and not by_accuracy.better(low, high)
    assert not by_loss.better(low, low)
    assert Batch(3) != Batch(3, 4)


def test_every_task_has_a_measure() -> None:
    assert measures.MEASURES.keys() == tasks.TASKS.keys()
