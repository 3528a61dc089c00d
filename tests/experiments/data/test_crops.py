"""Random resized crops, against rejection sampling in real numbers and worked-out cases."""

import math

import numpy as np
import pytest

from experiments.data import crops
from experiments.data.crops import Box, centre, draw, resized


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (1600, 1200)])
def test_every_box_is_in_the_image_and_as_large_and_wide_as_it_may_be(width, height):
    for example in range(300):
        box = draw(0, 0, example, width, height).box
        assert 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height
        w, h = box.right - box.left, box.bottom - box.top
        # Rounding moves each side by at most half a pixel.
        assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height
        assert (w + 0.5) / (h - 0.5) >= 3 / 4 and (w - 0.5) / (h + 0.5) <= 4 / 3


def test_areas_ratios_and_places_are_distributed_as_published():
    """What is drawn uniformly, and what is left of it where boxes that do not fit are rejected."""
    width, height, count = 2000, 1500, 4000
    rng = np.random.default_rng(0)
    area = rng.uniform(0.08, 1.0, 200_000)
    log_ratio = rng.uniform(math.log(3 / 4), math.log(4 / 3), 200_000)
    w = np.sqrt(area * width * height * np.exp(log_ratio))
    h = np.sqrt(area * width * height / np.exp(log_ratio))
    fits = (w <= width) & (h <= height)
    draws = [draw(1, 2, example, width, height) for example in range(count)]
    found_w = np.array([box.right - box.left for box, _ in draws])
    found_h = np.array([box.bottom - box.top for box, _ in draws])
    pairs = [
        (found_w * found_h / (width * height), area[fits]),
        (np.log(found_w / found_h), log_ratio[fits]),
        (found_w / width, w[fits] / width),
        # Where a box begins, as a share of where it may.
        (np.array([box.left for box, _ in draws]) / (width - found_w + 1), None),
        (np.array([box.top for box, _ in draws]) / (height - found_h + 1), None),
        (np.array([mirrored for _, mirrored in draws], float), None),
    ]
    for found, expected in pairs:
        mean, std = (0.5, 0.5) if expected is None else (expected.mean(), expected.std())
        assert abs(found.mean() - mean) < 5 * std / math.sqrt(count)
        if expected is not None:
            quantiles = [0.1, 0.5, 0.9]
            apart = np.quantile(found, quantiles) - np.quantile(expected, quantiles)
            assert np.abs(apart).max() < 0.03


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        # A box of 8 % would be wider than the image: the central one, of ratio 3/4.
        (10, 1000, Box(0, 493, 10, 506)),
        (1000, 10, Box(493, 0, 506, 10)),
        (1, 1, Box(0, 0, 1, 1)),
    ],
)
def test_where_no_box_fits(width, height, box):
    assert {draw(0, 0, example, width, height).box for example in range(20)} == {box}


def test_a_draw_is_a_function_of_seed_epoch_and_example():
    def drawn(seed, epoch, example):
        return draw(seed, epoch, example, 500, 400)

    assert drawn(3, 4, 5) == drawn(3, 4, 5)
    assert len({drawn(3, 4, 5), drawn(2, 4, 5), drawn(3, 5, 5), drawn(3, 4, 6)}) == 4
    # 1:23 and 12:3 are not taken for one another.
    assert drawn(1, 23, 4) != drawn(12, 3, 4)
    # Pinned: another draw here would make runs that are resumed differ from what they were.
    assert drawn(1, 0, 7) == crops.Draw(Box(149, 40, 368, 211), mirrored=True)


@pytest.mark.parametrize(
    ("image", "scaled", "box"),
    [
        ((500, 375), (341, 256), Box(58, 16, 282, 240)),
        ((375, 500), (256, 341), Box(16, 58, 240, 282)),
        ((256, 256), (256, 256), Box(16, 16, 240, 240)),
        ((20, 3000), (256, 38400), Box(16, 19088, 240, 19312)),
    ],
)
def test_the_middle_of_an_image(image, scaled, box):
    """The shorter side becomes 256, the longer one in proportion, rounded down."""
    assert resized(*image, 224) == scaled
    assert centre(*scaled, 224) == box


def test_other_sizes_in_proportion():
    assert resized(100, 100, 32) == (36, 36) and resized(100, 100, 448) == (512, 512)
