"""The manifest: plain data, as JSON, that travels with an export and seals it.

    {"format": 1, "checksum": …, …, "versions": {…}, "metadata": {…}}

The checksum is a SHA-256 over the rest of the manifest and the bytes that it describes, so that a
change of either is found. Reading and checking it is in :mod:`~lowrank_jax.export.predict`, which
has to do that without the library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

import lowrank_jax
from lowrank_jax.export.predict import FORMAT, checksum


def sealed(
    fields: Mapping[str, Any], metadata: Mapping[str, Any] | None, contents: Iterable[bytes]
) -> dict[str, Any]:
    """The manifest of an export.

    Args:
      fields: what is particular to this kind of export.
      metadata: the user's own.
      contents: the bytes that the manifest describes, in a fixed order.

    Raises:
      TypeError: the metadata is no dict of plain data with text for keys.
    """
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, Mapping) or not _has_text_keys(dict(metadata)):
        raise TypeError(
            "the metadata has to be a dict with text for keys, and so have the dicts in it"
        )
    manifest = {
        "format": FORMAT,
        **fields,
        "versions": {
            "lowrank_jax": lowrank_jax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "metadata": dict(metadata),
    }
    try:
        # As it will be read: JSON has no tuples.
        plain = json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the metadata has to be plain data: dicts, lists, text and finite numbers ({error})"
        ) from error
    return {"checksum": checksum(plain, contents)} | plain


def _has_text_keys(value: Any) -> bool:
    """Whether no key would be changed by JSON, which makes text of numbers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _has_text_keys(one) for key, one in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))
