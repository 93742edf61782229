"""Cosmic rays in a single exposure, by their edges: sharper than the seeing allows.

The test is that of L.A.Cosmic (van Dokkum 2001, PASP 113, 1420): a Laplacian on the twofold
subsampled image finds edges, its ratio to a fine-structure image tells stars from cosmic
rays. Three things differ. The Laplacian is evaluated in closed form for all pixels, the medians only
around the few that pass. The limit of the ratio is not a constant but what a star can reach in this
image's own seeing, so that undersampled stars survive. And a pixel also counts as hit when the
light falls off in one direction faster than any star's does, which shows tracks in sharp seeing.
"""

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import Flag, FlagImage, FloatImage

#: The seeing is trusted between these limits, and measured when this many stars are there.
FWHM_RANGE_PX, FEWEST_STARS = (1.2, 8.0), 15
#: Significance of the peaks that measure the seeing.
SEEING_SIGMA = 25.0
MAX_ITERATIONS = 12
#: Noise of the fine-structure image, in units of the noise of a pixel (measured on white noise, 1.5 sigma).
FINE_STRUCTURE_NOISE = 0.8


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
    saturated = np.flatnonzero(flags & (Flag.SATURATED | Flag.BLEED))
    _block_around(blocked, saturated, 2)
    _replace(work, np.flatnonzero(flags), blocked)
    sky, rms = _sky(work, flags, gain, read_noise)
    found = np.zeros(data.shape, np.uint8)
    candidates = _laplacian_peaks(work, blocked, np.float32(2 * rms * sigma))
    contrast, fall = star_limits(_seeing(work, blocked, candidates, sky, rms))
    limit, fall = contrast_margin * contrast, fall / contrast_margin
    for _ in range(MAX_ITERATIONS):
        hits = _test(work, blocked, found, candidates, sky, rms, gain, sigma, limit, fall)
        if not len(hits):
            break
        found.ravel()[hits] = 1
        new = np.concatenate([hits, _grow(work, blocked, found, hits, sky, rms, gain, sigma, neighbor_fraction * sigma)])
        # What is left of a thick track shows its edges once the brightest pixels are gone.
        _replace(work, new, (blocked | found))
        candidates = _around(new, found, blocked, 2)
    return found.view(bool)


def _sky(work: FloatImage, flags: FlagImage, gain: float, read_noise: float) -> tuple[float, float]:
    """Sky level and its rms [ADU] from a thin sample of pixels; never below the read noise."""
    step = max(1, int(np.sqrt(work.size / 200_000)))
    sample, good = work[::step, ::step], flags[::step, ::step] == 0
    values = sample[good] if good.any() else sample.ravel()
    sky = float(np.median(values))
    # Differences of neighbours do not see gradients.
    rows = work[::step]
    difference = rows[:, 1:] - rows[:, :-1]
    rms = float(1.4826 * np.median(np.abs(difference - np.median(difference)))) / np.sqrt(2)
    return sky, max(rms, read_noise / gain, 1e-6)


def _seeing(work: FloatImage, blocked: NDArray[np.uint8], candidates: NDArray, sky: float, rms: float) -> float:
    """FWHM [pixel] from the sharpness of bright peaks, nearly all of which are stars.

    Too few peaks: the sharpest seeing that is considered, the cautious choice.
    """
    ratios = _peak_sharpness(work, blocked, candidates, sky, SEEING_SIGMA * rms)
    if len(ratios) < FEWEST_STARS:
        return FWHM_RANGE_PX[0]
    grid, sharpness, _, _ = _star_tables()
    return float(np.interp(np.median(ratios), sharpness, grid))


def star_limits(fwhm_px: float) -> tuple[float, NDArray[np.float64]]:
    """What the pixels of a star of this FWHM [pixel] can reach.

    Returns
    -------
    float
        The largest ratio of Laplacian to fine structure.
    ndarray, shape (2,)
        The smallest mean of two opposite neighbours relative to the pixel between them, along axes and diagonals.
    """
    grid, _, contrast, falls = _star_tables()
    fall = [np.interp(fwhm_px, grid, falls[:, i]) for i in range(2)]
    return float(np.interp(fwhm_px, grid, contrast)), np.array(fall)


