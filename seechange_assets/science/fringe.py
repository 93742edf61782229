"""Fringes: the interference of sky lines in the silicon, a fixed pattern of varying strength."""

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FlagImage, FloatImage
from seechange_assets.science.blocks import block_means

#: Pixels are averaged in blocks of this side before the fit: fringes are wider, noise is not.
BLOCK_PX = 4
#: Structure wider than this [blocks] belongs to the sky and is taken out of image and pattern alike.
SKY_BLOCKS = 33
#: Blocks farther from the model than this many sigma hold a star.
CLIP_SIGMA = 2.5
MAX_ITERATIONS = 8
#: Fewest blocks for a fit.
MIN_BLOCKS = 64


def subtract_fringes(data: FloatImage, flags: FlagImage, fringe: FloatImage) -> float:
    """Subtract the fringe pattern in place, scaled by `fit_amplitude`; returns the amplitude [ADU]."""
    amplitude = fit_amplitude(data, flags, fringe)
    data -= np.float32(amplitude) * fringe
    return amplitude


def fit_amplitude(data: FloatImage, flags: FlagImage, fringe: FloatImage) -> float:
    """Least-squares strength of a pattern in an image, robust against sources.

    Image and pattern are averaged over blocks and freed of wide structure by the same filter with the
    same mask, so that a sloping sky neither adds to the amplitude nor takes from it. Blocks that stand out of
    the model are masked and the whole repeated.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Flat-fielded image [ADU].
    flags : ndarray of uint16
        Flagged pixels are left out.
    fringe : ndarray of float32
        Pattern, as a fraction of the sky.

    Returns
    -------
    float
        Amplitude [ADU]; 0 where there is nothing to fit.
    """
    image, counts = block_means(data, flags, BLOCK_PX)
    pattern, _ = block_means(fringe, flags, BLOCK_PX)
    usable = counts >= BLOCK_PX**2 // 2
    if usable.sum() < MIN_BLOCKS:
        return 0.0
    image -= np.float32(np.median(image[usable]))
    good, amplitude = usable & _within(image, usable, CLIP_SIGMA), 0.0
    for _ in range(MAX_ITERATIONS):
        if good.sum() < MIN_BLOCKS:
            return amplitude
        weight = _smoothed(good.astype(np.float32))
        flat_image, flat_pattern = (
            image - _local_mean(image, good, weight),
            pattern - _local_mean(pattern, good, weight),
        )
        power = float(np.sum(np.square(flat_pattern[good]), dtype=np.float64))
        if power == 0.0:
            return 0.0
        before = amplitude
        amplitude = float(np.sum(flat_image[good] * flat_pattern[good], dtype=np.float64)) / power
        good = usable & _within(flat_image - np.float32(amplitude) * flat_pattern, good, CLIP_SIGMA)
        if abs(amplitude - before) <= 1e-4 * abs(amplitude):
            break
    return amplitude


def _within(residual: FloatImage, good: NDArray[np.bool_], sigma: float) -> NDArray[np.bool_]:
    """Blocks near the median of the good ones, in robust standard deviations."""
    middle = np.median(residual[good])
    scatter = 1.4826 * np.median(np.abs(residual[good] - middle))
    inside: NDArray[np.bool_] = np.abs(residual - middle) <= sigma * max(scatter, 1e-6)
    return inside


def _local_mean(image: FloatImage, good: NDArray[np.bool_], weight: FloatImage) -> FloatImage:
    """Mean of the good blocks around each one; `weight` is the smoothed mask."""
    total = _smoothed(np.where(good, image, np.float32(0)).astype(np.float32))
    return (total / np.maximum(weight, np.float32(1e-3))).astype(np.float32)


def _smoothed(image: FloatImage) -> FloatImage:
    from scipy.ndimage import uniform_filter

    smooth: FloatImage = uniform_filter(image, SKY_BLOCKS, mode="reflect")
    return smooth
