"""Cosmic rays in a single exposure, by their edges: sharper than the seeing allows.

The test is that of L.A.Cosmic (van Dokkum 2001, PASP 113, 1420): a Laplacian on the twofold
subsampled image finds edges, its ratio to a fine-structure image tells stars from cosmic
rays. Three things differ. The Laplacian is evaluated in closed form for all pixels, the medians only
around the few that pass. The limit of the ratio is not a constant but what a star can reach in this
image's own seeing, so that undersampled stars survive. And a pixel also counts as hit when the
light falls off in one direction faster than any star's does, which shows tracks in sharp seeing.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import Flag, FlagImage, FloatImage
from seechange_assets.science.laplacian import (
    fine_structure_at,
    insert_sorted,
    laplacian_at,
    significance_at,
    star_limits,
    star_tables,
)

#: The seeing is trusted between these limits, and measured when this many stars are there.
FWHM_RANGE_PX, FEWEST_STARS = (1.2, 8.0), 15
#: Significance of the peaks that measure the seeing.
SEEING_SIGMA = 25.0
MAX_ITERATIONS = 12
#: Noise of the fine-structure image, in units of the noise of a pixel (measured on white noise, 1.5 sigma).
FINE_STRUCTURE_NOISE = 0.8
#: A group holds a star if its peak falls off, in every direction, no faster than a star's, with this margin (for
#: ellipticity) and so many sigma for noise; peaks fainter than `SPARED_SIGMA` cannot tell. The star is that wide.
STAR_SHAPE_MARGIN, STAR_SHAPE_SIGMA, SPARED_SIGMA, STAR_RADIUS_FWHM = 1.1, 2.0, 8.0, 1.25
#: Places in the array of `star_limits`.
LIMIT_PEAKED, LIMIT_CONTRAST, LIMIT_AXIS = 0, 1, 2


def find_cosmic_rays(
    data: FloatImage,
    flags: FlagImage,
    *,
    gain: float,
    read_noise: float,
    sigma: float = 5.0,
    neighbor_fraction: float = 0.4,
    contrast_margin: float = 1.4,
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
        Significance of the Laplacian that starts a detection.
    neighbor_fraction : float
        Neighbours of a detection need only this fraction of `sigma`.
    contrast_margin : float
        Factor above the largest Laplacian-to-fine-structure ratio of a star in this seeing.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
    """
    work = np.array(data, dtype=np.float32)
    blocked = (flags != 0).view(np.uint8).copy()
    saturated = np.flatnonzero(flags & np.uint16(Flag.SATURATED | Flag.BLEED))
    _block_around(blocked, saturated, 2)
    _replace(work, np.flatnonzero(flags), blocked)
    sky, rms = _sky(work, flags, gain, read_noise)
    found = np.zeros(data.shape, np.uint8)
    candidates = _laplacian_peaks(work, blocked, np.float32(2 * rms * sigma))
    fwhm_px = _seeing(work, blocked, candidates, sky, rms)
    limits = star_limits(fwhm_px)
    limits[LIMIT_CONTRAST] *= contrast_margin
    limits[LIMIT_AXIS:] /= contrast_margin
    for _ in range(MAX_ITERATIONS):
        hits = _test(work, blocked, found, candidates, sky, rms, gain, sigma, limits)
        if not len(hits):
            break
        found.ravel()[hits] = 1
        grown = _grow(work, blocked, found, hits, sky, rms, gain, neighbor_fraction * sigma, limits, contrast_margin)
        new = np.concatenate([hits, grown])
        # What is left of a thick track shows its edges once the brightest pixels are gone.
        _replace(work, new, (blocked | found))
        candidates = np.unique(_around(new, found, blocked, 2))
    shape = limits[LIMIT_AXIS:] * contrast_margin / STAR_SHAPE_MARGIN
    _spare_stars(data, blocked, found, sky, rms, gain, shape, int(np.ceil(STAR_RADIUS_FWHM * fwhm_px)))
    return found.view(bool)


