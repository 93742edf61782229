"""Sources of an image: connected pixels over a threshold, split between the peaks that stand for themselves.

After a matched filter every pixel over the threshold climbs to its brightest neighbour until it arrives at a peak; what
arrives at one peak is its basin (a watershed; Vincent & Soille 1991, IEEE PAMI 13, 583). Neighbouring basins meet at
a saddle, and going down the saddles from the highest to the lowest, the lower peak of the two either has enough light
above the saddle to be a source or joins the higher one. The rule is that of SExtractor (Bertin & Arnouts 1996,
A&AS 117, 393, section 3.2), with two differences: levels are the saddles themselves, and light is compared with that
of the neighbour and with the noise instead of with that of everything that is connected, which in a crowd is most of
the image. All steps take time in proportion to the pixels over the threshold.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

# Bits of ``flag``, those of SExtractor: one of several connected sources, cut by the border, without a shape.
MERGED, TRUNCATED, SINGULAR = 1, 2, 8
OBJECT = np.dtype(
    [
        (name, np.float64)
        for name in ("x", "y", "a", "b", "theta", "errx2", "erry2", "cxx", "cyy", "cxy", "flux", "peak")
    ]
    + [(name, np.int64) for name in ("xmin", "xmax", "ymin", "ymax", "npix", "flag")]
)

# Light fainter than this many sigma connects nothing.
LOWEST_SIGMA = 1.0

FloatArray = NDArray[np.float64]


def extract_objects(
    data: FloatImage,
    rms: FloatImage,
    masked: NDArray[np.bool_],
    *,
    taps: NDArray[np.float32],
    threshold: float,
    gain: float,
    min_area_px: int,
    deblend_contrast: float,
    deblend_significance: float,
) -> NDArray[np.void]:
    """Detect the sources of an image and measure their isophotes.

    Parameters
    ----------
    data, rms : ndarray of float32, shape (ny, nx)
        Background-subtracted pixels, zero where masked, and sky rms [ADU].
    masked : ndarray of bool, shape (ny, nx)
        Pixels where nothing is detected.
    taps : ndarray of float32, shape (n,)
        Matched filter along one axis, odd and of sum 1; the image is filtered along both.
    threshold : float
        Least signal to noise of a filtered pixel.
    gain : float
        [e-/ADU], for the photon noise of the sources.
    min_area_px : int
        Connected pixels over the threshold that make a source.
    deblend_contrast : float
        A peak beside a higher one is a source if it has this share of the other's light above their saddle ...
    deblend_significance : float
        ... and rises above the saddle by this many sigma of the filtered noise.

    Returns
    -------
    ndarray of `OBJECT`, shape (n,)
        In the order of their peaks, row by row. Moments are those of the filtered light above zero: centre ``x, y``
        with variances ``errx2, erry2``, Gaussian sigmas ``a, b`` along ``theta`` [radian], ellipse
        ``cxx, cyy, cxy``; their sum is ``flux`` [ADU]. ``peak`` is the brightest unfiltered pixel.
    """
    noise = float(np.sum(np.square(taps.astype(np.float64))))
    # Light that is only connected below the threshold decides whether a peak stands for itself, too.
    lowest = max(threshold - deblend_significance, LOWEST_SIGMA)
    light, lit = _filtered(data, rms, masked, np.asarray(taps, np.float32), lowest * noise)
    width = data.shape[1] + 2
    basin, peaks = _basins(light, lit, width)
    pair, saddle = _saddles(light, basin, lit, width, peaks.size)
    highest_first = np.lexsort((pair[:, 1], pair[:, 0], -saddle))
    x, y = peaks % width - 1, peaks // width - 1
    sky_noise = noise * rms[y, x].astype(np.float64)
    least = deblend_significance * np.sqrt(sky_noise**2 + noise**2 * light[peaks] / gain)
    owner, blended = _merged(
        light, basin, lit, peaks, pair[highest_first], saddle[highest_first], least, threshold * sky_noise,
        deblend_contrast, min_area_px,
    )  # fmt: skip
    sums = _summed(light, data, rms, basin, lit, x, y, owner, threshold * noise, gain)
    kept = np.flatnonzero((owner == np.arange(owner.size)) & (sums[:, 0] >= max(min_area_px, 1)))
    return _as_objects(sums[kept], x[kept], y[kept], blended[kept], data.shape)


def _as_objects(
    sums: FloatArray, x: NDArray[np.int64], y: NDArray[np.int64], blended: NDArray[np.bool_], shape: tuple[int, int]
) -> NDArray[np.void]:
    """Objects from their sums about the peaks at (x, y); see `_summed` for the order of the sums."""
    found = np.zeros(x.size, OBJECT)
    area, total, dx, dy, dx2, dy2, dxy = sums[:, :7].T
    dx, dy = dx / total, dy / total
    found["x"], found["y"] = x + dx, y + dy
    xx, yy, xy = dx2 / total - dx**2, dy2 / total - dy**2, dxy / total - dx * dy
    # A source narrower than a pixel gets the second moment of one, 1/12.
    thin = xx * yy - xy**2 < 1.0 / 144.0
    xx, yy = xx + thin / 12.0, yy + thin / 12.0
    half_sum, half_difference = 0.5 * (xx + yy), 0.5 * (xx - yy)
    root = np.hypot(half_difference, xy)
    found["a"], found["b"] = np.sqrt(half_sum + root), np.sqrt(np.maximum(half_sum - root, 0.0))
    found["theta"] = 0.5 * np.arctan2(2.0 * xy, xx - yy)
    determinant = xx * yy - xy**2
    found["cxx"], found["cyy"], found["cxy"] = yy / determinant, xx / determinant, -2.0 * xy / determinant
    for name, column in (("errx2", 7), ("erry2", 8)):
        found[name] = sums[:, column] / total**2
    for name, column in (("peak", 9), ("xmin", 10), ("xmax", 11), ("ymin", 12), ("ymax", 13)):
        found[name] = sums[:, column]
    found["npix"], found["flux"] = area, total
    cut = (found["xmin"] == 0) | (found["ymin"] == 0)
    cut |= (found["xmax"] == shape[1] - 1) | (found["ymax"] == shape[0] - 1)
    found["flag"] = MERGED * blended + TRUNCATED * cut + SINGULAR * thin
    return found


@numba.njit(cache=True)
def _filtered(data, rms, masked, taps, threshold):  # type: ignore[no-untyped-def]
    """The image convolved with the taps along both axes, zero where not over the threshold, and the places that are.

    Rows follow each other, with a dark pixel around the image, so that every place has its neighbours.
    """
    ny, nx = data.shape
    size = taps.size
    half = size // 2
    width = nx + 2
    light = np.zeros((ny + 2) * width, np.float32)
    lit = np.empty(ny * nx, np.int32)
    n = 0
    # The last rows filtered along x, in turns, and one row with room at its ends.
    rows = np.zeros((size, nx), np.float32)
    line = np.zeros(nx + 2 * half, np.float32)
    total = np.empty(nx, np.float32)
    limit = np.float32(threshold)
    for step in range(ny + half):
        newest = rows[step % size]
        newest[:] = 0.0
        if step < ny:
            line[half : half + nx] = data[step]
            for k in range(size):
                weight = taps[k]
                for i in range(nx):
                    newest[i] += weight * line[i + k]
        j = step - half
        if j < 0:
            continue
        total[:] = 0.0
        for k in range(size):
            weight, row = taps[k], rows[(step - k) % size]
            for i in range(nx):
                total[i] += weight * row[i]
        first = (j + 1) * width + 1
        for i in range(nx):
            if total[i] > limit * rms[j, i] and not masked[j, i]:
                light[first + i] = total[i]
                lit[n] = first + i
                n += 1
    return light, lit[:n]


@numba.njit(cache=True)
def _basins(light, lit, width):  # type: ignore[no-untyped-def]
    """Number of the basin of every pixel from 1 on (0: dark), and the place of every peak."""
    before = np.array([-width - 1, -width, -width + 1, -1])
    basin = np.zeros(light.size, np.int32)
    peaks = np.empty(lit.size, np.int32)
    n = 0
    for p in lit:
        best, at = light[p], p
        # Of equal pixels the first is the higher one, so that a plateau has one peak.
        for step in before:
            if light[p + step] > best or (at == p and light[p + step] == best):
                best, at = light[p + step], p + step
        for step in before:
            if light[p - step] > best:
                best, at = light[p - step], p - step
        basin[p] = at + 1
        if at == p:
            peaks[n] = p
            n += 1
    _number_basins(basin, lit, peaks[:n])
    return basin, peaks[:n].astype(np.int64)


@numba.njit(cache=True)
def _number_basins(basin, lit, peaks):  # type: ignore[no-untyped-def]
    """Follow the places of the next brighter pixel, counted from 1, to the peaks, and put their numbers there."""
    for p in lit:
        top = basin[p] - 1
        while basin[top] != top + 1:
            top = basin[top] - 1
        basin[p] = top + 1
    # Places of peaks become numbers; those of the peaks themselves are negative until all others are done.
    for k in range(peaks.size):
        basin[peaks[k]] = -k - 1
    for p in lit:
        if basin[p] > 0:
            basin[p] = -basin[basin[p] - 1]
    for k in range(peaks.size):
        basin[peaks[k]] = k + 1


@numba.njit(cache=True)
def _saddles(light, basin, lit, width, n_basins):  # type: ignore[no-untyped-def]
    """Pairs of neighbouring basins ``(n, 2)``, counted from zero, and the height of the pass between them."""
    slots = 16
    while slots < 8 * n_basins:
        slots *= 2
    # Open addressing: a pair lives in the first free place after the one its key says.
    keys = np.full(slots, -1, np.int64)
    height = np.zeros(slots, np.float32)
    n = 0
    for p in lit:
        for step in (1, width - 1, width, width + 1):
            q = p + step
            if basin[q] == 0 or basin[q] == basin[p]:
                continue
            key = np.int64(min(basin[p], basin[q]) - 1) * n_basins + max(basin[p], basin[q]) - 1
            at = (key * 40503 + (key >> 15)) & (slots - 1)
            while keys[at] != -1 and keys[at] != key:
                at = (at + 1) & (slots - 1)
            n += keys[at] == -1
            keys[at] = key
            height[at] = max(height[at], min(light[p], light[q]))
    pair = np.empty((n, 2), np.int64)
    saddle = np.empty(n, np.float32)
    for m, at in enumerate(np.flatnonzero(keys >= 0)):
        pair[m, 0], pair[m, 1], saddle[m] = keys[at] // n_basins, keys[at] % n_basins, height[at]
    return pair, saddle


@numba.njit(cache=True)
def _merged(light, basin, lit, peaks, pair, saddle, least, limit, contrast, min_area):  # type: ignore[no-untyped-def]
    """Basin that each basin belongs to, and whether a source touches another one from which it was parted.

    Below the detection limit of the lower peak the saddle is compared with the noise only: there SExtractor calls the
    two unconnected, and cleans away those that are bumps in the wings of others.
    """
    n = peaks.size
    values, start = _values_of_basins(light, basin, lit, n)
    flux = np.array([values[start[k] : start[k + 1]].sum() for k in range(n)])
    owner, following, last = np.arange(n), np.full(n, -1), np.arange(n)
    own, blended = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    for e in range(saddle.size):
        high, low = _top(owner, pair[e, 0]), _top(owner, pair[e, 1])
        if high == low:
            continue
        # Of equal peaks the first is the higher one.
        if (light[peaks[low]], -low) > (light[peaks[high]], -high):
            high, low = low, high
        peak = light[peaks[low]]
        if not own[low] and peak > limit[low] and peak - saddle[e] >= least[low]:
            above, area = _above(values, start, following, low, saddle[e])
            own[low] = saddle[e] <= limit[low] or (area >= min_area and above >= contrast * flux[high])
        if not own[low]:
            owner[low] = high
            flux[high] += flux[low]
            blended[high] |= blended[low]
            following[last[high]], last[high] = low, last[low]
        elif saddle[e] > limit[low]:
            blended[low] = blended[high] = True
    for k in range(n):
        owner[k] = _top(owner, k)
    return owner, blended


@numba.njit(cache=True)
def _above(values, start, following, first, level):  # type: ignore[no-untyped-def]
    """Light over a level and number of pixels over it, in a basin and all those that joined it."""
    above, area, member = 0.0, 0, first
    while member >= 0:
        for m in range(start[member], start[member + 1]):
            if values[m] > level:
                above += values[m] - level
                area += 1
        member = following[member]
    return above, area


@numba.njit(cache=True)
def _values_of_basins(light, basin, lit, n):  # type: ignore[no-untyped-def]
    """Values of the pixels, basin after basin, and where each basin starts ``(n + 1,)``."""
    start = np.zeros(n + 1, np.int64)
    for p in lit:
        start[basin[p]] += 1
    start = np.cumsum(start)
    free = start[:-1].copy()
    values = np.empty(lit.size, np.float32)
    for p in lit:
        k = basin[p] - 1
        values[free[k]] = light[p]
        free[k] += 1
    return values, start


@numba.njit(cache=True)
def _top(owner, k):  # type: ignore[no-untyped-def]
    """The last owner in the chain; the chain gets shorter on the way."""
    while owner[k] != k:
        owner[k] = owner[owner[k]]
        k = owner[k]
    return k


@numba.njit(cache=True)
def _summed(light, data, rms, basin, lit, peak_x, peak_y, owner, threshold, gain):  # type: ignore[no-untyped-def]
    """Sums over the pixels of each owner over the threshold.

    Area, light, its moments about the peak (x, y, xx, yy, xy), variances of the first two, brightest pixel, and
    box (xmin, xmax, ymin, ymax).
    """
    width = data.shape[1] + 2
    sums = np.zeros((peak_x.size, 14))
    sums[:, 9] = -np.inf
    sums[:, 10] = sums[:, 12] = np.inf
    for p in lit:
        y, x = p // width - 1, p % width - 1
        value, noise, raw = light[p], rms[y, x], data[y, x]
        if value <= threshold * noise:
            continue
        k = owner[basin[p] - 1]
        dx, dy = x - peak_x[k], y - peak_y[k]
        row = sums[k]
        row[0] += 1.0
        row[1] += value
        row[2] += value * dx
        row[3] += value * dy
        row[4] += value * dx * dx
        row[5] += value * dy * dy
        row[6] += value * dx * dy
        variance = noise * noise + max(raw, 0.0) / gain
        row[7] += variance * dx * dx
        row[8] += variance * dy * dy
        row[9] = max(row[9], raw)
        row[10], row[11] = min(row[10], x), max(row[11], x)
        row[12], row[13] = min(row[12], y), max(row[13], y)
    return sums
