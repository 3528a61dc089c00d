"""What installing the library means: declared versions, and imports that stay within them."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import lowrank_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + [
    requirement for extra in EXTRAS.values() for requirement in extra
]
# JAX itself requires SciPy. Flax belongs to lowrank_jax.linen, safetensors to lowrank_jax.export.
CORE = {"jax", "numpy", "optax", "scipy", "lowrank_jax"}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_versions_have_a_minimum_and_no_maximum():
    own = [requirement for requirement in REQUIREMENTS if requirement.startswith("lowrank_jax[")]
    for requirement in set(REQUIREMENTS) - set(own):
        assert requirement.count(">=") == 1 and not set(requirement) & set("<~!,;"), requirement


def test_the_version_is_the_declared_one():
    assert lowrank_jax.__version__ == PROJECT["version"]


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "lowrank_jax").rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_library_imports_what_it_declares(path: Path):
    of_extras = {"linen": {"flax"}, "export": {"safetensors", "flatbuffers"}}
    assert imported(path) <= CORE.union(*(of_extras.get(part, set()) for part in path.parts))


def test_there_is_a_type_marker_and_a_licence():
    assert (ROOT / "lowrank_jax" / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
