"""Cutout against rectangles set by hand, and the distribution of what it covers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from experiments.data.pipeline import ImagePipeline, evaluation_batch, training_batch

EXAMPLES = 24
LABELS = jnp.zeros(EXAMPLES, jnp.int32)


def pipeline_with(side, size=32):
    return ImagePipeline((0.3, 0.4, 0.5), (0.2, 0.25, 0.3), size=size, cutout=side)


def stored(size=32):
    images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, size, size, 3), np.uint8)
    return jnp.asarray(images)


def batch_of(pipeline, indices=None, seed=11, epoch=3):
    indices = jnp.arange(EXAMPLES) if indices is None else indices
    images = stored(pipeline.size)
    return np.asarray(training_batch(images, LABELS, indices, seed, epoch, pipeline)[0])


@pytest.mark.parametrize(("side", "size"), [(16, 32), (7, 32), (50, 32), (16, 64)])
def test_a_square_is_zero_and_the_rest_is_the_batch_without_cutout(side, size):
    plain, found = batch_of(pipeline_with(0, size)), batch_of(pipeline_with(side, size))
    clipped = 0
    for index, (image, expected) in enumerate(zip(found, plain.copy(), strict=True)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(11), 3), index)
        y, x = jax.random.randint(jax.random.fold_in(key, 0xC070), (2,), 0, size).tolist()
        for i in range(y - side // 2, y - side // 2 + side):
            for j in range(x - side // 2, x - side // 2 + side):
                if 0 <= i < size and 0 <= j < size:
                    expected[i, j] = 0.0  # the mean colour; black is negative
                else:
                    clipped += 1
        np.testing.assert_array_equal(image, expected)
    if side == 16:
        assert 0 < clipped < EXAMPLES * side**2


def covered(side, size, n):
    """Which pixels of `n` white images are covered: bool `(n, size, size)`."""
    pipeline = ImagePipeline((0.0,), (1.0,), size=size, crop_padding=0, cutout=side)
    white = jnp.full((1, size, size, 1), 255, jnp.uint8)
    images = jnp.broadcast_to(white, (n, size, size, 1))
    labels = jnp.zeros(n, jnp.int32)
    batch, _ = training_batch(images, labels, jnp.arange(n), 0, 0, pipeline)
    return np.asarray(batch[..., 0]) == 0


def test_an_even_side_is_the_published_square():
    """`y1 = max(0, y - 8)`, `y2 = min(h, y + 8)`: from 8 rows in a corner to 16 in the middle."""
    found = covered(16, 32, 1024)
    rows, columns = found.any(axis=2), found.any(axis=1)
    np.testing.assert_array_equal(found, rows[:, :, None] & columns[:, None, :])
    spans = {(max(0, y - 8), min(32, y + 8)) for y in range(32)}
    for lines in (rows, columns):
        first, count = lines.argmax(axis=1), lines.sum(axis=1)
        assert set(zip(first.tolist(), (first + count).tolist(), strict=True)) == spans


def test_centres_are_uniform_over_all_pixels():
    n = 20480
    counts = covered(1, 8, n).sum(axis=0)
    assert counts.sum() == n
    expected = n / 64
    # 63 degrees of freedom: mean 63, standard deviation 11; the draw is fixed
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 4 * 11


@pytest.mark.parametrize("side", [6, 5])
def test_how_often_a_pixel_is_covered(side):
    """Rows and columns are covered independently, each by as many centres as are near enough."""
    size, n = 16, 8192
    near = [
        sum(c - side // 2 <= i < c - side // 2 + side for c in range(size)) for i in range(size)
    ]
    probability = np.outer(near, near) / size**2
    error = np.sqrt(probability * (1 - probability) / n)
    assert (np.abs(covered(side, size, n).mean(axis=0) - probability) < 5 * error).all()


def test_it_depends_on_seed_epoch_and_example_only():
    pipeline, indices = pipeline_with(16), np.array([4, 8, 2, 6])
    whole = batch_of(pipeline, indices)
    np.testing.assert_array_equal(whole[2:], batch_of(pipeline, indices[2:]))
    np.testing.assert_array_equal(whole[::-1], batch_of(pipeline, indices[::-1]))
    square = (whole == 0).all(axis=-1)
    for other in ({"seed": 12}, {"epoch": 4}):
        assert not np.array_equal(square, (batch_of(pipeline, indices, **other) == 0).all(axis=-1))


def test_the_same_bits_in_the_batch_minor_layout():
    pipeline = pipeline_with(16)

    @jax.jit
    @lrj.batch_minor
    def make(images, indices):
        return training_batch(images, LABELS, indices, 11, 3, pipeline)[0]

    np.testing.assert_array_equal(make(stored(), jnp.arange(EXAMPLES)), batch_of(pipeline))


def test_evaluation_covers_nothing():
    indices = jnp.arange(EXAMPLES)
    found, _ = evaluation_batch(stored(), LABELS, indices, pipeline_with(16))
    expected, _ = evaluation_batch(stored(), LABELS, indices, pipeline_with(0))
    np.testing.assert_array_equal(found, expected)
