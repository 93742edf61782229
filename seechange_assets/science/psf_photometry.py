"""PSF fluxes and positions by linear and Gauss-Newton fits, many sources at once.

The flux of a source is that of the whole star (`Psf.enclosed`), whatever the size of the stamp it is fitted on.
Pixels of infinite or non-finite variance or value take no part; where less than a quarter of the
PSF's weight (``sum psf²``) is left, nothing is measured.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from seechange_assets.products import Psf
from seechange_assets.science.psf import enclosed_at, native_size, raw_stamps

MIN_WEIGHT_FRACTION = 0.25
# Sources rendered at a time: bounds the memory, changes no result.
CHUNK = 1024
# The fit of a position: a step below this share of its error, or this many pixels, ends it; a walk beyond this many
# FWHM is a failure.
STEP_OF_ERROR, STEP_PX, MAX_WALK_FWHM, MAX_ITERATIONS = 0.02, 1e-4, 1.0, 20
DERIVATIVE_STEP_PX = 0.05

FloatArray = NDArray[np.float64]


class FluxFit(NamedTuple):
    """Flux and its error in the unit of the data, reduced chi2; each ``(n,)``, NaN where not measured."""

    flux: FloatArray
    flux_err: FloatArray
    chi2: FloatArray


class PositionFit(NamedTuple):
    """Flux, position [pixel], their errors, covariance of x and y [pixel²], reduced chi2; each ``(n,)``.

    Where the position wandered off, flux and position are those at the start, and its errors are NaN.
    """

    flux: FloatArray
    flux_err: FloatArray
    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    xy_cov: FloatArray
    chi2: FloatArray


def fit_flux(
    data: NDArray[np.floating], variance: NDArray[np.floating], psf: Psf, x: ArrayLike, y: ArrayLike, size: int
) -> FluxFit:
    """Best PSF flux at fixed positions, each source by itself.

    Parameters
    ----------
    data, variance : ndarray, shape (ny, nx)
        Background-free pixels and their variance.
    psf : Psf
    x, y : array_like, shape (n,)
        Positions [pixel]; they may lie outside the image.
    size : int
        Odd side of the stamp that is fitted.

    Returns
    -------
    FluxFit
    """
    x, y = _positions(x, y)
    out = np.full((3, x.size), np.nan)
    for part in chunks(x.size):
        center = central_pixels(x[part], y[part])
        stamps = unit_stamps(psf, x[part], y[part], size, center)
        pixels, weights = gather(data, variance, *center, size)
        out[:, part] = fit_stamps(stamps, pixels, weights)
    return FluxFit(*out)


def fit_position_and_flux(
    data: NDArray[np.floating], variance: NDArray[np.floating], psf: Psf, x: ArrayLike, y: ArrayLike, size: int
) -> PositionFit:
    """Best PSF flux and position of each source by itself, Gauss-Newton from the given positions.

    Parameters are those of `fit_flux`. Sources of negative flux are fitted alike.

    Returns
    -------
    PositionFit
    """
    x, y = _positions(x, y)
    out = np.full((8, x.size), np.nan)
    for part in chunks(x.size):
        out[:, part] = _fit_chunk(data, variance, psf, x[part], y[part], size)
    return PositionFit(*out)


def unit_stamps(psf: Psf, x: FloatArray, y: FloatArray, size: int, center: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Stamps around `center`, scaled so that the whole star, not the stamp, has sum 1."""
    whole = native_size(psf)
    full = raw_stamps(psf, x, y, max(size, whole), center=center)
    edge = (full.shape[-1] - size) // 2
    inside = full[:, edge : edge + size, edge : edge + size] if edge else full
    total: FloatArray = full.sum(axis=(1, 2), keepdims=True)
    return inside * (enclosed_at(psf, x, y)[:, None, None] / total)


def gather(
    data: NDArray[np.floating], variance: NDArray[np.floating], center_x: FloatArray, center_y: FloatArray, size: int
) -> tuple[FloatArray, FloatArray]:
    """Stamps ``(n, size, size)`` of the pixels and their inverse variance, zero where nothing is known."""
    columns, rows = center_x.astype(np.int64), center_y.astype(np.int64)
    stamps: tuple[FloatArray, FloatArray] = _gather(data, variance, columns, rows, size)
    return stamps


