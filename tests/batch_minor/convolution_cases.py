"""Convolutions of images with every kind of window, stride, padding and dilation."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from jax import lax

from lowrank_jax.batch_minor.taps import Window


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
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            rhs_dilation=self.rhs_dilation,
            lhs_dilation=self.lhs_dilation,
            feature_group_count=x.shape[3] // kernel.shape[2],
        )

    def windows(self, outputs):
        """As ``taps.py`` describes it."""
        padding = self.padding
        if isinstance(padding, str):
            window = [
                (taps - 1) * dilation + 1
                for taps, dilation in zip(self.window, self.rhs_dilation, strict=True)
            ]
            padding = lax.padtype_to_pads(self.image, window, self.strides, padding)
        return [
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
