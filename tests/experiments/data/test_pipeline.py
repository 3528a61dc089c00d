"""The input pipeline against loops over pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.example_order import batch_indices, epoch_permutation, permutation_batch
from experiments.data.pipeline import ImagePipeline, evaluation_batch, training_batch

GREY = ImagePipeline(mean=(0.3,), std=(0.35,), size=32)
COLOUR = ImagePipeline(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=32)
# Shapes of stored images, and the canvas they are put on.
CANVASES = [
    ((32, 32, 3), 32),
    ((28, 28, 1), 32),
    ((8, 8, 1), 32),
    ((28, 28, 3), 32),
    ((64, 64, 3), 64),
    ((28, 28, 1), 64),
]


def stored(shape, n=12, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, n), jnp.int32)


def pipeline_for(shape, size):
    return dataclasses.replace(COLOUR if shape[-1] == 3 else GREY, size=size)


def canvas(image, size):
    """size x size x 3 of one image, by loops over pixels, uint8."""
    height, width, channels = image.shape
    factor = size // height
    margin = (size - factor * height) // 2
    result = np.zeros((size, size, 3), np.uint8)
    for i in range(height * factor):
        for j in range(width * factor):
            for c in range(3):
                source = image[i // factor, j // factor, c % channels]
                result[i + margin, j + margin, c] = source
    return result


def normalised(image, pipeline):
    return (image / 255.0 - np.array(pipeline.mean)) / np.array(pipeline.std)


@pytest.mark.parametrize(("shape", "size"), CANVASES)
def test_evaluation_batch_is_the_normalised_canvas(shape, size):
    images, labels = stored(shape)
    pipeline = pipeline_for(shape, size)
    indices = np.array([7, 0, 7, 11])
    batch, batch_labels = evaluation_batch(images, labels, indices, pipeline)
    expected = [normalised(canvas(np.asarray(images[i]), size), pipeline) for i in indices]
    assert batch.dtype == jnp.float32
    np.testing.assert_allclose(batch, np.stack(expected), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(batch_labels, np.asarray(labels)[indices])


@pytest.mark.parametrize(("shape", "size"), CANVASES)
def test_training_batch_is_padded_cropped_and_mirrored(shape, size):
    images, labels = stored(shape)
    pipeline = pipeline_for(shape, size)
    indices, seed, epoch = np.array([3, 9, 0, 5, 11, 1]), 17, 4
    batch, batch_labels = training_batch(images, labels, indices, seed, epoch, pipeline)
    mirrored_ones = 0
    for image, index in zip(batch, indices, strict=True):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), int(index))
        crop_key, flip_key = jax.random.split(key)
        top, left = np.asarray(jax.random.randint(crop_key, (2,), -4, 5)) + 4
        # black before normalising, not the mean
        padded = np.pad(canvas(np.asarray(images[index]), size), ((4, 4), (4, 4), (0, 0)))
        crop = padded[top : top + size, left : left + size]
        if jax.random.bernoulli(flip_key):
            crop = crop[:, ::-1]
            mirrored_ones += 1
        np.testing.assert_allclose(image, normalised(crop, pipeline), rtol=1e-6, atol=1e-6)
    assert 0 < mirrored_ones < len(indices)
    np.testing.assert_array_equal(batch_labels, np.asarray(labels)[indices])


def test_offsets_and_flips_are_uniform():
    # One bright pixel in the middle of every image tells where the crop was; a second, to its
    # right, whether it was mirrored.
    n = 8100
    image = np.zeros((1, 32, 32, 1), np.uint8)
    image[0, 16, 16], image[0, 16, 17] = 255, 100
    pipeline = ImagePipeline(mean=(0.0,), std=(1.0,), size=32)
    batch, _ = training_batch(
        jnp.asarray(np.repeat(image, n, axis=0)),
        jnp.zeros(n, jnp.int32),
        jnp.arange(n),
        0,
        0,
        pipeline,
    )
    grey = np.asarray(batch[..., 0])
    bright = grey.reshape(n, -1).argmax(axis=1)
    row, column = np.divmod(bright, 32)
    mirrored = grey[np.arange(n), row, column - 1] > 0
    column = np.where(mirrored, 31 - column, column)
    counts = np.zeros((9, 9, 2))
    np.add.at(counts, (row - 12, column - 12, mirrored.astype(int)), 1)
    assert counts.sum() == n
    expected = n / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 161 degrees of freedom: mean 161, standard deviation 18; the draw is fixed
    assert chi_square < 161 + 4 * 18


def test_augmentation_off_is_evaluation():
    images, labels = stored((28, 28, 1))
    plain = dataclasses.replace(GREY, crop_padding=0, flip=False)
    indices = jnp.arange(12)
    expected = evaluation_batch(images, labels, indices, plain)
    found = training_batch(images, labels, indices, 5, 3, plain)
    np.testing.assert_array_equal(found[0], expected[0])


def test_augmentation_depends_on_seed_epoch_and_example_only():
    images, labels = stored((32, 32, 3))
    indices = np.array([4, 8, 2, 6])

    def batch(indices, seed, epoch):
        return np.asarray(training_batch(images, labels, indices, seed, epoch, COLOUR)[0])

    whole = batch(indices, 1, 2)
    halves = [batch(indices[:2], 1, 2), batch(indices[2:], 1, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    np.testing.assert_array_equal(whole[::-1], batch(indices[::-1], 1, 2))
    assert not np.array_equal(whole, batch(indices, 2, 2))
    assert not np.array_equal(whole, batch(indices, 1, 3))


def test_jit_equals_no_jit_and_scan_bit_for_bit():
    images, labels = stored((28, 28, 1))
    permutation = epoch_permutation(3, 0, 12)

    def step(_, i):
        indices = permutation_batch(permutation, i, 4)
        return None, training_batch(images, labels, indices, 3, 0, GREY)

    scanned = jax.jit(lambda: jax.lax.scan(step, None, jnp.arange(3))[1])()
    for i in range(3):
        with jax.disable_jit():
            unjitted = training_batch(images, labels, batch_indices(3, i, 12, 4), 3, 0, GREY)
        jitted = training_batch(images, labels, batch_indices(3, i, 12, 4), 3, 0, GREY)
        for one, two, three in zip(scanned, unjitted, jitted, strict=True):
            np.testing.assert_array_equal(one[i], two)
            np.testing.assert_array_equal(one[i], three)


def test_images_larger_than_the_canvas_are_refused():
    images, labels = stored((40, 40, 3), n=2)
    with pytest.raises(ValueError, match="40 pixels do not fit a canvas of 32"):
        evaluation_batch(images, labels, jnp.arange(2), COLOUR)
