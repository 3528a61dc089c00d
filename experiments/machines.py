"""The machine of a run in words, and what it means for comparing times."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.measures import Result

ONE_MACHINE = (
    "Times can be compared between runs of one machine with nothing else on it, and no others"
)


def machine(result: Result) -> str:
    """What a run was computed on.

    Example:
      >>> hardware = {"device_kind": "cpu", "device_count": 1, "cpu": "AMD EPYC", "cores": 2}
      >>> machine({"hardware": hardware})
      '1 x cpu, AMD EPYC, 2 cores'
    """
    found = result.get("hardware") or {}
    return (
        f"{found.get('device_count')} x {found.get('device_kind')}, {found.get('cpu')}, "
        f"{found.get('cores')} cores"
    )


def times_note(results: Sequence[Result]) -> str:
    """Whether the times of some runs can be compared, as a sentence."""
    found = sorted({machine(result) for result in results})
    if len(found) == 1:
        return f"{ONE_MACHINE}; all of these are of {found[0]}."
    return f"{ONE_MACHINE}. **These are of {len(found)} machines: {'; '.join(found)}.**"
