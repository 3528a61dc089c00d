"""Decoding in plain Python, a sentence at a time: what beam search inside jit is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.special_tokens import BOS, EOS, PAD

Prefix = tuple[int, ...]
# log p of the next token, float32, from the prefix without BOS.
Scorer = Callable[[Prefix], np.ndarray]
Found = list[tuple[float, Prefix]]


def allowed(prefix: Prefix, vocabulary: int, longest: int) -> list[int]:
    """The tokens that may follow a prefix."""
    tokens = [token for token in range(vocabulary) if token not in (PAD, BOS, EOS)]
    if len(prefix) == longest - 1:
        tokens = []
    return sorted([*tokens, EOS]) if prefix else tokens


def beam_search(score: Scorer, beam: int, longest: int, penalty: float) -> Found:
    """(score, tokens) of the finished hypotheses, best first."""
    live: Found = [(np.float32(0), ())]
    finished: Found = []
    while live and len(finished) < beam:
        continuations = []
        for total, prefix in live:
            log_p = score(prefix)
            for token in allowed(prefix, len(log_p), longest):
                continuations.append((total + log_p[token], (*prefix, token)))
        continuations.sort(key=lambda item: -item[0])  # stable: earlier hypothesis, lower token
        best = continuations[:beam]
        finished += [(s / len(p) ** penalty, p) for s, p in best if p[-1] == EOS]
        live = [item for item in continuations if item[1][-1] != EOS][:beam]
    return sorted(finished, key=lambda item: -item[0])[:beam]


def greedy(score: Scorer, longest: int) -> Prefix:
    """The most probable token, again and again."""
    prefix: Prefix = ()
    while not prefix or prefix[-1] != EOS:
        log_p = score(prefix)
        prefix += (max(allowed(prefix, len(log_p), longest), key=lambda token: log_p[token]),)
    return prefix


def exhaustive(score: Scorer, longest: int, penalty: float) -> Found:
    """Every hypothesis that there is."""

    def complete(total: float, prefix: Prefix) -> Found:
        if prefix and prefix[-1] == EOS:
            return [(total / len(prefix) ** penalty, prefix)]
        log_p = score(prefix)
        found: Found = []
        for token in allowed(prefix, len(log_p), longest):
            found += complete(total + log_p[token], (*prefix, token))
        return found

    return sorted(complete(np.float32(0), ()), key=lambda item: -item[0])