def _sky(work: FloatImage, flags: FlagImage, gain: float, read_noise: float) -> tuple[float, float]:
    """Sky level and its rms [ADU] from a thin sample of pixels; never below the read noise."""
    step = max(1, int(np.sqrt(work.size / 200_000)))
    sample, good = work[::step, ::step], flags[::step, ::step] == 0
    values = sample[good] if good.any() else sample.ravel()
    sky = float(np.median(values))
    # Differences of neighbours do not see gradients.
    rows, unflagged = work[::step], flags[::step] == 0
    difference = (rows[:, 1:] - rows[:, :-1])[unflagged[:, 1:] & unflagged[:, :-1]]
    if difference.size == 0:
        return sky, max(read_noise / gain, 1e-6)
    rms = float(1.4826 * np.median(np.abs(difference - np.median(difference)))) / np.sqrt(2)
    return sky, max(rms, read_noise / gain, 1e-6)


def _seeing(
    work: FloatImage, blocked: NDArray[np.uint8], candidates: NDArray[np.int64], sky: float, rms: float
) -> float:
    """FWHM [pixel] from the sharpness of bright peaks, nearly all of which are stars.

    Too few peaks: the sharpest seeing that is considered, the cautious choice.
    """
    ratios = _peak_sharpness(work, blocked, candidates, sky, SEEING_SIGMA * rms)
    if len(ratios) < FEWEST_STARS:
        return FWHM_RANGE_PX[0]
    grid, sharpness, _ = star_tables()
    return float(np.interp(np.median(ratios), sharpness, grid))


@njit(cache=True)
def _laplacian_peaks(image, blocked, limit):  # type: ignore[no-untyped-def]
    """Flat indices of the unblocked pixels whose Laplacian exceeds the limit, rising."""
    ny, nx = image.shape
    kept = np.empty(1024, np.int64)
    n = 0
    for y in range(ny):
        for x in range(nx):
            if blocked[y, x] == 0 and laplacian_at(image, y, x) > limit:
                if n == len(kept):
                    grown = np.empty(2 * n, np.int64)
                    grown[:n] = kept
                    kept = grown
                kept[n] = y * nx + x
                n += 1
    return kept[:n].copy()


@njit(cache=True)
def _contrast_excess(image, y, x, sky, noise, peaked):  # type: ignore[no-untyped-def]
    """Laplacian over fine structure; 0 where the Laplacian is small against the flux, as on the slopes of stars."""
    laplacian = laplacian_at(image, y, x)
    if laplacian < peaked * (image[y, x] - sky):
        return 0.0
    # Noise alone can lower the fine structure of a faint star: allow for it.
    return laplacian / (max(fine_structure_at(image, y, x), np.float32(0)) + FINE_STRUCTURE_NOISE * noise)


@njit(cache=True)
def _test(image, blocked, found, candidates, sky, rms, gain, sigma, limits):  # type: ignore[no-untyped-def]
    """The candidates that are significant and sharper than a star."""
    nx = image.shape[1]
    buffer = np.empty(49, np.float32)
    kept = np.empty(len(candidates), np.int64)
    n = 0
    for index in candidates:
        y, x = index // nx, index % nx
        if blocked[y, x] != 0 or found[y, x] != 0:
            continue
        significance, noise = significance_at(image, y, x, sky, rms, gain, buffer)
        if significance <= sigma:
            continue
        contrast = 0.0
        if not _touches(blocked, y, x):
            contrast = _contrast_excess(image, y, x, sky, noise, limits[LIMIT_PEAKED])
        if contrast > limits[LIMIT_CONTRAST] or _falls_faster(
            image, blocked, y, x, sky, noise, gain, limits[LIMIT_AXIS:]
        ):
            kept[n] = index
            n += 1
    return kept[:n].copy()


@njit(cache=True)
def _touches(blocked, y, x):  # type: ignore[no-untyped-def]
    """Whether a pixel beside this one holds a made-up value, whose edges mean nothing."""
    ny, nx = blocked.shape
    if (y > 0 and blocked[y - 1, x] != 0) or (y < ny - 1 and blocked[y + 1, x] != 0):
        return True
    return (x > 0 and blocked[y, x - 1] != 0) or (x < nx - 1 and blocked[y, x + 1] != 0)


