"""Evaluates finished runs, factored and merged: `python -m experiments.evaluate RUN…`

The final parameters are restored and applied to the whole test set twice: as they were trained, and
with every factorized weight merged into the dense kernel it stands for. The logits must agree
(`merging.py`), and the accuracy must be the one that the run recorded (up to one example in a
thousand); otherwise the command fails. Then it measures what inference costs on this device, dense,
factored and merged (`inference_cost.py`). A network with norms between its factors cannot be
merged, and is applied as it is. What was found goes to `evaluation.json` in the run folder.

A run in bfloat16 is evaluated in float32, since rounding would hide what is compared; its accuracy
may then differ by one example in a hundred.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import files, inference_cost, merging
from experiments.command_line import exit_code
from experiments.errors import RunError
from experiments.restored_run import RestoredRun
from experiments.result import FILE_NAME as RESULT

FILE_NAME = "evaluation.json"
USAGE = "Usage: python -m experiments.evaluate RUN…"


def evaluate(restored: RestoredRun) -> dict[str, Any]:
    """Compares the two forms of one finished run and writes `evaluation.json`.

    Returns:
      What `experiments.merging.Comparison` has, as plain data, and ``split``, on which it was
      measured.

    Raises:
      RunError: the two forms do not agree, or the accuracy is not the one recorded.
    """
    run, state = restored.run, restored.state
    try:
        compared = merging.compare(run.config, restored.task, state.params, state.model_state)
    except RunError as error:
        raise RunError(f"{run.folder}: {error}") from error
    # Training may have measured in lower precision, or on another device.
    share = 1000 if run.config.precision == "float32" else 100
    accepted = max(1.0, compared.examples / share) / compared.examples
    if abs(compared.factored.accuracy - run.accuracy) > accepted:
        raise RunError(
            f"{run.folder}: accuracy {compared.factored.accuracy:.4%} here, {run.accuracy:.4%} in "
            f"{RESULT}"
        )
    found = {"split": "test", **dataclasses.asdict(compared)}
    files.write_json(run.folder / FILE_NAME, found)
    return found


def run(folders: Sequence[str]) -> None:
    """Evaluates run folders, and prints the scores and the cost of each form."""
    if not folders or any(folder.startswith("-") for folder in folders):
        raise RunError(USAGE)
    for folder in map(Path, folders):
        restored = RestoredRun.read(folder)
        found = evaluate(restored)
        print(f"{folder}: {found['examples']} {found['split']} examples")
        for form in ("factored", "merged"):
            numbers = found[form]
            if numbers is None:
                continue
            print(
                f"  {form:8}  accuracy {numbers['accuracy']:.2%}  loss {numbers['loss']:.4f}  "
                f"parameters {numbers['parameters']:,}"
            )
        if found["logit_difference"] is None:
            print("  there are norms between its factors: it cannot be merged")
        else:
            print(f"  they agree: logits differ by {found['logit_difference']:.1e} of the largest")
        cost = inference_cost.measure(restored)
        print(cost, flush=True)
        files.write_json(folder / FILE_NAME, found | {"inference": dataclasses.asdict(cost)})


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
