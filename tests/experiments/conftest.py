"""Keeps the tests of the experiments away from the user's cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache folder, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_JAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
