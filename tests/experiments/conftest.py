"""Fixtures of the experiments' tests: a cache away from the user's, the tiny model, its run, and a
little text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import little_texts
import pytest
import tiny_runs
from tiny_main import ENTRY

from experiments import models, report_figures


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache folder, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_JAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every run compiles the same few programs; they are kept for the other runs of the session."""
    folder = tmp_path_factory.mktemp("compiled")
    values = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def tiny(compilation_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tiny model known."""
    monkeypatch.setitem(models.MODELS, "tiny", ENTRY)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Path:
    """The folder of a finished tiny run; who changes it takes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", ENTRY)
        return tiny_runs.train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a little data set of text; who changes it writes another one."""
    return little_texts.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run can be stopped at any of its lines."""
    monkeypatch.setattr("experiments.train._SECONDS_BETWEEN_LINES", 0.0)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures of a report by the names of their files; drawing them would take long."""
    figures: dict[str, Any] = {}
    monkeypatch.setattr(
        report_figures.plot_style, "save", lambda figure, path: figures.update({path.name: figure})
    )
    return figures
