"""What devices send each other in a compiled program, read from its text (optimized HLO).

A collective operation is counted as often as it runs: those in a loop by the number of its rounds,
which compilers write beside it; of the branches of a condition, the one that communicates most.

For an operand of `b` bytes on each of the `n` devices of a group,

    kind                  bytes   sent
    all-reduce            b       2 b (n - 1) / n
    all-gather            b n     b (n - 1)
    reduce-scatter        b       b (n - 1) / n
    all-to-all            b       b (n - 1) / n
    collective-permute    b       b
    collective-broadcast  b       b

`bytes` is the size of the whole array that is exchanged, `sent` the least that a device has to send
for it, which ring algorithms reach (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from experiments.planning import replica_groups
from experiments.planning.replica_groups import Groups


class _Cost(NamedTuple):
    bytes: Callable[[int, int], float]
    sent: Callable[[int, int], float]


_KINDS = {
    "all-reduce": _Cost(lambda b, n: b, lambda b, n: 2 * b * (n - 1) / n),
    "all-gather": _Cost(lambda b, n: b * n, lambda b, n: b * (n - 1)),
    "reduce-scatter": _Cost(lambda b, n: b, lambda b, n: b * (n - 1) / n),
    "all-to-all": _Cost(lambda b, n: b, lambda b, n: b * (n - 1) / n),
    "ragged-all-to-all": _Cost(lambda b, n: b, lambda b, n: b * (n - 1) / n),
    "collective-permute": _Cost(lambda b, n: b, lambda b, n: b),
    "collective-broadcast": _Cost(lambda b, n: b, lambda b, n: b),
}

_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+)\s+=\s+(.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BITS = re.compile(r"^(?:pred|token|[a-z]+?(\d+))")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: as in the module.
      operand_bytes: on each device.
      groups: the numbers of the devices that exchange something with each other, as they lie in the
        mesh.
      count: how often it runs.
      counted: whether that is known; otherwise it runs at least so often.
    """

    kind: str
    operand_bytes: int
    groups: Groups
    count: int = 1
    counted: bool = True

    @property
    def bytes(self) -> float:
        """Of the arrays that are exchanged, every time together."""
        return self.count * _KINDS[self.kind].bytes(self.operand_bytes, len(self.groups[0]))

    @property
    def sent(self) -> float:
        """The least that each device sends, every time together."""
        return self.count * _KINDS[self.kind].sent(self.operand_bytes, len(self.groups[0]))


class _Instruction(NamedTuple):
    type: str
    opcode: str
    operands: str
    attributes: str


def collectives(program: str, devices: int) -> list[Collective]:
    """The collective operations of a program, in the order in which they stand.

    Args:
      program: text of optimized HLO, as `jax.stages.Compiled.as_text` gives it.
      devices: that it was compiled for.

    Raises:
      ValueError: the text is no program, or groups of devices are written in an unknown way.
    """
    computations, entry = _computations(program)
    if entry is None:
        raise ValueError("no ENTRY in the text of a compiled program")
    # Where devices are alone in their group nothing is sent.
    return [one for one in _inside(entry, computations, devices) if len(one.groups[0]) > 1]


def _computations(program: str) -> tuple[dict[str, dict[str, _Instruction]], str | None]:
    """The instructions of each computation by their names, and the name of the first one to run."""
    found: dict[str, dict[str, _Instruction]] = {}
    entry = None
    current: dict[str, _Instruction] | None = None
    for line in program.splitlines():
        if begins := _COMPUTATION.match(line):
            current = found[begins[2]] = {}
            entry = begins[2] if begins[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current[instruction[1]] = _parsed(instruction[2])
    return found, entry


def _parsed(text: str) -> _Instruction:
    """An instruction, `TYPE opcode(operands), attributes`."""
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[end:].partition("(")
    begin = end + len(opcode)
    close = begin + _closing(text[begin:])
    return _Instruction(text[:end], opcode.strip(), text[begin + 1 : close], text[close + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that a text begins with is closed."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _inside(
    name: str, computations: Mapping[str, Mapping[str, _Instruction]], devices: int
) -> Iterator[Collective]:
    """The collectives of a computation and of all that it calls."""
    instructions = computations[name]
    for one in instructions.values():
        kind = one.opcode.removesuffix("-start")
        if kind in _KINDS:
            yield _collective(kind, one, instructions, devices)
            continue
        if one.opcode in ("async-update", "async-done"):  # Its start has been counted.
            continue
        called = [inner for inner in _CALLED.findall(one.attributes) if inner in computations]
        branches = [
            inner for text in _BRANCHES.findall(one.attributes) for inner in _NAME.findall(text)
        ]
        if one.opcode == "conditional":
            branches, called = [*branches, *called], []
            every = [list(_inside(branch, computations, devices)) for branch in branches]
            yield from max(every, key=lambda inner: sum(each.sent for each in inner), default=[])
        elif one.opcode == "while":
            rounds = _ROUNDS.search(one.attributes)
            for inner in called:
                for each in _inside(inner, computations, devices):
                    yield dataclasses.replace(
                        each,
                        count=each.count * (int(rounds[1]) if rounds else 1),
                        counted=each.counted and rounds is not None,
                    )
        else:
            for inner in [*called, *branches]:
                yield from _inside(inner, computations, devices)


def _collective(
    kind: str, one: _Instruction, instructions: Mapping[str, _Instruction], devices: int
) -> Collective:
    size = sum(_bytes(instructions[name].type) for name in _NAME.findall(one.operands))
    _, _, groups = one.attributes.partition(
        "source_target_pairs=" if kind == "collective-permute" else "replica_groups="
    )
    return Collective(kind, size, replica_groups.parse(groups, devices))


def _bytes(type_: str) -> int:
    """Bytes of an array, or of all arrays of a tuple.

    >>> _bytes("(f32[2,3]{1,0}, bf16[4]{0}, pred[])")
    33
    """
    return sum(
        math.ceil(math.prod(int(n) for n in dimensions.split(",") if n) * _bits(element) / 8)
        for element, dimensions in _ARRAY.findall(type_)
    )


def _bits(element: str) -> int:
    """Bits of one element: `f8e4m3fn` has 8, `bf16` 16, and `pred` takes a byte."""
    if element == "token":
        return 0
    found = _BITS.match(element)
    return int(found[1]) if found and found[1] else 8
