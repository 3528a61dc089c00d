"""Fixtures of the benchmark's tests."""

from __future__ import annotations

import importlib.util

import pytest
from made_up import Fake

from experiments.benchmark import race


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """Races are run by fakes."""
    monkeypatch.setattr(race, "start", Fake)
    monkeypatch.setattr(Fake, "closed", 0)
    return Fake


@pytest.fixture
def with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts as installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
