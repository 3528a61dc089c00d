"""Carries out many runs, one after the other: `python -m experiments.sweep SWEEP`.

    SWEEP              a file such as configs/sweeps/compression_small.py, or its name alone; with
                       arguments for all of its runs behind it, if there are any (:seed=2)
    --out=FOLDER       where the run folders go; by default runs/sweeps/NAME
    --shard=i/n        only every n-th run, from the i-th on: n shards are the whole sweep
    --dry-run          lists the runs and what has become of them; starts none
    --commands         prints a command for each unfinished run, for a scheduler; starts none

Finished runs are passed over and begun ones continued, so the same command takes a sweep up again.
Each run is a process of its own: a crash, or the system's kill of what takes too much memory, is
noted beside the run folder, the other runs go on, and the next start tries again. What a run prints
goes to a log beside its folder. Any number of these commands may work on the same sweep at a time,
as long as they share a file system with locks.

SIGINT (Ctrl-C) and SIGTERM stop the run in progress, which saves a checkpoint first, and the sweep;
a second one kills it. So does SIGHUP, which comes when a terminal is closed. Exit codes: 0 all runs
of the shard were finished, or are being done elsewhere; 1 some failed, were stopped by someone
else, or wait for a run that is not finished; 2 a mistake in what was asked for, or no place to
write; 129, 130, 143 stopped by SIGHUP, SIGINT, SIGTERM.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax

from experiments import files, measures
from experiments.command_line import MISTAKE, exit_code
from experiments.errors import RunError
from experiments.main import folder_name
from experiments.metrics import duration
from experiments.result import FILE_NAME as RESULT
from experiments.run_folder import held
from experiments.sweep_plan import SweepRun, find_sweep, plan_sweep

# What an attempt ends with: `busy` runs are done by another process; `stopped` ones were asked to
# end and can be continued; `waiting` ones need another run that is not finished.
Outcome = Literal["finished", "failed", "busy", "stopped", "waiting"]

_LINES_OF_OUTPUT = 30


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep", description="Carries out the runs of a sweep."
    )
    parser.add_argument("sweep", metavar="SWEEP", help="file of a sweep, or its name")
    parser.add_argument("--out", type=Path, help="folder for the runs (runs/sweeps/NAME)")
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="i/n", help="every n-th run, from the i-th"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="list the runs and their states")
    only.add_argument("--commands", action="store_true", help="print a command for each open run")
    options = parser.parse_args(argv)
    code = 0

    def command() -> None:
        nonlocal code
        # This process computes nothing; an accelerator's memory is for the runs.
        jax.config.update("jax_platforms", "cpu")
        name, _, argument = options.sweep.partition(":")
        path = find_sweep(name)
        out = options.out or Path("runs/sweeps") / folder_name([path.stem, *argument.split(",")])
        index, count = options.shard
        runs = plan_sweep(path, out, argument)[index - 1 :: count]
        if options.dry_run:
            print(overview(runs))
        elif options.commands:
            for run in runs:
                if not run.finished:
                    print(run.command_line)
        else:
            code = carry_out(runs)

    return exit_code(command) or code


def overview(runs: Sequence[SweepRun]) -> str:
    """One line for each run with its state, and how many there are of each."""
    return "\n".join(
        [
            *(f"{run.state:8}  {run.name}{_remarked(run)}" for run in runs),
            _counted([run.state for run in runs]),
        ]
    )


def carry_out(runs: Sequence[SweepRun]) -> int:
    """Does what is not finished, in order, and returns the command's exit code.

    Raises:
      RunError: a log or the note of a failure cannot be written.
    """
    print(_counted([run.state for run in runs]), flush=True)
    outcomes: dict[SweepRun, Outcome] = {}
    failures: list[str] = []
    seconds: list[float] = []
    with Interruptions() as interruptions:
        for number, run in enumerate(runs, start=1):
            if run.finished:
                outcomes[run] = "finished"
                _forget_failure(run)
                continue
            print(f"[{number} of {len(runs)}] {run.name}{_remarked(run)}  ", end="", flush=True)
            started = time.monotonic()
            try:
                waits = run.waits_for is not None
                outcomes[run] = "waiting" if waits else attempt(run, interruptions)
            except RunError:
                print()  # The message has a line of its own.
                raise
            if outcomes[run] == "finished":
                seconds.append(time.monotonic() - started)
            if outcomes[run] == "failed":
                failures.append(f"failed: {run.name}: {_message(run)}; see {run.log}")
            left = sum(not later.finished for later in runs[number:])
            print(_line(run, outcomes[run], seconds, left), flush=True)
            if interruptions.received is not None:
                print("stopped; the same command continues")
                return 128 + interruptions.received
    print(_counted(list(outcomes.values())))
    for failure in failures:
        print(failure)
    return 1 if {"failed", "stopped", "waiting"} & set(outcomes.values()) else 0


class Interruptions:
    """While entered, SIGINT, SIGTERM and SIGHUP (a closed terminal) are noted and passed on to the
    run in progress as SIGTERM, upon which it saves a checkpoint and ends; a second signal kills it.

    Attributes:
      received: the first signal that arrived, or None.
    """

    received: int | None = None
    _process: subprocess.Popen[bytes] | None = None

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of the run in progress."""
        self._process = process
        if self.received is not None:  # It arrived before there was anything to pass it on to.
            process.terminate()
        try:
            return process.wait()
        finally:
            self._process = None

    def __enter__(self) -> Interruptions:
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        again = self.received is not None
        # A closed terminal takes no words.
        with contextlib.suppress(OSError):
            print("killing the run" if again else "stopping the run (again: kill it)", flush=True)
        self.received = self.received or number
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if again else signal.SIGTERM)


