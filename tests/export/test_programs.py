"""Programs that run without the library: any batch size, the same outputs, no damage unnoticed."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax import export

GENERATOR = np.random.default_rng(0)
CONV = lrj.SpatialLowRank(
    u=GENERATOR.standard_normal((1, 3, 1, 2)).astype("float32"),
    vt=GENERATOR.standard_normal((3, 1, 2, 5)).astype("float32"),
)
HEAD = lrj.LowRank(
    u=GENERATOR.standard_normal((5, 2)).astype("float32"),
    vt=GENERATOR.standard_normal((2, 4)).astype("float32"),
)


def network(images: jax.Array) -> jax.Array:
    """Logits of uint8 images (batch, 6, 6, 1), by factors."""
    x = images.astype(jnp.float32) / 255
    x = CONV.conv_general_dilated(x, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return HEAD.dot_general(jax.nn.relu(x).mean((1, 2)), (((1,), (0,)), ((), ())))


def expected(images: np.ndarray) -> np.ndarray:
    """The same in float64, by dense kernels and loops."""
    kernel = np.einsum("awir,hbro->hwio", np.float64(CONV.u), np.float64(CONV.vt))
    x = images / 255
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    hidden = np.maximum(np.einsum("byxihw,hwio->byxo", windows, kernel), 0).mean((1, 2))
    return hidden @ np.float64(HEAD.u) @ np.float64(HEAD.vt)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 6, 6, 1), np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs") / "program"
    export.save_program(folder, network, images(2), metadata={"classes": ["a", "b", "c", "d"]})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "program"))


ALONE = """
import sys
sys.modules.update(dict.fromkeys(["flax", "lowrank_jax", "safetensors", "optax"]))
sys.path.insert(0, sys.argv[1])
import numpy as np, predict
function = predict.load(sys.argv[1])
for count in (1, 3):
    np.save(f"{sys.argv[1]}/out{count}.npy", function(np.load(f"{sys.argv[1]}/in{count}.npy")))
