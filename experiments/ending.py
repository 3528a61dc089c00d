"""How a run of several processes ends: all of them, soon, and each says why.

A process that fails leaves the others waiting for it, at a barrier or in a sum over all devices,
where no signal and no exception reaches them. So in each process a thread waits for word from the
others, in the key-value store of JAX's coordination service, which needs no devices. Who fails says
so there. Who hears of it gives its own work a moment, since it may have failed of the same cause
and say it better; then it repeats what it heard, and leaves with the same exit code. None of them
leaves as Python and JAX do, by waiting for threads and for all processes: that is for runs that
ended well.

A process that is killed has said nothing. The others learn of it from a connection that broke, and
tell each other; or, where nothing breaks, from heartbeats that stay away: then it is JAX that ends
them, out of C++, with SIGABRT and a message that another task died.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from experiments import command_line, processes
from experiments.errors import RunError
from experiments.stopping import Stopped

# For how long a process that hears of an end goes on with its own work, to end by itself.
PATIENCE_SECONDS = 2.0

CRASH = 1
"""Exit code of a process that ended with a traceback."""

_KEY, _BARRIER = "lowrank_jax/ending", "lowrank_jax/ended"
_WELL = "well"
_FOR_EVER_MS = 2**31 - 1

# What breaks when a process has gone: of sums on the CPU, on GPUs, and of JAX's own service.
_LOST = re.compile("Gloo|NCCL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|Socket closed")


def together(command: Callable[[], object]) -> None:
    """Carries out a command. Where several processes do, and one fails or is stopped, this does not
    return: all of them end, with one message and one exit code each."""
    if not processes.several():
        command()
        return
    service = processes.service()
    # Held by who ends this process: the thread that works, or the one that listens.
    ending = threading.Lock()
    listener = threading.Thread(target=_listen, args=(service, ending), daemon=True)
    listener.start()
    try:
        command()
    except BaseException as error:
        ending.acquire()
        code, text = _told(error)
        word = {"process": processes.index(), "code": code, "text": text}
        with contextlib.suppress(Exception):  # Another one has said something already.
            service.key_value_set(_KEY, json.dumps(word))
        _leave(service, code)
    if processes.is_first():
        service.key_value_set(_KEY, json.dumps(_WELL))
    listener.join()


def _listen(service: Any, ending: threading.Lock) -> None:
    try:
        word = json.loads(service.blocking_key_value_get(_KEY, _FOR_EVER_MS))
    except Exception:  # The first process is gone, and JAX ends this one.
        return
    if word == _WELL or not ending.acquire(timeout=PATIENCE_SECONDS):
        return
    if word["code"]:
        print(f"error: process {word['process']} has failed: {word['text']}", file=sys.stderr)
    elif processes.is_first():
        print(word["text"])
    _leave(service, word["code"])


def _told(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and what it says; which is printed, too."""

    def again() -> None:
        raise error

    if isinstance(error, Stopped):
        if processes.is_first():
            print(error)
        return 0, str(error)
    if isinstance(error, RunError | KeyboardInterrupt | BrokenPipeError):
        return command_line.exit_code(again), str(error) or "interrupted"
    if isinstance(error, Exception) and _LOST.search(str(error)):
        error = RunError(
            f"process {processes.index()} has lost another one: {error}\nStart all of them again "
            "to continue from the newest checkpoint"
        )
        return command_line.exit_code(again), str(error)
    traceback.print_exception(error)
    return CRASH, f"{type(error).__name__}: {error}"


def _leave(service: Any, code: int) -> None:
    """Ends this process when the others have come to this as well, or are not coming."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    with contextlib.suppress(Exception):
        service.wait_at_barrier(_BARRIER, int(2000 * PATIENCE_SECONDS))
    if processes.is_first():
        time.sleep(1)  # With it goes the service, through which the others hear that all are here.
    os._exit(code)