def attempt(run: SweepRun, interruptions: Interruptions) -> Outcome:
    """Does one run in a process of its own, unless another process is doing it.

    The log is locked by who starts the run, the run folder by the run itself, whoever started it.
    So what an exit code does not tell is known from the locks.
    """
    with contextlib.ExitStack() as until_done:
        with files.writing(run.log):
            run.log.parent.mkdir(parents=True, exist_ok=True)
            log = until_done.enter_context(open(run.log, "ab"))
        if not _entered(until_done, run.log) or _in_use(run.folder):
            return "busy"
        if run.finished:  # By another process, since the sweep began.
            return "finished"
        _forget_failure(run)
        with files.writing(run.log):
            log.write(f"$ {run.command_line}\n".encode())
            log.flush()
            start = log.tell()
        # In a process group of its own: Ctrl-C in a terminal reaches every member of a group.
        process = subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        code = interruptions.wait(process)
        if run.finished:
            return "finished"
        if interruptions.received is not None or code in (0, -signal.SIGTERM):
            return "stopped"
        if code == MISTAKE and _in_use(run.folder):
            return "busy"
        _note_failure(run, code, start)
        return "failed"


def _entered(until_done: contextlib.ExitStack, path: Path) -> bool:
    """Whether the lock of a file or folder could be had; then it is kept until all is done."""
    try:
        until_done.enter_context(held(path))
    except RunError:
        return False
    return True


def _in_use(folder: Path) -> bool:
    """Whether a process is running the experiment in a run folder."""
    with contextlib.ExitStack() as at_once:
        return folder.exists() and not _entered(at_once, folder)


def _note_failure(run: SweepRun, code: int, start: int) -> None:
    """Writes why an attempt failed: its output begins at byte `start` of the log."""
    output = run.log.read_bytes()[start:].decode(errors="replace").splitlines()
    lines = [line.strip() for line in output if line.strip() and not _is_notice(line)]
    if code < 0:
        message = f"killed by signal {-code} ({signal.strsignal(-code)})"
        if -code == signal.SIGKILL:
            message += ", which the system sends where memory runs out"
    else:
        message = lines[-1] if lines else f"exit code {code} without a word"
    files.write_json(
        run.failure,
        {
            "message": message,
            "exit_code": code,
            "command": run.command,
            "output": output[-_LINES_OF_OUTPUT:],
        },
    )


def _is_notice(line: str) -> bool:
    """Whether a line is from the notice that JAX puts below its tracebacks."""
    return line.startswith(("For simplicity, JAX has removed", "-------"))


def _forget_failure(run: SweepRun) -> None:
    with files.writing(run.failure):
        run.failure.unlink(missing_ok=True)


def _message(run: SweepRun) -> str:
    return str(files.read_json(run.failure)["message"])


def _line(run: SweepRun, outcome: Outcome, seconds: Sequence[float], left: int) -> str:
    """What became of one run, and about how long the others will take."""
    if outcome == "busy":
        return "busy: another process is running it"
    if outcome == "stopped":
        return "stopped; it can be continued"
    if outcome == "waiting":
        return f"waits for {run.waits_for}; then give the command again"
    if outcome == "failed":
        return f"failed: {_message(run)}"
    result = files.read_json(run.folder / RESULT)
    rest = f", about {duration(left * sum(seconds) / len(seconds))} left" if left else ""
    return f"{measures.of_result(result).told(result)}, {seconds[-1] / 60:.1f} min{rest}"


def _remarked(run: SweepRun) -> str:
    after = f"after {', '.join(other.name for other in run.after)}" if run.after else None
    remarks = ", ".join(filter(None, [run.remark, after]))
    return f" ({remarks})" if remarks else ""


def _counted(states: Sequence[str]) -> str:
    """E.g. '44 runs: 12 finished, 32 open'."""
    counts = collections.Counter(states)
    words = [f"{count} {state}" for state, count in sorted(counts.items())]
    return f"{len(states)} runs: {', '.join(words)}" if words else "0 runs"


def _shard(text: str) -> tuple[int, int]:
    """Parses i/n with 1 <= i <= n."""
    index, _, count = text.partition("/")
    try:
        shard = int(index), int(count)
    except ValueError:
        shard = 0, 0
    if not 1 <= shard[0] <= shard[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: expected i/n with 1 <= i <= n, such as 2/4")
    return shard


if __name__ == "__main__":
    sys.exit(main())
