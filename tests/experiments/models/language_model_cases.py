"""Tiny language models, and what they compute in NumPy, one row at a time."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from experiments.models.bert import MaskedLanguageModel, TextClassifier
from experiments.models.gpt import CausalLanguageModel
from experiments.special_tokens import BOS, EOS, PAD

TINY = {"vocabulary": 11, "d_model": 12, "d_ff": 20, "heads": 2, "head_size": 5, "layers": 2}
TOKENS = np.array([[BOS, 5, 6, 7, 8, EOS, PAD], [BOS, 9, 4, EOS, PAD, PAD, PAD]])
PLACES = np.array([[4, 1, 1], [2, 0, 3]])

BERT = MaskedLanguageModel(**TINY, max_length=9)
CLASSIFIER = TextClassifier(**TINY, max_length=9, classes=3)
GPT = CausalLanguageModel(**TINY, max_length=9)

# By name in the table of models: the model, and its input.
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bert": (BERT, (TOKENS, PLACES)),
    "bert_classifier": (CLASSIFIER, (TOKENS,)),
    "gpt": (GPT, (TOKENS,)),
}


def shapes(model: Any, *inputs: Any) -> Any:
    """Of a model's parameters."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, False)["params"])


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def norm(x, weights, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def attention(x, weights, seen):
    """Head by head; `seen[i]` are the places that place i attends to."""
    out = np.zeros_like(x) + weights["out"]["bias"]
    for head in range(TINY["heads"]):
        query, key, value = (
            x @ weights[name]["kernel"][:, head] + weights[name]["bias"][head]
            for name in ("query", "key", "value")
        )
        for place in range(len(x)):
            scores = key[seen[place]] @ query[place] / np.sqrt(TINY["head_size"])
            share = np.exp(scores) / np.exp(scores).sum()
            out[place] += share @ value[seen[place]] @ weights["out"]["kernel"][head]
    return out


def feed_forward(x, weights, activation):
    return dense(activation(dense(x, weights["up"])), weights["down"])


def gelu(x):
    """x times the distribution function of the normal distribution."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def gelu_tanh(x):
    """What GPT-2 has in its place."""
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def embed(tokens, stack):
    return stack["tokens"]["embedding"][tokens] + stack["positions"]["embedding"][: len(tokens)]


def encoder_in_numpy(encoder, tokens):
    """BERT's features of one row without padding: norms after the sum."""
    x = embed(tokens, encoder) + encoder["segments"]["embedding"][0]
    x = norm(x, encoder["norm"], 1e-12)
    everywhere = [np.arange(len(tokens))] * len(tokens)
    for index in range(TINY["layers"]):
        p = encoder[f"layer_{index}"]
        x = norm(x + attention(x, p["attention"], everywhere), p["attention_norm"], 1e-12)
        x = norm(x + feed_forward(x, p["feed_forward"], gelu), p["feed_forward_norm"], 1e-12)
    return x


def gpt_in_numpy(params, tokens):
    """Logits of one row: norms before the sublayers."""
    p = params["decoder"]
    x = embed(tokens, p)
    before = [np.arange(place + 1) for place in range(len(tokens))]
    for index in range(TINY["layers"]):
        layer = p[f"layer_{index}"]
        x = x + attention(norm(x, layer["attention_norm"], 1e-5), layer["attention"], before)
        y = norm(x, layer["feed_forward_norm"], 1e-5)
        x = x + feed_forward(y, layer["feed_forward"], gelu_tanh)
    return norm(x, p["norm"], 1e-5) @ p["tokens"]["embedding"].T
