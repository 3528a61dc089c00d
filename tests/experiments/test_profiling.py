"""The profiler window: which dispatches are traced, in one go and continued."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
import tiny_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import outcome, sigterm_at

from experiments.errors import RunError
from experiments.profiling import Profile
from experiments.stopping import Stopped


@given(
    first=st.integers(1, 30),
    length=st.integers(1, 30),
    cuts=st.lists(st.integers(1, 8), min_size=1, max_size=12),
    done=st.integers(0, 40),
)
@settings(deadline=None, max_examples=200)
def test_dispatches_with_a_step_of_the_window_are_traced(
    first: int, length: int, cuts: list[int], done: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    window, events, lines, at = (first, first + length - 1), [], [], done
    wanted, traced = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
        patch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
        workdir = tmp_path_factory.getbasetemp() / "profiled"
        with Profile(window, workdir, done, lines.append) as profile:
            for steps in cuts:
                wanted.append(
                    any(at + i + 1 in range(window[0], window[1] + 1) for i in range(steps))
                )
                with profile.dispatch(steps):
                    traced.append(events[-1:] == ["start"])
                at += steps
    assert traced == wanted
    assert events == (["start", "stop"] if any(wanted) else [])
    past = done >= window[1]
    assert len(lines) == any(wanted) + past
    assert not past or "are done already; nothing is traced" in lines[0]


@pytest.mark.slow
def test_a_run_that_is_continued_inside_the_window(
    tmp_path: Path, finished: Path, tiny: None
) -> None:
    folder, lines = tmp_path / "run", []

    def say(line: str) -> None:
        lines.append(line)
        sigterm_at("step 5/10")(line)

    with pytest.raises(Stopped):
        tiny_runs.train(folder, say=say, profile_steps=(4, 7))
    tiny_runs.train(folder, say=lines.append, profile_steps=(4, 7))
    told = [line for line in lines if line.startswith("profile of steps")]
    assert [line.split(" in ")[0] for line in told] == [
        "profile of steps 4 to 5",
        "profile of steps 6 to 7",
    ]
    assert all(str(folder / "profile") in line for line in told)
    # A second may hold both, in which case the later one has taken the place of the first.
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert list((folder / "profile").rglob("*.trace.json.gz"))
    # The trace is no part of what is computed.
    assert outcome(folder) == outcome(finished)


def test_a_window_outside_the_run(tmp_path: Path, tiny: None) -> None:
    with pytest.raises(RunError, match=r"profile_steps=8,11 .* has 10 steps: expected 1 <= FIRST"):
        tiny_runs.train(tmp_path / "run", profile_steps=(8, 11))
    for window in ((3, 2), (0, 2), (1,), (1.5, 2)):
        with pytest.raises(RunError, match="expected two step numbers FIRST,LAST"):
            tiny_runs.train(tmp_path / "run", profile_steps=window)
    assert not (tmp_path / "run").exists()
