"""The documentation: it is built without a warning and without a network, every public name is on
a page, and what the pages show is run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_blocks import Block, fenced_blocks, run_python

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PUBLIC = [
    "lowrank_jax",
    "lowrank_jax.diagnostics",
    "lowrank_jax.export",
    "lowrank_jax.initializers",
    "lowrank_jax.linen",
    "lowrank_jax.rank_selection",
    "lowrank_jax.restructure",
    "lowrank_jax.sharding",
    "lowrank_jax.torch_state_dict",
]
# What public functions return or check their arguments with; other files of the library import it.
INTERNAL = {
    "FactorizedInitializer",
    "Random",
    "Regular",
    "Spectral",
    "VarianceMatched",
    "require_initializer",
    "require_key",
}

PAGES = {str(page.relative_to(DOCS)): page.read_text("utf-8") for page in DOCS.rglob("*.md")}
BLOCKS = [
    pytest.param(page, block, id=f"{page}:{block.line}")
    for page in sorted(PAGES)
    for block in fenced_blocks(DOCS / page)
    if block.language == "python"
]
COMMANDS = [
    line
    for page in PAGES
    for block in fenced_blocks(DOCS / page)
    if block.language == "bash"
    for line in block.text.splitlines()
]


def public_names() -> Iterator[set[str]]:
    """For every public name what it may be called on a page: as imported, or as written."""
    for path in PUBLIC:
        module = importlib.import_module(path)
        for name in getattr(module, "__all__", None) or written_in(module):
            value = getattr(module, name)
            if inspect.ismodule(value):
                yield {value.__name__}
            else:
                # Constants and aliases have no name of their own.
                named = hasattr(value, "__qualname__")
                own = [f"{value.__module__}.{value.__qualname__}"] if named else []
                yield {f"{path}.{name}", *own}


def written_in(module: types.ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and name not in INTERNAL
    ]


def described(inventory: bytes) -> set[str]:
    """What the pages describe, from the inventory that Sphinx leaves for other projects."""
    entries = zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()
    return {name for name, role, *_ in map(str.split, entries) if role.startswith("py:")}


def test_pages_are_built_without_a_warning_and_name_everything(tmp_path: Path):
    nowhere = "http://127.0.0.1:9"  # The discard port, where nothing listens.
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "doctrees")]
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "html")],
        env={**os.environ, **offline, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert build.returncode == 0, build.stderr
    found = described((tmp_path / "html" / "objects.inv").read_bytes())
    names = list(public_names())
    assert len(names) > 50
    missing = [min(allowed, key=len) for allowed in names if not allowed & found]
    assert not missing, f"on no page of docs/api: {missing}"


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_python(page: str, block: Block, monkeypatch: pytest.MonkeyPatch):
    run_python(DOCS / page, block, monkeypatch)


@pytest.mark.parametrize(
    "page", [page for page in sorted(DOCS.rglob("*.rst")) if ">>>" in page.read_text("utf-8")]
)
def test_examples(page: Path):
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.attempted and not result.failed


def test_commands_and_configs_exist():
    """That they work is shown by the README's test, which runs them."""
    assert COMMANDS
    for command in COMMANDS:
        module = re.match(r"python -m (\S+)", command)
        assert module or command.startswith("pip install -e "), command
        assert module is None or importlib.util.find_spec(module[1]), command
        for config in re.findall(r"configs/[\w/]+\.py", command):
            assert (ROOT / config).is_file(), command


def test_every_command_is_explained():
    page = PAGES["experiments.md"]
    for file in sorted((ROOT / "experiments").rglob("*.py")):
        if "__main__" in file.read_text("utf-8") and not file.stem.startswith("make_"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            assert f"`python -m {module.removesuffix('.__main__')}`" in page, file
