"""Fixtures for all tests, and how their programs are compiled.

Programs run for moments here, and compiling them well would take most of the time; so they are
compiled quickly (`quick_compilation.py`), in this process and in those that tests start. A test
that looks at an optimized program is marked `optimized`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax
import pytest
import quick_compilation

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compilation.flags()}".strip()

# What takes longest begins first: parallel workers would else wait for it at the end.
LONGEST = (
    "test_readme.py::test_commands",
    "test_either_process_is_killed",
    "test_three_steps_are_the_same",
    "test_colabs.py",
    "test_docs.py",
)


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


# Hooks and no fixture, since fixtures of the session compile as well, and would come first.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("optimized") is None:
        os.environ.update(quick_compilation.WITHOUT_OPTIMIZATIONS)
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    for name in quick_compilation.WITHOUT_OPTIMIZATIONS:
        os.environ.pop(name, None)
    jax.config.update("jax_disable_most_optimizations", False)
