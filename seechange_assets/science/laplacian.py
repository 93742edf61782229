"""Laplacian and fine structure of single pixels, and what the pixels of stars reach in them."""

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import FloatImage


@njit(cache=True)
def laplacian_at(image, y, x):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Van Dokkum's L+ in closed form: each of the four subpixels sees one horizontal and one vertical neighbour."""
    ny, nx = image.shape
    p = 2 * image[y, x]
    left, right = image[y, max(x - 1, 0)], image[y, min(x + 1, nx - 1)]
    down, up = image[max(y - 1, 0), x], image[min(y + 1, ny - 1), x]
    total = max(p - left - down, np.float32(0)) + max(p - right - down, np.float32(0))
    total += max(p - left - up, np.float32(0)) + max(p - right - up, np.float32(0))
    return total / 4


@njit(cache=True)
def insert_sorted(buffer, n, value):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Insert a value into the first n sorted ones."""
    while n > 0 and buffer[n - 1] > value:
        buffer[n] = buffer[n - 1]
        n -= 1
    buffer[n] = value


@njit(cache=True)
def median_box(image, y, x, r, buffer):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Median of the box of half width r, edges repeated; `buffer` holds the sorted values."""
    ny, nx = image.shape
    n = 0
    for iy in range(y - r, y + r + 1):
        row = min(max(iy, 0), ny - 1)
        for ix in range(x - r, x + r + 1):
            insert_sorted(buffer, n, image[row, min(max(ix, 0), nx - 1)])
            n += 1
    return buffer[n // 2]


@njit(cache=True)
def fine_structure_at(image, y, x):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """med3 - med7(med3), van Dokkum's fine-structure image at one pixel."""
    ny, nx = image.shape
    buffer = np.empty(49, np.float32)
    small = np.empty((7, 7), np.float32)
    for j in range(7):
        for i in range(7):
            row, column = min(max(y + j - 3, 0), ny - 1), min(max(x + i - 3, 0), nx - 1)
            small[j, i] = median_box(image, row, column, 1, buffer)
    return small[3, 3] - median_box(small, 3, 3, 3, buffer)


@njit(cache=True)
def significance_at(image, y, x, sky, rms, gain, buffer):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """S' of the paper: Laplacian over twice the noise, less its local median, and the local noise."""
    local = median_box(image, y, x, 2, buffer)
    noise = np.sqrt(rms * rms + max(local - sky, 0.0) / gain)
    ny, nx = image.shape
    n = 0
    for iy in range(max(y - 2, 0), min(y + 3, ny)):
        for ix in range(max(x - 2, 0), min(x + 3, nx)):
            insert_sorted(buffer, n, laplacian_at(image, iy, ix))
            n += 1
    laplacian = laplacian_at(image, y, x)
    return (laplacian - buffer[n // 2]) / (2 * noise), noise


def star_limits(fwhm_px: float) -> NDArray[np.float64]:
    """What the pixels of a star of this FWHM [pixel] can reach, over all positions of the star in its pixel.

    Returns
    -------
    ndarray, shape (4,)
        Half the largest ratio of Laplacian to flux (a pixel below it is no candidate); the largest ratio of
        Laplacian to fine structure of the pixels above; the smallest mean of two opposite neighbours relative to
        the pixel between them, along axes and along diagonals.
    """
    grid, _, limits = star_tables()
    return np.array([np.interp(fwhm_px, grid, limits[:, i]) for i in range(limits.shape[1])])


@lru_cache(maxsize=1)
def star_tables() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A grid of FWHM, the median sharpness of a star's peak, and the limits of `star_limits`, shape (n, 4)."""
    grid = np.array([1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0])
    phases = np.linspace(0.0, 0.5, 4)
    sharpness, limits = [], []
    for fwhm in grid:
        # Two wing slopes bracket real seeing profiles.
        stars = [_moffat(fwhm, beta, px, py) for beta in (2.8, 4.8) for px in phases for py in phases[phases <= px]]
        ratios = [(s[7, 8] + s[9, 8] + s[8, 7] + s[8, 9]) / 4 / s[8, 8] for s in stars]
        sharpness.append(np.median(ratios))
        laplacian, fine = np.array([_judged(star) for star in stars]).swapaxes(0, 1)
        peaked = laplacian / np.array([star[_INNER] for star in stars])
        counted = (peaked > 0.5 * peaked.max()) & (fine > 0)
        falls = np.min([_steepest_falls(star) for star in stars], axis=0)
        limits.append([0.5 * peaked.max(), (laplacian[counted] / fine[counted]).max(), *falls])
    return grid, np.array(sharpness), np.array(limits)


#: Side of the stamps, and the part of them where a star is judged.
_SIDE, _INNER = 17, (slice(5, 12), slice(5, 12))


def _moffat(fwhm: float, beta: float, px: float, py: float) -> FloatImage:
    """A star near the centre of a stamp, integrated over pixels with 4 x 4 points each."""
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    axis = (np.arange(_SIDE * 4) - 1.5) / 4 - _SIDE // 2
    r2 = (axis[None, :] - px) ** 2 + (axis[:, None] - py) ** 2
    fine = (1 + r2 / alpha**2) ** -beta
    pixels: FloatImage = fine.reshape(_SIDE, 4, _SIDE, 4).mean(axis=(1, 3)).astype(np.float32)
    return pixels


@njit(cache=True)
def _judged(star):  # type: ignore[no-untyped-def]
    """Laplacian and fine structure at the inner pixels of a stamp."""
    laplacian, fine = np.empty((7, 7), np.float64), np.empty((7, 7), np.float64)
    for y in range(7):
        for x in range(7):
            laplacian[y, x], fine[y, x] = laplacian_at(star, y + 5, x + 5), fine_structure_at(star, y + 5, x + 5)
    return laplacian, fine


def _steepest_falls(star: FloatImage) -> tuple[float, float]:
    """Smallest ratio of opposite neighbours to the pixel between them, along axes and diagonals, near the core."""

    def fall(dy: int, dx: int) -> float:
        pair = (star[5 + dy : 12 + dy, 5 + dx : 12 + dx] + star[5 - dy : 12 - dy, 5 - dx : 12 - dx]) / 2
        return float((pair / star[_INNER]).min())

    return min(fall(0, 1), fall(1, 0)), min(fall(1, 1), fall(1, -1))
