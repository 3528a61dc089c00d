"""Norms, ranks and spectra of the kernels in the course of a run, within a share of its time.

They are measured at step 0 and at the end in any case, and in between at the end of the first
dispatch at or after each multiple of `diagnostics_every` steps. That happens on the host, between
two dispatches, and takes time from training: a record that would make all of them take more than
`diagnostics_share` of the time so far is left out. What they took is in every record
(`diagnostics_seconds`) and in the result.

Of a network with attention the products of queries and keys and of outputs and values are measured
as well, each head by itself; recorded is the mean over the heads of a module.

To the measures of `lowrank_jax.diagnostics` comes the effective learning rate of each kernel,
``learning_rate / ||W||_F²``: in a network with normalization the scale of a kernel changes nothing
but how far a step turns it. Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 4; van
Laarhoven, "L2 regularization versus batch and weight normalization", 2017 (arXiv 1706.05350).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import models, recipe
from experiments.errors import RunError
from experiments.metrics import GROUP_TAGS
from experiments.state import Plan
from experiments.tally import Tally
from lowrank_jax.tree import kernels

GROUPS = tuple(GROUP_TAGS)
"""The products of attention; the measures of a group are called ``"qk/frobenius_norm"``."""

_DIGITS = 6  # Of the singular values in the record: there are many of them.


class KernelRecord(NamedTuple):
    """One record: measures by name and path, singular values by path, and what it took."""

    diagnostics: dict[str, Mapping[str, Any]]
    spectra: dict[str, list[float]]
    seconds: float


class KernelDiagnostics:
    """Measures the kernels that are factorized, or would be, of one run.

    Args:
      config: settled.
      plan: of the run.
      tally: of the run; what the records take is counted there.

    Raises:
      RunError: the network has no kernels of the kind that is factorized in others.
    """

    def __init__(self, config: ConfigDict, plan: Plan, tally: Tally) -> None:
        self._every, self._share = config.diagnostics_every, config.diagnostics_share
        self._spent = tally["diagnostics"]
        params = plan.abstract.params
        table = plan.table
        if not table.rows:
            table = recipe.resolve(recipe.comparison_rules(config), params)
        self._table = recipe.measured(config, table)
        groups = GROUPS if models.find(config.model.name).attention else ()
        self._products = {
            group: recipe.attention_products(config, params, group) for group in groups
        }

    def due(self, before: int, after: int, elapsed: float) -> bool:
        """Whether the kernels are to be measured after a dispatch; counts those left out.

        Args:
          before, after: steps done before and after it.
          elapsed: seconds that the run has taken so far.
        """
        if before // self._every == after // self._every:
            return False
        expected = self._spent["seconds"] / max(1, self._spent["records"])
        affordable = self._spent["seconds"] + expected <= self._share * elapsed
        self._spent["left_out"] += not affordable
        return affordable

    def measure(self, params: Any, learning_rate: float) -> KernelRecord:
        """Measures the kernels now.

        Raises:
          RunError: a kernel is not finite.
        """
        began = time.perf_counter()
        try:
            found: dict[str, Any] = dict(lrj.diagnostics.report(params, self._table))
            for group, products in self._products.items():
                found |= _of_products(group, products, params)
        except ValueError as error:  # A kernel with NaN in it.
            raise RunError(str(error)) from error
        with np.errstate(divide="ignore"):
            found["effective_learning_rate"] = {
                path: learning_rate / np.square(norm)
                for path, norm in found["frobenius_norm"].items()
            }
        spectra = {
            path: [float(f"{value:.{_DIGITS}g}") for value in np.ravel(values)]
            for path, values in found.pop("spectrum").items()
        }
        seconds = time.perf_counter() - began
        self._spent["seconds"] += seconds
        self._spent["records"] += 1
        return KernelRecord(found, spectra, round(seconds, 4))


def _of_products(
    group: str, products: Sequence[lrj.Product], params: Any
) -> dict[str, dict[str, float]]:
    """The measures of the products of one group, by name and by the path of the module."""
    leaves = kernels(params)
    weights = {
        os.path.commonpath(product.paths): product.weight(*(leaves[path] for path in product.paths))
        for product in products
    }
    measured = lrj.diagnostics.report(weights)
    del measured["spectrum"]
    return {
        f"{group}/{name}": {module: float(np.mean(heads)) for module, heads in values.items()}
        for name, values in measured.items()
    }
