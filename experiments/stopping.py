"""Stopping: SIGTERM asks a run to end at the next place where it can be continued from."""

from __future__ import annotations

import signal


class Stopped(Exception):
    """The run was asked to stop; nothing is lost, and it can be continued."""


class StopSignal:
    """While entered, SIGTERM is noted instead of ending the process at once."""

    requested = False

    def leave_if_requested(self) -> None:
        """For moments at which everything there is to save is saved."""
        if self.requested:
            raise Stopped("stopped between two steps; start again to continue")

    def __enter__(self) -> StopSignal:
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # Not in the main thread, where no signal arrives.
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.requested = True
