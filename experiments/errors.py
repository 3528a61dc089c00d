"""The one kind of error that commands print without a traceback."""


class RunError(Exception):
    """A mistake a user can mend: printed as one message, exit code 2."""
