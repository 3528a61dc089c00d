"""Measures this project's speed and memory, and compares them with plain lax and with PyTorch.

    python -m experiments.benchmark [--only=step,decay,…] [--alternations=20]
        [--network=resnet20,wide_resnet32] [--out=FOLDER] [--quick]
    python -m experiments.benchmark --readme

Figures, tables and a plot go to FOLDER (by default runs/benchmark), after every part of the way.
PyTorch takes part where it is installed: `pip install -e '.[benchmark]'`. Leave the machine to the
benchmark while it runs. `--quick` is a look at whether everything works, in about two minutes.
`--readme` makes the performance section of the README from the results in the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmark import networks, readme, sections
from experiments.benchmark.options import Options
from experiments.benchmark.outcome import Outcome
from experiments.command_line import exit_code
from experiments.result import hardware


def benchmark(options: Options, names: Sequence[str], folder: Path) -> Outcome:
    """Runs the sections `names` and writes what they find to `folder`, as it comes in.

    Raises:
      RunError: the folder cannot be written to, or a contender cannot be run.
    """
    outcome = Outcome(folder, options.quick)
    try:
        for name in names:
            _say(f"=== {sections.SECTIONS[name].title}")
            for record in sections.SECTIONS[name].measure(options, _say):
                outcome.add(name, record)
    finally:
        if outcome.record["sections"]:
            _say("\n" + outcome.show())
            _say(f"written: {outcome.path}, and beside it the page and the plot")
    return outcome


def _say(line: str) -> None:
    print(line, flush=True)  # Seen at once where the output goes to a file.


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description="Measures speed and memory, against plain lax and PyTorch.",
    )
    known = ", ".join(sections.SECTIONS)
    parser.add_argument("--only", help=f"sections, separated by commas: {known}")
    parser.add_argument("--alternations", type=int, help="turns of each contender (default: 20)")
    parser.add_argument(
        "--network", help=f"networks, separated by commas: {', '.join(networks.NETWORKS)}"
    )
    parser.add_argument("--out", default="runs/benchmark", help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="a look at whether everything works")
    parser.add_argument("--readme", action="store_true", help="rewrite the README's section")
    chosen = parser.parse_args(argv)

    def run() -> None:
        if chosen.readme:
            readme.rewrite(readme.README, readme.ROOT)
            return
        names = sections.choose(chosen.only)
        # Workers share the accelerator with this process, which must not take most of it.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        machine = hardware()
        options = Options.of(
            chosen.alternations,
            networks.choose(chosen.network),
            chosen.quick,
            platform=machine["platform"],
            cores=machine["cores"],
        )
        benchmark(options, names, Path(chosen.out))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
