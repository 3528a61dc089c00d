"""Patches of images as tokens (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021;
arXiv 2010.11929). A convolution whose stride is the size of its window is a product with the pixels
of each patch; written as one, it has a matrix for a kernel, and is fast on every device.
"""

from __future__ import annotations

import jax

from experiments.errors import RunError


def patches(images: jax.Array, size: int) -> jax.Array:
    """Images (N, H, W, C) as their patches (N, H W / size², size² C).

    Patches come row by row, and so do the pixels of each, with their colours last.

    Raises:
      RunError: the images are not whole numbers of patches high and wide.
    """
    n, height, width, colours = images.shape
    if height % size or width % size:
        raise RunError(
            f"model.patch_size={size} with images of {height} x {width} pixels: both must be whole "
            "numbers of patches"
        )
    rows, columns = height // size, width // size
    x = images.reshape(n, rows, size, columns, size, colours).swapaxes(2, 3)
    return x.reshape(n, rows * columns, size**2 * colours)
