"""Loading into a target: whatever differs is refused, and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax import export


def low_rank(rank: int, dtype: Any = "float32") -> lrj.LowRank:
    return lrj.LowRank(u=np.ones((4, rank), dtype), vt=np.ones((rank, 4), dtype))


TWO_INPUTS = low_rank(2).replace(u=np.ones((2, 2, 2), "float32"), in_axes=2)


def pointwise(kind: Any) -> Any:
    """1 x 1 convolutions of these two kinds have factors of the same shapes."""
    return kind(u=np.ones((1, 1, 4, 2), "float32"), vt=np.ones((1, 1, 2, 4), "float32"))


SAVED = {
    "conv": {"kernel": pointwise(lrj.SpatialLowRank)},
    "dense": {"kernel": low_rank(2), "bias": np.ones(4, "float32")},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    export.save(tmp_path / "model.safetensors", SAVED)
    return tmp_path / "model.safetensors"


def changed(**paths: Any) -> Any:
    """The saved tree with other kernels, named by layer__kernel; None is no leaf."""
    tree = {name: dict(layer) for name, layer in SAVED.items()}
    for path, kernel in paths.items():
        layer, _, name = path.partition("__")
        tree.setdefault(layer, {})[name] = kernel
    return tree


@pytest.mark.parametrize("abstract", [False, True])
def test_the_same_tree_is_accepted(file: Path, abstract: bool) -> None:
    target = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, SAVED)) if abstract else SAVED
    loaded = export.load(file, target)
    assert jax.tree.structure(loaded) == jax.tree.structure(SAVED)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, SAVED))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            changed(dense__scale=np.ones(4, "float32")),
            r"dense/scale: missing, expected an array \(4,\) of float32",
        ),
        (
            changed(dense__bias=None),
            r"dense/bias: not expected, found an array \(4,\) of float32",
        ),
        (
            changed(dense__bias=np.ones(5, "float32")),
            r"dense/bias: expected an array \(5,\) of float32, found an array \(4,\) of float32",
        ),
        (
            changed(dense__bias=np.ones(4, jnp.bfloat16)),
            r"expected an array \(4,\) of bfloat16, found an array \(4,\) of float32",
        ),
        (
            changed(dense__kernel=low_rank(3)),
            r"expected LowRank\(rank=3, .*, found LowRank\(rank=2",
        ),
        (
            changed(dense__kernel=low_rank(2).replace(m=np.ones((2, 2), "float32"))),
            r"expected LowRank\(rank=2, depth=3.*, found LowRank\(rank=2, depth=2",
        ),
        (
            changed(dense__kernel=TWO_INPUTS),
            r"expected LowRank\(.*in_axes=2.*, found LowRank\(.*in_axes=1",
        ),
        (
            changed(dense__kernel=low_rank(2, jnp.bfloat16)),
            r"kernel in bfloat16, found .* kernel in float32",
        ),
        (
            changed(dense__kernel=low_rank(2).replace(u=np.ones((4, 2), jnp.bfloat16))),
            r"kernel in u bfloat16, vt float32, found .* kernel in float32",
        ),
        (
            changed(dense__kernel=np.ones((4, 4), "float32")),
            r"expected an array \(4, 4\) of float32, found LowRank\(rank=2",
        ),
        (
            changed(dense__bias=low_rank(2)),
            r"dense/bias: expected LowRank\(rank=2.*, found an array",
        ),
        (
            changed(conv__kernel=pointwise(lrj.ChannelLowRank)),
            r"conv/kernel: expected ChannelLowRank\(.*, found SpatialLowRank\(",
        ),
    ],
)
def test_differences_are_named(file: Path, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        export.load(file, target)
    assert str(caught.value).startswith(f"{file}: ")
    # The difference that there is, and no other.
    assert str(caught.value).count("\n  ") == 1


def test_many_differences_are_counted(file: Path) -> None:
    target = {"other": {str(n): np.ones(1) for n in range(7)}}
    with pytest.raises(ValueError, match=r"other/4: missing.*\n  and 5 more"):
        export.load(file, target)


def test_a_target_of_something_else_is_a_type_error(file: Path) -> None:
    with pytest.raises(TypeError, match="dense/bias of the target is a int"):
        export.load(file, changed(dense__bias=3))


def test_factored_and_merged_files_do_not_replace_each_other(tmp_path: Path, file: Path) -> None:
    export.save(tmp_path / "merged", lrj.merge(SAVED))
    with pytest.raises(ValueError, match=r"found an array \(4, 4\)"):
        export.load(tmp_path / "merged", SAVED)
    with pytest.raises(ValueError, match=r"expected an array \(4, 4\).*, found LowRank"):
        export.load(file, lrj.merge(SAVED))
