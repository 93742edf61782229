"""Local filling of flagged pixels, so that kernels of a few pixels can run over them."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import FlagImage, FloatImage

FILL_RADIUS_PX = 4  # half-width of the window a filled pixel depends on [pixel]
_BLOCK = 8  # side of the blocks that tell quickly where no valid pixel is near [pixel]


def inpaint(data: FloatImage, flags: FlagImage, *, bits: int = 0xFFFF, radius_px: int = FILL_RADIUS_PX) -> FloatImage:
    """Replace flagged (and non-finite) pixels by a Gaussian-weighted mean of valid neighbours.

    Every filled pixel depends on valid pixels alone, never on other filled ones, so the
    result does not depend on any order. Deep inside large holes, where no valid pixel lies
    within `radius_px`, the value is 0, the sky of a background-subtracted image.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Background-subtracted image.
    flags : ndarray of uint16, shape (ny, nx)
        Flag image.
    bits : int
        Only pixels with one of these bits are filled.
    radius_px : int
        Half-width of the window [pixel]; the Gaussian has a sigma of half of it.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        A filled copy, finite everywhere.
    """
    bad = (flags & np.uint16(bits)) != 0
    bad |= ~np.isfinite(data)
    filled = np.array(data, dtype=np.float32)
    if not bad.any():
        return filled
    offsets = np.arange(-radius_px, radius_px + 1)
    profile = np.exp(-0.5 * (offsets / (0.5 * radius_px)) ** 2).astype(np.float32)
    rows, columns = (np.ascontiguousarray(indices) for indices in np.nonzero(bad))
    _fill(np.asarray(data, dtype=np.float32), bad, _blocks_with_valid(bad), rows, columns, profile, filled)
    return filled


def grow_flags(flags: FlagImage, radius_px: int) -> FlagImage:
    """Every flag bit spread over the square of half-width `radius_px` around its pixel."""
    grown = np.array(flags)
    for axis in (0, 1):
        reach = 0
        while reach < radius_px:
            # Doubling: what has spread by `reach` is spread again, in log2(radius) passes.
            shift = min(reach + 1, radius_px - reach)
            source = grown.copy()
            low, high = [slice(None)] * 2, [slice(None)] * 2
            low[axis], high[axis] = slice(None, -shift), slice(shift, None)
            grown[tuple(high)] |= source[tuple(low)]
            grown[tuple(low)] |= source[tuple(high)]
            reach += shift
    return grown


def _blocks_with_valid(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True for each block of 8x8 pixels that holds a valid pixel."""
    ny, nx = bad.shape
    padded = np.ones((-(-ny // _BLOCK) * _BLOCK, -(-nx // _BLOCK) * _BLOCK), bool)
    padded[:ny, :nx] = bad
    blocks = padded.reshape(padded.shape[0] // _BLOCK, _BLOCK, padded.shape[1] // _BLOCK, _BLOCK)
    return np.asarray(~blocks.all(axis=(1, 3)))


@njit(cache=True)
def _fill(data, bad, valid_block, rows, columns, profile, filled):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    radius = profile.size // 2
    for k in range(rows.size):
        row, column = rows[k], columns[k]
        y0, y1 = max(row - radius, 0), min(row + radius, ny - 1)
        x0, x1 = max(column - radius, 0), min(column + radius, nx - 1)
        total, weight = np.float32(0), np.float32(0)
        near = False
        for by in range(y0 // _BLOCK, y1 // _BLOCK + 1):
            for bx in range(x0 // _BLOCK, x1 // _BLOCK + 1):
                near |= valid_block[by, bx]
        if near:
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    if not bad[y, x]:
                        w = profile[y - row + radius] * profile[x - column + radius]
                        total += w * data[y, x]
                        weight += w
        filled[row, column] = total / weight if weight > 0 else np.float32(0)
