"""Copies of operands that the libraries make which programs for CPUs call.

The compiler says what it allocates itself. YNNPACK and Eigen, to which it gives convolutions and
matrix products, first put operands in another order, in memory of their own that they free when the
operation is done. Recorded were all allocations of single operations and of whole training steps,
in float32:

    operation                       what is allocated while it runs
    convolution in YNNPACK          its first operand with its padding, and its second one
    matrix product in YNNPACK       its second operand; of one with more than 64 columns, so many
                                    for each thread that works on it, unless there is a batch
    convolution with base dilation  by XLA and Eigen: for every position of the first operand the
                                    window of all output features; and the first operand

The gradient for the input of a convolution with strides is one with base dilation. The bytes are
exact but for the rounding of rows to the length of vectors, and some convolutions of YNNPACK with
many features take their first operand twice. Other operations of Eigen copy blocks, whose sizes
depend on caches and on the number of threads, and are left out.

How many operations run at a time is decided while they run. Counted is one, that which copies
most, and one thread: a program takes at least about so much.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from experiments.planning.program_text import NAME, Instruction, bytes_of, computations, shape_of

_COLUMNS = 64
_YNNPACK = '"kind":"__ynn_fusion"'

_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTED = re.compile(r"\brhs_contracting_dims=\{([\d,]*)\}")
_BATCH = re.compile(r"\brhs_batch_dims=")
_GROUPS = re.compile(r"\b(?:feature|batch)_group_count=")


def largest(program: str) -> int:
    """Bytes of the copies that the operation makes which copies most.

    Args:
      program: text of optimized HLO for CPUs.
    """
    found, _ = computations(program)
    ynnpack = {
        called
        for instructions in found.values()
        for one in instructions.values()
        if _YNNPACK in one.attributes
        for called in _CALLS.findall(one.attributes)
    }
    return max(
        (
            _copied(one, instructions, in_ynnpack=name in ynnpack)
            for name, instructions in found.items()
            for one in instructions.values()
        ),
        default=0,
    )


def _copied(one: Instruction, instructions: Mapping[str, Instruction], *, in_ynnpack: bool) -> int:
    if one.opcode not in ("convolution", "dot"):
        return 0
    first, second = (instructions[name].type for name in NAME.findall(one.operands))
    if one.opcode == "dot":
        return _of_product(one, second) if in_ynnpack else 0
    window = _window(one)
    if "lhs_dilate" in window and not in_ynnpack:
        return 0 if _GROUPS.search(one.attributes) else _of_base_dilated(one, first, second)
    return _padded(one, first, window) + bytes_of(second) if in_ynnpack else 0


def _of_product(one: Instruction, second: str) -> int:
    if _BATCH.search(one.attributes):
        return bytes_of(second)
    contracted = _CONTRACTED.search(one.attributes)
    axes = {int(axis) for axis in contracted[1].split(",") if axis} if contracted else set()
    columns = math.prod(length for axis, length in enumerate(shape_of(second)) if axis not in axes)
    return bytes_of(second) * min(columns, _COLUMNS) // columns


def _of_base_dilated(one: Instruction, first: str, second: str) -> int:
    labels, kernel = _labels(one)
    # As many positions as the first operand has, each with a kernel for all output features.
    features = shape_of(first)[labels.index("f")]
    positions = math.prod(shape_of(first)) // features
    column = math.prod(shape_of(second)) // shape_of(second)[kernel.index("i")]
    element = bytes_of(first) // math.prod(shape_of(first))
    return element * positions * column + bytes_of(first)


def _padded(one: Instruction, first: str, window: Mapping[str, str]) -> int:
    labels, _ = _labels(one)
    shape = shape_of(first)
    size = bytes_of(first)
    for number, pad in enumerate(window["pad"].split("x") if "pad" in window else []):
        length = shape[labels.index(str(number))]
        size = size // length * (length + sum(int(part) for part in pad.split("_")))
    return size


def _labels(one: Instruction) -> tuple[str, str]:
    found = _LABELS.search(one.attributes)
    if found is None:
        raise ValueError(f"no dim_labels in {one.attributes[:80]!r}")
    return found[1], found[2]


def _window(one: Instruction) -> dict[str, str]:
    found = _WINDOW.search(one.attributes)
    return dict(part.split("=") for part in found[1].split()) if found else {}
