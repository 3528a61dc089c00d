"""BLEU of translations (Papineni et al. 2002), as sacreBLEU computes it (Post 2018), two ways.

Over a corpus, in percent,

    BLEU = 100 * min(1, exp(1 - r / c)) * (p_1 p_2 p_3 p_4)^(1/4)

where `p_n` is the share of the hypotheses' n-grams of tokens that are in their references, each at
most as often as it is there, `c` the number of tokens of the hypotheses and `r` that of the
references.

`sacrebleu` is the score to compare with others: of the text as it is, with the signature that says
how. `tokenised` stands beside it for comparison with arXiv 2105.01029, whose scores are fairseq's:
of lower-cased tokens, without smoothing. Its tokens were Moses's, here they are sacreBLEU's 13a,
which takes no notice of the language: Moses keeps the period of abbreviations and splits off what
follows an apostrophe ("it 's"), 13a splits off every period that is not inside a number, and
nothing at apostrophes. So the two agree closely, not exactly. In fairseq's score an unknown word of
a reference is never matched; with a vocabulary that can spell everything there is none.
"""

import dataclasses
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from experiments.errors import RunError


@dataclasses.dataclass(frozen=True)
class Bleu:
    """Scores of a corpus.

    Attributes:
      sacrebleu: in percent.
      signature: sacreBLEU's, of that score.
      tokenised: in percent, of lower-cased tokens.
      exact_match: percent of the hypotheses that are equal to their references.
    """

    sacrebleu: float
    signature: str
    tokenised: float
    exact_match: float


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Bleu:
    """Scores translations against one reference each.

    Raises `RunError` if there are none, or not as many of the one as of the other.

    >>> bleu(["Ein kleines Haus ist da."], ["Ein kleines Haus ist da."]).exact_match
    100.0
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise RunError(
            f"BLEU of {len(hypotheses)} translations and {len(references)} references: expected "
            "equally many, and at least one"
        )
    usual = BLEU()
    score = _score(usual, hypotheses, references)
    return Bleu(
        sacrebleu=score,
        signature=str(usual.get_signature()),  # known only after scoring
        tokenised=_score(BLEU(lowercase=True, smooth_method="none"), hypotheses, references),
        exact_match=100 * sum(map(str.__eq__, hypotheses, references)) / len(references),
    )


def _score(metric: BLEU, hypotheses: Sequence[str], references: Sequence[str]) -> float:
    # Rounded, because a logarithm and an exponential make 100.00000000000004 of equal text.
    return round(metric.corpus_score(list(hypotheses), [list(references)]).score, 10)
