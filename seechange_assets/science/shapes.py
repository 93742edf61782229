"""Windowed positions and sizes of sources.

Sums over pixels under a Gaussian window as wide as the seeing are nearly as precise as a
PSF fit and need no model. Positions follow SExtractor's ``XWIN_IMAGE``; sizes are adaptive
moments (Bernstein & Jarvis 2002, AJ 123, 583, section 3): the Gaussian that matches the source
under its own weight.
"""

from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

FWHM_PER_SIGMA = 2.3548200450309493
# A window narrower than this (in pixels) aliases with the pixel grid.
MIN_WINDOW_SIGMA_PX = 0.9
WINDOW_RADIUS_SIGMA = 4.0
# Steps of a position or a size; sizes settle to this share of their noise, and beyond so many windows are no size.
MOST_STEPS, STEP_OF_NOISE, WIDEST = 20, 0.01, 6.0

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WindowedShapes:
    """One value per source: position and its errors [pixel], S/N under the window, Gaussian sigma [pixel].

    ``ok`` is False where the position did not settle near the start; position and sigma are NaN there.
    """

    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    snr: FloatArray
    sigma_px: FloatArray
    ok: NDArray[np.bool_]


def windowed_shapes(
    data: FloatImage,
    rms: FloatImage,
    masked: NDArray[np.bool_],
    x: FloatArray,
    y: FloatArray,
    *,
    seeing_sigma_px: float,
    gain: float,
) -> WindowedShapes:
    """Measure sources under a Gaussian window of the seeing.

    Parameters
    ----------
    data, rms : ndarray of float32, shape (ny, nx)
        Background-subtracted pixels, zero where masked, and sky rms [ADU].
    masked : ndarray of bool, shape (ny, nx)
        Pixels to leave out.
    x, y : ndarray, shape (n,)
        First positions [pixel].
    seeing_sigma_px : float
        Gaussian sigma of a star. The window is as wide, but not narrower than the pixels allow.
    gain : float
        [e-/ADU], for the photon noise of the sources.
    """
    window = max(seeing_sigma_px, MIN_WINDOW_SIGMA_PX)
    start = np.ascontiguousarray(x, float), np.ascontiguousarray(y, float)
    result = _windowed(data, rms, masked, *start, window, float(seeing_sigma_px), float(gain))
    new_x, new_y, x_err, y_err, snr, sigma_px, ok = result
    return WindowedShapes(new_x, new_y, x_err, y_err, snr, sigma_px, ok > 0)


@numba.njit(cache=True)
def _windowed(data, rms, masked, x_start, y_start, window, seeing_sigma, gain):  # type: ignore[no-untyped-def]
    """Rows: x, y, x_err, y_err, snr, sigma, ok."""
    n = x_start.size
    out = np.full((7, n), np.nan)
    # The windowed first moment underestimates a shift by this factor for a Gaussian star.
    response = 1.0 + (seeing_sigma / window) ** 2
    for s in range(n):
        out[6, s] = 0.0
        x, y = x_start[s], y_start[s]
        settled = False
        for _ in range(MOST_STEPS):
            total, mx, my, _ = _light_moments(data, x, y, window)
            if total <= 0.0:
                break
            dx, dy = response * mx / total, response * my / total
            x += dx
            y += dy
            if abs(x - x_start[s]) > 2.0 * window or abs(y - y_start[s]) > 2.0 * window:
                break
            if dx * dx + dy * dy < 1e-8:
                settled = True
                break
        if not settled:
            continue
        total, noise, noise_x, noise_y = _noise_moments(data, rms, masked, x, y, window, gain)
        if total <= 0.0 or noise <= 0.0:
            continue
        out[0, s], out[1, s] = x, y
        out[2, s] = response * np.sqrt(noise_x) / total
        out[3, s] = response * np.sqrt(noise_y) / total
        out[4, s] = total / np.sqrt(noise)
        out[5, s] = _adaptive_sigma(data, x, y, window, out[4, s])
        out[6, s] = 1.0
    return out


