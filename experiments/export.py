"""Exports a finished run: `python -m experiments.export RUN --format=FORMAT [--out=PATH]`

    factored   the variables as they were trained, as a safetensors file
    merged     likewise, with every factorized weight as the dense kernel that it stands for
    program    a folder with the network, its weights and the normalisation of images in one: uint8
               images of the data set in, logits out. It runs where there is JAX, without this
               project and without flax, for any batch size

By default that is RUN/export/factored.safetensors, RUN/export/merged.safetensors or
RUN/export/program.

What was written is read back and compared before the command ends: files with the run's variables,
array by array, a program by its logits on test images. The data set has to be at hand, since the
test images and (under `protocol=ours`) the mean and deviation of the pixels are its own.

A program computes in float32, whatever the run was trained in. Of its kernels, those whose factors
have fewer entries than the kernel stay factored, and the others are merged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lowrank_jax as lrj
from experiments import files, merging, recipe
from experiments.command_line import exit_code
from experiments.data.pipeline import evaluation_batch
from experiments.errors import RunError
from experiments.merging import TOLERANCE
from experiments.model_description import description
from experiments.restored_run import RestoredRun
from experiments.result import FILE_NAME as RESULT
from experiments.state import Variables
from experiments.tasks.classification import Classification
from lowrank_jax.tree import map_kernels

FORMATS = ("factored", "merged", "program")
FOLDER = "export"


def export(folder: Path, form: str, out: Path | None = None) -> str:
    """Exports one finished run in one of `FORMATS`.

    Args:
      folder: of the run.
      form: one of `FORMATS`.
      out: the file or folder to write; in the run folder by default.

    Returns:
      What was written and how to use it, as text to print.

    Raises:
      RunError: the run is not finished or damaged, its data is not at hand, what it is written to
        cannot be, or what was written does not agree with the run.
    """
    restored = RestoredRun.read(folder)
    run, task = restored.run, restored.task
    if form == "program" and not isinstance(task, Classification):
        raise RunError(
            f"{folder}: --format=program is for networks of images; --format=merged writes the "
            "parameters of one of text"
        )
    variables = jax.device_get(restored.variables)
    result = files.read_json(folder / RESULT)
    measured = {"split": "test", "accuracy": run.accuracy} | (result.get("scores") or {})
    metadata = description(run.config, task, measured, result.get("commit"))
    path = out or folder / FOLDER / ("program" if form == "program" else f"{form}.safetensors")
    if form == "merged":
        merged = merging.merged(run.config, variables.params)
        variables = Variables(jax.device_get(merged), variables.model_state)
    write = _write_program if form == "program" else _write
    try:
        with files.writing(path):
            written, usage = write(path, task, variables, metadata)
    except (ImportError, ValueError) as error:
        raise RunError(f"{path}: {error}") from error
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    count = recipe.counted_parameters(run.config, written)
    return (
        f"{path}: {form}, {count:,} parameters, {size:,} bytes, read back and compared\n"
        f"recorded on the {measured['split']} set: {_told(measured)}\n"
        f"to use it:\n{usage}"
    )


def _told(measured: Mapping[str, Any]) -> str:
    """What a network was found to do, in words; an accuracy is a fraction."""
    scores = {name: value for name, value in measured.items() if name != "split"}
    if "accuracy" in scores:
        return f"accuracy {scores['accuracy']:.2%}"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in scores.items())


def fewest_entries(params: Any) -> Any:
    """The same kernels, those dense whose factors have no fewer entries."""
    larger = {row.path for row in lrj.describe(params).rows if row.breaks_even}
    return map_kernels(lambda path, kernel: kernel.dense() if path in larger else kernel, params)


def logits_function(task: Any, variables: Variables) -> Callable[[Any], Any]:
    """The trained network with its preprocessing: uint8 images as they are stored, to logits.

    It can be traced with a number of images that is left open.
    """
    network = task.network.in_float32
    one = np.zeros(1, np.int32)

    def normalised(image: Any) -> Any:
        images, _ = evaluation_batch(image[None], one, one, task.pipeline)
        return images[0]

    # Image by image, since the pipeline counts its images.
    return lambda images: network.apply(
        variables.params, variables.model_state, jax.vmap(normalised)(images)
    )


def _write(
    path: Path, task: Any, variables: Variables, metadata: Mapping[str, Any]
) -> tuple[Any, str]:
    """Writes the variables; returns the parameters and what to do with them."""
    tree = {"params": variables.params, **variables.model_state}
    lrj.export.save(path, tree, metadata)
    lrj.export.load(path, tree)
    return variables.params, (
        f'    import lowrank_jax as lrj\n    variables = lrj.export.load("{path}")\n{task.usage()}'
    )


def _write_program(
    path: Path, task: Any, variables: Variables, metadata: Mapping[str, Any]
) -> tuple[Any, str]:
    """Writes the program, and compares its logits with those of the network as trained."""
    params = fewest_entries(variables.params)
    images = task.stored_images(8)
    function = logits_function(task, Variables(params, variables.model_state))
    lrj.export.save_program(path, function, images, metadata=metadata)
    program = lrj.export.load_program(path)
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(logits_function(task, variables))(images))
    for count in (1, len(images)):
        apart = np.max(np.abs(program(images[:count]) - expected[:count]))
        if not apart <= TOLERANCE * np.max(np.abs(expected)):
            raise ValueError(
                f"its logits differ from those of the run by {apart:.2e}, and the largest is "
                f"{np.max(np.abs(expected)):.2e}"
            )
    shape = ", ".join(map(str, images.shape[1:]))
    return params, (
        "    from predict import load  # In that folder; it needs jax, numpy and flatbuffers.\n"
        f'    logits = load("{path}")(images)\n'
        f"images: uint8 (batch, {shape}), as the data set has them; or as a file:\n"
        f"    python {path / 'predict.py'} images.npy"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export", description="Exports a finished run."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, help="file or folder to write (default: RUN/export/…)")
    options = parser.parse_args(argv)
    return exit_code(lambda: print(export(options.run, options.format, options.out)))


if __name__ == "__main__":
    sys.exit(main())
