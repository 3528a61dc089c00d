"""Ranks that a run selects while it trains: the config's words as a selector, and what it has done.

A run with method=pufferfish or cuttlefish begins dense. Its kernels are measured at the beginning
and after every epoch; when the selector of the library says so, the run goes on with factors
(`switching.py`). All that was measured, and the switch, are part of the run's tally, and so of its
checkpoints: a run that is continued decides as one that never stopped.

Candidates are the kernels of the model that the papers factorize at all, without the kept ones:

    kept=profile     the first stacks of the network, until one is faster with factors
                     (`stack_profiling.py`)
    kept=published   the kernels that the method's public code keeps in this model
    kept=none        no others
    kept=PATTERN     the kernels whose whole paths match
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import models, recipe
from experiments.errors import RunError
from experiments.tally import Tally
from lowrank_jax.rank_selection import (
    PRESETS,
    Cuttlefish,
    Keep,
    KeptLayers,
    Pufferfish,
    RankSelector,
    Restructure,
)
from lowrank_jax.tree import near_misses

PROFILE, PUBLISHED, NONE = "profile", "published", "none"


def profiles(config: ConfigDict) -> bool:
    """Whether the stacks of the network are timed before the run begins."""
    return config.method == "cuttlefish" and config.selection.kept == PROFILE


def candidates(config: ConfigDict, dense_params: Any) -> lrj.Table:
    """All kernels of a network that may be factorized, kept or not, each at the share of full rank
    that stacks are timed at.

    Args:
      config: settled.
      dense_params: arrays or shapes.

    Raises:
      RunError: it is not known of this model.
    """
    rules = recipe.comparison_rules(config, config.selection.fraction)
    return recipe.part(recipe.resolve(rules, dense_params), _facts(config).candidates)


def selector(config: ConfigDict, dense_params: Any, profile: KeptLayers | None) -> RankSelector:
    """The selector that a config names.

    Args:
      config: settled.
      dense_params: of the network; arrays or shapes.
      profile: the times of its stacks, where the config asks for them.

    Raises:
      RunError: nothing is left to be factorized, or a value is refused.
    """
    facts, chosen = _facts(config), config.selection
    table = candidates(config, dense_params)
    kept = _kept_pattern(config, table, profile)
    left = lrj.Table(tuple(row for row in table.rows if not re.fullmatch(kept, row.path)))
    if not left.rows:
        raise RunError(
            f"selection.kept={chosen.kept} keeps all {len(table.rows)} kernels dense: there is "
            "nothing to select ranks for"
        )
    left = dataclasses.replace(
        left, other_parameters=lrj.describe(dense_params).dense_parameters - left.dense_parameters
    )
    try:
        if config.method == "pufferfish":
            return Pufferfish(left, chosen.epoch, chosen.fraction, chosen.multiple_of)
        fields = dict(PRESETS[chosen.preset])
        given = {name: chosen[name] for name in ("window", "tail", "threshold") if chosen[name]}
        fields["detector"] = dataclasses.replace(fields["detector"], **given)
        fields["minimum_fraction"] = chosen.minimum_fraction
        # What stays dense by its place in the network is not waited for, unless published so.
        tracked = recipe.part(table, facts.tracked)
        if chosen.kept != PUBLISHED:
            tracked = lrj.Table(tuple(row for row in tracked.rows if left.row(row.path)))
        return Cuttlefish(
            candidates=left,
            tracked=tracked if tracked.rows else left,
            latest_epoch=chosen.epoch,
            metric=chosen.metric,
            multiple_of=chosen.multiple_of,
            **fields,
        )
    except ValueError as error:
        raise RunError(f"selection: {error}") from error


def known_table(config: ConfigDict, dense_params: Any) -> lrj.Table | None:
    """What a run factorizes in the end, where that can be told before it has begun.

    Args:
      config: settled, of a run that selects its ranks.
      dense_params: arrays or shapes.

    Raises:
      RunError: as for `selector`.
    """
    if config.method != "pufferfish":
        return None
    nothing: list[dict[str, dict[str, float]]] = [{}] * (config.selection.epoch + 1)
    decision = selector(config, dense_params, None).decide(nothing)
    assert isinstance(decision, Restructure)
    return decision.table


def check(config: ConfigDict, dense_params: Any) -> None:
    """Raises RunError where the selector could not be made, before anything is timed or written."""
    if profiles(config):
        candidates(config, dense_params)
    else:
        selector(config, dense_params, None)


class Ranks:
    """The ranks of one run that are still to be selected: what was measured for them.

    Args:
      chosen: by whom.
      tally: of the run, where all of it is kept.
    """

    def __init__(self, chosen: RankSelector, tally: Tally) -> None:
        self._selector = chosen
        if tally["ranks"] is None:
            tally["ranks"] = {
                "history": [],
                "step": None,
                "epoch": None,
                "remark": "",
                "seconds": {"profiling": 0.0, "measuring": 0.0, "switching": 0.0},
            }
        self._kept: dict[str, Any] = tally["ranks"]

    @property
    def seconds(self) -> dict[str, float]:
        """What profiling, measuring and switching took so far."""
        return self._kept["seconds"]

    def measure(self, params: Any) -> dict[str, dict[str, float]]:
        """Measures the dense kernels now; for the record: measures by name and path.

        Raises:
          RunError: a kernel is not finite.
        """
        began = time.perf_counter()
        try:
            found = self._selector.measure(params)
            self._kept["history"].append(found)
            told = dict(found)
            if isinstance(self._selector, Cuttlefish):
                ranks = self._selector.ranks(self._kept["history"])
                told["selected_rank"] = {path: float(rank) for path, rank in ranks.items()}
        except ValueError as error:
            raise RunError(str(error)) from error
        self.seconds["measuring"] += time.perf_counter() - began
        return told

    def decide(self) -> Keep | Restructure:
        """What to do now, by all that was measured.

        Raises:
          RunError: other kernels were measured at first.
        """
        try:
            return self._selector.decide(self._kept["history"])
        except ValueError as error:
            raise RunError(str(error)) from error

    def note_switch(self, decision: Restructure, step: int, epoch: float, seconds: float) -> None:
        """Keeps that the run has switched after a step, and what that took."""
        self._kept |= {"step": step, "epoch": epoch, "remark": decision.remark}
        self.seconds["switching"] += seconds


def switched_at(tally: Tally) -> int | None:
    """The step after which a run has switched, by its tally; None: it has not."""
    return tally["ranks"]["step"] if tally.get("ranks") else None


def _facts(config: ConfigDict) -> models.RankSelection:
    found = models.find(config.model.name).rank_selection
    if found is None:
        having = ", ".join(name for name, m in models.MODELS.items() if m.rank_selection)
        raise RunError(
            f"method={config.method} with model={config.model.name}: which of its kernels may be "
            f"factorized is not known; models for which it is: {having}"
        )
    return found


def _kept_pattern(config: ConfigDict, table: lrj.Table, profile: KeptLayers | None) -> str:
    """Of the whole paths of the kernels of a table that stay dense."""
    kept = config.selection.kept
    facts = _facts(config)
    if kept == NONE:
        return ""
    if kept == PUBLISHED:
        return facts.kept_by_pufferfish if config.method == "pufferfish" else facts.kept
    if kept == PROFILE:
        assert profile is not None
        blocks = [stack.blocks for stack in facts.stacks if stack.name in profile.kept]
        return "|".join(rf"(?:{pattern})/.*" for pattern in blocks)
    try:
        found = [row for row in table.rows if re.fullmatch(kept, row.path)]
    except re.error as error:
        raise RunError(f"selection.kept={kept!r} is no pattern: {error}") from error
    if not found:
        near = near_misses(kept, [row.path for row in table.rows])
        raise RunError(
            f"selection.kept={kept!r} is none of {PROFILE}, {PUBLISHED} and {NONE}, and as a "
            f"pattern it matches no kernel that may be factorized; {near}"
        )
    return kept
