"""The profiler window: a trace of the steps FIRST to LAST of a run, by JAX's profiler.

    --config.profile_steps=FIRST,LAST     steps counted from 1, both included

Tracing begins with the dispatch that holds step FIRST and ends with the one that holds LAST, so it
may cover some steps more. A run that is continued inside the window traces what is left of it. The
trace lies in RUN/profile, in a folder of its own for each time it was begun; XProf (TensorBoard's
profiler) reads it, and https://ui.perfetto.dev its `.trace.json.gz`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from experiments import files
from experiments.errors import RunError

FOLDER = "profile"


def check(window: tuple[int, ...], total_steps: int) -> None:
    """Checks that a run has the steps of the window (settled; empty: none).

    Raises:
      RunError: it is shorter.
    """
    if window and window[1] > total_steps:
        raise RunError(
            f"profile_steps={window[0]},{window[1]} does not fit this run, which has {total_steps} "
            f"steps: expected 1 <= FIRST <= LAST <= {total_steps}"
        )


class Profile:
    """Traces the dispatches that hold a step of the window. A context manager.

    Args:
      window: first and last step; empty traces nothing.
      workdir: the run folder.
      done: steps done when the run starts or continues.
      say: where the line goes that tells where the trace is.
    """

    def __init__(
        self, window: tuple[int, ...], workdir: Path, done: int, say: Callable[[str], None]
    ) -> None:
        self._window, self._folder, self._say = window, workdir / FOLDER, say
        self._since: int | None = None  # The first step of the trace that is going on.
        self._done = done
        if window and done >= window[1]:
            say(f"profile: steps {window[0]} to {window[1]} are done already; nothing is traced")

    @contextlib.contextmanager
    def dispatch(self, steps: int) -> Iterator[None]:
        """Around the next dispatch, of that many steps; they are done when it is left.

        Raises:
          RunError: the trace cannot be written.
        """
        last = self._done + steps
        inside = bool(self._window) and self._window[0] <= last and self._done < self._window[1]
        if inside and self._since is None:
            with files.writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder)
            self._since = self._done + 1
        yield
        self._done = last
        if inside and last >= self._window[1]:
            self._stop()

    def _stop(self) -> None:
        since, self._since = self._since, None  # First: after a failure it is not stopped twice.
        try:
            with files.writing(self._folder):
                jax.profiler.stop_trace()
        except RuntimeError as error:  # XLA's own, where the export fails.
            raise RunError(f"cannot write {self._folder}: {error}") from error
        self._say(
            f"profile of steps {since} to {self._done} in {self._folder}: open it with "
            f"`xprof --logdir {self._folder}` (pip install xprof), or its .trace.json.gz on "
            "https://ui.perfetto.dev"
        )

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._since is not None:  # The run ends inside the window.
            self._stop()
