"""How the needs of a run are told: as text to read, and as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.planning.measured import Comparison
from experiments.planning.needs import PARTS, Communication, Needs
from experiments.planning.shards import Shards

_LARGEST = 10


def text(found: Needs) -> str:
    """The needs to read."""
    lines = [
        f"{found.name} on {_mesh(found)}: {found.devices} device(s), compiled for "
        f"{found.platform}; batches of {found.batch_size}, {found.steps} step(s) to a dispatch",
        "",
        *_memory(found),
        "",
        *_leaves([leaf for leaf in found.leaves if leaf.part == "parameters"]),
        "",
        *_communication(found.communication),
        "",
        f"multiply-adds of a step: {found.multiply_adds:,}, forward and backward, before anything "
        f"is compiled; {found.multiply_adds // found.devices:,} on each device if all are split",
    ]
    if found.compiler_flops is not None:
        lines.append(
            f"operations of a step on each device, as the compiler counts them: "
            f"{found.compiler_flops:,.0f} (two for a multiply-add, elementwise ones too, loops "
            "once)"
        )
    if found.platform == "cpu":
        lines.append(
            "compiled for cpu: compilers for GPUs and TPUs need other temporary memory, and may "
            "communicate otherwise, as by reduce-scatter in place of all-reduce"
        )
    return "\n".join([*lines, *found.remarks])


def plain(found: Needs) -> dict[str, Any]:
    """The needs as plain data, for JSON. Memory is in bytes."""
    device = _device_bytes(found)
    return {
        "config": found.name,
        "mesh": found.mesh,
        "devices": found.devices,
        "compiled_for": found.platform,
        "batch_size": found.batch_size,
        "steps_per_dispatch": found.steps,
        "device_memory": device,
        "mesh_memory": {
            name: None if size is None else found.devices * size for name, size in device.items()
        },
        "unsplit_memory": found.unsplit,
        "communication": [dataclasses.asdict(one) for one in found.communication],
        "multiply_adds": found.multiply_adds,
        "compiler_flops_per_device": found.compiler_flops,
        "leaves": [dataclasses.asdict(leaf) for leaf in found.leaves],
        "remarks": list(found.remarks),
    }


def compared(found: Comparison) -> str:
    """Planned memory of training beside what was measured."""
    return (
        f"training, on all devices together: planned {size(found.planned)}, measured "
        f"{size(found.measured)} ({found.planned / found.measured - 1:+.1%}); the first round took "
        f"{size(max(0, found.first_round))} more, for code and threads"
    )


def size(count: float) -> str:
    """Bytes to read, in powers of ten.

    >>> size(512), size(51_200), size(5_120_000_000)
    ('512 B', '51.2 kB', '5.12 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            told = count / factor
            return f"{told:.3g} {unit}" if told < 999.5 else f"{told:,.0f} {unit}"
    return f"{count:.0f} B"


def _mesh(found: Needs) -> str:
    return ",".join(f"{axis}:{length}" for axis, length in found.mesh.items())


def _device_bytes(found: Needs) -> dict[str, int | None]:
    memory = found.memory
    return {
        "parameters": memory.parameters,
        "optimizer_state": memory.optimizer_state,
        "model_state": memory.model_state,
        "data": memory.data,
        "step": memory.step.total,
        "evaluation": memory.evaluation.total,
        "batch": memory.batch,
        "copies": memory.step.copies,
        "peak": memory.peak,
    }


def _memory(found: Needs) -> list[str]:
    memory = found.memory
    made = memory.step.copies
    copied = f", {size(made)} copies that libraries make" if made else ""
    said = {
        "parameters": "",
        "optimizer_state": "",
        "model_state": "",
        "data": "on every device",
        "step": f"while it runs; {size(memory.batch)} of it the batch{copied}",
        "evaluation": "while it runs",
        "peak": "the larger of the two with all else",
    }
    rows = [("memory", "one device", "the mesh", "")]
    for name, count in _device_bytes(found).items():
        if name not in said:
            continue
        told = "unknown" if count is None else size(count)
        of_mesh = "unknown" if count is None else size(found.devices * count)
        note = said[name]
        if name in PARTS and count and found.unsplit[name]:
            copies = found.devices * count / found.unsplit[name]
            note = f"{size(found.unsplit[name])}, stored {copies:.3g} times" if copies > 1 else ""
        rows.append((name.replace("_", " "), told, of_mesh, note))
    return _table(rows, right=(1, 2))


def _leaves(leaves: Sequence[Shards]) -> list[str]:
    rows = [("largest parameters", "shape", "on one device", "", "split over")]
    for leaf in leaves[:_LARGEST]:
        split = [f"{axis}: {' '.join(names)}" for axis, names in enumerate(leaf.axes) if names]
        rows.append(
            (
                leaf.path,
                _shape(leaf.shape),
                _shape(leaf.shard_shape),
                size(leaf.shard_bytes),
                (", ".join(split) and f"axis {', axis '.join(split)}") or "nothing",
            )
        )
    return _table(rows, right=(3,))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"


def _communication(found: Sequence[Communication]) -> list[str]:
    if not found:
        return ["communication: none"]
    rows = [("communication of a step", "over", "times", "of arrays", "sent by each device")]
    for one in found:
        times = f"{one.count:g}" if one.counted else f"at least {one.count:g}"
        rows.append((one.kind, ", ".join(one.axes), times, size(one.bytes), size(one.sent)))
    total = sum(one.sent for one in found)
    rows.append(("together", "", "", "", size(total)))
    return _table(rows, right=(2, 3, 4))


def _table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
