"""The figures of one section of a report: drawn from its runs, saved, and shown by Markdown."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_jax as lrj
from experiments import (
    mechanism_plots,
    plot_style,
    rank_plots,
    recorded_ranks,
    report_plots,
    setting_names,
)
from experiments.comparison import Section, Setting, decay_studies
from experiments.metrics import columns
from experiments.report_plots import SettingData
from experiments.time_to_accuracy import Records

_SPREAD = "Bars and bands reach from the worst to the best seed.\n"
_NO_COMMON_SCALE = (
    " Under decay_position=published the gradient of Frobenius decay passes through clipping and "
    "momentum, and weight decay does not, so that their coefficients have no common scale."
)
_SELECTED_RANKS = (
    "Over the epochs the rank that each kernel would get by its stable rank, until the switch; "
    "from there on the rank of its factors, as a thicker line. Of the first seed of each setting."
)
_FINAL_RANKS = (
    "The ranks of the kernels in the end, and the parameters of their factors, as shares of full "
    "rank and of the dense kernel's parameters. A kernel that stays dense is at 1. Full rank is "
    "that of the matrix as which factors of a kind read a kernel: parameters compare in any case, "
    "ranks between factors of one kind. Bands reach from the lowest to the highest seed."
)
_BEFORE_AND_AFTER = (
    " Where ranks are selected in training, the kernels are all that could be factorized until the "
    "switch, and from there on those that are."
)
_OVER_TIME_WORDS = (
    "Over the epochs, means over the kernels that are factorized (in a dense network, would be) "
    "and over seeds, with bands from the lowest to the highest seed."
)
_OF_PRODUCTS = (
    " Products of queries and keys, and of outputs and values, have panels of their own: means "
    "over the heads of attention."
)
_OVER_TIME: Mapping[str, tuple[Callable[..., Figure | None], str]] = {
    "nuclear_norm": (
        mechanism_plots.nuclear_norm,
        "The nuclear norm of the kernels, and as a broken line its bound, half the squared norms "
        "of the factors, which plain decay of the factors penalizes. Where it is not seen the two "
        "agree; dense kernels, and those of three factors, have none.",
    ),
    "frobenius_norm": (
        mechanism_plots.frobenius_norm,
        "The Frobenius norm of the kernels.",
    ),
    "effective_step_size": (
        mechanism_plots.effective_step_size,
        "The effective step size, the learning rate over the squared Frobenius norm of a kernel.",
    ),
}


class SectionFigures:
    """Draws the figures of one section and returns the Markdown that shows them.

    Args:
      section: what its settings have in common.
      settings: in the order of the legends.
      records: of their runs.
      curve_split: the split to draw learning curves of.
      out: the folder to write to.
      suffix: what the names of the files end with.
    """

    def __init__(
        self,
        section: Section,
        settings: Sequence[Setting],
        records: Records,
        curve_split: str,
        out: Path,
        suffix: str,
    ) -> None:
        self._section, self._settings, self._records = section, settings, records
        self._curve_split, self._out, self._suffix = curve_split, out, suffix
        groups = decay_studies(settings)
        studied = [setting for group in groups.values() for setting in group]
        beside = [s for s in settings if not any(s is other for other in studied)]
        # Settings that differ in decay alone, the others, and of those the dense networks.
        self._studies = {name: list(map(self._data, group)) for name, group in groups.items()}
        self._beside = list(map(self._data, beside))
        self._references = [data for data in self._beside if data.dense]

    def scores(self) -> str:
        """The score against parameters, and accuracy over the epochs.

        Settings that differ in decay alone are too many for one plot: their learning curves have
        one of their own, and if all are of one size, only `mechanisms` shows their scores.
        """
        title, measure = self._section.title, self._section.measure
        accuracy = f"{self._curve_split} {measure.per_epoch}"
        studied = [data for group in self._studies.values() for data in group]
        one_size = len({data.parameters for data in studied}) == 1
        sizes = self._beside if one_size else list(map(self._data, self._settings))
        followed = self._beside if len(self._beside) > len(self._references) or not studied else []
        score = measure.name.replace(" ", "_")  # Links do not take spaces.
        figures = {
            f"{score}_against_parameters": report_plots.score_against_parameters(
                sizes, title, self._score
            ),
            "learning_curves": report_plots.learning_curves(followed, title, accuracy),
            "learning_curves_by_weight_decay": report_plots.learning_curves_by_decay(
                self._studies, self._references, title, accuracy
            ),
        }
        shown = [self._show(name, figure) for name, figure in figures.items()]
        return "\n".join([*filter(None, shown), _SPREAD]) if any(shown) else ""

    def ranks(self) -> str:
        """The ranks of the kernels; '' where none were selected in training."""
        if not any(setting.selects_ranks for setting in self._settings):
            return ""
        title = self._section.title
        tables = {setting.label: self._tables(setting) for setting in self._settings}
        followed = [
            rank_plots.SelectingRun(setting.label, self._records[run.folder], table)
            for setting in self._settings
            for run in setting.runs[:1]
            if (table := tables[setting.label].get(run.folder)) and run.folder in self._records
        ]
        small = [s for s in self._settings if any(t.rows for t in tables[s.label].values())]
        chosen = spread(small, mechanism_plots.MOST_SETTINGS)
        ranks = [rank_plots.FinalRanks(s.label, [*tables[s.label].values()]) for s in chosen]
        candidates = map(recorded_ranks.candidates, self._records.values())
        kernels = list(itertools.chain.from_iterable(candidates))
        figures = {
            "selected_ranks": (rank_plots.selected_ranks(followed, title), _SELECTED_RANKS),
            "final_ranks": (
                rank_plots.final_ranks(ranks, kernels, title),
                _FINAL_RANKS + _left_out(small, chosen),
            ),
        }
        shown = [(words, self._show(name, figure)) for name, (figure, words) in figures.items()]
        return "\n".join(f"{words}\n\n{image}" for words, image in shown if image)

    def _tables(self, setting: Setting) -> dict[Path, lrj.Table]:
        """What its runs factorized, by their folders, as far as these tell."""
        found = {run.folder: recorded_ranks.table(run.folder) for run in setting.runs}
        return {folder: table for folder, table in found.items() if table is not None}

    def mechanisms(self) -> str:
        """What decay does to the score and to the kernels; '' where nothing of it was recorded."""
        parts = []
        measure = self._section.measure
        against_decay = self._show(
            f"{measure.name}_against_weight_decay",
            report_plots.score_against_decay(
                self._studies, self._references, self._section.title, self._score
            ),
        )
        if against_decay:
            studied = [data for group in self._studies.values() for data in group]
            kinds = sorted({data.decay for data in studied}, reverse=True)
            words = (
                f"{measure.title} against the coefficient of {' or '.join(kinds)}, all else being "
                "equal."
            )
            if any(data.coefficient == 0 for data in studied):
                words += " A coefficient of 0 has no place on its axis."
            positions = {s.runs[0].config["decay_position"] for s in self._settings}
            if len(kinds) > 1 and "published" in positions:
                words += _NO_COMMON_SCALE
            parts.append(f"{words}\n")
            parts.append(against_decay)
        title, name_of = self._title_and_names()
        measured = [setting for setting in self._settings if self._lines(setting)]
        chosen = spread(measured, mechanism_plots.MOST_SETTINGS)
        recorded = [
            mechanism_plots.Recorded(
                name_of(setting),
                self._lines(setting),
                setting.dense,
                setting_names.replays(setting.runs[0].config),
            )
            for setting in chosen
        ]
        over_time = []
        for name, (draw, words) in _OVER_TIME.items():
            shown = self._show(name, draw(recorded, title))
            if shown:
                words += self._replayed() if name == "frobenius_norm" else ""
                over_time += [f"{words}\n", shown]
        if over_time:
            lines = (line for setting in recorded for run in setting.runs for line in run)
            products = _OF_PRODUCTS if any(map(mechanism_plots.of_products, lines)) else ""
            switches = _BEFORE_AND_AFTER if any(s.selects_ranks for s in chosen) else ""
            left_out = _left_out(measured, chosen)
            parts.append(f"{_OVER_TIME_WORDS}{products}{switches}{left_out}\n")
            parts += over_time
        parts += self._spectra(measured)
        return "\n".join(["### Mechanisms\n", *parts]) if parts else ""

    def _spectra(self, settings: Sequence[Setting]) -> list[str]:
        """The singular values of the kernel in the middle, of the first run of each setting."""
        runs = {setting.label: self._lines(setting)[0] for setting in settings}
        followed = [s for s in settings if mechanism_plots.spectra_followed(runs[s.label])]
        kernels = [mechanism_plots.kernels(runs[setting.label]) for setting in followed] or [[]]
        common = [path for path in kernels[0] if all(path in paths for paths in kernels)]
        if not common:
            return []
        path = common[len(common) // 2]
        chosen = spread(followed, mechanism_plots.MOST_PANELS)
        title, name_of = self._title_and_names()
        panels = [mechanism_plots.Panel(name_of(s), runs[s.label], path) for s in chosen]
        name = path.removesuffix("/kernel")
        figure = mechanism_plots.spectra_over_time(panels, f"{title}: {name}")
        words = (
            f"The singular values of `{name}` during training, of the first seed of each setting."
        )
        return [
            f"{words}{_left_out(followed, chosen)}\n",
            self._show("spectra_over_time", figure),
        ]

    @property
    def _score(self) -> str:
        return f"{self._section.split} {self._section.measure.label}"

    def _show(self, name: str, figure: Figure | None) -> str:
        """Saves a figure; the Markdown that shows it, or '' where there is none."""
        if figure is None:
            return ""
        file = f"{name}{self._suffix}.png"
        plot_style.save(figure, self._out / file)
        words = name.replace("_", " ")
        return f"![{words[0].upper()}{words[1:]}]({file})\n"

    def _data(self, setting: Setting) -> SettingData:
        key, coefficient = setting.coefficient
        return SettingData(
            method=setting.method,
            size=setting_names.size_name(setting.size) if setting.size else "",
            dense=setting_names.dense(setting.runs[0].config),
            parameters=setting.parameters,
            decay=setting_names.DECAYS_BY_KEY[key],
            coefficient=coefficient,
            scores=setting.scores.tolist(),
            curves=[
                columns(self._records[run.folder], f"{self._curve_split}_accuracy")
                for run in setting.runs
                if run.folder in self._records
            ],
        )

    def _title_and_names(self) -> tuple[str, Callable[[Setting], str]]:
        """A size that all have in common is told by the title, and not by their names."""
        small = [s for s in self._settings if not setting_names.dense(s.runs[0].config)]
        sizes = {setting.size for setting in small}
        asked = next(iter(sizes)) if len(sizes) == 1 else None
        if asked is None:
            return self._section.title, lambda setting: setting.label
        common = setting_names.size_name(asked)
        return f"{self._section.title}, {common}", lambda setting: setting.method

    def _lines(self, setting: Setting) -> list[Sequence[Mapping[str, Any]]]:
        """The records of the runs of a setting in which there are kernels that were measured."""
        found = [self._records.get(run.folder, []) for run in setting.runs]
        return [lines for lines in found if any(line.get("diagnostics") for line in lines)]

    def _replayed(self) -> str:
        """How near replayed norms came to the record."""
        found = [run.result.get("replay") for setting in self._settings for run in setting.runs]
        differences = [replay["largest_difference"] for replay in found if replay]
        if not differences:
            return ""
        return (
            " Replayed norms are drawn with gaps, on top of those that they were recorded from, "
            f"from which they differ by at most {max(differences):.1e} (relative, after any step)."
        )


def spread(settings: Sequence[Setting], most: int) -> list[Setting]:
    """At most so many settings, shared out between the methods.

    Those of one method are evenly spaced from its first to its last; a single one is in the middle.

    Args:
      settings: in order, those of a method together.
      most: how many to keep.
    """
    methods: dict[str, list[Setting]] = {}
    for setting in settings:
        methods.setdefault(setting.name, []).append(setting)
    turns = [(turn, name) for name, group in methods.items() for turn in range(len(group))]
    turns.sort(key=lambda pair: pair[0])
    shares = Counter(name for _, name in turns[:most])
    kept = []
    for name, group in methods.items():
        last, share = len(group) - 1, shares[name]
        places = np.linspace(0, last, share) if share > 1 else [last / 2][:share]
        kept += [group[int(place)] for place in places]
    return kept


def _left_out(settings: Sequence[Setting], chosen: Sequence[Setting]) -> str:
    missing = [s.label for s in settings if not any(s is other for other in chosen)]
    if not missing:
        return ""
    return (
        f" Of {len(settings)} settings {len(chosen)} are drawn; a report of fewer runs draws the "
        f"others: {'; '.join(missing)}."
    )
