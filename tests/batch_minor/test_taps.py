"""Taps against loops over the definition, and ``write`` against ``read`` as its transpose."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from lowrank_jax.batch_minor.taps import Window, read, write


def positions(window, tap):
    """Pairs of output and input position of one tap, by the formula in the module's docstring."""
    for output in range(window.outputs):
        dilated = output * window.stride + tap * window.dilation - window.low
        position, between = divmod(dilated, window.input_dilation)
        if not between and 0 <= position < window.inputs:
            yield output, position


WINDOWS = [
    Window(inputs, outputs, 3, stride, low, input_dilation, dilation)
    for (inputs, outputs), stride, low, input_dilation, dilation in itertools.product(
        [(1, 1), (2, 7), (5, 5), (7, 2)], [1, 2, 3], [-9, -1, 0, 2, 11], [1, 2, 3], [1, 2]
    )
]


def shape_with(length, axis):
    return [length if at == axis else 2 for at in range(3)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_read_and_write_by_the_definition(axis, x64):
    rng = np.random.default_rng(axis)
    # Half of the windows, each along one of the axes and at one of the taps.
    cases = [(window, number % 3) for number, window in enumerate(WINDOWS[axis::6])]
    xs = [rng.standard_normal(shape_with(window.inputs, axis)) for window, _ in cases]
    ys = [rng.standard_normal(shape_with(window.outputs, axis)) for window, _ in cases]

    @jax.jit
    def move(xs, ys):
        reads = [read(x, axis, *case) for x, case in zip(xs, cases, strict=True)]
        return reads, [write(y, axis, *case) for y, case in zip(ys, cases, strict=True)]

    moved = 0
    for case, x, y, reads, writes in zip(cases, xs, ys, *move(xs, ys), strict=True):
        expected_read, expected_write = np.zeros_like(y), np.zeros_like(x)
        for output, position in positions(*case):
            moved += 1
            one, other = np.moveaxis(expected_read, axis, 0), np.moveaxis(x, axis, 0)
            one[output] = other[position]
            one, other = np.moveaxis(expected_write, axis, 0), np.moveaxis(y, axis, 0)
            one[position] = other[output]
        np.testing.assert_array_equal(reads, expected_read, str(case))
        np.testing.assert_array_equal(writes, expected_write, str(case))
        assert reads.dtype == writes.dtype == np.float64
        np.testing.assert_allclose(np.vdot(reads, y), np.vdot(x, writes), rtol=1e-12, atol=1e-14)
    assert moved > 30
