"""Loads the program beside this file and applies it: needs jax, numpy and flatbuffers alone.

    python predict.py INPUT.npy… [--out=OUTPUT.npy]

applies it to arrays, the first axis counting examples, and prints for each example the index of its
largest output (the class, for a classifier), or writes all outputs. In Python:

    from predict import load
    function = load("the/folder")
    outputs = function(inputs)

`manifest.json` says what goes in and what comes out. It holds a checksum over the program and over
itself, which is compared first. The program is StableHLO, written by `jax.export`: data that JAX
compiles, so that loading it runs no Python of whoever wrote it. This file is Python, and no
checksum covers it: for a folder that you do not trust use `lowrank_jax.export.load_program`, which
runs none of it.

.npy files have no bfloat16, nor the other small types of JAX: outputs in one are written as
float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

FORMAT = 1
"""Of manifests."""

PROGRAM, MANIFEST = "program.jaxexport", "manifest.json"

BATCH = 256
"""Examples that the command computes at once."""


def checksum(manifest: dict[str, Any], contents: Iterable[bytes]) -> str:
    """SHA-256 over a manifest (all but its own checksum) and the bytes it describes."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def parse_manifest(text: str | bytes) -> dict[str, Any]:
    """A manifest from its JSON text.

    Raises:
      ValueError: it is none, or one of another format.
    """
    try:
        manifest = json.loads(text)
        found = manifest["format"]
        manifest["checksum"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the manifest is damaged ({error!r}): copy or export it again") from error
    if found != FORMAT:
        raise ValueError(
            f"the manifest has format {found!r}, and {FORMAT} is what can be read here: a newer "
            "version of lowrank_jax wrote it, or it is damaged"
        )
    return manifest


def verify(manifest: dict[str, Any], contents: Iterable[bytes]) -> None:
    """Compares manifest and content with the checksum.

    Raises:
      ValueError: it is another one.
    """
    if checksum(manifest, contents) != manifest["checksum"]:
        raise ValueError(
            "damaged or changed: the checksum of its content is not the one in its manifest; copy "
            "or export it again"
        )


def load(folder: str | os.PathLike[str]) -> Callable[..., Any]:
    """The function of a program that `lowrank_jax.export.save_program` wrote.

    Args:
      folder: with `program.jaxexport` and `manifest.json`.

    Returns:
      The function, compiled once for each batch size. It takes arrays of the shapes and dtypes in
      the manifest, `"batch"` being any number from 1, and raises ValueError for others. It cannot
      be differentiated.

    Raises:
      FileNotFoundError: a file is missing.
      ImportError: flatbuffers is not installed.
      ValueError: a file is damaged, the program takes 64-bit numbers and JAX has them switched
        off, or this JAX, on this device, cannot run the program.
    """
    folder = Path(folder)
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
        program = (folder / PROGRAM).read_bytes()
        verify(manifest, [program])
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    for one in manifest["inputs"]:
        if str(jax.dtypes.canonicalize_dtype(one["dtype"])) != one["dtype"]:
            raise ValueError(
                f"{folder}: the program takes {one['dtype']}: set JAX_ENABLE_X64=1 before"
            )
    try:
        call = jax.jit(jax.export.deserialize(bytearray(program)).call)
        # As far as it goes without compiling: some mismatches are only found here.
        call.lower(*(_example(one) for one in manifest["inputs"]))
    except ImportError:
        raise
    except Exception as error:  # Whatever a reader of another version stumbles over.
        raise ValueError(
            f"{folder}: JAX {jax.__version__} on {jax.default_backend()} cannot run what JAX "
            f"{manifest['versions']['jax']} wrote for {', '.join(manifest['platforms'])} "
            f"({error}). {manifest['compatibility']}"
        ) from error

    def function(*inputs: Any) -> Any:
        arrays = [one if hasattr(one, "dtype") else np.asarray(one) for one in inputs]
        _check(manifest["inputs"], arrays)
        return call(*arrays)

    return function


def _example(expected: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *expected["shape"][1:]), expected["dtype"])


def _check(expected: list[dict[str, Any]], inputs: Sequence[Any]) -> None:
    """Compares inputs with the manifest: the program itself would not say what is wrong."""
    wanted = ", ".join(f"{one['dtype']} ({', '.join(map(str, one['shape']))})" for one in expected)
    found = ", ".join(f"{one.dtype} {tuple(one.shape)}" for one in inputs)
    fits = len(inputs) == len(expected)
    for one, array in zip(expected, inputs, strict=False):
        size = inputs[0].shape[:1]
        fits = fits and str(array.dtype) == one["dtype"] and size >= (1,)
        fits = fits and tuple(array.shape) == (*size, *one["shape"][1:])
    if not fits:
        raise ValueError(
            f"the program takes {wanted}, batch being 1 or more; found {found or 'none'}"
        )


def _read(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # NumPy evaluates the header: a damaged one raises anything.
            message = " ".join(str(error).split())
            raise ValueError(f"{path} is not a .npy file of numbers: {message}") from error
    return np.atleast_1d(array)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, 2 for a mistake that is told in one line."""
    parser = argparse.ArgumentParser(description="Applies the program in this folder.")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT.npy")
    parser.add_argument("--out", type=Path, metavar="OUTPUT.npy", help="write all outputs here")
    given = parser.parse_args(arguments)
    try:
        function = load(Path(__file__).parent)
        inputs = [_read(path) for path in given.inputs]
        if len({len(one) for one in inputs}) > 1:
            pairs = zip(given.inputs, inputs, strict=True)
            counts = ", ".join(f"{path} has {len(one)}" for path, one in pairs)
            raise ValueError(f"the files have different numbers of examples: {counts}")
        begins = range(0, max(1, len(inputs[0])), BATCH)
        outputs = np.concatenate(
            [np.asarray(function(*(one[at : at + BATCH] for one in inputs))) for at in begins]
        )
        if given.out is not None:
            if outputs.dtype.kind == "V":  # NumPy's kind for what is JAX's own.
                outputs = outputs.astype(np.float32)
            with open(given.out, "wb") as file:
                np.lib.format.write_array(file, outputs, allow_pickle=False)
        elif outputs.ndim == 2:
            print(*outputs.argmax(-1), sep="\n")
        else:
            raise ValueError(f"outputs have shape {outputs.shape}: write them with --out=FILE.npy")
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
