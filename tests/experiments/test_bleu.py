"""BLEU against a plain implementation of its definition, and its edges."""

import collections
import math

import numpy as np
import pytest

from experiments.bleu import bleu
from experiments.errors import RunError

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "some",
    "dog",
    "ran",
    "home",
    "again",
]


def plain_bleu(hypotheses, references):
    """Papineni's formula over texts whose tokens stand between spaces, in lower case."""
    matched, total = collections.Counter(), collections.Counter()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        sides = hypothesis.lower().split(), reference.lower().split()
        for n in range(1, 5):
            grams = [
                collections.Counter(tuple(side[i : i + n]) for i in range(len(side) - n + 1))
                for side in sides
            ]
            matched[n] += sum((grams[0] & grams[1]).values())
            total[n] += sum(grams[0].values())
    if not all(matched[n] for n in range(1, 5)):
        return 0.0
    c, r = (sum(len(line.split()) for line in lines) for lines in (hypotheses, references))
    mean = sum(math.log(matched[n] / total[n]) for n in range(1, 5)) / 4
    return 100 * math.exp(min(0.0, 1 - r / c) + mean)


def corpus(seed, lines=30):
    """Random references, and hypotheses that differ in some words, in case and in length."""
    rng = np.random.default_rng(seed)
    hypotheses, references = [], []
    for _ in range(lines):
        words = list(rng.choice(WORDS, rng.integers(4, 15)))
        references.append(" ".join(words))
        kept = [str(w) if rng.random() < 0.9 else str(rng.choice(WORDS)).upper() for w in words]
        hypotheses.append(" ".join(kept[: len(kept) - int(rng.integers(0, 3))]))
    return hypotheses, references


@pytest.mark.parametrize("seed", range(3))
def test_tokenised_bleu_is_the_formula(seed):
    hypotheses, references = corpus(seed)
    expected = plain_bleu(hypotheses, references)
    assert 20 < expected < 95
    assert bleu(hypotheses, references).tokenised == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_sacrebleu_is_the_formula_with_case(seed):
    hypotheses, references = corpus(seed)

    # case is what a word is written in: another word for another case
    def marked(lines):
        return ["".join(f"{c}1" if c.isupper() else c for c in line) for line in lines]

    expected = plain_bleu(marked(hypotheses), marked(references))
    found = bleu(hypotheses, references)
    assert found.sacrebleu == pytest.approx(expected, abs=1e-9)
    assert found.sacrebleu < found.tokenised


def test_punctuation_is_split_off_by_both():
    hypotheses = ["A house, a dog and a cat.", "So it is (in part)!"]
    references = ["A house, a dog or a cat.", "So it is (in part)!"]
    split = [
        ["A house , a dog and a cat .", "So it is ( in part ) !"],
        ["A house , a dog or a cat .", "So it is ( in part ) !"],
    ]
    found = bleu(hypotheses, references)
    assert found.sacrebleu == found.tokenised == pytest.approx(plain_bleu(*split), abs=1e-9)


def test_the_signature_says_how():
    signature = bleu(["a b c d"], ["a b c d"]).signature
    assert {"nrefs:1", "case:mixed", "tok:13a", "smooth:exp"} <= set(signature.split("|"))
    assert "version:" in signature


def test_equal_text_is_a_hundred():
    lines = ["ein kleines Haus am See", "noch ein Satz mit Wörtern"]
    found = bleu(lines, lines)
    assert (found.sacrebleu, found.tokenised, found.exact_match) == (100.0, 100.0, 100.0)


def test_only_the_published_score_is_not_smoothed():
    # no four words in a row are right
    found = bleu(["a b c x d e f"], ["a b c y d e f"])
    assert found.tokenised == 0.0
    assert 0 < found.sacrebleu < 100


def test_nothing_translated():
    found = bleu(["", ""], ["a b c d e", ""])
    assert (found.sacrebleu, found.tokenised, found.exact_match) == (0.0, 0.0, 50.0)


def test_exact_match_counts_lines():
    assert bleu(["a b", "c", "d", "E"], ["a b", "c", "x", "e"]).exact_match == 50.0


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_unequal_numbers_are_refused(hypotheses, references):
    with pytest.raises(RunError, match=r"BLEU of \d translations and \d references"):
        bleu(hypotheses, references)
