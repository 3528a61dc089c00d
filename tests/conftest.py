"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

# What takes longest begins first: parallel workers would else wait for it at the end.
LONGEST = ("test_readme.py::test_commands", "test_colabs.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest tests to the front; the others keep their order."""
    items.sort(key=lambda item: not any(part in item.nodeid for part in LONGEST))


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test with 64-bit arrays enabled."""
    # The context moved out of jax.experimental in newer versions.
    enable = getattr(jax, "enable_x64", None)
    if not callable(enable):
        from jax.experimental import enable_x64 as enable
    with enable(True):
        yield


@pytest.fixture
def quick_compile() -> Iterator[None]:
    """Compiles without optimizing: for tests of many small computations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
