"""Run folders made by the real writers from made-up numbers, for the tests of plots and reports."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest

from configs import cifar_resnet
from experiments import arguments, files, result
from experiments.metrics import MetricsWriter
from experiments.run_folder import CONFIG

STEPS = 39  # an epoch
KERNELS = [f"block_{block}/conv{conv}/kernel" for block in range(1, 10) for conv in (1, 2)]


@contextlib.contextmanager
def _left_to_the_system() -> Iterator[None]:
    """What is made up need not survive a crash: waiting for the disk takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@_left_to_the_system()
def write_record(
    folder: Path,
    accuracy: float,
    epochs: int = 6,
    split: str = "test",
    diagnostics: Literal["none", "epochs", "steps"] = "steps",
    scale: float = 1.0,
    products: bool = False,
    kernels: Sequence[str] = KERNELS,
) -> None:
    """A metrics.jsonl whose accuracy climbs to `accuracy` (a fraction) in the last epoch.

    Args:
      folder: to write to.
      accuracy: of the last epoch.
      epochs: of 39 steps.
      split: that is measured beside the training set.
      diagnostics: every 30 steps; or after each epoch, as they were once, with spectra at both ends
        alone and without the effective learning rate.
      scale: of the kernels.
      products: whether those of attention are measured, too, as those of `product_norms`.
      kernels: the paths of those that are measured.
    """
    ends = {STEPS * epoch for epoch in range(epochs + 1)}
    due = {"none": set(), "epochs": ends, "steps": {*range(0, max(ends), 30), max(ends)}}
    with MetricsWriter(folder) as writer:
        for step in sorted(ends | due[diagnostics]):
            epoch = step / STEPS
            learned = 1 - np.exp(-3 * epoch / epochs)
            scalars = {"learning_rate": 0.1 if epoch < epochs / 2 else 0.01}
            if step and step in ends:
                share = accuracy / (1 - np.exp(-3))
                scalars |= {
                    "train_loss": 2.3 * np.exp(-epoch / 3),
                    "train_accuracy": min(1.0, 1.05 * share * learned),
                    f"{split}_loss": 2.3 * np.exp(-epoch / 4),
                    f"{split}_accuracy": share * learned,
                }
            if step not in due[diagnostics]:
                writer.write(step, epoch, scalars)
                continue
            spectra = {
                path: np.float32(
                    2 * scale * np.exp(-(1 + 2 * learned) * np.linspace(0, 1, 5 + index))
                )
                for index, path in enumerate(kernels)
            }
            norms = {path: np.linalg.norm(values) for path, values in spectra.items()}
            measures = {
                "frobenius_norm": norms,
                "nuclear_norm": {path: values.sum() for path, values in spectra.items()},
                "nuclear_bound": {
                    path: (1 + 0.3 * learned) * values.sum() for path, values in spectra.items()
                },
                "non_orthogonality": dict.fromkeys(spectra, 0.3 * learned),
            }
            if diagnostics == "steps":
                measures["effective_learning_rate"] = {
                    path: scalars["learning_rate"] / norm**2 for path, norm in norms.items()
                }
            if products:
                measures |= product_norms(scale, learned)
            shown = diagnostics == "steps" or step in (0, max(ends))
            writer.write(
                step, epoch, scalars, diagnostics=measures, spectra=spectra if shown else None
            )


def product_norms(scale: float, learned: float) -> dict[str, dict[str, float]]:
    """Made-up diagnostics of the products of two modules of attention."""
    modules = {"encoder_0/attention": 1.0, "decoder_0/attention": 2.0}
    norms = {"frobenius_norm": 1.0, "nuclear_norm": 3.0, "nuclear_bound": 3.0 + learned}
    found = {
        f"{group}/{name}": {path: of_group * scale * factor * norm
                            for path, factor in modules.items()}
        for group, of_group in (("qk", 4.0), ("ov", 0.5))
        for name, norm in norms.items()
    }  # fmt: skip
    return found | {f"{group}/non_orthogonality": dict.fromkeys(modules, 0.1)
                    for group in ("qk", "ov")}  # fmt: skip


@_left_to_the_system()
def write_run(
    folder: Path,
    argument: str,
    accuracy: float,
    parameters: int = 107370,
    fingerprint: str = "f" * 64,
    split: str = "test",
    configs: ModuleType = cifar_resnet,
    diagnostics: Literal["none", "epochs", "steps"] = "none",
    scale: float = 1.0,
    compact: result.Compact | None = None,
    replay: result.Replay | None = None,
    scores: Mapping[str, Any] | None = None,
    loss: float = 0.5,
    selection: result.Selected | None = None,
    kernels: Sequence[str] = KERNELS,
) -> Path:
    """A finished run of a config file with an argument; its record as by `write_record`."""
    config = arguments.settle(configs.get_config(argument))
    text = config.task == "translation"
    write_record(
        folder, accuracy, split="validation" if text else split, diagnostics=diagnostics,
        scale=scale, products=text, kernels=kernels,
    )  # fmt: skip
    files.write_json(folder / CONFIG, config.to_dict())
    outcome = result.Result(
        name=config.name,
        seed=config.seed,
        config=config.to_dict(),
        data=result.Data(config.data.name, "embedded", fingerprint),
        parameters=parameters,
        dense_parameters=464154,
        multiply_adds=20_000_000,
        dense_multiply_adds=68_862_592,
        final=result.Final(split, accuracy, loss, 6.0, 234),
        best=result.Best("validation", accuracy, 5.0, 2 - accuracy) if text else None,
        steps=234,
        epochs=6.0,
        wall_time_s=90.0,
        compile_time_s=10.0,
        diagnostics_time_s=1.0,
        diagnostics_left_out=0,
        commit=None,
        compact=compact,
        replay=replay,
        scores=scores,
        selection=selection,
    )
    files.write_json(folder / result.FILE_NAME, outcome.as_dict())
    return folder
