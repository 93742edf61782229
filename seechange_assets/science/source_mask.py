"""Which parts of an image are covered by sources, wings and halos included, before any catalogue exists.

Works on means over 4x4 pixels: there a source of a tenth of the sky noise per pixel shows, and all is sixteen times
smaller. An isophote alone cuts a source where it still gives light, so a region grows in proportion to its own width.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

BIN_PX = 4
# Isophote [sky rms]; the smoothed bins have a noise of 0.094, so that noise alone hardly ever reaches it.
ISOPHOTE = 0.35
# Growth of a region: this share of its half width, plus bins for the wings of unresolved sources.
GROWTH, GROWTH_BINS = 0.75, 1
# Regions of a half width over this share of a box are large: their boxes have no sky of their own.
LARGE_SHARE = 0.12
# A large source has a core above this isophote that is this share of its width.
CORE_ISOPHOTE, CORE_SHARE = 2.0, 0.15
# What the mask of small sources must leave of a box.
MIN_SKY_FRACTION = 0.25

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]


def bin_sums(data: FloatImage, usable: Mask) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the usable pixels of each bin, shape (ny/4, nx/4), rounded up."""
    sums: tuple[FloatArray, FloatArray] = _bin_sums(data, usable, BIN_PX)
    return sums


def excess_of_bins(sums: tuple[FloatArray, FloatArray], level: FloatImage, rms: FloatImage) -> FloatImage:
    """Smoothed light above the sky in each bin, in units of the sky rms; NaN where no usable pixel is near.

    Parameters
    ----------
    sums : tuple of ndarray
        From `bin_sums`.
    level, rms : ndarray
        The sky in the middle of each bin.
    """
    total, count = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        return _blurred(((total - count * level) / rms).astype(np.float32)) / _blurred(count.astype(np.float32))


def small_sources(excess: FloatImage) -> Mask:
    """Bins within the isophote of any source, and those next to them."""
    return _grown(np.nan_to_num(excess, nan=-1.0) > ISOPHOTE, GROWTH_BINS)


def large_sources(excess: FloatImage, box_bins: float) -> Mask:
    """Bins covered by sources that leave a box of the background mesh no sky, generously grown.

    Parameters
    ----------
    excess : ndarray
        From `excess_of_bins`, over a sky that the sources themselves have not lifted.
    box_bins : float
        Side of a box of the background mesh [bin].
    """
    from scipy.ndimage import distance_transform_edt, find_objects, label

    # Bins without pixels (the core of a saturated star) do not count as an end of a source.
    unknown = np.isnan(excess)
    level = np.where(unknown, -1.0, excess)
    regions, n = label(level > ISOPHOTE)
    width = _half_width(level > ISOPHOTE, unknown, regions, n)
    large = np.zeros(excess.shape, bool)
    candidates = np.flatnonzero(width > LARGE_SHARE * box_bins)
    if candidates.size == 0:
        return large
    # What has no bright middle is no galaxy but a sky that is not as flat as was thought.
    core = _half_width(level > CORE_ISOPHOTE, unknown, regions, n)
    places = find_objects(regions)
    for region in candidates[core[candidates] > CORE_SHARE * width[candidates]]:
        reach = GROWTH * width[region] + GROWTH_BINS
        pad = int(reach) + 1
        around = tuple(slice(max(part.start - pad, 0), part.stop + pad) for part in places[region - 1])
        large[around] |= distance_transform_edt(regions[around] != region) <= reach
    return large


def _half_width(covered: Mask, unknown: Mask, regions: NDArray[np.int32], n: int) -> FloatArray:
    """Radius of the largest circle inside each region [bin]: chains of stars in a crowded field stay narrow."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(covered | unknown)
    width = np.zeros(n + 1)
    np.maximum.at(width, regions[covered], depth[covered])
    return width


def relaxed(small: Mask, excess: FloatImage, free: Mask) -> Mask:
    """The mask of small sources of one box, opened to the darkest quarter where it leaves less than that.

    ``free`` are the bins that hold pixels and no large source.
    """
    if not free.any() or (free & ~small).sum() >= MIN_SKY_FRACTION * free.sum():
        return small
    mask: Mask = excess > np.quantile(excess[free], MIN_SKY_FRACTION)
    return mask


def _grown(mask: Mask, bins: int) -> Mask:
    from scipy.ndimage import maximum_filter

    wide: Mask = maximum_filter(mask.view(np.uint8), size=2 * bins + 1, mode="constant").view(np.bool_)
    return wide


def _blurred(values: FloatImage) -> FloatImage:
    """Sums with weights 1, 2, 1 along both axes; nothing outside."""
    from scipy.ndimage import correlate1d

    along: FloatImage = correlate1d(values, [1.0, 2.0, 1.0], axis=0, mode="constant")
    both: FloatImage = correlate1d(along, [1.0, 2.0, 1.0], axis=1, mode="constant")
    return both


@numba.njit(cache=True)
def _bin_sums(data, usable, step):  # type: ignore[no-untyped-def]
    """Sum and number of the usable pixels of each bin."""
    ny, nx = data.shape
    total = np.zeros((-(-ny // step), -(-nx // step)))
    count = np.zeros_like(total)
    for j in range(ny):
        row = j // step
        for i in range(nx):
            if usable[j, i]:
                total[row, i // step] += data[j, i]
                count[row, i // step] += 1.0
    return total, count