def _positions(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y are lists of the same length, got shapes {x.shape} and {y.shape}")
    return x, y


def chunks(n: int) -> list[slice]:
    """Slices that cover ``n`` sources, as many at a time as are rendered together."""
    return [slice(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]


def central_pixels(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Column and row of the pixel that each position lies in."""
    return np.floor(x + 0.5), np.floor(y + 0.5)


def fit_stamps(stamps: FloatArray, pixels: FloatArray, weights: FloatArray) -> FloatArray:
    """Rows flux, flux_err, chi2 (as in `FluxFit`) of ``pixels = flux * stamp``; all of shape ``(n, size, size)``.

    `stamps` are those of `unit_stamps`, `weights` the inverse variances of the pixels, zero where one takes no part.
    """
    information = np.einsum("nij,nij,nij->n", weights, stamps, stamps)
    enough = _weight_fraction(stamps, weights) >= MIN_WEIGHT_FRACTION
    information = np.where(enough & (information > 0), information, np.nan)
    flux = np.einsum("nij,nij,nij->n", weights, stamps, pixels) / information
    return np.stack([flux, 1.0 / np.sqrt(information), _reduced_chi2(flux, stamps, pixels, weights, 1)])


def _weight_fraction(stamps: FloatArray, weights: FloatArray) -> FloatArray:
    """Share of ``sum psf²`` that falls on usable pixels."""
    squares = stamps**2
    share: FloatArray = np.where(weights > 0, squares, 0.0).sum(axis=(1, 2)) / squares.sum(axis=(1, 2))
    return share


def _reduced_chi2(
    flux: FloatArray, stamps: FloatArray, pixels: FloatArray, weights: FloatArray, n_parameters: int
) -> FloatArray:
    residual = pixels - flux[:, None, None] * stamps
    freedom = (weights > 0).sum(axis=(1, 2)) - n_parameters
    chi2: FloatArray = np.einsum("nij,nij,nij->n", weights, residual, residual) / np.maximum(freedom, 1)
    return chi2


def _fit_chunk(
    data: NDArray[np.floating], variance: NDArray[np.floating], psf: Psf, x: FloatArray, y: FloatArray, size: int
) -> FloatArray:
    """Rows of `PositionFit`. The stamps of pixels stay where they are while the PSF moves over them."""
    center = central_pixels(x, y)
    pixels, weights = gather(data, variance, *center, size)
    fit_x, fit_y = x.copy(), y.copy()
    moving = np.isfinite(fit_stamps(unit_stamps(psf, x, y, size, center), pixels, weights)[0])
    settled = np.zeros(x.size, bool)
    for _ in range(MAX_ITERATIONS):
        now = np.flatnonzero(moving & ~settled)
        if now.size == 0:
            break
        place = (center[0][now], center[1][now])
        step, covariance = _newton_step(psf, fit_x[now], fit_y[now], place, pixels[now], weights[now])
        # Long steps leave the range in which the PSF is nearly linear.
        length = np.hypot(step[:, 0], step[:, 1])
        step *= (np.minimum(1.0, 0.3 * psf.fwhm_px / np.maximum(length, 1e-12)))[:, None]
        fit_x[now] += step[:, 0]
        fit_y[now] += step[:, 1]
        error = np.sqrt(np.nan_to_num(covariance[:, 1, 1] + covariance[:, 2, 2]))
        settled[now] = length < np.maximum(STEP_OF_ERROR * error, STEP_PX)
        moving[now] = np.hypot(fit_x[now] - x[now], fit_y[now] - y[now]) < MAX_WALK_FWHM * psf.fwhm_px
    good = moving & settled
    fit_x, fit_y = np.where(good, fit_x, x), np.where(good, fit_y, y)
    _, covariance = _newton_step(psf, fit_x, fit_y, center, pixels, weights)
    stamps = unit_stamps(psf, fit_x, fit_y, size, center)
    flux, flux_err, _ = fit_stamps(stamps, pixels, weights)
    chi2 = _reduced_chi2(flux, stamps, pixels, weights, 3)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.stack([covariance[:, 1, 1], covariance[:, 2, 2]]))
        flux_err = np.where(good, np.sqrt(covariance[:, 0, 0]), flux_err)
    errors, xy = np.where(good, errors, np.nan), np.where(good, covariance[:, 1, 2], np.nan)
    return np.stack([flux, flux_err, fit_x, fit_y, *errors, xy, chi2])


def _newton_step(
    psf: Psf,
    x: FloatArray,
    y: FloatArray,
    center: tuple[FloatArray, FloatArray],
    pixels: FloatArray,
    weights: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Steps (dx, dy) of shape (n, 2), and covariances (n, 3, 3) of flux, x, y; zeros and NaN where singular."""
    size, h = pixels.shape[-1], DERIVATIVE_STEP_PX
    stamps = unit_stamps(psf, x, y, size, center)
    along_x = unit_stamps(psf, x + h, y, size, center) - unit_stamps(psf, x - h, y, size, center)
    along_y = unit_stamps(psf, x, y + h, size, center) - unit_stamps(psf, x, y - h, size, center)
    flux = np.nan_to_num(fit_stamps(stamps, pixels, weights)[0])
    scale = (flux / (2.0 * h))[:, None, None]
    basis = np.stack([stamps, scale * along_x, scale * along_y], axis=1).reshape(len(x), 3, -1)
    weighted = basis * weights.reshape(len(x), 1, -1)
    normal = weighted @ basis.transpose(0, 2, 1)
    residual = (pixels - flux[:, None, None] * stamps).reshape(len(x), -1, 1)
    # Unit diagonal: the size of the numbers then says nothing, only their correlation does.
    diagonal = np.sqrt(np.einsum("nii->ni", normal))
    usable = (diagonal > 0).all(axis=1)
    diagonal = np.where(usable[:, None], diagonal, 1.0)
    correlation = normal / (diagonal[:, :, None] * diagonal[:, None, :])
    usable &= np.linalg.det(np.where(usable[:, None, None], correlation, np.eye(3))) > 1e-9
    inverse = np.linalg.inv(np.where(usable[:, None, None], correlation, np.eye(3)))
    covariance = inverse / (diagonal[:, :, None] * diagonal[:, None, :])
    step = (covariance @ (weighted @ residual))[:, 1:, 0]
    return np.where(usable[:, None], step, 0.0), np.where(usable[:, None, None], covariance, np.nan)


@numba.njit(cache=True)
def _gather(data, variance, center_x, center_y, size):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    n, half = center_x.size, size // 2
    pixels = np.zeros((n, size, size))
    weights = np.zeros((n, size, size))
    for s in range(n):
        for j in range(size):
            row = center_y[s] + j - half
            if row < 0 or row >= ny:
                continue
            for i in range(size):
                column = center_x[s] + i - half
                if column < 0 or column >= nx:
                    continue
                value, noise = data[row, column], variance[row, column]
                if np.isfinite(value) and np.isfinite(noise) and noise > 0:
                    pixels[s, j, i] = value
                    weights[s, j, i] = 1.0 / noise
    return pixels, weights
