"""Evaluates finished runs, factored and merged: `python -m experiments.evaluate RUN…`

The final parameters are restored and applied to the whole test set twice: as they were trained, and
with every factorized weight merged into the dense kernel it stands for. The logits must agree, and
the accuracy must be the one that the run recorded (up to one example in a thousand); otherwise the
command fails. What it found goes to `evaluation.json` in the run folder.

A run in bfloat16 is evaluated in float32, since rounding would hide what is compared; its accuracy
may then differ by one example in a hundred.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj
from experiments import files, tasks
from experiments.command_line import exit_code
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.result import FILE_NAME as RESULT

FILE_NAME = "evaluation.json"
USAGE = "Usage: python -m experiments.evaluate RUN…"

TOLERANCE = 1e-4
"""Largest accepted difference of two logits, as a share of the largest logit (float32)."""


def evaluate(folder: Path) -> dict[str, Any]:
    """Evaluates one finished run and writes `evaluation.json`.

    Returns:
      Accuracy and loss ``factored`` and ``merged``, their parameters, and ``logit_difference``, the
      largest difference of two logits as a share of the largest logit.

    Raises:
      RunError: the run is not finished, its data is not what it was trained on, its checkpoint
        cannot be restored, or the two forms do not agree.
    """
    run = FinishedRun.read(folder)
    task = tasks.load(run.config)
    state = run.restore(task.network, task.data)
    split = jax.device_put(task.splits["test"])
    network = dataclasses.replace(task.network, model=task.network.model.clone(dtype=jnp.float32))
    measure = jax.jit(dataclasses.replace(task, network=network).evaluate)
    merged_params = lrj.merge(state.params)
    # Accelerators multiply in lower precision unless told otherwise; the two forms would differ.
    with jax.default_matmul_precision("highest"):
        factored = measure(state.params, state.model_state, split)
        merged = measure(merged_params, state.model_state, split)
    count = len(task.splits["test"][1])
    largest = float(np.max(np.abs(factored["logits"])))
    apart = float(np.max(np.abs(np.asarray(factored["logits"]) - np.asarray(merged["logits"]))))
    found: dict[str, Any] = {
        "split": "test",
        "examples": count,
        "factored": _numbers(factored, count, state.params),
        "merged": _numbers(merged, count, merged_params),
        "logit_difference": apart / largest,
        "tolerance": TOLERANCE,
    }
    files.write_json(folder / FILE_NAME, found)
    if not apart <= TOLERANCE * largest:
        raise RunError(
            f"{folder}: factored and merged logits differ by {apart / largest:.2e} of the largest "
            f"logit, more than {TOLERANCE:.0e}"
        )
    # Training may have measured in lower precision, or on another device.
    accepted = max(1.0, count / (1000 if run.config.precision == "float32" else 100)) / count
    if abs(found["factored"]["accuracy"] - run.accuracy) > accepted:
        raise RunError(
            f"{folder}: accuracy {found['factored']['accuracy']:.4%} here, "
            f"{run.accuracy:.4%} in {RESULT}"
        )
    return found


def _numbers(sums: dict[str, jax.Array], count: int, params: Any) -> dict[str, float]:
    return {
        "accuracy": int(sums["correct"]) / count,
        "loss": float(sums["loss"]) / count,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def run(folders: Sequence[str]) -> None:
    """Evaluates run folders and prints a line for each form."""
    if not folders or any(folder.startswith("-") for folder in folders):
        raise RunError(USAGE)
    for folder in folders:
        found = evaluate(Path(folder))
        print(f"{folder}: {found['examples']} {found['split']} examples")
        for form in ("factored", "merged"):
            numbers = found[form]
            print(
                f"  {form:8}  accuracy {numbers['accuracy']:.2%}  loss {numbers['loss']:.4f}  "
                f"parameters {numbers['parameters']:,}"
            )
        print(f"  they agree: logits differ by {found['logit_difference']:.1e} of the largest")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
