"""Decoded photographs: colours, and resizing against a triangle filter in float64."""

import io

import large_sets
import numpy as np
import pytest
from PIL import Image

from experiments.data import crops
from experiments.data.photographs import evaluation_pixels, training_pixels


def resampled(pixels: np.ndarray, size: int) -> np.ndarray:
    """Rows resampled to `size` by the triangle filter, as wide as a new pixel is."""
    scale = len(pixels) / size
    width = max(scale, 1.0)
    new, old = np.arange(size)[:, None], np.arange(len(pixels))
    weights = np.maximum(0.0, 1 - np.abs(old + 0.5 - (new + 0.5) * scale) / width)
    return np.tensordot(weights / weights.sum(axis=1, keepdims=True), pixels, 1)


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    pixels = resampled(np.asarray(pixels, np.float64), height)
    return resampled(pixels.swapaxes(0, 1), width).swapaxes(0, 1)


def rgb(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("number", [0, 3, 5, 8])  # The second is grey, the third CMYK.
def test_training_pixels(number):
    content = large_sets.jpeg(number)
    image = rgb(content)
    for epoch in range(3):
        drawn = crops.draw(1, epoch, number, image.shape[1], image.shape[0])
        left, top, right, bottom = drawn.box
        expected = resized(image[top:bottom, left:right], 32, 32)
        plain = training_pixels(content, 32, 1, epoch, number, flip=False)
        assert plain.shape == (32, 32, 3) and plain.dtype == np.uint8
        # Pillow rounds to whole numbers after each of the two directions.
        assert np.abs(plain - expected).max() <= 1.5
        mirrored = plain[:, ::-1] if drawn.mirrored else plain
        flipped = training_pixels(content, 32, 1, epoch, number, flip=True)
        np.testing.assert_array_equal(flipped, mirrored)


@pytest.mark.parametrize("number", [0, 3, 5, 9])
def test_evaluation_pixels(number):
    content = large_sets.jpeg(number)
    image = rgb(content)
    width, height = crops.resized(image.shape[1], image.shape[0], 32)
    left, top, right, bottom = crops.centre(width, height, 32)
    expected = resized(image, width, height)[top:bottom, left:right]
    assert np.abs(evaluation_pixels(content, 32) - expected).max() <= 1.5


def test_grey_has_three_equal_channels():
    assert large_sets.MODES[3] == "L"
    pixels = evaluation_pixels(large_sets.jpeg(3), 32)
    assert (pixels == pixels[..., :1]).all()
