"""ProgressLines of work that takes long, on stderr: a line a second at most, and one at its end."""

import sys
import time


class ProgressLines:
    """What is shown of one piece of work.

    Attributes:
      what: its title.
      total: what `done` is at the end.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self._shown = float("-inf")

    def show(self, done: int, amount: str) -> None:
        """Prints `amount`, which is `done` in words, and the percentage, if a line is due."""
        now = time.monotonic()
        if now - self._shown > 1.0 or done == self.total:
            self._shown = now
            print(f"{self.what}: {amount}, {100 * done / self.total:.0f} %", file=sys.stderr)
