"""Batch-minor convolutions and kernel gradients against ``lax``, with every choice of sides."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_cases import CASES

from lowrank_jax.batch_minor import batch_minor
from lowrank_jax.batch_minor.convolutions import Convolution, convolve, kernel_gradient
from lowrank_jax.batch_minor.taps import Window

BATCH_MINOR = (3, 1, 2, 0)
SIDES = tuple(itertools.product((True, False), repeat=2))


@dataclasses.dataclass(frozen=True)
class Sided(Convolution):
    """A convolution whose taps are on the sides named, cheap or not."""

    chosen: tuple[bool, bool]

    def sides(self):
        return self.chosen


def close(actual, expected, case):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float64
    scale = np.abs(expected).max(initial=1e-300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * scale, err_msg=str(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_lax(case, x64):
    x, kernel = case.operands()
    shape = jax.eval_shape(case.plain, x, kernel).shape
    y = np.random.default_rng(1).standard_normal(shape)

    def plain(x, kernel, y):
        out, pullback = jax.vjp(case.plain, x, kernel)
        return out, *pullback(y)

    @jax.jit
    def compute(x, kernel, y):
        stored_x, stored_y = jnp.transpose(x, BATCH_MINOR), jnp.transpose(y, BATCH_MINOR)
        by_sides = {}
        # Empty results are left to lax.
        for sides in SIDES if y.size else ():
            geometry = Sided(*case.channels, *case.windows(shape[1:3]), sides)
            out = jnp.transpose(convolve(stored_x, kernel, geometry), BATCH_MINOR)
            by_sides[sides] = out, kernel_gradient(stored_x, stored_y, geometry)
        return plain(x, kernel, y), batch_minor(plain)(x, kernel, y), by_sides

    expected, rewritten, by_sides = compute(x, kernel, y)
    for one, other in zip(rewritten, expected, strict=True):
        close(one, other, case)
    for sides, (out, gradient) in by_sides.items():
        close(out, expected[0], (case, sides))
        close(gradient, expected[2], (case, sides))


def test_the_cases_cover_every_choice_that_the_cost_makes():
    chosen = set()
    for case in CASES:
        shape = jax.eval_shape(case.plain, *case.operands()).shape
        chosen.add(Convolution(*case.channels, *case.windows(shape[1:3])).sides())
    assert (True, True) in chosen and len(chosen) >= 3


def test_taps_are_taken_on_the_side_of_fewer_channels():
    same = Window(8, 8, taps=3, stride=1, low=1, input_dilation=1, dilation=1)
    assert Convolution(64, 4, same, same).sides() == (False, False)
    assert Convolution(4, 64, same, same).sides() == (True, True)
