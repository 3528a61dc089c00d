"""One contender in a process of its own, which takes its turns when told to.

Processes are kept apart because frameworks in one process are not: they share an allocator, whose
thresholds adapt to whatever was freed last, and a peak of memory. A worker imports one framework
alone, builds and warms up its contender, and then waits; a waiting worker uses no processor time.

A TPU belongs to one process. There, contenders are loaded in this one, and memory is not measured.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, Protocol

from experiments.benchmark import memory
from experiments.benchmark.contenders import Contender
from experiments.errors import RunError

_MEMORY_TURNS = 4
_MODULES = {"ours": "jax_step", "lax": "jax_step", "torch": "torch_step"}


class Step(Protocol):
    """A contender that is ready; calling it runs one turn to its end.

    Attributes:
      facts: `parameters`, `multiply_adds` of one example's forward pass, `compile_s` (None where
        nothing is compiled), `device`.
    """

    facts: dict[str, Any]

    def __call__(self) -> None: ...

    def device_peak_bytes(self) -> int | None:
        """The most memory used on an accelerator; None on a CPU."""


class Running(Protocol):
    """A contender that takes turns, wherever it runs."""

    facts: dict[str, Any]

    def turn(self) -> float:
        """Runs one turn and returns its seconds."""

    def memory(self) -> dict[str, int | None] | None:
        """Peaks in bytes, or None where they are not measured.

        `import` is what was resident after importing the framework; `peak` the most in the whole
        life of the process, compiling included; `steps` the most during further turns, less
        `import`; `device` the most on the accelerator.
        """

    def close(self) -> None:
        """Ends it."""


def load(contender: Contender) -> Step:
    """The contender, ready in this process."""
    return _module(contender).build(contender)


def start(contender: Contender) -> Running:
    """The contender, ready in a process of its own (on a TPU: in this one).

    Raises:
      RunError: it could not be built; the message has the reason.
    """
    return _Local(contender) if contender.platform == "tpu" else _Worker(contender)


def _module(contender: Contender) -> Any:
    return importlib.import_module(f"experiments.benchmark.{_MODULES[contender.implementation]}")


class _Local:
    def __init__(self, contender: Contender) -> None:
        self._step = load(contender)
        self.facts = self._step.facts

    def turn(self) -> float:
        return _seconds(self._step)

    def memory(self) -> None:
        return None

    def close(self) -> None:
        del self._step


class _Worker:
    def __init__(self, contender: Contender) -> None:
        self._label = contender.label
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self) -> float:
        return self._ask("turn")

    def memory(self) -> dict[str, int | None]:
        return self._ask("memory")

    def close(self) -> None:
        self._pipe.close()  # It ends when nobody listens, unless it is still building.
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _ask(self, question: str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # It died: the missing answer will tell.
            self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            worked, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise RunError(
                f"the process of {self._label} died with exit code {self._process.exitcode}; "
                "-9 means that the system killed it, most often for want of memory"
            ) from None
        if not worked:
            raise RunError(f"{self._label} failed:\n{answer}")
        return answer


def _serve(pipe: Connection, contender: Contender) -> None:
    """The worker's side: builds, then answers until nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair.
    # Several workers share an accelerator; and a compile time from a cache would be none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    try:
        _module(contender)
        imported = memory.resident_bytes()
        step = load(contender)
        step()
        pipe.send((True, step.facts))
        while True:
            question = pipe.recv()
            if question == "turn":
                pipe.send((True, _seconds(step)))
            else:
                pipe.send((True, _memory(step, imported)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send((False, traceback.format_exc()))


def _seconds(step: Step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _memory(step: Step, imported: int | None) -> dict[str, int | None]:
    # After all timed turns, since what `forget_peak` gives back would cost them page faults.
    peak, forgot = memory.peak_bytes(), memory.forget_peak()
    for _ in range(_MEMORY_TURNS):
        step()
    now = memory.peak_bytes()
    known = forgot and imported is not None and now is not None
    return {
        "import": imported,
        "peak": peak,
        "steps": now - imported if known else None,  # type: ignore[operator]
        "device": step.device_peak_bytes(),
    }
