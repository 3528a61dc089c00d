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
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from experiments.planning import program_text, replica_groups
from experiments.planning.program_text import NAME, Instruction, bytes_of
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

_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


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


def collectives(program: str, devices: int) -> list[Collective]:
    """The collective operations of a program, in the order in which they stand.

    Args:
      program: text of optimized HLO, as `jax.stages.Compiled.as_text` gives it.
      devices: that it was compiled for.

    Raises:
      ValueError: the text is no program, or groups of devices are written in an unknown way.
    """
    computations, entry = program_text.computations(program)
    if entry is None:
        raise ValueError("no ENTRY in the text of a compiled program")
    # Where devices are alone in their group nothing is sent.
    return [one for one in _inside(entry, computations, devices) if len(one.groups[0]) > 1]


def _inside(
    name: str, computations: Mapping[str, Mapping[str, Instruction]], devices: int
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
            inner for text in _BRANCHES.findall(one.attributes) for inner in NAME.findall(text)
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
    kind: str, one: Instruction, instructions: Mapping[str, Instruction], devices: int
) -> Collective:
    size = sum(bytes_of(instructions[name].type) for name in NAME.findall(one.operands))
    _, _, groups = one.attributes.partition(
        "source_target_pairs=" if kind == "collective-permute" else "replica_groups="
    )
    return Collective(kind, size, replica_groups.parse(groups, devices))
