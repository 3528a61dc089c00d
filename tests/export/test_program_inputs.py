"""What programs take: 64-bit numbers, sizes left open, and functions that cannot become one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers.builder
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax import export


def input_dtype(folder: Path) -> str:
    (one,) = json.loads((folder / "manifest.json").read_text())["inputs"]
    return str(one["dtype"])


@pytest.mark.parametrize(("wide", "narrow"), [("float64", "float32"), ("int64", "int32")])
def test_without_x64_the_manifest_has_the_narrow_dtype_of_the_program(
    tmp_path: Path, wide: str, narrow: str
) -> None:
    export.save_program(tmp_path, lambda x: x * 2, np.ones((1, 3), wide))
    assert input_dtype(tmp_path) == narrow
    function = export.load_program(tmp_path)
    np.testing.assert_array_equal(function(np.full((2, 3), 5, narrow)), np.full((2, 3), 10))
    with pytest.raises(ValueError, match=rf"takes {narrow} .* found {wide} \(1, 3\)"):
        function(np.ones((1, 3), wide))


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import predict
try:
    predict.load(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_a_program_of_64_bits_says_what_to_set_where_jax_has_none(
    tmp_path: Path, x64: None
) -> None:
    export.save_program(tmp_path, lambda x: x * 2, np.ones((1, 3)))
    assert input_dtype(tmp_path) == "float64"
    value = 1 + 2.0**-40  # Of which float32 keeps 1.
    assert export.load_program(tmp_path)(np.full((1, 3), value)).tolist() == [[2 * value] * 3]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(tmp_path)], capture_output=True, text=True
    )
    expected = f"{tmp_path}: the program takes float64: set JAX_ENABLE_X64=1 before"
    assert done.stdout.splitlines() == [expected], done.stderr


@pytest.mark.parametrize(
    ("example", "found"),
    [
        ({"kernel": np.ones((3, 2))}, "dict"),
        (jax.random.split(jax.random.key(0), 2), "key<fry>"),
        (jax.ShapeDtypeStruct((2,), jax.random.key(0).dtype), "key<fry>"),
        (3, "int"),
        (np.array(["text"]), "<U4"),
    ],
    ids=["dict", "key", "shape of a key", "int", "text"],
)
def test_examples_are_arrays_of_numbers(tmp_path: Path, example: Any, found: str) -> None:
    message = f"found {found} as an example, expected an array of numbers: parameters belong in"
    with pytest.raises(TypeError, match=message):
        export.save_program(tmp_path / "program", lambda *inputs: inputs[-1], example, np.ones(2))
    assert not (tmp_path / "program").exists()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.shape[0] > 3 else -x,
        lambda x: x + jnp.arange(int(x.shape[0]))[:, None],
        lambda x: x.reshape(-1, 7),
    ],
    ids=["comparison", "int", "reshape"],
)
def test_a_function_that_asks_for_its_batch(tmp_path: Path, function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"needs the number of examples.*batch") as caught:
        export.save_program(tmp_path / "program", function, np.ones((1, 2)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "program").exists()


def test_a_program_beyond_the_limit_of_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flatbuffers.builder.Builder, "MAX_BUFFER_SIZE", 2**16)
    weights = np.random.default_rng(0).standard_normal((1, 2**15)).astype("float32")
    with pytest.raises(ValueError, match=r"2 GiB.* lowrank_jax\.export\.save"):
        export.save_program(tmp_path / "program", lambda x: x * weights, weights)
    assert not (tmp_path / "program").exists()


def exported_at_any_size(compose: bool | None) -> Any:
    """A convolution whose height and width are left open, and so which form is the cheaper."""
    weight = lrj.SpatialLowRank(u=jnp.ones((1, 3, 2, 3)), vt=jnp.ones((3, 1, 3, 4)))
    sizes = jax.export.symbolic_shape("h, w", constraints=["h >= 3", "w >= 3"])

    def apply(x: jax.Array) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return weight.conv_general_dilated(
            x, (1, 1), "VALID", dimension_numbers=numbers, compose=compose
        )

    image = jax.ShapeDtypeStruct((1, *sizes, 2), jnp.float32)
    return jax.export.export(jax.jit(apply))(image)


def test_where_sizes_leave_the_cheaper_form_open_the_error_names_the_choice() -> None:
    with pytest.raises(ValueError, match="compose=True or compose=False"):
        exported_at_any_size(compose=None)
    image = np.random.default_rng(0).standard_normal((1, 5, 4, 2)).astype("float32")
    forms = [exported_at_any_size(compose=choice).call(image) for choice in (True, False)]
    # All entries of the kernel are the rank, so that an output is a sum over its window.
    windows = np.lib.stride_tricks.sliding_window_view(np.float64(image), (3, 3), axis=(1, 2))
    expected = np.repeat(3 * windows.sum((3, 4, 5))[..., None], 4, axis=-1)
    for form in forms:
        np.testing.assert_allclose(form, expected, rtol=1e-4, atol=1e-4)
