"""Says what a config would need of a mesh of devices, before there is one:

    python -m experiments.plan --config=configs/NAME.py[:arguments] [--mesh=data:2,fsdp:4] [--json]

prints, for each device and for the mesh: the memory of parameters, optimizer state, model state and
data, and what a training step and an evaluation take on the way; how the largest parameters are
split; what devices send each other in a step; multiply-adds. Data need not be there, and nothing is
trained: the programs of the run are compiled from shapes, and the compiler is asked.

    --mesh=AXIS:SIZE,…   instead of the config's
    --json               one object; memory is in bytes
    --measure            runs a few steps on arrays of ones, on CPU devices, and prints the memory
                         that they took beside what was planned

They are compiled for the devices of this machine. Where it has fewer than the mesh, or a number
that the mesh does not fit, CPU devices stand in for them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

import jax
from absl import flags

from experiments.command_line import exit_code, read_config
from experiments.planning import as_text, measured, stand_ins
from experiments.planning.needs import needs_of
from experiments.planning.planned_run import planned_run

USAGE = (
    "Usage: python -m experiments.plan --config=configs/NAME.py[:key=value,…] "
    "[--mesh=AXIS:SIZE,…] [--json] [--measure]"
)


def run(argv: Sequence[str]) -> None:
    """Parses the command line and prints; with devices that stand in, in another process."""
    values = flags.FlagValues()
    flags.DEFINE_string("mesh", "", "instead of the config's", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON", flag_values=values)
    flags.DEFINE_boolean("measure", False, "measure on CPU devices", flag_values=values)
    config, _ = read_config(argv, values, USAGE)
    with config.unlocked():
        config.mesh = values.mesh or config.mesh
    wanted, there = stand_ins.devices_of(config.mesh), jax.device_count()
    if wanted is not None and there % wanted:
        print(
            f"{there} {jax.default_backend()} device(s) here: {wanted} CPU devices stand in for "
            f"{config.mesh}",
            file=sys.stderr,
            flush=True,
        )
        if code := stand_ins.run_on(wanted, "experiments.plan", argv[1:]):
            raise SystemExit(code)
        return
    planned = planned_run(config)
    found = needs_of(planned)
    comparison = measured.compare(planned) if values.measure else None
    if values.json:
        plain = as_text.plain(found)
        if comparison is not None:
            plain["training"] = dataclasses.asdict(comparison)
        print(json.dumps(plain, indent=1))
        return
    print(as_text.text(found))
    if comparison is not None:
        print(as_text.compared(comparison))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv)))
