"""The notebooks of `colabs/`: they run from nothing, and what is stored in them is what they print.

A notebook checks its own claims with `assert`, so that running without an exception is the test of
its content. Figures and numbers differ between machines and are not compared.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from colabs.execute import FOLDER, executed

ROOT = FOLDER.parent
NAMES = ("frobenius_decay", "other_projects", "quick_start")
CLAIMS = 4  # The fewest checks that a notebook has of what it says.


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(path_of(name), as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds_of_output(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """For every code cell what came out: names of streams, and the richest type of each display."""
    return [
        [
            output.name if output.output_type == "stream" else max(output.data, key=richness)
            for output in cell.outputs
        ]
        for cell in code_cells(notebook)
    ]


def richness(mime_type: str) -> int:
    return ("text/plain", "image/png").index(mime_type)


def test_all_notebooks_are_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_has_its_outputs(name: str) -> None:
    before = path_of(name).read_bytes()
    stored, now = read(name), executed(path_of(name))
    assert path_of(name).read_bytes() == before
    assert [cell.execution_count for cell in code_cells(stored)] == list(
        range(1, len(code_cells(stored)) + 1)
    )
    assert kinds_of_output(stored) == kinds_of_output(now)
    kinds = set(itertools.chain(*kinds_of_output(stored)))
    assert "image/png" in kinds and "stderr" not in kinds


@pytest.mark.parametrize("name", NAMES)
def test_stored_file_is_portable(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.metadata == {} for cell in notebook.cells)
    texts = [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts += (
                [output.text] if output.output_type == "stream" else [output.data["text/plain"]]
            )
    for text in texts:
        # A folder of some machine: "/home/…", "C:\…"; not a parameter's path, such as "out/bias".
        assert not re.search(r"(?:^|[\s'\"(=])(?:/\w|[A-Z]:\\)", text), text
    assert path_of(name).stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_says_what_is_promised(name: str) -> None:
    notebook = read(name)
    title, *_ = texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert title.startswith("# ")
    assert re.search(r"^##+ .*On a TPU$", "\n".join(texts), flags=re.MULTILINE)
    assert "%pip install" in code_cells(notebook)[0].source
    # Files and other notebooks that the text sends to are there.
    for mentioned in re.findall(r"`([\w/]+\.(?:ipynb|py))`", "\n".join(texts)):
        assert (FOLDER / mentioned).is_file() or (ROOT / mentioned).is_file(), mentioned
    assert sum(map(number_of_checks, code_cells(notebook))) >= CLAIMS


def number_of_checks(cell: Any) -> int:
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    asserted = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return len(asserted) + sum(name.startswith("np.testing.assert_") for name in called)


class Shell:
    """Stands in for IPython in a first cell: notes the commands, and clones as git would."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"get_ipython": lambda: self}
        self.commands: list[list[str]] = []

    def system(self, command: str) -> None:
        self.commands.append(shlex.split(command.format(**self.names)))
        (Path(self.commands[-1][-1]) / "experiments" / "data").mkdir(parents=True)

    def run_line_magic(self, magic: str, line: str, *_: Any) -> None:
        self.commands.append([magic, *shlex.split(line.format(**self.names))])


@pytest.fixture(params=NAMES)
def first_cell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs the first cell of a notebook; gives its commands and what it put on Python's path."""
    cell = code_cells(read(request.param))[0].source

    def run(folder: Path, source: str, installed: bool) -> tuple[list[list[str]], str]:
        assert 'SOURCE = ""\n' in cell
        code = cell.replace('SOURCE = ""', f"SOURCE = {source!r}")
        shell = Shell()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(importlib.util, "find_spec", lambda name: name if installed else None)
            exec(TransformerManager().transform_cell(code), shell.names)
            return shell.commands, sys.path[0]

    return run


def test_first_cell_in_a_checkout(first_cell: Callable) -> None:
    assert first_cell(FOLDER, "", installed=True) == ([], str(ROOT))
    commands, path = first_cell(ROOT, "", installed=False)
    [install] = commands
    assert install[:3] == ["pip", "install", "--quiet"]
    assert f"{ROOT}[experiments]" in install
    assert path == str(ROOT)


def test_first_cell_elsewhere(first_cell: Callable, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="set SOURCE to its address"):
        first_cell(tmp_path, "", installed=False)
    clone, install = first_cell(tmp_path, "https://an.example/repository", installed=False)[0]
    cloned = str(tmp_path / "lowrank_jax_checkout")
    assert clone[:2] == ["git", "clone"]
    assert clone[-2:] == ["https://an.example/repository", cloned]
    assert install[:3] == ["pip", "install", "--quiet"]
    assert f"{cloned}[experiments]" in install
    # Run a second time, it finds what it cloned.
    assert first_cell(tmp_path, "", installed=True) == ([], cloned)
