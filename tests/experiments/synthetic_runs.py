"""Run folders made by the real writers from made-up numbers, for the tests of plots and reports."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from configs import cifar_resnet
from experiments import arguments, files, result
from experiments.metrics import MetricsWriter

KERNELS = [f"block_{block}/conv{conv}/kernel" for block in range(1, 10) for conv in (1, 2)]


@contextlib.contextmanager
def _left_to_the_system() -> Iterator[None]:
    """What is made up need not survive a crash: waiting for the disk takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@_left_to_the_system()
def write_record(folder: Path, accuracy: float, epochs: int = 6, split: str = "test") -> None:
    """A metrics.jsonl whose accuracy climbs to `accuracy` (a fraction) in the last epoch."""
    with MetricsWriter(folder) as writer:
        for epoch in range(epochs + 1):
            learned = 1 - np.exp(-3 * epoch / epochs)
            spectra = {
                path: np.float32(2 * np.exp(-(1 + 2 * learned) * np.linspace(0, 1, 5 + index)))
                for index, path in enumerate(KERNELS)
            }
            writer.write(
                39 * epoch,
                epoch,
                {"learning_rate": 0.1},
                diagnostics={
                    "frobenius_norm": {k: np.linalg.norm(s) for k, s in spectra.items()},
                    "nuclear_norm": {k: s.sum() for k, s in spectra.items()},
                    "nuclear_bound": {k: (1 + 0.3 * learned) * s.sum() for k, s in spectra.items()},
                },
                spectra=spectra,
            )
            if epoch:
                scale = accuracy / (1 - np.exp(-3))
                writer.write(
                    39 * epoch,
                    epoch,
                    {
                        "train_loss": 2.3 * np.exp(-epoch / 3),
                        "train_accuracy": min(1.0, 1.05 * scale * learned),
                        f"{split}_loss": 2.3 * np.exp(-epoch / 4),
                        f"{split}_accuracy": scale * learned,
                    },
                )


@_left_to_the_system()
def write_run(
    folder: Path,
    argument: str,
    accuracy: float,
    parameters: int = 107370,
    fingerprint: str = "f" * 64,
    split: str = "test",
    configs: ModuleType = cifar_resnet,
) -> Path:
    """A finished run of a config file with an argument."""
    config = arguments.settle(configs.get_config(argument))
    write_record(folder, accuracy, split=split)
    outcome = result.Result(
        name=config.name,
        seed=config.seed,
        config=config.to_dict(),
        data=result.Data(config.data.name, "embedded", fingerprint),
        parameters=parameters,
        dense_parameters=464154,
        multiply_adds=20_000_000,
        dense_multiply_adds=68_862_592,
        final=result.Final(split, accuracy, 0.5, 6.0, 234),
        best=None,
        steps=234,
        epochs=6.0,
        wall_time_s=90.0,
        compile_time_s=10.0,
        commit=None,
    )
    files.write_json(folder / result.FILE_NAME, outcome.as_dict())
    return folder
