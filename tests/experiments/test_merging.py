"""The comparison of a network with its merged twin, against a computation in NumPy."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from tiny_main import FACTORIZATION, Tiny

import lowrank_jax as lrj
from experiments import merging
from experiments.data.pipeline import ImagePipeline
from experiments.errors import RunError
from experiments.result import Data
from experiments.tasks.classification import Classification, Network

CLASSES, EXAMPLES = 3, 10


def task(precision: str = "float32") -> Classification:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 8, 8, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    model = Tiny(CLASSES, dtype=jnp.dtype(precision))
    return Classification(
        network=Network(model, model, 8),
        pipeline=ImagePipeline((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 8, 0, False, 0),
        data=Data("random", "here", ""),
        splits={"train": (images, labels), "test": (images, labels)},
        seed=0,
        batch_size=5,
        eval_batch_size=4,  # The last batch is not full.
        batch_norm_parts=1,
        partial_batch=False,
        selects=None,
    )


def variables(depth: int = 2):
    found = task().network.init(jax.random.key(1))
    rule = lrj.Rule(FACTORIZATION.pattern, lrj.FixedRank(30), lrj.SpatialLowRank, depth=depth)
    params = lrj.factorize(found["params"], [rule], lrj.regular(), jax.random.key(2))
    statistics = jax.tree.map(lambda leaf: leaf + 0.3, found["batch_stats"])
    return params, {"batch_stats": statistics}


def scores_in_numpy(params, statistics) -> tuple[float, float]:
    """Accuracy and loss of the dense network, in float64."""
    images, labels = task().splits["test"]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.1, 0.2, 0.3])

    def convolve(x, kernel, stride):
        size = -(-x.shape[1] // stride)
        total = max((size - 1) * stride + 3 - x.shape[1], 0)  # SAME, as Flax pads by default.
        before = (total // 2, total - total // 2)
        x = np.pad(x, ((0, 0), before, before, (0, 0)))
        out = np.zeros((len(x), size, size, kernel.shape[-1]))
        for i, j in np.ndindex(size, size):
            window = x[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("nhwi,hwio->no", window, kernel)
        return out

    kernel = p["conv"]["kernel"]
    middle = np.eye(kernel.u.shape[-1]) if kernel.m is None else kernel.m
    dense = np.einsum("awir,rs,hbso->hwio", kernel.u, middle, kernel.vt)
    x = convolve(np.maximum(convolve(x, p["stem"]["kernel"], 4), 0), dense, 2)
    norm = jax.tree.map(np.float64, statistics["batch_stats"]["norm"])
    x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    logits = np.maximum(x, 0).mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float((logits.argmax(1) == labels).mean()), float(losses.mean())


@pytest.mark.parametrize(("depth", "precision"), [(2, "float32"), (3, "bfloat16")])
def test_scores_against_numpy(depth: int, precision: str) -> None:
    params, statistics = variables(depth)
    found = merging.compare(tiny_runs.config(), task(precision), params, statistics)
    accuracy, loss = scores_in_numpy(params, statistics)
    for scores in (found.factored, found.merged):
        assert scores.accuracy == accuracy
        assert scores.loss == pytest.approx(loss, rel=1e-5)  # Computed in bfloat16, it is not.
    dense = 3 * 3 * 3 * 4 + 3 * 3 * 4 * 8 + 2 * 8 + 8 * CLASSES + CLASSES
    factors = 30 * (3 * 4 + 3 * 8) + (30 * 30 if depth == 3 else 0)
    assert found.merged.parameters == dense
    assert found.factored.parameters == dense - 3 * 3 * 4 * 8 + factors
    assert found.examples == EXAMPLES and found.tolerance == 1e-4
    assert 0 < found.logit_difference < 1e-5
    assert json.loads(json.dumps(dataclasses.asdict(found)))["merged"]["loss"] == found.merged.loss


@pytest.mark.parametrize(
    ("change", "found"), [(1.001, r"by 1\.\d\de-03 of"), (np.nan, "by nan of")]
)
def test_another_function_is_refused(
    change: float, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, statistics = variables()
    merge = lrj.merge
    monkeypatch.setattr(
        lrj, "merge", lambda p: {**merge(p), "head": jax.tree.map(lambda x: change * x, p["head"])}
    )
    with pytest.raises(
        RunError, match=rf"logits differ {found} the largest logit, more than 1e-04"
    ):
        merging.compare(tiny_runs.config(), task(), params, statistics)


def test_logits_of_zero_agree() -> None:
    params, statistics = variables()
    found = merging.compare(
        tiny_runs.config(), task(), jax.tree.map(jnp.zeros_like, params), statistics
    )
    assert found.logit_difference == 0