@numba.njit(cache=True)
def _light_moments(data, x, y, sigma):  # type: ignore[no-untyped-def]
    """Sums under a Gaussian window: I, I dx, I dy, I r²; masked pixels are zero."""
    ny, nx = data.shape
    reach = WINDOW_RADIUS_SIGMA * sigma
    x0, x1 = max(int(np.ceil(x - reach)), 0), min(int(np.floor(x + reach)), nx - 1)
    y0, y1 = max(int(np.ceil(y - reach)), 0), min(int(np.floor(y + reach)), ny - 1)
    # The window is a product, so one exponential per row and column is enough.
    column = np.exp(-0.5 * ((np.arange(x0, x1 + 1) - x) / sigma) ** 2)
    total = mx = my = m2 = 0.0
    for j in range(y0, y1 + 1):
        dy = j - y
        half = np.sqrt(max(reach * reach - dy * dy, 0.0))
        low, high = max(int(np.ceil(x - half)), x0), min(int(np.floor(x + half)), x1)
        light = first = second = 0.0
        line, weights = data[j, low:], column[low - x0 :]
        for i in range(high - low + 1):
            dx = i + low - x
            signal = weights[i] * line[i]
            light += signal
            first += signal * dx
            second += signal * dx * dx
        row = np.exp(-0.5 * (dy / sigma) ** 2)
        total += row * light
        mx += row * first
        my += row * light * dy
        m2 += row * (second + light * dy * dy)
    return total, mx, my, m2


@numba.njit(cache=True)
def _noise_moments(data, rms, masked, x, y, sigma, gain):  # type: ignore[no-untyped-def]
    """Light under a Gaussian window, and the variances of it and of its two first moments."""
    ny, nx = data.shape
    reach = WINDOW_RADIUS_SIGMA * sigma
    total = noise = noise_x = noise_y = 0.0
    for j in range(max(int(np.ceil(y - reach)), 0), min(int(np.floor(y + reach)), ny - 1) + 1):
        dy = j - y
        for i in range(max(int(np.ceil(x - reach)), 0), min(int(np.floor(x + reach)), nx - 1) + 1):
            dx = i - x
            r2 = dx * dx + dy * dy
            if r2 > reach * reach or masked[j, i]:
                continue
            weight, value = np.exp(-0.5 * r2 / (sigma * sigma)), float(data[j, i])
            scatter = weight * weight * (float(rms[j, i]) ** 2 + max(value, 0.0) / gain)
            total += weight * value
            noise += scatter
            noise_x += scatter * dx * dx
            noise_y += scatter * dy * dy
    return total, noise, noise_x, noise_y


@numba.njit(cache=True)
def _adaptive_sigma(data, x, y, start, snr):  # type: ignore[no-untyped-def]
    """Sigma of the Gaussian that equals its own weight, to a small share of its noise; NaN if it runs away."""
    sigma, tolerance = start, max(1e-4, STEP_OF_NOISE / max(snr, 1.0))
    for _ in range(MOST_STEPS):
        total, _, _, m2 = _light_moments(data, x, y, sigma)
        if total <= 0.0 or m2 <= 0.0:
            return np.nan
        second = 0.5 * m2 / total
        inverse = 1.0 / second - 1.0 / (sigma * sigma)
        # As wide as the window or wider than any Gaussian could look under it: try a wider one.
        matched = 1.0 / np.sqrt(inverse) if inverse > 0.0 else np.inf
        new = min(max(matched, 0.67 * sigma), 1.5 * sigma)
        if new > WIDEST * start or new < 0.25 * start:
            return np.nan
        if abs(new - sigma) < tolerance * sigma:
            return new
        sigma = new
    return sigma