@njit(cache=True)
def _falls_faster(image, blocked, y, x, sky, noise, gain, fall):  # type: ignore[no-untyped-def]
    """Whether two opposite neighbours, both of them real, are by 3.5 sigma fainter than a star's could be."""
    ny, nx = image.shape
    if y < 1 or x < 1 or y >= ny - 1 or x >= nx - 1:
        return False
    p = image[y, x] - sky
    # In the core of a bright star the pixel's own shot noise rules.
    variance = noise**2 + max(p, 0.0) / gain
    for dy, dx, kind in ((0, 1, 0), (1, 0, 0), (1, 1, 1), (1, -1, 1)):
        if blocked[y + dy, x + dx] != 0 or blocked[y - dy, x - dx] != 0:
            continue
        pair = (image[y + dy, x + dx] + image[y - dy, x - dx]) / 2 - sky
        if fall[kind] * p - pair > 3.5 * np.sqrt(0.5 * noise**2 + fall[kind] ** 2 * variance):
            return True
    return False


@njit(cache=True)
def _grow(image, blocked, found, hits, sky, rms, gain, sigma, limits, margin):  # type: ignore[no-untyped-def]
    """Mark and list the neighbours of the hits that pass a lower significance and a quarter of a star's contrast."""
    ny, nx = image.shape
    buffer = np.empty(49, np.float32)
    grown = np.empty(8 * len(hits), np.int64)
    n = 0
    for index in hits:
        y0, x0 = index // nx, index % nx
        for y in range(max(y0 - 1, 0), min(y0 + 2, ny)):
            for x in range(max(x0 - 1, 0), min(x0 + 2, nx)):
                if found[y, x] == 0 and blocked[y, x] == 0:
                    significance, noise = significance_at(image, y, x, sky, rms, gain, buffer)
                    contrast = _contrast_excess(image, y, x, sky, noise, limits[LIMIT_PEAKED])
                    if significance > sigma and contrast > limits[LIMIT_CONTRAST] / (4 * margin):
                        found[y, x] = 1
                        grown[n] = y * nx + x
                        n += 1
    return grown[:n].copy()


