"""Sums of light in circles and ellipses, many sources at once.

A pixel on the border counts with the share of it that lies inside: that of the half plane behind the tangent,
less what the border bends away from it within the pixel.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

# From the centre of a pixel to its corner.
HALF_DIAGONAL_PX = 0.70711
# Half axes from which the tangent with its correction is good to some 1e-3 of a pixel.
WIDE_PX = 3.5

FloatArray = NDArray[np.float64]


def aperture_sums(
    data: FloatImage,
    rms: FloatImage,
    masked: NDArray[np.bool_],
    x: FloatArray,
    y: FloatArray,
    ellipse: tuple[FloatArray | float, FloatArray | float, FloatArray | float],
    *,
    gain: float,
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Flux in ellipses; masked pixels count as the mean of the others.

    Parameters
    ----------
    data, rms : ndarray of float32, shape (ny, nx)
        Background-subtracted pixels and sky rms [ADU].
    masked : ndarray of bool, shape (ny, nx)
        Pixels to leave out.
    x, y : ndarray, shape (n,)
        Centres [pixel].
    ellipse : tuple of ndarray, shape (n,), or float
        Half axes [pixel] and angle of the major one from the x axis [radian].
    gain : float
        [e-/ADU], for the photon noise of the light inside.

    Returns
    -------
    tuple of ndarray, shape (n,)
        Flux and its error [ADU], NaN without a usable pixel; whether the border of the image cuts the ellipse.
    """
    major, minor, theta = (_contiguous(np.broadcast_to(part, x.shape)) for part in ellipse)
    sums = _ellipse_sums(data, rms, masked, x, y, major, minor, np.cos(theta), np.sin(theta))
    flux, variance, area, lost, outside = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = np.where(area > lost, area / (area - lost), np.nan)
        flux, variance = flux * whole, variance * whole
        error = np.sqrt(variance + np.maximum(flux, 0.0) / gain)
    return flux, error, outside > 0


def kron_radii(
    data: FloatImage,
    masked: NDArray[np.bool_],
    x: FloatArray,
    y: FloatArray,
    ellipse: tuple[FloatArray, FloatArray, FloatArray],
    reach: float,
) -> FloatArray:
    """First moment of the light in units of the ellipse (Kron 1980, ApJS 43, 305), within `reach` of these units.

    Zero where the light or its moment is not positive. Parameters are those of `aperture_sums`.
    """
    major, minor, theta = (_contiguous(part) for part in ellipse)
    radii: FloatArray = _kron_radii(data, masked, x, y, major, minor, np.cos(theta), np.sin(theta), float(reach))
    return radii


def _contiguous(values: NDArray[Any]) -> FloatArray:
    """One layout for all: a kernel compiled for another one may round the last digit differently."""
    return np.require(values, np.float64, ["C", "W"])


@numba.njit(cache=True)
def _ellipse_sums(data, rms, masked, x, y, major, minor, cosine, sine):  # type: ignore[no-untyped-def]
    """Rows: flux, variance of the sky, area, masked area, area outside the image."""
    ny, nx = data.shape
    sums = np.zeros((x.size, 5))
    for s in range(x.size):
        a, b, c, d = major[s], minor[s], cosine[s], sine[s]
        half_x, half_y = np.hypot(a * c, b * d) + 0.5, np.hypot(a * d, b * c) + 0.5
        x0, x1 = int(np.floor(x[s] - half_x + 0.5)), int(np.floor(x[s] + half_x + 0.5))
        y0, y1 = int(np.floor(y[s] - half_y + 0.5)), int(np.floor(y[s] + half_y + 0.5))
        if x0 < 0 or y0 < 0 or x1 >= nx or y1 >= ny:
            sums[s, 4] = 1.0
        # Pixels within this range of the scaled radius may be cut by the border.
        inner = max(1.0 - HALF_DIAGONAL_PX / b, 0.0) ** 2
        outer = (1.0 + HALF_DIAGONAL_PX / b) ** 2
        curvature = 1.0 / np.sqrt(a * b)
        # Small ellipses bend too much within a pixel: there it is taken in parts.
        parts = 1 if b >= WIDE_PX else 2 if b >= 0.4 * WIDE_PX else 4
        per_a, per_b = 1.0 / a, 1.0 / b
        xx, xy = (c * per_a) ** 2 + (d * per_b) ** 2, c * d * (per_a**2 - per_b**2)
        determinant = (per_a * per_b) ** 2
        low, high = max(x0, 0), min(x1, nx - 1)
        flux = variance = area = lost = 0.0
        for j in range(max(y0, 0), min(y1, ny - 1) + 1):
            dy = j - y[s]
            # Where this row is inside for certain, and where it may be: the roots of quadratic equations.
            middle, missing = -xy * dy / xx, dy * dy * determinant / (xx * xx)
            reach, room = inner / xx - missing, outer / xx - missing
            if room <= 0.0:
                continue
            room, reach = np.sqrt(room), np.sqrt(reach) if reach > 0.0 else -1.0
            start = max(int(np.ceil(x[s] + middle - room)), low)
            stop = min(int(np.floor(x[s] + middle + room)), high) + 1
            first = min(max(int(np.ceil(x[s] + middle - reach)), start), max(stop, start))
            after = max(min(int(np.floor(x[s] + middle + reach)) + 1, stop), first)
            light, noise, gone = _run_sums(data[j, first:after], rms[j, first:after], masked[j, first:after])
            flux, variance, lost, area = flux + light, variance + noise, lost + gone, area + (after - first)
            for m in range(start, stop - (after - first)):
                i = m if m < first else m + after - first
                dx = i - x[s]
                u, v = (dx * c + dy * d) * per_a, (dy * c - dx * d) * per_b
                squared = u * u + v * v
                if squared >= outer:
                    continue
                share = 0.0
                for row in range(parts):
                    for column in range(parts):
                        off_x, off_y = (column + 0.5) / parts - 0.5, (row + 0.5) / parts - 0.5
                        share += _inside(
                            u + (off_x * c + off_y * d) * per_a, v + (off_y * c - off_x * d) * per_b,
                            per_a / parts, per_b / parts, c, d, curvature / parts,
                        )  # fmt: skip
                share /= parts * parts
                area += share
                if masked[j, i]:
                    lost += share
                else:
                    flux += share * data[j, i]
                    variance += share * rms[j, i] * rms[j, i]
        sums[s, 0], sums[s, 1], sums[s, 2], sums[s, 3] = flux, variance, area, lost
    return sums