def phase_corrected(shapes: WindowedShapes, *, fwhm_px: float, beta: float, seeing_sigma_px: float) -> WindowedShapes:
    """Take out what the pixel grid does to undersampled stars.

    Below some 2.5 pixels of FWHM the sums over pixels depend on where in its pixel a star lies: windowed
    positions are wrong by up to 0.04 pixel, sizes by some per cent. Noiseless stars of the mean profile at
    a grid of phases give both errors; they fade for wider sources as the first alias of their light under the
    window does, ``exp(-2 π² σ²)`` with ``1/σ² = 1/σ_source² + 1/σ_window²``.

    Parameters
    ----------
    shapes : WindowedShapes
    fwhm_px, beta : float
        Moffat profile of the mean star in the image, pixel response included.
    seeing_sigma_px : float
        The width `shapes` were measured with.
    """
    bias = _phase_bias(fwhm_px, beta, seeing_sigma_px)
    window2 = max(seeing_sigma_px, MIN_WINDOW_SIGMA_PX) ** 2
    narrow = 1.0 / (1.0 / seeing_sigma_px**2 + 1.0 / window2)
    own = 1.0 / (1.0 / np.nan_to_num(shapes.sigma_px, nan=seeing_sigma_px) ** 2 + 1.0 / window2)
    share = np.exp(-2.0 * np.pi**2 * np.maximum(own - narrow, 0.0))
    x, y, factor = shapes.x, shapes.y, np.ones(shapes.x.size)
    # The bias belongs to the true phase; two rounds find it, as the bias is small.
    for _ in range(2):
        dx, dy, growth = _at_phase(bias, x, y)
        x, y, factor = shapes.x - share * dx, shapes.y - share * dy, np.exp(-share * growth)
    return replace(shapes, x=x, y=y, sigma_px=shapes.sigma_px * factor)


def _phase_bias(fwhm_px: float, beta: float, seeing_sigma_px: float, n: int = 16) -> FloatArray:
    """Errors of x, y and ln(sigma) ``(3, n, n)`` of noiseless stars at n x n phases [0, 1) from a pixel's centre."""
    half = int(np.ceil(4.0 * fwhm_px)) + 2
    side = 2 * half + 1
    alpha2 = (0.5 * fwhm_px) ** 2 / (2.0 ** (1.0 / beta) - 1.0)
    phase = np.arange(n) / n
    axis = np.arange(-half, half + 1)[None, :] - phase[:, None]
    r2 = axis[:, None, :, None] ** 2 + axis[None, :, None, :] ** 2
    stars = (1.0 + r2 / alpha2) ** -beta
    frame = stars.transpose(0, 2, 1, 3).reshape(n * side, n * side).astype(np.float32)
    row, column = (index.ravel() for index in np.indices((n, n)))
    y, x = row * side + half + phase[row], column * side + half + phase[column]
    found = windowed_shapes(frame, np.full_like(frame, 1e-6), np.zeros(frame.shape, bool), x, y,
                            seeing_sigma_px=seeing_sigma_px, gain=1e12)  # fmt: skip
    log_sigma = np.log(found.sigma_px)
    bias: FloatArray = np.nan_to_num(np.stack([found.x - x, found.y - y, log_sigma - np.nanmean(log_sigma)]))
    return bias.reshape(3, n, n)


def _at_phase(bias: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Bilinear, periodic interpolation of the bias at the phases of x and y; zeros where those are NaN."""
    n = bias.shape[-1]
    u, v = (np.nan_to_num(a - np.floor(a)) * n for a in (x, y))
    i, j = u.astype(int) % n, v.astype(int) % n
    u, v = u - np.floor(u), v - np.floor(v)
    low = bias[:, j, i] * (1 - u) + bias[:, j, (i + 1) % n] * u
    high = bias[:, (j + 1) % n, i] * (1 - u) + bias[:, (j + 1) % n, (i + 1) % n] * u
    between: FloatArray = low * (1 - v) + high * v
    return between