@njit(cache=True)
def _spare_stars(image, blocked, found, sky, rms, gain, fall, radius):  # type: ignore[no-untyped-def]
    """Take back, in place, the found pixels around the brightest one of a group, if that is the peak of a star.

    A hit on the slope of a bright star is replaced by a lower value, which then makes the core look sharp,
    until the whole star is eaten; the untouched image still shows the star.
    """
    nx = image.shape[1]
    for start in np.flatnonzero(found):
        if found.flat[start] != 1:
            continue
        stack, peak = _group(image, found, start)
        if _is_star_peak(image, blocked, peak // nx, peak % nx, sky, rms, gain, fall):
            for index in stack:
                y, x = index // nx, index % nx
                if abs(y - peak // nx) <= radius and abs(x - peak % nx) <= radius:
                    found[y, x] = 0
    for index in np.flatnonzero(found):
        found.flat[index] = 1


@njit(cache=True)
def _group(image, found, start):  # type: ignore[no-untyped-def]
    """Flat indices of the found pixels connected to one of them, and the brightest; marks them 2."""
    ny, nx = image.shape
    stack = np.empty(64, np.int64)
    n, done, peak = 1, 0, start
    stack[0] = start
    found.flat[start] = 2
    while done < n:
        y0, x0 = stack[done] // nx, stack[done] % nx
        done += 1
        if image[y0, x0] > image[peak // nx, peak % nx]:
            peak = y0 * nx + x0
        for y in range(max(y0 - 1, 0), min(y0 + 2, ny)):
            for x in range(max(x0 - 1, 0), min(x0 + 2, nx)):
                if found[y, x] == 1:
                    found[y, x] = 2
                    if n == len(stack):
                        stack = np.concatenate((stack, np.empty(n, np.int64)))
                    stack[n] = y * nx + x
                    n += 1
    return stack[:n].copy(), peak


@njit(cache=True)
def _is_star_peak(image, blocked, y, x, sky, rms, gain, fall):  # type: ignore[no-untyped-def]
    """Whether a local maximum has opposite neighbours as bright, within noise, as a star's in all directions."""
    ny, nx = image.shape
    p = image[y, x] - sky
    if y < 1 or x < 1 or y >= ny - 1 or x >= nx - 1 or p < SPARED_SIGMA * rms:
        return False
    for dy, dx, kind in ((0, 1, 0), (1, 0, 0), (1, 1, 1), (1, -1, 1)):
        one, other = image[y + dy, x + dx], image[y - dy, x - dx]
        if blocked[y + dy, x + dx] != 0 or blocked[y - dy, x - dx] != 0 or max(one, other) > image[y, x]:
            return False
        pair = (one + other) / 2 - sky
        noise = np.sqrt(0.5 * (rms**2 + max(pair, 0.0) / gain) + fall[kind] ** 2 * (rms**2 + p / gain))
        if pair < fall[kind] * p - STAR_SHAPE_SIGMA * noise:
            return False
    return True


@njit(cache=True)
def _peak_sharpness(image, blocked, candidates, sky, threshold):  # type: ignore[no-untyped-def]
    """Mean of the four neighbours over the peak, sky subtracted, at bright isolated local maxima."""
    ny, nx = image.shape
    ratios = np.empty(len(candidates), np.float64)
    n = 0
    for index in candidates:
        y, x = index // nx, index % nx
        if y < 3 or x < 3 or y >= ny - 3 or x >= nx - 3 or image[y, x] - sky < threshold:
            continue
        clear = True
        for iy in range(y - 2, y + 3):
            for ix in range(x - 2, x + 3):
                if blocked[iy, ix] != 0 or image[iy, ix] > image[y, x]:
                    clear = False
        if clear:
            neighbors = image[y - 1, x] + image[y + 1, x] + image[y, x - 1] + image[y, x + 1]
            ratios[n] = (neighbors / 4 - sky) / (image[y, x] - sky)
            n += 1
    return ratios[:n].copy()


@njit(cache=True)
def _replace(image, pixels, masked):  # type: ignore[no-untyped-def]
    """Replace pixels by the median of the unmasked ones in 5 x 5 (7 x 7 where there are none), in place."""
    ny, nx = image.shape
    values = np.empty(len(pixels), np.float32)
    buffer = np.empty(49, np.float32)
    for i in range(len(pixels)):
        y, x = pixels[i] // nx, pixels[i] % nx
        values[i] = image[y, x]
        for r in (2, 3):
            n = 0
            for iy in range(max(y - r, 0), min(y + r + 1, ny)):
                for ix in range(max(x - r, 0), min(x + r + 1, nx)):
                    if masked[iy, ix] == 0:
                        insert_sorted(buffer, n, image[iy, ix])
                        n += 1
            if n > 0:
                values[i] = buffer[n // 2]
                break
    for i in range(len(pixels)):
        image[pixels[i] // nx, pixels[i] % nx] = values[i]


@njit(cache=True)
def _block_around(blocked, pixels, r):  # type: ignore[no-untyped-def]
    ny, nx = blocked.shape
    for index in pixels:
        y, x = index // nx, index % nx
        blocked[max(y - r, 0) : min(y + r + 1, ny), max(x - r, 0) : min(x + r + 1, nx)] = 1


@njit(cache=True)
def _around(pixels, found, blocked, r):  # type: ignore[no-untyped-def]
    """Flat indices of the free pixels within r of the given ones; some more than once."""
    ny, nx = found.shape
    near = np.empty(len(pixels) * (2 * r + 1) ** 2, np.int64)
    n = 0
    for index in pixels:
        y0, x0 = index // nx, index % nx
        for y in range(max(y0 - r, 0), min(y0 + r + 1, ny)):
            for x in range(max(x0 - r, 0), min(x0 + r + 1, nx)):
                if found[y, x] == 0 and blocked[y, x] == 0:
                    near[n] = y * nx + x
                    n += 1
    return near[:n].copy()
