"""Reports of language models and of what they are fine-tuned to."""

from __future__ import annotations

import math
import re

import pytest
from synthetic_runs import write_run

from configs import fine_tuning, pretraining
from experiments import report

pytestmark = pytest.mark.usefixtures("saved")


def pretrained(folder, argument, loss):
    scores = {"split": "test", "unigram_loss": 6.5}
    argument = f"size=tiny,data=pydoc,steps=234,{argument}"
    return write_run(folder, argument, 1 / loss, configs=pretraining, scores=scores, loss=loss)


def fine_tuned(folder, argument, accuracy):
    scores = {"split": "test", "majority_accuracy": 0.25}
    argument = f"size=tiny,data=pydoc,{argument}"
    return write_run(folder, argument, accuracy, configs=fine_tuning, scores=scores)


def test_the_lower_perplexity_is_the_better_one(tmp_path):
    for seed in (1, 2, 3):
        words = f"task=causal_language_model,seed={seed}"
        pretrained(tmp_path / f"a{seed}", f"{words},head_scale=1,products=none", 4 + seed / 100)
        pretrained(tmp_path / f"b{seed}", f"{words},products=none", 5 + seed / 100)
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert "## GPT 64, 2 layers on pydoc, test perplexity" in text
    differences = [math.exp(5 + s / 100) - math.exp(4 + s / 100) for s in (1, 2, 3)]
    (row,) = [line for line in text.splitlines() if line.endswith("| worse |")]
    assert f"| 3 | {sum(differences) / 3:+.2f} |" in row and "better |" not in text
    assert "the lower one is the better one" in text
    assert "| 6.500 |" in text  # The unigram model's loss, in the column of that name.
    assert "| loss | unigram loss |" in text


def test_masked_accuracy_and_its_loss(tmp_path):
    for seed in (1, 2):
        pretrained(tmp_path / f"{seed}", f"seed={seed}", 4.0)
        pretrained(tmp_path / f"dense{seed}", f"seed={seed},head_scale=1,products=none", 3.9)
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert "## BERT 64, 2 layers on pydoc, test masked accuracy" in text
    assert "| masked loss | unigram loss |" in text and "| 4.000 | 6.500 |" in text
    assert "| head scale 0.5, QK and OV products: SI + FD |" in text
    assert "head scale: the size of attention heads" in text
    assert not re.search(r"\]\([^)]* [^)]*\.png\)", text)  # Links do not take spaces.


def test_pretrained_classifiers_stand_beside_those_from_nothing(tmp_path):
    """Those of two pre-trainings are told apart, seeds of one are not."""
    for seed in (1, 2):
        fine_tuned(tmp_path / f"n{seed}", f"seed={seed}", 0.4)
        for kind, accuracy in (("x", 0.6), ("y", 0.7)):
            words = f"seed={seed},start=runs/{kind}-seed{seed}"
            fine_tuned(tmp_path / f"{kind}{seed}", words, accuracy)
    text = report.report([str(tmp_path)], tmp_path / "out")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| head scale")]
    means = {row[0].strip("| "): row[5] for row in rows if len(row) > 8}
    assert means == {
        "head scale 0.5": "40.00",
        "head scale 0.5, pre-trained, start=runs/x": "60.00",
        "head scale 0.5, pre-trained, start=runs/y": "70.00",
    }
    assert "pre-trained: the network begins with the encoder of another run" in text
    assert "| most frequent class (%) |" in text and "| 25.00 |" in text
