"""The fenced blocks of a Markdown page, and running one as Python."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest


class Block(NamedTuple):
    """A fenced block: the line it begins at, its language, its text."""

    line: int
    language: str
    text: str


def fenced_blocks(page: Path) -> list[Block]:
    found, opened, lines = [], None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.fullmatch(r"\s*(?:```|~~~)(.*)", line)
        if fence and opened is None:
            opened, lines = (number, fence[1].strip()), []
        elif fence and opened is not None:
            assert not fence[1].strip(), f"{page} line {number}: a fence inside a fence"
            found.append(Block(*opened, "\n".join(lines)))
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{page} line {opened[0]}: this fence is never closed"
    return found


def run_python(page: Path, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a block as a module of its own; line numbers in tracebacks are the page's."""
    module = types.ModuleType(f"{page.stem}_line_{block.line}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Dataclasses look themselves up.
    code = "\n" * block.line + block.text
    exec(compile(code, str(page), "exec"), module.__dict__)
