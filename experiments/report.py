"""Makes a report from finished runs: a Markdown table, paired comparisons, and plots.

    python -m experiments.report RUN... [--out FOLDER] [--baseline LABEL]

A RUN is a run folder, a folder that holds some at any depth, or a quoted glob pattern. The report
is printed, and written to FOLDER/report.md (by default report/report.md) with its plots beside it.
All figures come from `result.json` and `metrics.jsonl`; the same runs give the same report.

Runs on different data, by fingerprint, or measured on different splits go to separate tables.
Differences are taken between runs of the same seed; with fewer than three there is no claim.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import files, plots
from experiments.command_line import exit_code
from experiments.comparison import (
    FEWEST_SEEDS,
    Run,
    Setting,
    find_runs,
    load_run,
    paired_differences,
    settings_by_yardstick,
    t_interval,
)
from experiments.errors import RunError
from experiments.metrics import FILE_NAME as METRICS_FILE
from experiments.metrics import columns, read_metrics


def report(patterns: Sequence[str], out: str | Path, baseline: str | None = None) -> str:
    """Writes the report on the runs under `patterns` to the folder `out`, and returns its text.

    Args:
      patterns: run folders, folders above them, or glob patterns.
      out: the folder to write to.
      baseline: the setting to compare the others with: its label or a part that only it has. By
        default the first of a table, which is the dense network where there is one.

    Raises:
      RunError: no runs, a broken result.json, a seed twice, an unknown baseline, no space to write.
    """
    tables = settings_by_yardstick([load_run(folder) for folder in find_runs(patterns)])
    labels = [setting.label for settings in tables.values() for setting in settings]
    if baseline and not any(_matches(settings, baseline) for settings in tables.values()):
        raise RunError(f"no setting {baseline!r} among: {'; '.join(labels)}")
    parts = ["# Report\n"]
    if len(tables) > 1:
        parts.append(
            "The runs were measured on different data or splits, which cannot be compared; "
            "each has a table of its own.\n"
        )
    for index, ((data, fingerprint, split), settings) in enumerate(tables.items(), start=1):
        parts.append(f"## {data}, {split} accuracy\n")
        parts.append(f"Data fingerprint `{fingerprint[:16]}`.\n")
        parts.append(_table(settings, split))
        parts.append(_comparisons(settings, _choose(settings, baseline)))
        suffix = f"_{index}" if len(tables) > 1 else ""
        parts += _plots(settings, split, Path(out), suffix)
        parts.append(_runs(settings))
    parts.append(_provenance([r for table in tables.values() for s in table for r in s.runs]))
    text = "\n".join(parts)
    files.write_text(Path(out) / "report.md", text)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description="Makes a report from finished runs."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, parent, or pattern")
    parser.add_argument("--out", default="report", help="folder to write to (default: report)")
    parser.add_argument("--baseline", help="label of the setting to compare with")
    options = parser.parse_args(argv)
    return exit_code(lambda: print(report(options.runs, options.out, options.baseline), end=""))


def _table(settings: Sequence[Setting], split: str) -> str:
    rows = [
        f"| setting | parameters | ratio | multiply-adds | seeds | {split} accuracy, mean (%) "
        "| standard deviation | min – max | wall time (min) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for setting in settings:
        first = setting.runs[0].result
        percent = 100 * setting.accuracies
        deviation = f"{percent.std(ddof=1):.2f}" if len(percent) > 1 else "–"
        minutes = sum(run.result["wall_time_s"] for run in setting.runs) / len(percent) / 60
        rows.append(
            f"| {setting.label} | {first['parameters']:,} | {first['ratio']:.4f} "
            f"| {first['multiply_adds'] / 1e6:.2f} M | {len(percent)} | {percent.mean():.2f} "
            f"| {deviation} | {percent.min():.2f} – {percent.max():.2f} | {minutes:.1f} |"
        )
    return "\n".join(rows) + "\n"


def _comparisons(settings: Sequence[Setting], baseline: Setting) -> str:
    """Each setting against the baseline, in percentage points over common seeds."""
    if len(settings) == 1:
        few = len(baseline.runs) < FEWEST_SEEDS
        return f"One setting{', fewer than three seeds: no claim' if few else ''}.\n"
    rows = [
        f"Differences from **{baseline.label}** in percentage points, paired by seed, with 95 % t "
        "intervals (each on its own, not corrected for their number):\n",
        "| setting | seeds in common | mean difference | 95 % interval | reading |",
        "|---|--:|--:|--:|---|",
    ]
    for setting in settings:
        if setting is baseline:
            continue
        points = 100 * paired_differences(setting, baseline)
        interval = t_interval(points)
        if interval is None:
            mean = f"{points.mean():+.2f}" if len(points) else "–"
            reading = f"no claim (fewer than {FEWEST_SEEDS} seeds in common)"
            rows.append(f"| {setting.label} | {len(points)} | {mean} | – | {reading} |")
            continue
        if interval.low > 0:
            reading = "better"
        elif interval.high < 0:
            reading = "worse"
        else:
            reading = "not told apart"
        rows.append(
            f"| {setting.label} | {len(points)} | {interval.mean:+.2f} "
            f"| {interval.low:+.2f} to {interval.high:+.2f} | {reading} |"
        )
    return "\n".join(rows) + "\n"


def _plots(settings: Sequence[Setting], split: str, out: Path, suffix: str) -> list[str]:
    """Draws the plots and returns the Markdown that shows them."""
    records = {
        run.folder: read_metrics(run.folder)
        for setting in settings
        for run in setting.runs
        if (run.folder / METRICS_FILE).exists()
    }

    # The final split may be measured only once, at the end; then there is a curve of another one.
    def curves_of(name: str) -> int:
        return sum(len(columns(lines, f"{name}_accuracy")[0]) > 1 for lines in records.values())

    curve_split = max((split, "validation", "test"), key=curves_of)
    data = [
        plots.SettingData(
            label=setting.label,
            parameters=setting.runs[0].result["parameters"],
            accuracies=setting.accuracies.tolist(),
            curves=[
                columns(records[run.folder], f"{curve_split}_accuracy")
                for run in setting.runs
                if run.folder in records
            ],
        )
        for setting in settings
    ]
    figures = {
        "accuracy_against_parameters": plots.accuracy_against_parameters(data, split),
        "learning_curves": plots.learning_curves(data, curve_split),
    }
    shown = []
    for name, figure in figures.items():
        if figure is not None:
            plots.save(figure, out / f"{name}{suffix}.png")
            shown.append(f"![{name.replace('_', ' ').capitalize()}]({name}{suffix}.png)\n")
    return shown


def _runs(settings: Sequence[Setting]) -> str:
    rows = ["| run | setting | seed | final accuracy (%) |", "|---|---|--:|--:|"]
    rows += [
        f"| {run.folder.resolve().name} | {setting.label} | {run.seed} | {100 * run.accuracy:.2f} |"
        for setting in settings
        for run in setting.runs
    ]
    return "\n".join(rows) + "\n"


def _provenance(runs: Sequence[Run]) -> str:
    """The code, versions and hardware behind the runs; several of one kind are all named."""

    def distinct(values: list[str]) -> str:
        return "; ".join(sorted(set(values)))

    commits, versions, hardware = [], [], []
    for run in runs:
        commit = run.result.get("commit")
        dirty = " with uncommitted changes" if commit and commit.get("dirty") else ""
        commits.append(f"{commit['hash'][:12]}{dirty}" if commit else "not recorded")
        found = run.result.get("versions") or {}
        versions.append(", ".join(f"{name} {found[name]}" for name in sorted(found) if found[name]))
        device = run.result.get("hardware") or {}
        hardware.append(
            f"{device.get('device_count')} x {device.get('device_kind')}, {device.get('cpu')}, "
            f"{device.get('cores')} cores"
        )
    return (
        f"Source: commit {distinct(commits)}. Versions: {distinct(versions)}. "
        f"Hardware: {distinct(hardware)}.\n"
    )


def _matches(settings: Sequence[Setting], baseline: str) -> list[Setting]:
    exact = [setting for setting in settings if setting.label == baseline]
    return exact or [setting for setting in settings if baseline in setting.label]


def _choose(settings: Sequence[Setting], baseline: str | None) -> Setting:
    """The setting that the others of a table are compared with."""
    matching = _matches(settings, baseline) if baseline else []
    if len(matching) > 1:
        labels = "; ".join(setting.label for setting in matching)
        raise RunError(f"baseline {baseline!r} fits several settings: {labels}")
    return matching[0] if matching else settings[0]


if __name__ == "__main__":
    sys.exit(main())
