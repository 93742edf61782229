"""Cosmic rays in a single exposure: light that no star could put into one pixel without its neighbours.

The test is that of `star_bounds`: the excess of a pixel above the most that stars of this image's own seeing could
leave in it, given its neighbours, in units of the noise of that difference. L.A.Cosmic's Laplacian
(van Dokkum 2001, PASP 113, 1420) chooses the candidates. Neighbours that are hit themselves bound nothing,
so a thick track is taken off from its edges, and a star under a track stays.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import Flag, FlagImage, FloatImage
from seechange_assets.science.star_bounds import SIDE, grid_fwhm, peak_sharpness, star_bounds

#: The seeing is trusted between these limits, and measured when this many stars are there; by zones of the image where
#: each has so many.
FWHM_RANGE_PX, FEWEST_STARS, ZONE_STARS = (1.1, 8.0), 8, 40
#: Significance of the peaks that measure the seeing; stars are within this factor of the commonest width.
SEEING_SIGMA, STAR_RANGE = 25.0, 1.35
MAX_ITERATIONS = 12
#: A pixel is looked at if its Laplacian and its light are this share of the significance asked for.
CANDIDATE_SHARE = 0.8
#: A pixel that is hit together with others holds at least this share of the light of each.
COMPANION_SHARE = 0.4
#: Pixels beside a hit count from this many sigma above the sky.
GROWN_SIGMA = 4.0
#: Below this seeing a star's bound is so wide that, at last, the ring of pixels around the hits is asked only for this
#: share of the significance. The price is a star in a thousand that stands right beside a track.
UNDERSAMPLED_PX, RING_FRACTION = 2.5, 0.1
#: The quick look at all patterns takes so many candidates at a time, spares those within this share of the limit, which
#: is more than single precision can be wrong by, and gives pixels that are not free a light that spoils every pattern.
QUICK_CHUNK, QUICK_SHARE, QUICK_BLOCKED = 8192, 0.95, np.float32(1e30)

Bounds = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
Noise = tuple[np.float32, np.float32, np.float32]
Pixels = NDArray[np.int64]


def find_cosmic_rays(
    data: FloatImage,
    flags: FlagImage,
    *,
    gain: float,
    read_noise: float,
    sigma: float = 4.2,
    neighbor_fraction: float = 0.4,
    sharpness_margin: float = 1.1,
) -> NDArray[np.bool_]:
    """Find the pixels hit by cosmic rays.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Calibrated image [ADU], sky included or subtracted, no NaN.
    flags : ndarray of uint16
        Flagged pixels are neither tested nor trusted as neighbours; the surroundings of saturated ones are left alone.
    gain : float
        [e-/ADU].
    read_noise : float
        [e-].
    sigma : float
        Significance of the excess over starlight that starts a detection.
    neighbor_fraction : float
        Neighbours of a detection need only this fraction of `sigma`.
    sharpness_margin : float
        Stars may be sharper than the typical one by this factor.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
    """
    blocked = (flags != 0).view(np.uint8).copy()
    _block_around(blocked, np.flatnonzero(flags & np.uint16(Flag.SATURATED | Flag.BLEED)), 2)
    sky, rms = _sky(data, flags, gain, read_noise)
    noise = (np.float32(sky), np.float32(rms), np.float32(gain))
    found = np.zeros(data.shape, np.uint8)
    candidates = _candidates(data, blocked, *noise, np.float32(CANDIDATE_SHARE * sigma))
    fwhm_px = _seeing(data, blocked, candidates, noise, sigma)
    bounds = star_bounds(grid_fwhm(fwhm_px / sharpness_margin))
    new = _hits(data, blocked, candidates, noise, sigma, bounds)
    for _ in range(MAX_ITERATIONS):
        _mark(found, blocked, new)
        near = np.unique(_around(new, blocked, 2))
        grown = _hits(data, blocked, _beside(data, new, blocked, noise), noise, neighbor_fraction * sigma, bounds)
        new = np.union1d(grown, _hits(data, blocked, near, noise, sigma, bounds))
        if not len(new):
            break
    if fwhm_px < UNDERSAMPLED_PX:
        ring = _beside(data, np.flatnonzero(found), blocked, noise)
        _mark(found, blocked, _hits(data, blocked, ring, noise, RING_FRACTION * sigma, bounds))
    return found.view(bool)


def _mark(found: NDArray[np.uint8], blocked: NDArray[np.uint8], hits: Pixels) -> None:
    """Note the hits, in place; they bound nothing from now on."""
    found.ravel()[hits] = 1
    blocked.ravel()[hits] = 1


def _beside(data: FloatImage, hits: Pixels, blocked: NDArray[np.uint8], noise: Noise) -> Pixels:
    """Free pixels that touch a hit and stand out of the sky."""
    touching: Pixels = np.unique(_around(hits, blocked, 1))
    return touching[data.ravel()[touching] > noise[0] + GROWN_SIGMA * noise[1]]


def _sky(data: FloatImage, flags: FlagImage, gain: float, read_noise: float) -> tuple[float, float]:
    """Sky level and its rms [ADU] from a thin sample of pixels; never below the read noise."""
    step = max(1, int(np.sqrt(data.size / 200_000)))
    sample, good = data[::step, ::step], flags[::step, ::step] == 0
    values = sample[good] if good.any() else sample.ravel()
    sky = float(np.median(values))
    # Differences of neighbours do not see gradients.
    rows, unflagged = data[::step], flags[::step] == 0
    difference = (rows[:, 1:] - rows[:, :-1])[unflagged[:, 1:] & unflagged[:, :-1]]
    if difference.size == 0:
        return sky, max(read_noise / gain, 1e-6)
    rms = float(1.4826 * np.median(np.abs(difference - np.median(difference)))) / np.sqrt(2)
    return sky, max(rms, read_noise / gain, 1e-6)


def _seeing(data: FloatImage, blocked: NDArray[np.uint8], candidates: Pixels, noise: Noise, sigma: float) -> float:
    """FWHM [pixel] from the sharpness of bright peaks that are no hits even in the sharpest seeing.

    Stars agree with each other, blots of charge do not: the mode tells. Too few peaks: the sharpest seeing that is
    considered, the cautious choice.
    """
    sharpest = star_bounds(grid_fwhm(FWHM_RANGE_PX[0]))
    peaks = _peaks(data, blocked, candidates, *noise, np.float32(SEEING_SIGMA))
    peaks = np.setdiff1d(peaks, _hits(data, blocked, peaks, noise, sigma, sharpest))
    if len(peaks) < FEWEST_STARS:
        return FWHM_RANGE_PX[0]
    grid, sharpness = peak_sharpness()
    widths = np.log(np.interp(_sharpness(data, peaks, noise[0]), sharpness, grid))
    stars = np.abs(widths - _mode(widths)) < np.log(STAR_RANGE)
    return float(np.clip(np.exp(_least_zone(widths[stars], peaks[stars], data.shape)), *FWHM_RANGE_PX))


def _least_zone(values: NDArray[np.float64], pixels: Pixels, shape: tuple[int, ...]) -> float:
    """Least median of 3 x 3 zones of the image, because the PSF varies; of all values where they are too few."""
    y, x = np.divmod(pixels, shape[1])
    zone = y * 3 // shape[0] * 3 + x * 3 // shape[1]
    rich = [values[zone == z] for z in range(9) if np.count_nonzero(zone == z) >= ZONE_STARS]
    return float(min([np.median(part) for part in rich], default=np.median(values)))


def _mode(values: NDArray[np.float64]) -> float:
    """Middle of the densest part: halved to the shortest interval that holds half, down to some dozen values."""
    values = np.sort(values)
    while len(values) > 2 * FEWEST_STARS:
        half = (len(values) + 1) // 2
        start = int(np.argmin(values[half - 1 :] - values[: len(values) - half + 1]))
        values = values[start : start + half]
    return float(np.median(values))


@njit(cache=True)
def _laplacian(image, y, x):  # type: ignore[no-untyped-def]
    """Van Dokkum's L+ in closed form: each of the four subpixels sees one horizontal and one vertical neighbour."""
    ny, nx = image.shape
    p = 2 * image[y, x]
    left, right = image[y, max(x - 1, 0)], image[y, min(x + 1, nx - 1)]
    down, up = image[max(y - 1, 0), x], image[min(y + 1, ny - 1), x]
    total = max(p - left - down, np.float32(0)) + max(p - right - down, np.float32(0))
    total += max(p - left - up, np.float32(0)) + max(p - right - up, np.float32(0))
    return total / 4


