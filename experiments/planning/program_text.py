"""The text of a compiled program (optimized HLO), read into its instructions."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

NAME = re.compile(r"%([\w.\-]+)")

_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+)\s+=\s+(.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_BITS = re.compile(r"^(?:pred|token|[a-z]+?(\d+))")


class Instruction(NamedTuple):
    """`TYPE opcode(operands), attributes`."""

    type: str
    opcode: str
    operands: str
    attributes: str


def computations(program: str) -> tuple[dict[str, dict[str, Instruction]], str | None]:
    """The instructions of each computation by their names, and the name of the first one to run.

    Args:
      program: text of optimized HLO, as `jax.stages.Compiled.as_text` gives it.

    Raises:
      ValueError: the brackets of an instruction do not match.
    """
    found: dict[str, dict[str, Instruction]] = {}
    entry = None
    current: dict[str, Instruction] | None = None
    for line in program.splitlines():
        if begins := _COMPUTATION.match(line):
            current = found[begins[2]] = {}
            entry = begins[2] if begins[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current[instruction[1]] = _parsed(instruction[2])
    return found, entry


def bytes_of(type_: str) -> int:
    """Bytes of an array, or of all arrays of a tuple.

    >>> bytes_of("(f32[2,3]{1,0}, bf16[4]{0}, pred[])")
    33
    """
    return sum(
        math.ceil(math.prod(_lengths(dimensions)) * _bits(element) / 8)
        for element, dimensions in _ARRAY.findall(type_)
    )


def shape_of(type_: str) -> list[int]:
    """The shape of an array.

    >>> shape_of("f32[2,3]{1,0}")
    [2, 3]
    """
    found = _ARRAY.match(type_)
    return _lengths(found[2]) if found else []


def _lengths(dimensions: str) -> list[int]:
    return [int(length) for length in dimensions.split(",") if length]


def _parsed(text: str) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[end:].partition("(")
    begin = end + len(opcode)
    close = begin + _closing(text[begin:])
    return Instruction(text[:end], opcode.strip(), text[begin + 1 : close], text[close + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that a text begins with is closed."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _bits(element: str) -> int:
    """Bits of one element: `f8e4m3fn` has 8, `bf16` 16, and `pred` takes a byte."""
    if element == "token":
        return 0
    found = _BITS.match(element)
    return int(found[1]) if found and found[1] else 8
