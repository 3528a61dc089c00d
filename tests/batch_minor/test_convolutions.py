"""Batch-minor convolutions and kernel gradients against ``lax``, with every choice of sides."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_jax.batch_minor import batch_minor
from lowrank_jax.batch_minor.convolutions import Convolution, convolve, kernel_gradient
from lowrank_jax.batch_minor.taps import Window

LAYOUT = ("NHWC", "HWIO", "NHWC")
BATCH_MINOR = (3, 1, 2, 0)
SIDES = tuple(itertools.product((True, False), repeat=2))


@dataclasses.dataclass(frozen=True)
class Sided(Convolution):
    """A convolution whose taps are on the sides named, cheap or not."""

    chosen: tuple[bool, bool]

    def sides(self):
        return self.chosen


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution as ``lax`` describes it."""

    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Any = "SAME"
    image: tuple[int, int] = (6, 7)
    batch: int = 2
    channels: tuple[int, int] = (3, 4)
    rhs_dilation: tuple[int, int] = (1, 1)
    lhs_dilation: tuple[int, int] = (1, 1)

    def operands(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, *self.image, self.channels[0]))
        return x, rng.standard_normal((*self.window, *self.channels))

    def plain(self, x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            dimension_numbers=LAYOUT,
            rhs_dilation=self.rhs_dilation,
            lhs_dilation=self.lhs_dilation,
        )

    def geometry(self, outputs, sides):
        padding = self.padding
        if isinstance(padding, str):
            window = [
                (taps - 1) * dilation + 1
                for taps, dilation in zip(self.window, self.rhs_dilation, strict=True)
            ]
            padding = lax.padtype_to_pads(self.image, window, self.strides, padding)
        windows = [
            Window(
                self.image[axis],
                outputs[axis],
                self.window[axis],
                self.strides[axis],
                padding[axis][0],
                self.lhs_dilation[axis],
                self.rhs_dilation[axis],
            )
            for axis in range(2)
        ]
        return Sided(*self.channels, *windows, sides)


CASES = [
    *(
        Case((3, 3), (stride, stride), padding)
        for stride, padding in itertools.product([1, 2, 3], ["SAME", "VALID"])
    ),
    Case((1, 3), (2, 2), "SAME"),
    Case((3, 1), (1, 1), "VALID"),
    Case((1, 1), (2, 2), "SAME"),
    Case((1, 1), (3, 3), "VALID"),
    Case((2, 4), (1, 1), "SAME"),
    Case((2, 4), (2, 2), "VALID"),
    Case((5, 3), (2, 1), "SAME"),
    Case((5, 3), (1, 3), ((3, 0), (0, 2))),
    Case((3, 3), (2, 2), ((1, 1), (1, 1)), image=(8, 8)),
    Case((3, 3), (1, 1), ((-1, 2), (3, -2))),
    Case((3, 2), (2, 3), ((-2, -1), (-1, 0))),
    Case((1, 1), (2, 2), ((-1, 1), (2, -1))),
    Case((1, 1), (1, 1), ((0, 0), (0, 0)), channels=(5, 2)),
    # The window is larger than the image: by padding, and without any output.
    Case((5, 7), (1, 1), "SAME", image=(2, 3)),
    Case((5, 5), (2, 2), ((2, 2), (2, 2)), image=(1, 1)),
    Case((5, 5), (1, 1), "VALID", image=(3, 6)),
    Case((5, 5), (2, 2), "VALID", image=(3, 2)),
    # Dilations.
    Case((3, 3), (1, 1), "SAME", rhs_dilation=(2, 3)),
    Case((3, 2), (2, 2), "VALID", rhs_dilation=(2, 2)),
    Case((3, 3), (1, 1), ((2, 1), (2, 2)), lhs_dilation=(2, 2)),
    Case((3, 4), (2, 3), ((4, 1), (0, 3)), lhs_dilation=(3, 2), rhs_dilation=(1, 2)),
    Case((3, 3), (2, 2), ((-3, 2), (5, -1)), lhs_dilation=(2, 3), rhs_dilation=(2, 1)),
    Case(batch=1),
    Case((3, 3), (2, 2), batch=1, channels=(1, 1)),
    # A wide and a narrow side, as in the stages of a low-rank kernel.
    Case((3, 1), (2, 1), ((1, 1), (0, 0)), channels=(9, 2)),
    Case((1, 3), (1, 2), ((0, 0), (1, 1)), channels=(2, 9)),
]


def close(actual, expected, case):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float64
    scale = np.abs(expected).max(initial=1e-300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * scale, err_msg=str(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_lax(case, x64, quick_compile):
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
            geometry = case.geometry(shape[1:3], sides)
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
        chosen.add(Convolution.sides(case.geometry(shape[1:3], (True, True))))
    assert (True, True) in chosen and len(chosen) >= 3


def test_taps_are_taken_on_the_side_of_fewer_channels():
    same = Window(8, 8, taps=3, stride=1, low=1, input_dilation=1, dilation=1)
    assert Convolution(64, 4, same, same).sides() == (False, False)
    assert Convolution(4, 64, same, same).sides() == (True, True)
