"""Reports of translation runs: BLEU in the place of accuracy, attention products, both decays."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from synthetic_runs import write_run

from configs import translation
from experiments import comparison, report
from experiments.errors import RunError

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
BLEU = {  # by method and seed, in per cent
    "rank_scale=0": (30.0, 31.0, 32.0),
    "rank_scale=0,products=qk_ov": (31.0, 32.5, 34.0),
    "init=regular,decay=plain": (20.0, 21.0, 25.0),
    "init=spectral,decay=frobenius": (24.0, 25.0, 26.0),
    "products=qk_ov": (27.0, 28.0, 29.0),
    "products=qk_ov,rank_scale=0.25": (25.0, 26.0, 27.0),
}
NAMES = (
    "dense",
    "dense, QK and OV products: SI + FD",
    "regular, rank scale 0.5",
    "SI + FD, rank scale 0.5",
    "SI + FD, QK and OV products: SI + FD, rank scale 0.5",
    "SI + FD, QK and OV products: SI + FD, rank scale 0.25",
)


def write(folder, argument, bleu, *, signature=SIGNATURE, exact=0.0, **how):
    """A finished run of the tiny network; its token accuracy is its BLEU plus 50."""
    scores = {
        "split": "test", "sacrebleu": bleu, "signature": signature, "tokenised": bleu + 2,
        "exact_match": exact,
    }  # fmt: skip
    argument = f"size=tiny,data=lohelp,steps=234,{argument}"
    return write_run(folder, argument, 0.5 + bleu / 100, configs=translation, scores=scores, **how)


pytestmark = pytest.mark.usefixtures("saved")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("translation")
    for place, (argument, scores) in enumerate(BLEU.items()):
        for seed, score in enumerate(scores, start=1):
            words = f"recipe=adam,{argument},seed={seed}"
            diagnostics = "steps" if seed == 1 else "none"
            write(
                root / f"{place}-{seed}", words, score, diagnostics=diagnostics,
                parameters=900_000 - 100_000 * place,
            )  # fmt: skip
    return root


def settings_below(root):
    loaded = [comparison.load_run(folder) for folder in comparison.find_runs([str(root)])]
    (settings,) = comparison.settings_by_section(loaded).values()
    return settings


def test_bleu_stands_where_accuracy_would(runs, saved, tmp_path):
    text = report.report([str(runs)], tmp_path)
    lines = text.splitlines()
    assert "## Transformer 64, 1 layer on lohelp, test BLEU" in lines
    assert "234 steps (6.0 epochs) of batches of 4,000 tokens, optimizer adam." in text
    # Heads are smaller in small networks; that makes no section and no setting of its own.
    assert [line.split(" | ")[0].strip("| ") for line in lines if line.endswith("| 1.5 |")] == [
        *NAMES
    ]
    rows = [line.strip("| ").split(" | ") for line in lines]
    head = next(row for row in rows if "multiply-adds" in row)
    assert head[5:] == [
        "test BLEU, mean", "standard deviation", "min – max", "tokenised BLEU",
        "best validation loss", "wall time (min)",
    ]  # fmt: skip
    row = next(row for row in rows if row[0] == NAMES[2] and len(row) == len(head))
    deviation = np.std(BLEU["init=regular,decay=plain"], ddof=1)
    # The best loss of the made-up runs is 2 less their accuracy, which is BLEU plus 50 per cent.
    assert row[5:10] == ["22.00", f"{deviation:.2f}", "20.00 – 25.00", "24.00", f"{1.5 - 0.22:.3f}"]
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * 0.5 / math.sqrt(3)
    assert "in BLEU points, paired by seed" in text
    assert f"| {NAMES[1]} | 3 | +1.50 | {1.5 - half:+.2f} to {1.5 + half:+.2f} | better |" in text
    assert text.count(SIGNATURE) == 1 and "Warning" not in text
    assert "| 1-2 | dense, QK and OV products: SI + FD | 2 | 32.50 |" in lines
    for words in ("QK products: of queries and keys", "OV products: of outputs and values"):
        assert text.count(words) == 1
    assert "validation token accuracy (95% of the dense network's mean" in text
    assert "accuracy (%)" not in text
    assert "means over the heads of attention" in text.replace("\n", " ")
    (axis,) = saved["BLEU_against_parameters.png"].axes
    assert axis.get_ylabel() == "test BLEU"
    np.testing.assert_allclose(axis.containers[0].lines[0].get_xydata(), [(900_000, 31)])
    assert saved["learning_curves.png"].axes[0].get_ylabel() == "validation token accuracy (%)"
    assert len(saved["nuclear_norm.png"].axes) == 3
    assert "![BLEU against parameters](BLEU_against_parameters.png)" in lines


def test_exact_matches_are_told_where_there_are_any(tmp_path):
    for seed, exact in ((1, 98.5), (2, 97.5)):
        write(tmp_path / f"{seed}", f"rank_scale=0,seed={seed}", 99.0, exact=exact)
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert "| tokenised BLEU | exact match (%) | best validation loss |" in text
    assert "| 101.00 | 98.0 | 0.510 |" in text


def test_other_signatures_are_warned_of_and_missing_scores_refused(tmp_path):
    write(tmp_path / "a", "seed=1", 20.0)
    path = write(tmp_path / "b", "seed=2", 21.0, signature="tok:other") / "result.json"
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert f"signature `{SIGNATURE}`, `tok:other`." in text
    assert "**Warning: the runs differ in the signature" in text
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": None}))
    with pytest.raises(RunError, match=r"not a complete result: scores\.sacrebleu is None"):
        report.report([str(tmp_path)], tmp_path / "out")


def test_another_vocabulary_is_another_network_and_other_heads_another_setting(tmp_path):
    write(tmp_path / "usual", "rank_scale=0", 20.0)
    write(tmp_path / "heads", "rank_scale=0,model.head_scale=0.5", 20.0)
    write(tmp_path / "full", "model.head_scale=1.0", 20.0)
    assert [(s.label, s.dense) for s in settings_below(tmp_path)] == [
        ("dense", True),
        ("head scale 0.5", False),
        ("SI + FD, head scale 1, rank scale 0.5", False),
    ]
    write(tmp_path / "more", "rank_scale=0,vocabulary_size=2000", 20.0)
    loaded = [comparison.load_run(folder) for folder in comparison.find_runs([str(tmp_path)])]
    assert [len(found) for found in comparison.settings_by_section(loaded).values()] == [3, 1]


def test_a_study_varies_the_decay_that_a_method_has(saved, tmp_path):
    """As the published grid does: one of both coefficients, the other being 0."""
    write(tmp_path / "dense", "rank_scale=0,weight_decay=1e-5,frobenius_decay=0", 30.0)
    for place, coefficient in enumerate(("1e-6", "1e-5", "1e-4")):
        plain = f"init=regular,decay=plain,weight_decay={coefficient},frobenius_decay=0"
        write(tmp_path / f"plain{coefficient}", plain, 20.0 + place)
        products = f"products=qk_ov,weight_decay=0,frobenius_decay={coefficient}"
        write(tmp_path / f"products{coefficient}", products, 25.0 + place)
    # What Frobenius decay is set to changes nothing where nothing decays that way.
    write(tmp_path / "again", "init=regular,decay=plain,weight_decay=1e-6,seed=2", 20.0)
    settings = settings_below(tmp_path)
    assert [s.label for s in settings] == [
        "dense, weight_decay=1e-05",
        *(f"regular, weight_decay={c}, rank scale 0.5" for c in ("1e-06", "1e-05", "0.0001")),
        *(f"SI + FD, QK and OV products: SI + FD, frobenius_decay={c}, weight_decay=0, "
          "rank scale 0.5" for c in ("1e-06", "1e-05", "0.0001")),
    ]  # fmt: skip
    assert len(settings[1].runs) == 2
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert "BLEU against the coefficient of weight decay or Frobenius decay" in text
    assert "have no common scale" in text
    (axis,) = saved["BLEU_against_weight_decay.png"].axes
    assert axis.get_xlabel().startswith("coefficient of decay")
    found = {container.get_label(): container.lines[0] for container in axis.containers}
    assert list(found) == [
        "regular, rank scale 0.5 (n = 1 to 2)",
        "SI + FD, QK and OV products: SI + FD, weight_decay=0, rank scale 0.5 (n = 1)",
        "dense, weight_decay=1e-05 (n = 1)",
    ]  # fmt: skip
    for line, first in zip(list(found.values())[:2], (20, 25), strict=True):
        np.testing.assert_allclose(line.get_ydata(), first + np.arange(3))
        np.testing.assert_allclose(line.get_xdata(), [1e-6, 1e-5, 1e-4], rtol=0.041)
