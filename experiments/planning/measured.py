"""The memory that training steps really take on a CPU, beside what was planned.

The steps run on arrays of ones, since memory does not depend on values. Measured is how far the
resident memory of the process rises, at its highest, above what it was before the first array was
made: the training state, the data and what a step takes on the way, of all devices of the mesh
together.

The C library is told to give back at once what is freed; otherwise it keeps some of it, and whether
that is used again is a matter of sizes and threads. A run is not told so, and may hold more.

It is measured in a second round. In the first one pages of the libraries are read and threads get
their stacks, some megabytes that no size of the run changes; they are told apart. And it is waited
between two dispatches until nothing is given back any more: what a program took is freed a moment
after its results are there, and two of them would be counted at once.

Source of the counters: proc(5), `VmHWM` and `clear_refs`; of the thresholds: mallopt(3).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import memory
from experiments.errors import RunError
from experiments.planning.needs import bytes_of_a_device, temporary
from experiments.planning.planned_run import PlannedRun

_DISPATCHES = 2
_M_MMAP_THRESHOLD = -3  # As in malloc.h.
_MAPPED_BYTES = 1 << 16
_SECONDS_AT_REST = 0.5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Planned and measured memory of training steps, in bytes, of all devices together.

    Attributes:
      planned: the training state, the data that the steps are given (where their size is not known,
        the examples that were planned with), and what the steps take on the way.
      measured: see the module.
      first_round: what was measured in the first round beyond that.
    """

    planned: int
    measured: int
    first_round: int


def compare(run: PlannedRun) -> Comparison:
    """Runs a few dispatches of training steps, and measures.

    Args:
      run: the run, on CPU devices.

    Raises:
      RunError: it is not on CPU devices, or the system does not tell how much memory is in use.
    """
    mesh = run.plan.mesh
    if (platform := mesh.devices.flat[0].platform) != "cpu":
        raise RunError(f"memory is measured on CPU devices, and these are of {platform}")
    _give_back_at_once()
    program = run.programs.compile(run.cut)
    given = (run.plan.abstract, run.arrays, run.order)
    make, zero = _ones(given), run.programs.scalar(0)

    def rise() -> int:
        before = _begin()
        state, arrays, order = make()
        for _ in range(_DISPATCHES):
            state, sums = program(state, arrays, order, zero, zero)
            jax.block_until_ready((state, sums))
            _rest()
        return _known(memory.peak_bytes()) - before

    first, measured = rise(), rise()
    planned = mesh.size * (bytes_of_a_device(given) + temporary(program, platform).total)
    return Comparison(planned=planned, measured=measured, first_round=first - measured)


def _give_back_at_once() -> None:
    """Whatever is larger than a few pages becomes a mapping of its own, which ends when it is
    freed."""
    with contextlib.suppress(AttributeError, OSError):  # Only glibc has it.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _begin() -> int:
    """Lets the peak begin anew, and returns what is in use now."""
    _rest()
    if not memory.forget_peak():
        raise RunError("this system does not tell the most memory that a process had in use")
    return _known(memory.resident_bytes())


def _rest() -> None:
    """Waits until the memory in use has not changed for a while."""
    before, since = memory.resident_bytes(), time.monotonic()
    while time.monotonic() - since < _SECONDS_AT_REST:
        time.sleep(_SECONDS_AT_REST / 10)
        if (now := memory.resident_bytes()) != before:
            before, since = now, time.monotonic()


def _known(count: int | None) -> int:
    """What the system tells wherever it forgets a peak."""
    assert count is not None
    return count


def _ones(shapes: Any) -> Any:
    """A compiled function that makes arrays of such shapes, in their places."""

    def make() -> Any:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(make, out_shardings=places).lower().compile()
