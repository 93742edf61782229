"""Weighted mean of images on one grid, without what only one of them shows."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import Flag, FlagImage, FloatImage

NO_DATA = np.uint16(Flag.NO_DATA)
MIN_FOR_CLIPPING = 3  # two values cannot tell which of them is wrong
_BOX = 5  # side of the boxes in which faint extended marks add up [pixel]
_SURROUNDINGS, _DEPARTS = 1, 2


@dataclass(frozen=True, slots=True)
class ClippedMean:
    """Mean of the values that are left, its variance (infinite without any) and their number, shape (ny, nx).

    ``left_out`` is ``(n, ny, nx)`` uint8: not zero where an input did not enter, or has no valid value.
    """

    mean: FloatImage
    variance: FloatImage
    n_inputs: FlagImage
    left_out: NDArray[np.uint8]


def clip_reach(fwhm_px: float) -> int:
    """How far a pixel can influence the clipping of another [pixel]."""
    return _peak_reach(fwhm_px) // 2 + _BOX // 2 + _growth(fwhm_px)


def clipped_mean(
    data: FloatImage,
    variance: FloatImage,
    weight: NDArray[np.float32],
    *,
    fwhm_px: float,
    star_fraction: NDArray[np.float32],
    clip_sigma: float,
) -> ClippedMean:
    """Weighted mean with clipping against the median.

    A value departs if it lies more than `clip_sigma` of its noise from the median, or if the mean of the 5x5 box around
    it does: that finds faint streaks. Its surroundings of one FWHM, where the wings of a streak or cosmic ray
    hide in the noise, are left out with it, if anything remains. Images of stars differ by seeing, too, and clipping
    them would deform the PSF: there the allowance grows by a share of the brightest pixel near by.

    Parameters
    ----------
    data, variance : ndarray of float32, shape (n, ny, nx)
        Images on one grid and scale; values of infinite variance are unknown.
    weight : ndarray of float32, shape (n,)
        Weight of each image.
    fwhm_px : float
        Typical FWHM of the stars.
    star_fraction : ndarray of float32, shape (n,)
        How far each image may depart at a star, relative to the local maximum of the median.
    clip_sigma : float
        Threshold, used with three valid values or more.

    Returns
    -------
    ClippedMean
    """
    from scipy.ndimage import maximum_filter, uniform_filter

    left_out = np.zeros(data.shape, np.uint8)
    if len(data) >= MIN_FOR_CLIPPING:
        median = _median_plane(data, variance)
        peak = np.maximum(maximum_filter(median, _peak_reach(fwhm_px)), 0)
        limit = np.float32(clip_sigma)
        for k in range(len(data)):
            excess = _excess(data[k], variance[k], median, peak * star_fraction[k])
            # A sum of independent values has the noise of one times the side of the box.
            in_boxes = uniform_filter(excess, _BOX, mode="constant") * np.float32(_BOX)
            _mark((np.abs(excess) > limit) | (np.abs(in_boxes) > limit), _growth(fwhm_px), left_out[k])
    mean, mean_variance, count = _mean(data, variance, np.asarray(weight, np.float32), left_out)
    return ClippedMean(mean, mean_variance, count, left_out)


def _peak_reach(fwhm_px: float) -> int:
    """Odd side of the window in which the brightest pixel counts."""
    return 2 * int(np.ceil(fwhm_px / 2)) + 1


def _growth(fwhm_px: float) -> int:
    return int(np.ceil(fwhm_px))


def _excess(data: FloatImage, variance: FloatImage, median: FloatImage, allowance: FloatImage) -> FloatImage:
    """Departure from the median beyond the allowance, in sigma; 0 where unknown."""
    departure = data - median
    size = np.maximum(np.abs(departure) - allowance, 0)
    known = np.isfinite(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.copysign(size, departure) / np.sqrt(variance)
    return np.asarray(np.where(known & np.isfinite(excess), excess, 0), np.float32)


@njit(cache=True)
def _mark(departs, radius, out):  # type: ignore[no-untyped-def]
    """Write 2 where a value departs and 1 within the square of `radius` around it."""
    ny, nx = departs.shape
    for y in range(ny):
        for x in range(nx):
            if departs[y, x]:
                for v in range(max(y - radius, 0), min(y + radius + 1, ny)):
                    for u in range(max(x - radius, 0), min(x + radius + 1, nx)):
                        if out[v, u] == 0:
                            out[v, u] = _SURROUNDINGS
                out[y, x] = _DEPARTS


@njit(cache=True)
def _median_plane(data, variance):  # type: ignore[no-untyped-def]
    """Median of the valid values of each pixel; 0 where there are none."""
    n, ny, nx = data.shape
    values = np.empty(n, np.float32)
    out = np.zeros((ny, nx), np.float32)
    for y in range(ny):
        for x in range(nx):
            valid = 0
            for k in range(n):
                if np.isfinite(variance[k, y, x]):
                    # Insertion into the sorted values so far: the fastest sort for a handful.
                    value, m = data[k, y, x], valid
                    while m > 0 and values[m - 1] > value:
                        values[m] = values[m - 1]
                        m -= 1
                    values[m] = value
                    valid += 1
            if valid > 0:
                out[y, x] = (values[(valid - 1) // 2] + values[valid // 2]) / 2
    return out


@njit(cache=True)
def _least_allowed(valid, clean, usable):  # type: ignore[no-untyped-def]
    """Highest mark with which a value still counts at a pixel."""
    if valid < MIN_FOR_CLIPPING or usable == 0:
        return _DEPARTS
    return 0 if clean > 0 else _SURROUNDINGS


@njit(cache=True)
def _mean(data, variance, weight, left_out):  # type: ignore[no-untyped-def]
    """Weighted mean of the valid values that are not left out, its variance and their number.

    With fewer than three valid values none is left out; where the surroundings of departing values
    cover all others, they count again. `left_out` is completed by what is not valid.
    """
    n, ny, nx = data.shape
    out = np.zeros((ny, nx), np.float32)
    out_variance = np.full((ny, nx), np.inf, np.float32)
    count = np.zeros((ny, nx), np.uint16)
    for y in range(ny):
        for x in range(nx):
            valid, clean, usable = 0, 0, 0
            for k in range(n):
                if np.isfinite(variance[k, y, x]):
                    valid += 1
                    clean += left_out[k, y, x] == 0
                    usable += left_out[k, y, x] < _DEPARTS
            allowed = _least_allowed(valid, clean, usable)
            total, total_weight, total_variance = np.float32(0), np.float32(0), np.float32(0)
            for k in range(n):
                noise = variance[k, y, x]
                if not np.isfinite(noise):
                    left_out[k, y, x] = _DEPARTS
                elif left_out[k, y, x] <= allowed:
                    left_out[k, y, x] = 0
                    total += weight[k] * data[k, y, x]
                    total_weight += weight[k]
                    total_variance += weight[k] * weight[k] * noise
                    count[y, x] += 1
            if total_weight > 0:
                out[y, x] = total / total_weight
                out_variance[y, x] = total_variance / (total_weight * total_weight)
    return out, out_variance, count
