"""Fixtures of the configs' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that the paths in sweeps are relative to."""
    monkeypatch.chdir(Path(__file__).parents[2])
