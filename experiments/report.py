"""Makes a report from finished runs: Markdown tables, paired comparisons, and plots.

    python -m experiments.report RUN... [--out FOLDER] [--baseline LABEL] [--target ACCURACY]

A RUN is a run folder, a folder that holds some at any depth (such as that of a sweep), or a quoted
glob pattern. The report is printed, and written to FOLDER/report.md (by default report/report.md)
with its plots beside it. All figures come from `result.json` and `metrics.jsonl`; the same runs
give the same report.

Each network, on each data set (by fingerprint) and measured split, has a section of its own: the
methods at the sizes that were asked for, every setting with its cost, the ranks that were selected
in training and what that took, differences from a baseline, the score against parameters, the time
until a target accuracy, compact models beside the networks that they were merged from, and what
decay does to the kernels. Differences are taken between runs of the same seed; with fewer than
three there is no claim. The score is what the task is judged by (`experiments.measures`): accuracy,
BLEU, or perplexity.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import files, setting_names
from experiments.command_line import exit_code
from experiments.comparison import (
    FEWEST_SEEDS,
    Run,
    Section,
    Setting,
    find_runs,
    load_run,
    paired_differences,
    settings_by_section,
    t_interval,
)
from experiments.errors import RunError
from experiments.machines import machine, times_note
from experiments.measures import Beside
from experiments.method_tables import compact_table, method_table
from experiments.metrics import FILE_NAME as METRICS_FILE
from experiments.metrics import columns, read_metrics
from experiments.report_figures import SectionFigures
from experiments.selection_table import selection_table
from experiments.time_to_accuracy import Records, time_table


def report(
    patterns: Sequence[str],
    out: str | Path,
    baseline: str | None = None,
    target: float | None = None,
) -> str:
    """Writes the report on the runs under `patterns` to the folder `out`, and returns its text.

    Args:
      patterns: run folders, folders above them, or glob patterns.
      out: the folder to write to.
      baseline: the setting to compare the others with: its label or a part that only it has. By
        default the first of a section, which is the dense network where there is one.
      target: the accuracy after an epoch, a fraction, to which the time is told. By default 95 %
        of the mean final accuracy of the section's dense network.

    Raises:
      RunError: no runs, a broken result.json, a seed twice, an unknown baseline, no space to write.
    """
    sections = settings_by_section([load_run(folder) for folder in find_runs(patterns)])
    labels = [setting.label for settings in sections.values() for setting in settings]
    if baseline and not any(_matches(settings, baseline) for settings in sections.values()):
        raise RunError(f"no setting {baseline!r} among: {'; '.join(labels)}")
    if target is not None and not 0 < target < 1:
        raise RunError(f"target {target:g}: expected a fraction, such as 0.9 for 90 %")
    parts = ["# Report\n"]
    if len(sections) > 1:
        parts.append(
            "The runs are of different networks, or were measured on different data or splits, "
            "which cannot be compared; each has a section of its own.\n"
        )
    for index, (section, settings) in enumerate(sections.items(), start=1):
        suffix = f"_{index}" if len(sections) > 1 else ""
        records = _records(settings)
        curve_split = _curve_split(section.split, records)
        figures = SectionFigures(section, settings, records, curve_split, Path(out), suffix)
        parts.append(_heading(section, settings))
        parts.append(method_table(settings))
        parts.append(_cost_table(settings, section))
        parts.append(selection_table(settings, records))
        parts.append(figures.ranks())
        parts.append(_comparisons(settings, _choose(settings, baseline)))
        parts.append(figures.scores())
        parts.append(time_table(settings, records, curve_split, target))
        parts.append(_starts(settings, section))
        parts.append(compact_table(settings))
        parts.append(figures.mechanisms())
        parts.append(_runs(settings))
    parts.append(_provenance([r for table in sections.values() for s in table for r in s.runs]))
    text = "\n".join(part for part in parts if part)
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
    parser.add_argument("--target", type=float, help="accuracy (a fraction) to tell the time to")
    options = parser.parse_args(argv)
    return exit_code(
        lambda: print(report(options.runs, options.out, options.baseline, options.target), end="")
    )


def _heading(section: Section, settings: Sequence[Setting]) -> str:
    fields = {key.rpartition(".")[2]: value for key, value in section.model}
    name = fields.pop("name")
    model = ", ".join(f"{key} {setting_names.as_written(v)}" for key, v in fields.items())
    dense = sorted({run.result["dense_parameters"] for s in settings for run in s.runs})
    return (
        f"## {section.title}, {section.split} {section.measure.name}\n\n"
        f"Model `{name}`, {model}; {' or '.join(f'{count:,}' for count in dense)} parameters when "
        f"dense. {_lengths(settings)} Data fingerprint `{section.fingerprint[:16]}`. Sizes are "
        "what was asked for; the parameters are what came of it.\n"
    )


def _lengths(settings: Sequence[Setting]) -> str:
    """How long was trained; several lengths are all named."""
    lengths = {_length(run) for setting in settings for run in setting.runs}
    return f"Training: {'; or '.join(sorted(lengths))}."


def _length(run: Run) -> str:
    config, steps = run.config, run.result["steps"]
    if config["steps"]:  # They decide, see `experiments.run_length`.
        return (
            f"{steps:,} steps ({run.result['epochs']:.1f} epochs) of batches of "
            f"{config['batch_size']:,} {run.section.measure.counted}, optimizer "
            f"{config['optimizer']}"
        )
    return (
        f"{config['epochs']} epochs of batches of {config['batch_size']} ({steps:,} steps), "
        f"protocol {config['protocol']}"
    )


def _cost_table(settings: Sequence[Setting], section: Section) -> str:
    measure = section.measure
    beside = [b for b in measure.beside if any(_values(b, setting).any() for setting in settings)]
    rows = [
        f"| {section.network} | parameters | ratio | multiply-adds | seeds "
        f"| {section.split} {measure.name}, mean{measure.unit} | standard deviation | min – max | "
        f"{''.join(f'{b.name} | ' for b in beside)}wall time (min) |",
        f"|---|--:|--:|--:|--:|--:|--:|--:|{'--:|' * len(beside)}--:|",
    ]
    for setting in settings:
        scores = setting.scores
        deviation = f"{scores.std(ddof=1):.2f}" if len(scores) > 1 else "–"
        found = [f"{_values(b, setting).mean():.{b.digits}f} | " for b in beside]
        rows.append(
            f"| {setting.label} | {setting.parameters:,}{' nonzero' if setting.pruned else ''} "
            f"| {setting.mean('ratio'):.4f} "
            f"| {setting.mean('multiply_adds') / 1e6:.2f} M | {len(scores)} "
            f"| {scores.mean():.2f} | {deviation} | {scores.min():.2f} – {scores.max():.2f} "
            f"| {''.join(found)}{setting.mean('wall_time_s') / 60:.1f} |"
        )
    note = times_note([run.result for setting in settings for run in setting.runs])
    return "\n".join([*rows, "", note]) + "\n"


def _values(beside: Beside, setting: Setting) -> np.ndarray:
    """What stands beside the score, of each run; 0 where a run does not have it."""
    return np.array([beside.of(run.result) or 0.0 for run in setting.runs])


def _comparisons(settings: Sequence[Setting], baseline: Setting) -> str:
    """Each setting against the baseline, in points of the score over common seeds."""
    if len(settings) == 1:
        few = len(baseline.runs) < FEWEST_SEEDS
        return f"One setting{', fewer than three seeds: no claim' if few else ''}.\n"
    section = baseline.runs[0].section
    rows = [
        f"Differences from **{baseline.label}** in {section.measure.points}, paired by seed, with "
        "95 % t intervals (each on its own, not corrected for their number):\n",
        f"| {section.network} | seeds in common | mean difference | 95 % interval | reading |",
        "|---|--:|--:|--:|---|",
    ]
    for setting in settings:
        if setting is baseline:
            continue
        points = paired_differences(setting, baseline)
        interval = t_interval(points)
        if interval is None:
            mean = f"{points.mean():+.2f}" if len(points) else "–"
            reading = f"no claim (fewer than {FEWEST_SEEDS} seeds in common)"
            rows.append(f"| {setting.label} | {len(points)} | {mean} | – | {reading} |")
            continue
        higher, lower = "better", "worse"
        if section.measure.lower_is_better:
            higher, lower = lower, higher
        if interval.low > 0:
            reading = higher
        elif interval.high < 0:
            reading = lower
        else:
            reading = "not told apart"
        rows.append(
            f"| {setting.label} | {len(points)} | {interval.mean:+.2f} "
            f"| {interval.low:+.2f} to {interval.high:+.2f} | {reading} |"
        )
    return "\n".join(rows) + "\n"


def _records(settings: Sequence[Setting]) -> Records:
    """The records of the runs that have one."""
    return {
        run.folder: read_metrics(run.folder)
        for setting in settings
        for run in setting.runs
        if (run.folder / METRICS_FILE).exists()
    }


def _curve_split(split: str, records: Records) -> str:
    """The split to draw curves of: the final one may be measured only once, at the end."""

    def points_of(name: str) -> int:
        return sum(len(columns(lines, f"{name}_accuracy")[0]) for lines in records.values())

    return max((split, "validation", "test"), key=points_of)


def _starts(settings: Sequence[Setting], section: Section) -> str:
    """What trained networks lost by being factorized, and what fine-tuning gave back."""
    rows = [
        f"| {run.folder.resolve().name} | {start['run']} | {100 * start['accuracy']:.2f} "
        f"| {_percent(start['factorized'])} | {100 * run.accuracy:.2f} |"
        for setting in settings
        for run in setting.runs
        if (start := run.result.get("start"))
    ]
    if not rows:
        return ""
    head = [
        f"| run | trained network | its {section.split} {section.measure.per_epoch} (%) "
        "| factorized (%) | fine-tuned (%) |",
        "|---|---|--:|--:|--:|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _percent(scores: Mapping[str, float] | None) -> str:
    return f"{100 * scores['accuracy']:.2f}" if scores else "–"


def _runs(settings: Sequence[Setting]) -> str:
    section = settings[0].runs[0].section
    score = f"{section.measure.moment} {section.measure.label}"
    rows = ["### Runs\n", f"| run | {section.network} | seed | {score} |", "|---|---|--:|--:|"]
    rows += [
        f"| {run.folder.resolve().name} | {setting.label} | {run.seed} | {run.score:.2f} |"
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
        hardware.append(machine(run.result))
    return (
        f"Source: commit {distinct(commits)}. Versions: {distinct(versions)}. "
        f"Hardware: {distinct(hardware)}.\n"
    )


def _matches(settings: Sequence[Setting], baseline: str) -> list[Setting]:
    exact = [setting for setting in settings if setting.label == baseline]
    return exact or [setting for setting in settings if baseline in setting.label]


def _choose(settings: Sequence[Setting], baseline: str | None) -> Setting:
    """The setting that the others of a section are compared with."""
    matching = _matches(settings, baseline) if baseline else []
    if len(matching) > 1:
        labels = "; ".join(setting.label for setting in matching)
        raise RunError(f"baseline {baseline!r} fits several settings: {labels}")
    return matching[0] if matching else settings[0]


if __name__ == "__main__":
    sys.exit(main())