# Four sums side by side let the processor add several pixels at a time, in an order that no compiler chooses.
@numba.njit(cache=True)
def _run_sums(data, rms, masked):  # type: ignore[no-untyped-def]
    """Light, variance of the sky and number of masked pixels of a part of a row."""
    lost = 0
    for i in range(data.size):
        lost += masked[i]
    light0 = light1 = light2 = light3 = 0.0
    variance0 = variance1 = variance2 = variance3 = 0.0
    whole = data.size // 4 * 4
    for i in range(0, whole, 4):
        light0 += data[i]
        light1 += data[i + 1]
        light2 += data[i + 2]
        light3 += data[i + 3]
        variance0 += rms[i] * rms[i]
        variance1 += rms[i + 1] * rms[i + 1]
        variance2 += rms[i + 2] * rms[i + 2]
        variance3 += rms[i + 3] * rms[i + 3]
    light, variance = (light0 + light1) + (light2 + light3), (variance0 + variance1) + (variance2 + variance3)
    for i in range(whole, data.size):
        light += data[i]
        variance += rms[i] * rms[i]
    if lost > 0:
        light = variance = 0.0
        for i in range(data.size):
            if not masked[i]:
                light += data[i]
                variance += rms[i] * rms[i]
    return light, variance, lost


@numba.njit(cache=True)
def _inside(u, v, per_a, per_b, c, d, curvature):  # type: ignore[no-untyped-def]
    """Share of a unit square inside the ellipse of half axes ``1 / per_a, 1 / per_b``; its centre in their units."""
    squared = u * u + v * v
    if squared < 1e-18:
        return 1.0
    radius = np.sqrt(squared)
    along, across = u * per_a, v * per_b
    per_slope = 1.0 / np.sqrt(along * along + across * across)
    p, q = abs(along * c - across * d) * per_slope, abs(along * d + across * c) * per_slope
    p, q = max(p, q), max(min(p, q), 1e-4)
    # How far the tangent lies beyond the first corner of the pixel, and beyond the others; no questions, because a
    # processor that guesses the answers wrong loses more time than the sums take.
    depth = (1.0 - radius) * radius * per_slope + 0.5 * (p + q)
    first, second, third = max(depth - q, 0.0), max(depth - p, 0.0), max(depth - p - q, 0.0)
    depth = max(depth, 0.0)
    per_area = 1.0 / (p * q)
    share = 0.5 * per_area * (depth * depth - first * first - second * second + third * third)
    chord = per_area * (depth - first - second + third)
    return min(max(share - chord * chord * chord * curvature / 24.0, 0.0), 1.0)


@numba.njit(cache=True)
def _kron_radii(data, masked, x, y, major, minor, cosine, sine, reach):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    radii = np.zeros(x.size)
    for s in range(x.size):
        a, b, c, d = major[s], minor[s], cosine[s], sine[s]
        half_x, half_y = reach * np.hypot(a * c, b * d), reach * np.hypot(a * d, b * c)
        light = moment = 0.0
        for j in range(max(int(np.ceil(y[s] - half_y)), 0), min(int(np.floor(y[s] + half_y)), ny - 1) + 1):
            dy = j - y[s]
            for i in range(max(int(np.ceil(x[s] - half_x)), 0), min(int(np.floor(x[s] + half_x)), nx - 1) + 1):
                dx = i - x[s]
                u, v = (dx * c + dy * d) / a, (dy * c - dx * d) / b
                squared = u * u + v * v
                if squared <= reach * reach and not masked[j, i]:
                    light += data[j, i]
                    moment += np.sqrt(squared) * data[j, i]
        if light > 0.0 and moment > 0.0:
            radii[s] = moment / light
    return radii
