"""The input pipeline of small image sets: augmentation and normalisation, on device.

The whole split lies on the device as uint8 in its native size; everything below is a pure function
that runs under `jax.jit` and inside `lax.scan`.

Canvas. A network gets `size x size x 3` images, of the size that the data set's entry in
`catalog.py` states: native images are enlarged by the largest whole factor that fits (nearest
neighbour) and centred on black, and grey ones are repeated over three channels. So on a canvas of
32, Fashion-MNIST's 28 x 28 gets a margin of 2, the 8 x 8 digits are enlarged four times, CIFAR is
taken as it is.

Augmentation is the usual one of CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2): a crop at
a random offset of at most `crop_padding` pixels, black outside, then a mirror image with
probability one half. Black is put in before normalising. The crop is one gather with clipped
indices and a mask, which on two CPU cores is three times as fast as padding and a vmapped
`dynamic_slice`.

Cutout (DeVries and Taylor 2017, arXiv:1708.04552) comes after normalising: a square of side
`cutout` is set to zero, which is the mean colour. Its centre `c` is uniform over all pixels of the
image, and it covers rows `c - side // 2` to `c - side // 2 + side - 1` and columns likewise, as
far as they are in the image: at an even side one row more before the centre than behind it, as in
its authors' code; an odd side, which that code rounds down, is taken as it is.

With `key = jax.random.key(seed)`, example `i` is augmented in epoch `e` with
`fold_in(fold_in(key, e), i)`: however a batch is divided over devices, and wherever a run is
resumed, the same images come out. `example_order.py` says in which order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

# Not 0 or 1, from which `fold_in` makes the two keys that `split` makes (for crop and flip).
_CUTOUT_STREAM = 0xC070


@dataclasses.dataclass(frozen=True)
class ImagePipeline:
    """How stored images become what the network sees; hashable, hence a static argument of jit.

    Attributes:
      mean: subtracted from pixels in 0..1; one number, or one for each of the three channels.
      std: the divisor, likewise.
      size: height and width of the network's images.
      crop_padding: largest offset of the random crop in pixels; 0 for none.
      flip: whether to mirror at random.
      cutout: side of the square that is blanked, in pixels of the network's image; 0 for none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    crop_padding: int = 4
    flip: bool = True
    cutout: int = 0


@functools.partial(jax.jit, static_argnames="pipeline")
def training_batch(
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    seed: int | jax.Array,
    epoch: int | jax.Array,
    pipeline: ImagePipeline,
) -> tuple[jax.Array, jax.Array]:
    """Gathers, augments and normalises a batch.

    Args:
      images: uint8 `(N, H, W, C)`, native, C = 1 or 3.
      labels: int32 `(N,)`.
      indices: int32 `(B,)`, into the first axis of `images`.
      seed: the run's seed.
      epoch: the epoch, which with the seed and the index decides on the augmentation.
      pipeline: static.

    Returns:
      float32 `(B, size, size, 3)` and int32 `(B,)`.
    """
    epoch_key = jax.random.fold_in(jax.random.key(seed), epoch)
    keys = jax.vmap(functools.partial(jax.random.fold_in, epoch_key))(indices)
    offset, mirrored = jax.vmap(lambda key: _draw(key, pipeline))(keys)
    position = jnp.arange(pipeline.size)
    rows = position + offset[:, :1]
    columns = jnp.where(mirrored[:, None], position[::-1], position) + offset[:, 1:]
    batch = normalise(_gather(images, indices, rows, columns, pipeline), pipeline)
    if pipeline.cutout:
        square = jax.vmap(lambda key: _square(key, pipeline))(keys)
        batch = jnp.where(square[..., None], 0.0, batch)
    return batch, labels[indices]


@functools.partial(jax.jit, static_argnames="pipeline")
def evaluation_batch(
    images: jax.Array, labels: jax.Array, indices: jax.Array, pipeline: ImagePipeline
) -> tuple[jax.Array, jax.Array]:
    """Like `training_batch`, without augmentation."""
    position = jnp.broadcast_to(jnp.arange(pipeline.size), (len(indices), pipeline.size))
    pixels = _gather(images, indices, position, position, pipeline)
    return normalise(pixels, pipeline), labels[indices]


def _draw(key: jax.Array, pipeline: ImagePipeline) -> tuple[jax.Array, jax.Array]:
    """Offset of the crop (row, column) and whether to mirror, for one example."""
    crop_key, flip_key = jax.random.split(key)
    reach = pipeline.crop_padding
    offset = jax.random.randint(crop_key, (2,), -reach, reach + 1)
    mirrored = jax.random.bernoulli(flip_key) if pipeline.flip else jnp.zeros((), bool)
    return offset, mirrored


def _square(key: jax.Array, pipeline: ImagePipeline) -> jax.Array:
    """Which pixels of one example Cutout covers: bool `(size, size)`."""
    centre = jax.random.randint(jax.random.fold_in(key, _CUTOUT_STREAM), (2,), 0, pipeline.size)
    first = centre[:, None] - pipeline.cutout // 2
    position = jnp.arange(pipeline.size)
    row, column = (first <= position) & (position < first + pipeline.cutout)
    return row[:, None] & column


def _gather(
    images: jax.Array,
    indices: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    pipeline: ImagePipeline,
) -> jax.Array:
    """Pixels at canvas positions `rows` x `columns`, each `(B, size)`; black off the image."""
    row, row_inside = _native(rows, images.shape[1], pipeline.size)
    column, column_inside = _native(columns, images.shape[2], pipeline.size)
    pixels = images[indices[:, None, None], row[:, :, None], column[:, None, :]]
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    return jnp.where(inside[..., None], pixels, jnp.uint8(0))


def _native(position: jax.Array, native: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Canvas positions as positions in the native image, clipped, and which were inside it."""
    factor = size // native
    if factor == 0:
        raise ValueError(f"images of {native} pixels do not fit a canvas of {size}")
    margin = (size - factor * native) // 2
    unclipped = (position - margin) // factor
    inside = (unclipped >= 0) & (unclipped < native)
    return jnp.clip(unclipped, 0, native - 1), inside


def normalise(pixels: jax.Array, pipeline: ImagePipeline) -> jax.Array:
    """Of uint8 `(..., C)` with C = 1 or 3, float32 `(..., 3)`."""
    # (pixel / 255 - mean) / std, as one difference and one product with constants: the compiler
    # can contract nothing here, so every program that contains it computes the same bits.
    shift = np.float32(255.0 * np.asarray(pipeline.mean))
    factor = np.float32(1.0 / (255.0 * np.asarray(pipeline.std)))
    normalised = (pixels.astype(jnp.float32) - shift) * factor
    return jnp.broadcast_to(normalised, (*pixels.shape[:-1], 3))