@njit(cache=True)
def _candidates(image, blocked, sky, rms, gain, sigma):  # type: ignore[no-untyped-def]
    """Flat indices of the unblocked pixels, rising, whose light and Laplacian exceed so many sigma."""
    ny, nx = image.shape
    kept = np.empty(1024, np.int64)
    n = 0
    faintest = sky + sigma * rms
    for y in range(ny):
        for x in range(nx):
            value = image[y, x]
            if value <= faintest or blocked[y, x] != 0:
                continue
            limit = sigma * sigma * (rms * rms + (value - sky) / gain)
            laplacian = _laplacian(image, y, x)
            if laplacian * laplacian > limit:
                if n == len(kept):
                    kept = np.concatenate((kept, np.empty(n, np.int64)))
                kept[n] = y * nx + x
                n += 1
    return kept[:n].copy()


def _hits(
    data: FloatImage, blocked: NDArray[np.uint8], candidates: Pixels, noise: Noise, sigma: float, bounds: Bounds
) -> Pixels:
    """The candidates brighter by `sigma` than some pattern of free neighbours allows a star to be."""
    excess = _excesses(noise[1], sigma, bounds)
    suspects = [
        part[(excess @ _surroundings(data, blocked, part, noise[0], QUICK_BLOCKED).T).max(axis=0) > 0.0]
        for part in (candidates[first : first + QUICK_CHUNK] for first in range(0, len(candidates), QUICK_CHUNK))
    ]
    if not suspects:
        return candidates
    hits: Pixels = _exceeding(data, blocked, np.concatenate(suspects), *noise, sigma, *bounds)
    return hits


