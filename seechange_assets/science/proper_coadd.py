"""Proper coaddition (Zackay & Ofek 2017, ApJ 836, 188, "How to COAdd Images. II").

The combination of images of different seeing and noise that loses nothing: whatever can be measured or decided with
all the images together can be with this one. Its noise is white where theirs is. All images are on one flux scale
beforehand (F_j = 1), so that only their variances and PSFs differ.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

Stamp = NDArray[np.float64]
#: The PSF stamps of all images at a pixel (x, y) of the common grid, of sum 1.
PsfStamps = Callable[[float, float], Sequence[Stamp]]

_TILE_COLUMNS = 512
#: Core added to every PSF (relative): where all their transforms vanish, the combination tends to the weighted
#: mean instead of to 0/0.
_CORE = 1e-4


def proper_mean(data: FloatImage, weight: Sequence[float], psfs: PsfStamps, y0: int, margin: int) -> FloatImage:
    """R / F_R of a strip of images (eq. 7): sources keep their flux, the variance on blank sky is ``1 / sum(weight)``.

    Parameters
    ----------
    data : ndarray of float32, shape (n, rows + 2 margin, nx)
        The strip with `margin` rows on both sides, finite everywhere.
    weight : sequence of float
        Inverse variance of the sky of each image, F_j^2 / sigma_j^2.
    psfs : callable
        See `PsfStamps`; the PSFs are those of the centre of each tile.
    y0 : int
        Row of the images at which the strip without its margin begins.
    margin : int
        At least the half-width of the PSF stamps.

    Returns
    -------
    ndarray of float32, shape (rows, nx)
    """
    _, height, nx = data.shape
    rows = height - 2 * margin
    out = np.empty((rows, nx), np.float32)
    n_tiles = max(1, -(-nx // _TILE_COLUMNS))
    for x0, x1 in pairwise(nx * k // n_tiles for k in range(n_tiles + 1)):
        left, right = max(x0 - margin, 0), min(x1 + margin, nx)
        # Mirrored at the edge, where a star that is cut stays one.
        pad = ((0, 0), (left - (x0 - margin), (x1 + margin) - right))
        cuts = (np.pad(plane[:, left:right], pad, mode="symmetric") for plane in data)
        stamps = psfs((x0 + x1 - 1) / 2, y0 + (rows - 1) / 2)
        tile = _combined(cuts, (height, x1 - x0 + 2 * margin), weight, stamps)
        out[:, x0:x1] = tile[margin : margin + rows, margin : margin + x1 - x0]
    return out


def proper_psf(stamps: Sequence[Stamp], weight: Sequence[float]) -> Stamp:
    """P_R (eq. 10) of PSF stamps of one odd size and sum 1: a stamp of that size and sum 1."""
    from scipy import fft

    size = stamps[0].shape[0]
    shape = (fft.next_fast_len(2 * size, real=True),) * 2
    power = sum(w * np.abs(_transform(stamp, shape)) ** 2 for w, stamp in zip(weight, stamps, strict=True))
    frame = np.roll(fft.irfft2(np.sqrt(power / np.sum(weight)), s=shape), (size // 2, size // 2), axis=(0, 1))
    stamp = np.asarray(frame[:size, :size], np.float64)
    return np.asarray(stamp / stamp.sum())


def _combined(cuts: Any, shape: tuple[int, int], weight: Sequence[float], stamps: Sequence[Stamp]) -> FloatImage:
    """One tile, periodic at its edges."""
    from scipy import fft

    size = (fft.next_fast_len(shape[0], real=True), fft.next_fast_len(shape[1], real=True))
    numerator = np.zeros((size[0], size[1] // 2 + 1), np.complex64)
    power = np.zeros(numerator.shape, np.float32)
    for cut, w, stamp in zip(cuts, weight, stamps, strict=True):
        psf = _transform(stamp, size)
        power += np.float32(w) * (psf.real**2 + psf.imag**2)
        np.conj(psf, out=psf)
        psf *= fft.rfft2(cut, s=size, workers=1)
        psf *= np.float32(w)
        numerator += psf
    power *= np.float32(np.sum(weight))
    numerator /= np.sqrt(power)
    return np.asarray(fft.irfft2(numerator, s=size, workers=1)[: shape[0], : shape[1]])


def _transform(stamp: Stamp, shape: tuple[int, int]) -> NDArray[Any]:
    """Transform (complex64) of a stamp with its centre on pixel (0, 0) and a core of `_CORE`."""
    from scipy import fft

    frame = np.zeros(shape, np.float32)
    ny, nx = stamp.shape
    frame[:ny, :nx] = stamp
    frame[ny // 2, nx // 2] += _CORE
    frame /= np.float32(1 + _CORE)
    return np.asarray(fft.rfft2(np.roll(frame, (-(ny // 2), -(nx // 2)), axis=(0, 1)), workers=1))
