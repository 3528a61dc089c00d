"""Programs: a function with its weights, as a folder that runs without the library that made it.

    program.jaxexport   StableHLO for any batch size, on CPU, CUDA and TPU; the weights are in it
    manifest.json       inputs, output, versions, metadata, and a checksum over it all
    predict.py          loads the two above, and is a command; a copy of the module of that name

Program and manifest are under the checksum. `predict.py` is not: a folder that you do not trust is
for :func:`lowrank_jax.export.load_program`, which does the same and runs nothing of the folder's.

JAX promises that what one version exports can be read by versions up to six months newer, and up
to three weeks older. For longer, keep the parameters (:func:`lowrank_jax.export.save`) and export
again.

Source: https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from lowrank_jax.export import predict
from lowrank_jax.export.manifest import sealed
from lowrank_jax.export.whole_files import write_whole
from lowrank_jax.open_sizes import InconclusiveDimensionOperation

PLATFORMS = ("cpu", "cuda", "tpu")

COMPATIBILITY = (
    "JAX reads programs that were exported by versions up to six months older or three weeks newer "
    "than itself (docs.jax.dev, jax.export, compatibility guarantees)"
)


def save_program(
    folder: str | os.PathLike[str],
    function: Callable[..., Any],
    *examples: Any,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a function to a folder, with all the arrays it closes over.

    Sharded arrays are gathered. The function is traced with
    ``jax.default_matmul_precision("highest")``: products of float32 numbers that do not ask for
    something else are computed in full float32, so that a GPU or a TPU gives what a CPU does, up to
    the order of sums.

    Args:
      folder: is made. Files of a program that is there are replaced when the new ones are whole.
      function: of arrays, to one array; the first axis of each counts examples. It is traced with
        a size for that axis that stands for any number, so it may not ask what it is.
      *examples: inputs, or ``jax.ShapeDtypeStruct`` of them, with any number of examples. Where
        JAX has 64-bit numbers switched off, those of 64 bits stand for ones of 32.
      metadata: plain data to go along.

    Raises:
      ImportError: flatbuffers is not installed.
      TypeError: an example that is no array of numbers; metadata that is no plain data.
      ValueError: no inputs, or one without axes; a function that needs to know how many examples
        there are; an output that is no array of one entry for each example; sharding constraints on
        several devices; a program of more than 2 GiB.
      OSError: the files cannot be written.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from lowrank_jax import LowRank
    >>> kernel = LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 3)))
    >>> network = lambda x: kernel.dot_general(x, (((1,), (0,)), ((), ())))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_program(folder, network, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    ...     predict.load(folder)(jnp.ones((2, 4)))
    Array([[4., 4., 4.],
           [4., 4., 4.]], dtype=float32)
    """
    for example in examples:
        _require_numbers(example)
    if not examples or not all(example.shape for example in examples):
        raise ValueError(
            "a program needs inputs whose first axis counts examples; found "
            + (", ".join(f"shape {example.shape}" for example in examples) or "none")
        )
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in examples]
    try:
        with jax.default_matmul_precision("highest"):
            exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*inputs)
    except InconclusiveDimensionOperation as error:
        raise ValueError(
            "the function needs the number of examples, which a program leaves open: take no "
            "decision by it, make no Python number of it, and give reshape the other sizes "
            f"({str(error).partition(chr(10))[0]})"
        ) from error
    outputs = exported.out_avals
    alone = jax.tree_util.treedef_is_leaf(exported.out_tree)
    if not alone or [output.shape[:1] for output in outputs] != [(batch,)]:
        raise ValueError(
            "a program returns one array with an entry for each example; found "
            + (", ".join(f"shape {output.shape}" for output in outputs) or "no array")
        )
    if exported.nr_devices != 1:
        raise ValueError(
            f"the function is for {exported.nr_devices} devices, and a program is for one: leave "
            "out its sharding constraints"
        )
    program = _serialized(exported)
    fields = {
        "inputs": [_phrase(one) for one in exported.in_avals],
        "output": _phrase(outputs[0]),
        "platforms": PLATFORMS,
        "compatibility": COMPATIBILITY,
    }
    manifest = sealed(fields, metadata, [program])
    place = Path(folder)
    write_whole(
        {
            place / predict.PROGRAM: program,
            place / predict.MANIFEST: f"{json.dumps(manifest, indent=1)}\n".encode(),
            place / "predict.py": Path(predict.__file__).read_bytes(),
        }
    )


def _require_numbers(example: Any) -> None:
    """Raises TypeError for an example that is no array of numbers."""
    dtype = getattr(example, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise TypeError(
            f"found {type(example).__name__ if dtype is None else dtype} as an example, expected "
            "an array of numbers: parameters belong in the function, as in "
            "save_program(folder, lambda x: model.apply(variables, x), x)"
        )


def _serialized(exported: jax.export.Exported) -> bytes:
    """A program as bytes.

    Raises:
      ImportError: flatbuffers is not installed.
      ValueError: the program is too large.
    """
    try:
        from flatbuffers.builder import BuilderSizeError
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'lowrank_jax[export]'") from error
    try:
        return bytes(exported.serialize())
    except BuilderSizeError as error:
        raise ValueError(
            "a program holds at most 2 GiB, its weights included: keep them factored or make them "
            "narrower, or save them by lowrank_jax.export.save, which has no such limit"
        ) from error


def _phrase(array: Any) -> dict[str, Any]:
    """Shape and dtype as plain data; the batch by its name."""
    shape = [size if isinstance(size, int) else str(size) for size in array.shape]
    return {"shape": shape, "dtype": str(array.dtype)}