sys.exit(predict.main([f"{sys.argv[1]}/in3.npy"]))
"""


def test_it_runs_without_the_library_and_flax(folder: Path) -> None:
    for count in (1, 3):
        np.save(folder / f"in{count}.npy", images(count))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for count in (1, 3):
        out = np.load(folder / f"out{count}.npy")
        np.testing.assert_allclose(out, expected(images(count)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out, network(images(count)), rtol=1e-5, atol=1e-6)
    assert list(map(int, done.stdout.split())) == expected(images(3)).argmax(-1).tolist()


def test_the_manifest_says_what_goes_in_and_comes_out(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"] == [{"shape": ["batch", 6, 6, 1], "dtype": "uint8"}]
    assert manifest["output"] == {"shape": ["batch", 4], "dtype": "float32"}
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["metadata"] == {"classes": ["a", "b", "c", "d"]}
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "predict.py",
        "program.jaxexport",
    ]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ([images(2) / 255], r"float64 \(2, 6, 6, 1\)"),
        ([images(2)[..., 0]], r"uint8 \(2, 6, 6\)"),
        ([images(2)[:, :5]], r"uint8 \(2, 5, 6, 1\)"),
        ([images(2)[:0]], r"uint8 \(0, 6, 6, 1\)"),
        ([np.uint8(1)], r"uint8 \(\)"),
        ([images(2), images(2)], r"uint8 \(2, 6, 6, 1\), uint8 \(2, 6, 6, 1\)"),
        ([[1, 2]], r"int64 \(2,\)"),
        ([], "none$"),
    ],
)
def test_other_inputs_are_refused(saved: Path, wrong: list[Any], found: str) -> None:
    message = rf"takes uint8 \(batch, 6, 6, 1\), batch being 1 or more; found {found}"
    with pytest.raises(ValueError, match=message):
        export.load_program(saved)(*wrong)


def test_several_inputs_share_their_batch(tmp_path: Path) -> None:
    specs = [jax.ShapeDtypeStruct((7, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.bfloat16)]
    export.save_program(tmp_path, lambda x, scale: x * scale[:, None], *specs)
    function = export.load_program(tmp_path)
    out = function(np.ones((2, 3), "float32"), jnp.array([2, 3], jnp.bfloat16))
    np.testing.assert_array_equal(out, [[2, 2, 2], [3, 3, 3]])
    with pytest.raises(ValueError, match="batch being 1 or more"):
        function(np.ones((2, 3), "float32"), jnp.ones(3, jnp.bfloat16))


def products(folder: Path) -> set[str]:
    """The different products in a program, as lines of StableHLO."""
    program = jax.export.deserialize(bytearray((folder / "program.jaxexport").read_bytes()))
    lines = program.mlir_module().splitlines()
    return {line for line in lines if re.search(r"= stablehlo\.(convolution|dot_general)", line)}


# At these ranks the cheaper form depends on how large the batch is.
@pytest.mark.parametrize(
    ("weight", "shape"),
    [
        (lrj.LowRank(u=jnp.ones((4, 3)), vt=jnp.ones((3, 5))), (4,)),
        (lrj.SpatialLowRank(u=jnp.ones((1, 3, 2, 9)), vt=jnp.ones((3, 1, 9, 4))), (5, 5, 2)),
        (lrj.ChannelLowRank(u=jnp.ones((3, 3, 2, 9)), vt=jnp.ones((1, 1, 9, 4))), (5, 5, 2)),
    ],
)
def test_overcomplete_weights_are_composed_at_an_open_batch(
    tmp_path: Path, weight: Any, shape: tuple[int, ...]
) -> None:
    def apply(x: jax.Array, kernel: Any) -> jax.Array:
        if len(shape) == 1:
            return lrj.dot_general(x, kernel, (((1,), (0,)), ((), ())))
        numbers = ("NHWC", "HWIO", "NHWC")
        return lrj.conv_general_dilated(x, kernel, (2, 1), "SAME", dimension_numbers=numbers)

    spec = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    export.save_program(tmp_path, lambda x: apply(x, weight), spec)
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype("float32")
    dense = apply(x, weight.dense())
    np.testing.assert_allclose(export.load_program(tmp_path)(x), dense, rtol=1e-5, atol=1e-4)
    lines = products(tmp_path)
    on_batch = [line for line in lines if "tensor<?x" in line]
    assert len(lines) == 2 and len(on_batch) == 1  # The kernel, and its one application.


def test_products_are_in_full_precision(tmp_path: Path) -> None:
    kernel = jnp.ones((3, 2))
    export.save_program(tmp_path, lambda x: x @ kernel, jax.ShapeDtypeStruct((1, 3), jnp.float32))
    (line,) = products(tmp_path)
    assert "precision = [HIGHEST, HIGHEST]" in line


@pytest.mark.parametrize(
    ("function", "examples", "message"),
    [
        (lambda: jnp.ones(2), [], "found none"),
        (lambda x: x, [jnp.ones(())], r"found shape \(\)"),
        (lambda x: x.sum(0), [jnp.ones((2, 3))], r"returns one array .* found shape \(3,\)"),
        (lambda x: (x, x), [jnp.ones((2, 3))], "found shape .*, shape "),
        (lambda x: {"logits": x}, [jnp.ones((2, 3))], "returns one array"),
        (lambda x: None, [jnp.ones((2, 3))], "found no array"),
    ],
)
def test_what_is_no_program(
    tmp_path: Path, function: Callable[..., Any], examples: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export.save_program(tmp_path / "program", function, *examples)
    assert not (tmp_path / "program").exists()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte of the program": lambda f: flip(f / "program.jaxexport", 0),
    "middle byte of the program": lambda f: flip(f / "program.jaxexport", 1000),
    "last byte of the program": lambda f: flip(f / "program.jaxexport", -1),
    "program cut": lambda f: os.truncate(f / "program.jaxexport", 100),
    "program empty": lambda f: os.truncate(f / "program.jaxexport", 0),
    "manifest empty": lambda f: os.truncate(f / "manifest.json", 0),
    "manifest cut": lambda f: os.truncate(f / "manifest.json", 40),
    "manifest a list": lambda f: (f / "manifest.json").write_text("[1]"),
    "manifest no text": lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\xff"),
    "manifest changed": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace("uint8", "int32")
    ),
    "manifest of another format": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"format": 1', '"format": 2')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(ValueError, match="damaged"):
        export.load_program(folder)


def test_bytes_of_the_manifest_cannot_change(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    meaning = json.loads(whole)
    for at in range(0, len(whole), 7):
        flip(folder / "manifest.json", at)
        try:
            export.load_program(folder)
        except ValueError:
            pass
        else:  # A blank may become another blank.
            assert json.loads((folder / "manifest.json").read_bytes()) == meaning
        (folder / "manifest.json").write_bytes(whole)


def test_a_program_that_jax_cannot_read_says_so(folder: Path) -> None:
    (folder / "program.jaxexport").write_bytes(b"not a program")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checksum"] = export.predict.checksum(manifest, [b"not a program"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"JAX .* on cpu cannot run what JAX .* six months"):
        export.load_program(folder)


def test_missing_files(folder: Path) -> None:
    (folder / "program.jaxexport").unlink()
    with pytest.raises(FileNotFoundError, match=r"program\.jaxexport"):
        export.load_program(folder)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        export.load_program(folder / "nowhere")


def test_a_full_disk_leaves_the_program_that_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def full_at_the_third(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        export.save_program(folder, lambda x: -network(x), images(1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_where_a_folder_has_the_name_of_a_file_nothing_is_replaced(folder: Path) -> None:
    (folder / "predict.py").unlink()
    (folder / "predict.py").mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(IsADirectoryError, match=r"predict\.py"):
        export.save_program(folder, lambda x: -network(x), images(1))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


# ---------------------------------------------------------------- the command


def command(folder: Path, *arguments: object) -> int:
    """`python predict.py …` in this process, with the copy of the folder."""
    spec = importlib.util.spec_from_file_location("copied_predict", folder / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BATCH = 2
    return module.main([str(argument) for argument in arguments])


def test_the_command_takes_many_images_in_parts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(folder / "images.npy", images(5))
    assert command(folder, folder / "images.npy", f"--out={folder / 'logits.npy'}") == 0
    logits = np.load(folder / "logits.npy")
    np.testing.assert_allclose(logits, expected(images(5)), rtol=1e-4, atol=1e-5)
    assert command(folder, folder / "images.npy") == 0
    printed = list(map(int, capsys.readouterr().out.split()))
    assert printed == expected(images(5)).argmax(-1).tolist()


def test_outputs_that_no_npy_file_has_are_written_in_float32(tmp_path: Path) -> None:
    example = np.linspace(0, 1, 6, dtype="float32").reshape(3, 2)
    export.save_program(tmp_path, lambda x: x.astype(jnp.bfloat16), example)
    np.save(tmp_path / "in.npy", example)
    assert command(tmp_path, tmp_path / "in.npy", f"--out={tmp_path / 'out.npy'}") == 0
    out = np.load(tmp_path / "out.npy")
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, example, rtol=2**-8)


def test_files_of_different_numbers_of_examples_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.save_program(tmp_path, lambda x, y: x + y, *[np.ones((1, 2), "float32")] * 2)
    for name, count in {"a": 5, "b": 3}.items():
        np.save(tmp_path / f"{name}.npy", np.ones((count, 2), "float32"))
    assert command(tmp_path, tmp_path / "a.npy", tmp_path / "b.npy") == 2
    error = capsys.readouterr().err
    assert "a.npy has 5" in error and "b.npy has 3" in error and error.count("\n") == 1


def save_pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def save_with_header(header: bytes) -> Callable[[Path], object]:
    """A .npy file, as far as its first eight bytes go."""
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "is not a .npy file of numbers"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01."), "is not a .npy file of numbers"),
        (save_pickled, "Object arrays cannot be loaded"),
        (save_with_header(b"{'descr': ((((  \n"), "is not a .npy file of numbers"),
        (save_with_header(b"{'descr': 0777, \n"), "is not a .npy file of numbers"),
        (save_with_header(b" " * 20_000), "is not a .npy file of numbers"),
        (
            save_with_header(
                b"{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000000,)}\n"
            ),
            "is not a .npy file of numbers",
        ),
        (lambda path: np.save(path, images(2) / 255), "the program takes uint8"),
        (lambda path: np.save(path, images(2)[:0]), "the program takes uint8"),
        (lambda path: np.save(path, np.uint8(3)), "the program takes uint8"),
    ],
)
def test_mistakes_are_told_in_one_line(
    folder: Path, write: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "images.npy")
    assert command(folder, folder / "images.npy") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_the_command_finds_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(folder / "images.npy", images(1))
    flip(folder / "program.jaxexport", 500)
    assert command(folder, folder / "images.npy") == 2
    assert "damaged" in capsys.readouterr().err
