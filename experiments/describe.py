"""Describes what a config would train, without data and without training:

    python -m experiments.describe --config=configs/NAME.py[:arguments] [--json]

prints the factorization table and the totals. With `--json`, one object with `parameters`,
`dense_parameters`, `ratio`, `rank_scale` (found for a ratio), `multiply_adds`,
`dense_multiply_adds`, `undecided` (kernels that are dense at first, and whose ranks are selected in
training) and the rows of the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from experiments import arguments, config_keys, rank_selection, tasks
from experiments import start as starts
from experiments import state as states
from experiments.command_line import exit_code, read_config
from experiments.mesh import on_this_machine
from experiments.state import Plan

USAGE = "Usage: python -m experiments.describe --config=configs/NAME.py[:key=value,…] [--json]"


def describe(config: ConfigDict) -> Plan:
    """The plan of a config, made from the model and the entry of the data set alone; where ranks
    follow from values (`energy`), from the run that the config starts from.

    Raises:
      RunError: the config asks for something that does not exist or does not fit.
    """
    config = on_this_machine(arguments.settle(config))
    network = tasks.network(config)
    start = starts.load(config, network)
    if config_keys.selects_ranks(config):
        dense = states.plan(config, network, batches_per_epoch=1)
        rank_selection.check(config, dense.abstract.params)
        table = rank_selection.known_table(config, dense.abstract.params)
    else:
        table = states.resolve(config, start.variables.params) if start else None
    return states.plan(config, network, batches_per_epoch=1, table=table)


def as_text(found: Plan) -> str:
    """The plan's table and totals to read."""
    saved = found.multiply_adds / found.dense_multiply_adds
    if found.config.method == "prune":
        factors = "no factors: entries are pruned during training"
    elif undecided := _undecided(found):
        factors = (
            f"dense at first; ranks are selected in training, of up to {len(undecided)} kernels"
        )
    else:
        factors = str(found.table)
    lines = [
        factors,
        f"rank scale {found.rank_scale} for ratio {found.config.ratio:g}"
        if found.rank_scale
        else None,
        f"of the ordinary dense network: parameters {found.parameters:,} of "
        f"{found.dense_parameters:,} ({found.ratio:.2%}); multiply-adds {found.multiply_adds:,} of "
        f"{found.dense_multiply_adds:,} ({saved:.2%}), one example's forward pass",
        found.missed_ratio,
    ]
    return "\n".join(filter(None, lines))


def as_json(found: Plan) -> str:
    """The plan's table and totals as JSON text."""
    totals = {
        "parameters": found.parameters,
        "dense_parameters": found.dense_parameters,
        "ratio": found.ratio,
        "rank_scale": found.rank_scale,
        "multiply_adds": found.multiply_adds,
        "dense_multiply_adds": found.dense_multiply_adds,
        "undecided": _undecided(found),
    }
    return json.dumps(totals | json.loads(found.table.to_json()), indent=1)


def _undecided(found: Plan) -> list[str]:
    """The kernels whose ranks only training will tell."""
    if not config_keys.selects_ranks(found.config) or found.table.rows:
        return []
    candidates = rank_selection.candidates(found.config, found.abstract.params)
    return [row.path for row in candidates.rows]


def run(argv: Sequence[str]) -> None:
    """Parses the command line and prints."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("json", False, "print JSON", flag_values=values)
    config, _ = read_config(argv, values, USAGE)
    found = describe(config)
    print(as_json(found) if values.json else as_text(found))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv)))
