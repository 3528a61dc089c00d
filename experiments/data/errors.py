"""What can go wrong with a data set; every message says what to do."""

from experiments.errors import RunError


class DataUnavailable(RunError):
    """The data set is not on this machine and cannot be fetched, or its name is unknown."""


class DataCorrupt(RunError):
    """A file is there but is not what it should be. Never a reason to try the next place."""