@lru_cache(maxsize=1)
def _star_tables() -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Per FWHM, over all pixel phases: median sharpness of the peak, largest contrast, smallest falls (n, 2)."""
    grid = np.array([1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0])
    phases = np.linspace(0.0, 0.5, 4)
    sharpness, contrast, falls = [], [], []
    for fwhm in grid:
        # Two wing slopes bracket real seeing profiles.
        stars = [_moffat(fwhm, beta, px, py) for beta in (2.8, 4.8) for px in phases for py in phases[phases <= px]]
        ratios = [np.mean([s[12, 13], s[14, 13], s[13, 12], s[13, 14]]) / s[13, 13] for s in stars]
        sharpness.append(np.median(ratios))
        contrast.append(max(_largest_contrast(star) for star in stars))
        falls.append(np.min([_steepest_falls(star) for star in stars], axis=0))
    return grid, np.array(sharpness), np.array(contrast), np.array(falls)


def _steepest_falls(star: FloatImage) -> tuple[float, float]:
    """Smallest ratio of opposite neighbours to the pixel between them, along axes and diagonals, near the core."""
    inner = star[10:17, 10:17]

    def fall(dy: int, dx: int) -> float:
        pair = (star[10 + dy : 17 + dy, 10 + dx : 17 + dx] + star[10 - dy : 17 - dy, 10 - dx : 17 - dx]) / 2
        return float((pair / inner).min())

    return min(fall(0, 1), fall(1, 0)), min(fall(1, 1), fall(1, -1))


def _moffat(fwhm: float, beta: float, px: float, py: float) -> FloatImage:
    """A star on 27 x 27 pixels, integrated over pixels with 5 x 5 points each."""
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    axis = (np.arange(27 * 5) - 2) / 5 - 13
    r2 = (axis[None, :] - px) ** 2 + (axis[:, None] - py) ** 2
    fine = (1 + r2 / alpha**2) ** -beta
    return fine.reshape(27, 5, 27, 5).mean(axis=(1, 3)).astype(np.float32)


def _largest_contrast(star: FloatImage) -> float:
    """The largest contrast among the pixels of a star whose Laplacian counts."""
    values = [_laplacian_and_contrast(star, y, x) for y in range(10, 17) for x in range(10, 17)]
    strongest = max(laplacian for laplacian, _ in values)
    return max(laplacian / fine for laplacian, fine in values if laplacian > 0.1 * strongest and fine > 0)


def _laplacian_and_contrast(star: FloatImage, y: int, x: int) -> tuple[float, float]:
    return float(_laplacian(star, y, x)), float(_fine_structure(star, y, x))


@njit(cache=True, inline="always")
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
def _median_box(image, y, x, r, buffer):  # type: ignore[no-untyped-def]
    """Median of the box of half width r, edges repeated; `buffer` holds the sorted values."""
    ny, nx = image.shape
    n = 0
    for iy in range(y - r, y + r + 1):
        row = min(max(iy, 0), ny - 1)
        for ix in range(x - r, x + r + 1):
            value = image[row, min(max(ix, 0), nx - 1)]
            j = n
            while j > 0 and buffer[j - 1] > value:
                buffer[j] = buffer[j - 1]
                j -= 1
            buffer[j] = value
            n += 1
    return buffer[n // 2]


@njit(cache=True)
def _fine_structure(image, y, x):  # type: ignore[no-untyped-def]
    """med3 - med7(med3), van Dokkum's fine-structure image at one pixel."""
    ny, nx = image.shape
    buffer = np.empty(49, np.float32)
    small = np.empty((7, 7), np.float32)
    for j in range(7):
        for i in range(7):
            row, column = min(max(y + j - 3, 0), ny - 1), min(max(x + i - 3, 0), nx - 1)
            small[j, i] = _median_box(image, row, column, 1, buffer)
    return small[3, 3] - _median_box(small, 3, 3, 3, buffer)


@njit(cache=True)
def _laplacian_peaks(image, blocked, limit):  # type: ignore[no-untyped-def]
    """Flat indices of the unblocked pixels whose Laplacian exceeds the limit, rising."""
    ny, nx = image.shape
    kept = np.empty(1024, np.int64)
    n = 0
    for y in range(ny):
        for x in range(nx):
            # The cheapest bound first: L+ is at most twice the excess over the lowest neighbours.
            if blocked[y, x] == 0 and _laplacian(image, y, x) > limit:
                if n == len(kept):
                    grown = np.empty(2 * n, np.int64)
                    grown[:n] = kept
                    kept = grown
                kept[n] = y * nx + x
                n += 1
    return kept[:n].copy()