def _excesses(rms: np.float32, sigma: float, bounds: Bounds) -> FloatImage:
    """Matrix that makes of `_surroundings` the light above each pattern's bound less what its noise must allow.

    That is the noise of the sky alone; nearly all stars stay below even that, and the photons are counted later.
    """
    counts, places, weights = bounds
    matrix = np.zeros((len(counts), SIDE * SIDE + 1))
    for k, (_, n) in enumerate(counts):
        matrix[k, places[k, :n]] = -weights[k, :n]
    matrix[:, SIDE * SIDE // 2] = 1.0
    matrix[:, -1] = -QUICK_SHARE * sigma * rms * np.linalg.norm(matrix, axis=1)
    return matrix.astype(np.float32)


@njit(cache=True)
def _surroundings(image, blocked, candidates, sky, not_free):  # type: ignore[no-untyped-def]
    """Sky-free light around each candidate, row by row, and a one after it."""
    ny, nx = image.shape
    half = SIDE // 2
    light = np.full((len(candidates), SIDE * SIDE + 1), not_free, np.float32)
    light[:, -1] = 1.0
    for c, index in enumerate(candidates):
        y, x = index // nx, index % nx
        for iy in range(max(y - half, 0), min(y + half + 1, ny)):
            for ix in range(max(x - half, 0), min(x + half + 1, nx)):
                if blocked[iy, ix] == 0 or (iy == y and ix == x):
                    light[c, (iy - y + half) * SIDE + ix - x + half] = image[iy, ix] - sky
    return light


@njit(cache=True)
def _exceeding(image, blocked, candidates, sky, rms, gain, sigma, counts, places, weights):  # type: ignore[no-untyped-def]
    """Those of the candidates that are hits, by the full test."""
    nx = image.shape[1]
    kept = np.empty(len(candidates), np.int64)
    n = 0
    light, variance = np.empty(SIDE * SIDE), np.empty(SIDE * SIDE)
    # Of the types that the second calls have, so that each function below is compiled once.
    first = np.int64(0)
    for index in candidates:
        y, x = index // nx, index % nx
        _load(image, blocked, y, x, sky, rms, gain, light, variance)
        start = _first_excess(light, variance, sigma, counts, places, weights, first)
        if start < len(counts):
            # A lower sky forgives more, so the patterns that failed need no second look.
            _load(image, blocked, y, x, np.float32(min(sky, _local_sky(image, y, x))), rms, gain, light, variance)
            start = _first_excess(light, variance, sigma, counts, places, weights, start)
        if start < len(counts):
            kept[n] = index
            n += 1
    return kept[:n].copy()


@njit(cache=True)
def _load(image, blocked, y, x, level, rms, gain, light, variance):  # type: ignore[no-untyped-def]
    """Sky-free light around a pixel, infinite where a neighbour is not free, and its variance."""
    ny, nx = image.shape
    half = SIDE // 2
    for j in range(SIDE):
        for i in range(SIDE):
            iy, ix = y + j - half, x + i - half
            if iy < 0 or ix < 0 or iy >= ny or ix >= nx or (blocked[iy, ix] != 0 and (iy != y or ix != x)):
                light[j * SIDE + i], variance[j * SIDE + i] = np.inf, 1.0
            else:
                value = image[iy, ix] - level
                light[j * SIDE + i], variance[j * SIDE + i] = value, rms * rms + max(value, np.float32(0)) / gain


@njit(cache=True)
def _first_excess(light, variance, sigma, counts, places, weights, start):  # type: ignore[no-untyped-def]
    """Number of the first pattern that leaves light above its bound, as many as there are if none does."""
    middle = SIDE * SIDE // 2
    value = light[middle]
    for k in range(start, len(counts)):
        left, noise = value, variance[middle]
        for i in range(counts[k, 1]):
            other = light[places[k, i]]
            if i < counts[k, 0] and other * COMPANION_SHARE > value:
                left = -np.inf
                break
            left -= weights[k, i] * other
            if left < 0.0 and i >= counts[k, 0] and left * left > 9.0 * noise:
                break
            noise += weights[k, i] * weights[k, i] * variance[places[k, i]]
        if left > 0.0 and left * left > sigma * sigma * noise:
            return k
    return len(counts)


@njit(cache=True)
def _local_sky(image, y, x):  # type: ignore[no-untyped-def]
    """Median of the pixels around the box 7 x 7."""
    ny, nx = image.shape
    buffer = np.empty(24, np.float32)
    n = 0
    for j in range(-3, 4):
        for i in range(-3, 4):
            if max(abs(j), abs(i)) == 3 and 0 <= y + j < ny and 0 <= x + i < nx:
                buffer[n] = image[y + j, x + i]
                n += 1
    return np.median(buffer[:n])


@njit(cache=True)
def _peaks(image, blocked, candidates, sky, rms, gain, sigma):  # type: ignore[no-untyped-def]
    """Flat indices of the candidates that are bright local maxima of 5 x 5 free pixels."""
    ny, nx = image.shape
    kept = np.empty(len(candidates), np.int64)
    n = 0
    for index in candidates:
        y, x = index // nx, index % nx
        value = image[y, x]
        if (value - sky) ** 2 <= sigma**2 * (rms * rms + (value - sky) / gain):
            continue
        clear = 2 <= y < ny - 2 and 2 <= x < nx - 2
        for iy in range(max(y - 2, 0), min(y + 3, ny)):
            for ix in range(max(x - 2, 0), min(x + 3, nx)):
                if blocked[iy, ix] != 0 or image[iy, ix] > value:
                    clear = False
        if clear:
            kept[n] = index
            n += 1
    return kept[:n].copy()


def _sharpness(data: FloatImage, peaks: NDArray[np.int64], sky: np.float32) -> NDArray[np.float64]:
    """Mean of the four neighbours over the peak, sky subtracted."""
    y, x = np.divmod(peaks, data.shape[1])
    around = (data[y - 1, x] + data[y + 1, x] + data[y, x - 1] + data[y, x + 1]) / 4 - sky
    ratio: NDArray[np.float64] = (around / (data[y, x] - sky)).astype(np.float64)
    return ratio


@njit(cache=True)
def _block_around(blocked, pixels, r):  # type: ignore[no-untyped-def]
    ny, nx = blocked.shape
    for index in pixels:
        y, x = index // nx, index % nx
        blocked[max(y - r, 0) : min(y + r + 1, ny), max(x - r, 0) : min(x + r + 1, nx)] = 1


@njit(cache=True)
def _around(pixels, blocked, r):  # type: ignore[no-untyped-def]
    """Flat indices of the free pixels within r of the given ones; some more than once."""
    ny, nx = blocked.shape
    near = np.empty(len(pixels) * (2 * r + 1) ** 2, np.int64)
    n = 0
    for index in pixels:
        y0, x0 = index // nx, index % nx
        for y in range(max(y0 - r, 0), min(y0 + r + 1, ny)):
            for x in range(max(x0 - r, 0), min(x0 + r + 1, nx)):
                if blocked[y, x] == 0:
                    near[n] = y * nx + x
                    n += 1
    return near[:n].copy()
