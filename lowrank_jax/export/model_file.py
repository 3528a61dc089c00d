"""Saving and loading a tree of parameters: one safetensors file with a manifest in it.

The arrays have flat names (:mod:`~lowrank_jax.export.flat`), so that any safetensors reader finds
them. The file's metadata has one entry of ours, JSON text:

    {"format": 1, "checksum": …, "arrays": {name: {"dtype", "shape"}},
     "table": {"rows": [{"path", "kind", "axes", "shape", "rank", "depth", …}], …},
     "versions": {"lowrank_jax", "jax", "numpy"}, "metadata": {…}}

Format: https://huggingface.co/docs/safetensors, a length, a JSON header, then bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank_jax.export import flat
from lowrank_jax.export.manifest import sealed
from lowrank_jax.export.predict import parse_manifest, verify
from lowrank_jax.export.target import fill
from lowrank_jax.export.whole_files import write_whole
from lowrank_jax.table import Table, describe

KEY = "lowrank_jax"
"""The entry of the file's metadata that holds the manifest."""

# Of these, safetensors.numpy reads neither bfloat16 nor the smaller floats.
_DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def save(
    path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a tree to a safetensors file; one that is there is replaced when the new one is whole.

    Args:
      path: of the file; folders are made.
      tree: arrays and weights in nested dicts: parameters alone, or all variables of a model.
        Other containers are saved as dicts, partition boxes are taken off, sharded arrays gathered.
        ``lowrank_jax.merge(tree)`` saves the dense model.
      metadata: plain data to go along, such as what the model is called.

    Raises:
      ImportError: safetensors is not installed.
      TypeError: a leaf is no array, or of a dtype that safetensors files do not have; metadata that
        is no plain data.
      ValueError: no arrays, two equal names, a key with ``/`` in it, an array that is spread over
        several processes.
      OSError: the file cannot be written.

    >>> import tempfile
    >>> from lowrank_jax import LowRank
    >>> params = {"kernel": LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 3)))}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model.safetensors", params, {"model": "tiny"})
    ...     load(f"{folder}/model.safetensors")
    ...     read_manifest(f"{folder}/model.safetensors")["metadata"]
    {'kernel': LowRank(u=float32[4,1], vt=float32[1,3])}
    {'model': 'tiny'}
    """
    serialize = _safetensors().numpy.save
    host = flat.to_host(tree)
    arrays = flat.named_arrays(host)
    if not arrays:
        raise ValueError("the tree has no arrays: there is nothing to save")
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES.values():
            raise TypeError(f"{name}: safetensors files have no dtype {array.dtype}; convert it")
    fields = {
        "arrays": {
            name: {"dtype": array.dtype.name, "shape": array.shape}
            for name, array in arrays.items()
        },
        "table": json.loads(describe(host).to_json()),
    }
    manifest = sealed(fields, metadata, _contents(arrays))
    write_whole({Path(path): serialize(arrays, metadata={KEY: json.dumps(manifest)})})


def load(path: str | os.PathLike[str], target: Any = None) -> Any:
    """Reads what :func:`save` wrote, and compares it with its checksum and with the target.

    Args:
      path: of the file.
      target: what is expected: arrays, weights, or either as ``jax.ShapeDtypeStruct`` (from
        ``jax.eval_shape``). Everything has to agree: paths, shapes, dtypes, and of weights the
        kinds, axes, ranks and depths. Nothing is compared by default.

    Returns:
      The tree in the containers and partition boxes of the target, or else in nested dicts. Its
      arrays are NumPy's, so that nothing is narrowed to 32 bits and no device is chosen: JAX takes
      them as they are, and ``jax.device_put(tree, shardings)`` puts them where they belong.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: safetensors is not installed.
      TypeError: a leaf of the target is no array.
      ValueError: the file is damaged, was not written by :func:`save`, or holds something else than
        the target expects.

    >>> import tempfile
    >>> import jax
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model.safetensors", {"kernel": jnp.ones((4, 3), jnp.bfloat16)})
    ...     target = {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.bfloat16)}
    ...     load(f"{folder}/model.safetensors", target)["kernel"].dtype
    dtype(bfloat16)
    """
    manifest, arrays = _read(path)
    try:
        table = Table.from_json(json.dumps(manifest.get("table")))
        tree = flat.from_arrays(arrays, table)
        return tree if target is None else fill(target, tree)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a file that :func:`save` wrote, checked like :func:`load` does.

    Which takes the whole file, since the checksum is over the arrays too.

    Returns:
      ``arrays`` (dtype and shape by flat name), ``table`` (of the factorized weights), ``versions``
      and ``metadata``; beside them ``format`` and ``checksum``.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: safetensors is not installed.
      ValueError: the file is damaged, or was not written by :func:`save`.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the arrays, in the order in which they were saved."""
    safetensors = _safetensors()
    data = Path(path).read_bytes()
    try:
        try:
            entries = dict(safetensors.deserialize(data))
        except safetensors.SafetensorError as error:
            raise ValueError(f"not a safetensors file, or a damaged one ({error})") from error
        # The library has checked the header, and does not return this part of it.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get(flat.RESERVED, {})
        if KEY not in metadata:
            raise ValueError(
                "a safetensors file without a manifest of lowrank_jax.export.save, so nothing says "
                "what its arrays are factors of: read it with safetensors"
            )
        manifest = parse_manifest(metadata[KEY])
        arrays = {name: _array(name, entry) for name, entry in sorted(entries.items())}
        _compare(manifest, arrays)
        verify(manifest, _contents(arrays))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return manifest, {name: arrays[name] for name in manifest["arrays"]}


def _array(name: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name}: unknown dtype {entry['dtype']}")
    dtype = jnp.dtype(_DTYPES[entry["dtype"]])
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _compare(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where the arrays are not those of the manifest, and names one."""
    recorded = manifest.get("arrays")
    expected = recorded if isinstance(recorded, dict) else {}
    for name in dict.fromkeys([*expected, *arrays]):
        if name not in arrays:
            raise ValueError(f"{name} is missing: its manifest has it")
        if name not in expected:
            raise ValueError(f"{name} is one too many: its manifest does not have it")
        found = {"dtype": arrays[name].dtype.name, "shape": list(arrays[name].shape)}
        if found != expected[name]:
            raise ValueError(f"{name}: found {found}, and its manifest has {expected[name]}")


def _contents(arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """The bytes of the arrays in the order of their names, for the checksum."""
    return [array.reshape(-1).view(np.uint8) for _, array in sorted(arrays.items())]


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "files of models are written by safetensors: pip install 'lowrank_jax[export]'"
        ) from error
    return safetensors