@njit(cache=True)
def _significance(image, y, x, sky, rms, gain, buffer):  # type: ignore[no-untyped-def]
    """S' of the paper: Laplacian over twice the noise, less its local median, and the local noise."""
    local = _median_box(image, y, x, 2, buffer)
    noise = np.sqrt(rms * rms + max(local - sky, 0.0) / gain)
    ny, nx = image.shape
    n = 0
    for iy in range(max(y - 2, 0), min(y + 3, ny)):
        for ix in range(max(x - 2, 0), min(x + 3, nx)):
            value = _laplacian(image, iy, ix)
            j = n
            while j > 0 and buffer[j - 1] > value:
                buffer[j] = buffer[j - 1]
                j -= 1
            buffer[j] = value
            n += 1
    laplacian = _laplacian(image, y, x)
    return (laplacian - buffer[n // 2]) / (2 * noise), noise


@njit(cache=True)
def _test(image, blocked, found, candidates, sky, rms, gain, sigma, limit, fall):  # type: ignore[no-untyped-def]
    """The candidates that are significant and sharper than a star."""
    nx = image.shape[1]
    buffer = np.empty(49, np.float32)
    kept = np.empty(len(candidates), np.int64)
    n = 0
    for index in candidates:
        y, x = index // nx, index % nx
        if blocked[y, x] != 0 or found[y, x] != 0:
            continue
        significance, noise = _significance(image, y, x, sky, rms, gain, buffer)
        if significance <= sigma:
            continue
        # Noise alone can lower the fine structure of a faint star: allow for it.
        fine = max(_fine_structure(image, y, x), np.float32(0)) + FINE_STRUCTURE_NOISE * noise
        if _laplacian(image, y, x) > limit * fine or _falls_faster(image, y, x, sky, noise, gain, fall):
            kept[n] = index
            n += 1
    return kept[:n].copy()


@njit(cache=True)
def _falls_faster(image, y, x, sky, noise, gain, fall):  # type: ignore[no-untyped-def]
    """Whether two opposite neighbours are, by 3.5 sigma, fainter than a star's could be."""
    ny, nx = image.shape
    if y < 1 or x < 1 or y >= ny - 1 or x >= nx - 1:
        return False
    p = image[y, x] - sky
    # In the core of a bright star the pixel's own shot noise rules.
    variance = noise**2 + max(p, 0.0) / gain
    for dy, dx, kind in ((0, 1, 0), (1, 0, 0), (1, 1, 1), (1, -1, 1)):
        pair = (image[y + dy, x + dx] + image[y - dy, x - dx]) / 2 - sky
        if fall[kind] * p - pair > 3.5 * np.sqrt(0.5 * noise**2 + fall[kind] ** 2 * variance):
            return True
    return False


@njit(cache=True)
def _grow(image, blocked, found, hits, sky, rms, gain, first, second):  # type: ignore[no-untyped-def]
    """Neighbours of the hits at the first limit, then their neighbours at the second; marks them as found."""
    ny, nx = image.shape
    buffer = np.empty(49, np.float32)
    grown = np.empty(24 * len(hits), np.int64)
    n = 0
    for index in hits:
        y0, x0 = index // nx, index % nx
        for y in range(max(y0 - 1, 0), min(y0 + 2, ny)):
            for x in range(max(x0 - 1, 0), min(x0 + 2, nx)):
                if found[y, x] == 0 and blocked[y, x] == 0:
                    significance, _ = _significance(image, y, x, sky, rms, gain, buffer)
                    if significance > second:
                        found[y, x] = 1
                        grown[n] = y * nx + x
                        n += 1
    return grown[:n].copy()


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
                        buffer[n] = image[iy, ix]
                        n += 1
            if n > 0:
                values[i] = np.median(buffer[:n])
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
    """Flat indices, each once and rising, of the free pixels within r of the given ones."""
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
    return np.unique(near[:n])
