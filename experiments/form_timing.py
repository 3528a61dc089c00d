"""Times one application of a factorized weight in its two forms, factored and composed.

Timed is what training does with it: the product and the gradients of its input and of its factors.
"""

from __future__ import annotations

import functools

from experiments.form_cache import Seconds
from experiments.gradient_timing import Contender, time_gradients
from experiments.state import Plan
from lowrank_jax.applications import Application


def time_forms(application: Application, plan: Plan) -> Seconds:
    """The median times of both forms, on random numbers on the default device.

    Args:
      application: has both forms.
      plan: gives the layout.
    """

    def in_form(compose: bool) -> Contender:
        apply = functools.partial(application.apply, compose=compose)
        return Contender(lambda x, weight, _: apply(x, weight), application.weight)

    forms = {"factored": in_form(False), "composed": in_form(True)}
    return Seconds(**time_gradients(forms, application.inputs, plan, say=lambda line: None))
