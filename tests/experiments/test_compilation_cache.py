"""The persistent compilation cache: loaded by a second run, with the same bits."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
import tiny_runs
from tiny_runs import outcome

from experiments.errors import RunError


@pytest.mark.slow
def test_a_second_run_compiles_nothing_anew(
    tmp_path: Path, compilation_cache: Path, tiny: None
) -> None:
    """The keys of the session's own cache are put back behind each run."""
    folder, runs = tmp_path / "not" / "there", []
    for name in ("one", "two"):
        before = sorted(folder.iterdir()) if folder.exists() else []
        runs.append(
            outcome(tiny_runs.train(tmp_path / name, epochs=1, compilation_cache=str(folder)))
        )
        assert jax.config.jax_compilation_cache_dir == str(compilation_cache)
    assert any(path.name.startswith("jit_run") for path in before)
    assert sorted(folder.iterdir()) == before
    assert runs[0] == runs[1]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, tiny: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/cache: not a directory"):
        tiny_runs.train(tmp_path / "run", compilation_cache=str(tmp_path / "file" / "cache"))
    assert not (tmp_path / "run").exists()
