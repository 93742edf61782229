"""Images averaged over square blocks of pixels, without the flagged ones."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import FlagImage, FloatImage


def block_means(data: FloatImage, flags: FlagImage, size: int) -> tuple[FloatImage, NDArray[np.uint16]]:
    """Mean of the unflagged pixels of each block of ``size x size`` pixels, and their number.

    Rows and columns beyond the last whole block are left out; a block without pixels has mean 0.

    Returns
    -------
    ndarray of float32, ndarray of uint16, both of shape ``(ny // size, nx // size)``
    """
    means, counts = _block_means(np.ascontiguousarray(data, np.float32), np.ascontiguousarray(flags), size)
    return means, counts


@njit(cache=True)
def _block_means(data, flags, size):  # type: ignore[no-untyped-def]
    ny, nx = data.shape[0] // size, data.shape[1] // size
    means, counts = np.zeros((ny, nx), np.float32), np.zeros((ny, nx), np.uint16)
    for y in range(ny * size):
        row = y // size
        for x in range(nx * size):
            if flags[y, x] == 0:
                means[row, x // size] += data[y, x]
                counts[row, x // size] += 1
    for y in range(ny):
        for x in range(nx):
            if counts[y, x] > 0:
                means[y, x] /= counts[y, x]
    return means, counts
