"""Saving a tree to a safetensors file and loading it: every kind, dtype and container."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import linen as nn
from weights_cases import CASES, PlusDiagonal

import lowrank_jax as lrj
from lowrank_jax import export


def bits(tree: Any) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Everything in a tree of arrays, exactly."""
    return [
        (jax.tree_util.keystr(path), str(x.dtype), x.shape, np.asarray(x).tobytes())
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_kind_of_weight_comes_back(tmp_path: Path, dtype: str) -> None:
    tree = {case.name: {"kernel": case.weight(dtype=jnp.dtype(dtype))} for case in CASES}
    export.save(tmp_path / "model.safetensors", tree)
    loaded = export.load(tmp_path / "model.safetensors")
    assert bits(loaded) == bits(tree)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)  # Kinds and axes are in it.


def test_a_kind_of_somebody_else_comes_back(tmp_path: Path) -> None:
    weight = PlusDiagonal(u=np.ones((3, 1)), vt=np.ones((1, 3)), diagonal=np.arange(3.0))
    export.save(tmp_path / "model.safetensors", {"kernel": weight})
    loaded = export.load(tmp_path / "model.safetensors")["kernel"]
    assert isinstance(loaded, PlusDiagonal) and bits(loaded) == bits(weight)


ARRAYS = {
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127], np.int8),
    "uint16": np.array([0, 65535], np.uint16),
    "int32": jnp.array([-(2**31), 2**31 - 1]),
    "int64": np.array([2**62 + 1]),
    "uint64": np.array([2**64 - 1], np.uint64),
    "float16": np.array([np.inf, -0.0, np.nan, 6e-8], np.float16),
    "float32": jnp.array([[1e-45, -0.0], [jnp.nan, 3.4e38]]),
    "float64": np.array([np.pi, 5e-324]),
    "bfloat16": jnp.array([1.0, jnp.nan, -3e38], jnp.bfloat16),
    "float8_e4m3fn": jnp.array([1.5, -448.0], jnp.float8_e4m3fn),
    "float8_e5m2": jnp.array([1.5, -jnp.inf], jnp.float8_e5m2),
    "scalar": np.float64(1 / 3),
    "step": jnp.int32(7),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(10)[::3],
}


def test_every_dtype_and_layout_comes_back_to_the_bit(tmp_path: Path) -> None:
    export.save(tmp_path / "model.safetensors", ARRAYS)
    loaded = export.load(tmp_path / "model.safetensors")
    assert bits(loaded) == bits(ARRAYS)
    assert list(loaded) == sorted(ARRAYS)
    assert {type(array) for array in loaded.values()} == {np.ndarray}


def test_another_byte_order_keeps_its_values(tmp_path: Path) -> None:
    export.save(tmp_path / "model.safetensors", {"x": np.arange(3.0).astype(">f4")})
    loaded = export.load(tmp_path / "model.safetensors")["x"]
    assert loaded.dtype == np.float32 and loaded.tolist() == [0.0, 1.0, 2.0]


def test_any_reader_of_safetensors_finds_the_arrays(tmp_path: Path) -> None:
    weight = lrj.LowRank(u=np.ones((4, 2)), vt=np.full((2, 3), 2.0))
    tree = {"params": {"dense": {"kernel": weight, "bias": np.zeros(3)}}}
    export.save(tmp_path / "model.safetensors", tree)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert sorted(found) == [
        "params/dense/bias",
        "params/dense/kernel/u",
        "params/dense/kernel/vt",
    ]
    np.testing.assert_array_equal(found["params/dense/kernel/vt"], weight.vt)
    export.save(tmp_path / "merged.safetensors", lrj.merge(tree))
    found = safetensors.numpy.load_file(tmp_path / "merged.safetensors")
    np.testing.assert_array_equal(found["params/dense/kernel"], np.full((4, 3), 4.0))


