"""Which devices exchange something with each other, as compiled programs (HLO text) write it.

    {{0,1},{2,3}}                      the groups, one by one; {} is all devices in one
    [4,2]<=[2,4]T(1,0)                 0, 1, 2, … in this shape, transposed, cut into 4 groups of 2
    mesh['a'=4,'b'=2] {'a'}            along axis a of such a mesh of devices
    mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}    the same, its devices in another order

An axis of such a mesh may be cut, `'a':(2)4` being the factor of 4 behind one of 2. These meshes
are the compiler's own; `axes_of` finds the axes of the mesh that the program was compiled for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_LISTED = re.compile(r"\{((?:\{[\d,\s]*\}[,\s]*)*)\}")
_CUT = re.compile(rf"\[(\d+),(\d+)\]<={_IOTA}")
_MESH = re.compile(r"(?:@\w+\s*)?mesh\[([^\]]*)\]")
_DEVICE_IDS = re.compile(r"\s*,\s*device_ids=\(([^()]*(?:\([^()]*\))?[^()]*)\)")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def parse(text: str, devices: int) -> Groups:
    """The groups that a text begins with.

    Args:
      text: what stands behind `replica_groups=` or `source_target_pairs=`.
      devices: how many there are.

    Raises:
      ValueError: it begins with nothing that is known.

    >>> parse("{{0,1},{2,3}}, to_apply=%add", 4)
    ((0, 1), (2, 3))
    >>> parse("[2,2]<=[2,2]T(1,0)", 4)
    ((0, 2), (1, 3))
    >>> parse("mesh['a'=2,'b'=2] {'a'}", 4)
    ((0, 2), (1, 3))
    """
    if found := _LISTED.match(text):
        groups = tuple(
            tuple(int(number) for number in group.split(","))
            for group in re.findall(r"\{([\d,\s]+)\}", found[1])
        )
        return groups or (tuple(range(devices)),)
    if found := _CUT.match(text):
        numbers = _iota(found[3], found[4])
        return _as_groups(numbers.reshape(int(found[1]), int(found[2])))
    if found := _MESH.match(text):
        return _along_axes(found[1], text[found.end() :])
    raise ValueError(f"replica groups {text[:80]!r}: written in a way that is not known here")


def axes_of(groups: Groups, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh along which the devices of a group differ.

    Args:
      groups: of numbers of devices, counted as they lie in the mesh.
      sizes: of the axes of the mesh, in order.

    >>> axes_of(((0, 1), (2, 3)), {"data": 2, "fsdp": 2})
    ('fsdp',)
    """
    shape = tuple(sizes.values())
    differ = [False] * len(shape)
    for group in groups:
        for axis, places in enumerate(np.unravel_index(group, shape)):
            differ[axis] |= len(set(places.tolist())) > 1
    return tuple(name for name, found in zip(sizes, differ, strict=True) if found)


def _iota(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _as_groups(rows: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in rows.tolist())


def _along_axes(axes: str, rest: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values()))
    if found := _DEVICE_IDS.match(rest):
        rest = rest[found.end() :]
        iota = re.fullmatch(_IOTA, found[1])
        listed = _numbers(found[1]) if iota is None else _iota(iota[1], iota[2]).ravel()
        numbers = np.asarray(listed)
    named = re.match(r"\s*\{([^}]*)\}", rest)
    if named is None:
        raise ValueError(f"replica groups {rest[:80]!r}: the axes of a mesh are missing")
    # Every axis is cut where a part of it is named, so that whole axes remain.
    shape: list[int] = []
    kept: list[int] = []
    chosen: list[int] = []
    parts = {name: (int(before or 1), int(size or 0)) for name, before, size in _named(named[1])}
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 0))
        part = part or size
        for factor, is_chosen in (
            (before, False),
            (part if name in parts else size, name in parts),
            (size // (before * part), False),
        ):
            (chosen if is_chosen else kept).append(len(shape))
            shape.append(factor)
    cut = numbers.reshape(shape).transpose([*kept, *chosen])
    group = math.prod([shape[axis] for axis in chosen])
    return _as_groups(cut.reshape(-1, group))


def _named(text: str) -> Sequence[tuple[str, str, str]]:
    return _AXIS.findall(text)