def test_the_manifest_says_what_is_in_the_file(tmp_path: Path) -> None:
    weight = lrj.SpatialLowRank(u=jnp.ones((1, 3, 4, 2)), vt=jnp.ones((3, 1, 2, 5)))
    note = {"model": {"name": "tiny", "shape": (1, 2)}, "accuracy": 0.1 + 0.2, "of": "Ωμέγα"}
    export.save(tmp_path / "model.safetensors", {"a": weight, "b": jnp.ones(3)}, note)
    manifest = export.read_manifest(tmp_path / "model.safetensors")
    assert manifest["arrays"] == {
        "a/u": {"dtype": "float32", "shape": [1, 3, 4, 2]},
        "a/vt": {"dtype": "float32", "shape": [3, 1, 2, 5]},
        "b": {"dtype": "float32", "shape": [3]},
    }
    (row,) = manifest["table"]["rows"]
    assert (row["kind"], row["rank"], row["shape"]) == ("SpatialLowRank", 2, [3, 3, 4, 5])
    assert manifest["table"]["other_parameters"] == 3
    assert manifest["versions"] == {
        "lowrank_jax": lrj.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    assert manifest["metadata"] == note | {"model": {"name": "tiny", "shape": [1, 2]}}


class Layers(NamedTuple):
    first: Any
    rest: list[Any]


def test_other_containers_are_saved_as_dicts_and_come_back_with_a_target(tmp_path: Path) -> None:
    tree = {"layers": Layers({"w": jnp.ones(2)}, [jnp.zeros(1), None, jnp.ones(3)]), "none": {}}
    export.save(tmp_path / "model.safetensors", tree)
    loaded = export.load(tmp_path / "model.safetensors")
    assert jax.tree.map(np.shape, loaded, is_leaf=lambda x: not isinstance(x, dict)) == {
        "layers": {"first": {"w": (2,)}, "rest": {"0": (1,), "2": (3,)}}
    }
    again = export.load(tmp_path / "model.safetensors", tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree) and bits(again) == bits(tree)


def test_boxes_are_taken_off_and_come_back_with_a_target(tmp_path: Path) -> None:
    box = nn.Partitioned(jnp.ones((4, 3)), names=("in", "out"))
    tree = {"kernel": box, "other": box.replace(value=jnp.zeros((4, 3)))}
    boxed = lrj.factorize(tree, [lrj.Rule("kernel", lrj.FixedRank(2))])
    assert isinstance(boxed["kernel"].u, nn.Partitioned)
    export.save(tmp_path / "model.safetensors", boxed)
    loaded = export.load(tmp_path / "model.safetensors")
    assert bits(loaded) == bits(nn.unbox(boxed))
    target = jax.eval_shape(lambda: boxed)
    again = export.load(tmp_path / "model.safetensors", target)
    assert jax.tree.structure(again) == jax.tree.structure(boxed) and bits(again) == bits(boxed)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({}, ValueError, "no arrays"),
        (np.ones(2), TypeError, "expected a tree"),
        ({"a": {"b": "text"}}, TypeError, "a/b: found str, expected an array"),
        ({"a": 3}, TypeError, "a: found int"),
        ({"a": jax.ShapeDtypeStruct((2,), "float32")}, TypeError, "a: found ShapeDtypeStruct"),
        ({"a": np.array(["x"])}, TypeError, "a: safetensors files have no dtype <U1"),
        ({"a": np.array([None])}, TypeError, "a: safetensors files have no dtype object"),
        ({"a": jnp.ones(2, jnp.int4)}, TypeError, "a: safetensors files have no dtype int4"),
        ({"a": np.ones(2, complex)}, TypeError, "no dtype complex128"),
        ({"a": jax.random.key(0)}, TypeError, "jax.random.key_data"),
        ({"a/b": np.ones(2)}, ValueError, "a/b: the key 'a/b'"),
        ({"a": {"": np.ones(2)}}, ValueError, "a/: the key ''"),
        ({"__metadata__": np.ones(2)}, ValueError, "__metadata__: the key"),
        ({"a": lrj.LowRank(u=np.ones((2, 1)), vt="x")}, TypeError, "a/vt: found str"),
        ({"a": lrj.LowRank(u=np.ones((2, 1)), vt=np.ones((3, 2)))}, ValueError, "do not fit"),
    ],
)
def test_what_cannot_be_saved(
    tmp_path: Path, tree: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export.save(tmp_path / "model.safetensors", tree)
    assert list(tmp_path.iterdir()) == []


@jax.tree_util.register_pytree_with_keys_class
class SameKeys:
    """Two children under one key."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten_with_keys(self) -> Any:
        return [(jax.tree_util.DictKey("x"), child) for child in self.children], None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Any:
        return cls(*children)


def test_equal_names_are_refused(tmp_path: Path) -> None:
    weight = lrj.LowRank(u=np.ones((2, 1)), vt=np.ones((1, 2)))
    with pytest.raises(ValueError, match="two leaves of the tree have the path a/x"):
        export.save(tmp_path / "model", {"a": SameKeys(np.ones(2), np.ones(2))})
    with pytest.raises(ValueError, match="another leaf"):
        export.save(tmp_path / "model", {"a": SameKeys(weight, {"u": np.ones(2)})})


def test_traced_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a is traced"):
        jax.jit(lambda a: export.save(tmp_path / "model", {"a": a}))(jnp.ones(2))


def test_arrays_of_other_processes_are_refused(tmp_path: Path) -> None:
    array = mock.Mock(spec=jax.Array, dtype=np.dtype("float32"), is_fully_addressable=False)
    array.is_fully_replicated = False
    with pytest.raises(ValueError, match="a is spread over several processes: gather"):
        export.save(tmp_path / "model", {"a": array})


@pytest.mark.parametrize("metadata", [{"x": object()}, {"x": float("nan")}, {"x": np.ones(2)}])
def test_metadata_has_to_be_plain(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="plain data"):
        export.save(tmp_path / "model", {"a": np.ones(2)}, metadata)


@pytest.mark.parametrize(
    "metadata", [[1], "ab", {1: "x", "1": "y"}, {"classes": [{1: "x", "1": "y"}]}]
)
def test_metadata_is_a_dict_with_text_for_keys(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(TypeError, match="a dict with text for keys"):
        export.save(tmp_path / "model", {"a": np.ones(2)}, metadata)


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.save(tmp_path / "model.safetensors", {"a": np.ones(2)})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            export.save(tmp_path / "model.safetensors", {"a": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    np.testing.assert_array_equal(export.load(tmp_path / "model.safetensors")["a"], np.ones(2))
    export.save(tmp_path / "model.safetensors", {"a": np.zeros(3)})
    np.testing.assert_array_equal(export.load(tmp_path / "model.safetensors")["a"], np.zeros(3))


def test_without_safetensors_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'lowrank_jax\[export\]'"):
        export.save(tmp_path / "model", {"a": np.ones(2)})
    with pytest.raises(ImportError, match=r"pip install 'lowrank_jax\[export\]'"):
        export.load(tmp_path / "model")
