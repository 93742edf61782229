"""Flux and position of point sources by least squares, many at once.

Gauss-Newton on ``flux * psf(x, y)`` with derivatives of the PSF by central differences; the
linearised errors are those of Bevington & Robinson (2003), eq. 8.29 (inverse curvature matrix).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf
from seechange_assets.science.psf import raw_stamps

FloatArray = NDArray[np.float64]
_STEP_PX = 0.05  # of the numerical derivative
_MAX_MOVE_PX = 0.5  # per iteration


@dataclass(frozen=True, slots=True)
class PointFit:
    """Fitted values, each ``(n,)``: flux [ADU], position [pixel], their errors, reduced chi^2.

    NaN where too few pixels are known or the normal equations are singular.
    """

    flux: FloatArray
    flux_err: FloatArray
    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    xy_cov: FloatArray
    chi2: FloatArray


def fit_position_and_flux(
    data: NDArray[np.float32],
    variance: NDArray[np.float32],
    psf: Psf,
    x: FloatArray,
    y: FloatArray,
    size: int,
    *,
    n_iterations: int = 6,
) -> PointFit:
    """Fit flux and position of isolated point sources.

    Parameters
    ----------
    data, variance : ndarray, shape (ny, nx)
        Background-free image and its variance; infinite or non-finite values are left out.
    psf : Psf
    x, y : ndarray, shape (n,)
        First guess [pixel]; the fit stays within one FWHM (at least 2 px) of it.
    size : int
        Odd side of the fitted stamps.
    n_iterations : int
        Fixed, so that the result does not depend on the company of a source.
    """
    center_x, center_y = np.floor(x + 0.5), np.floor(y + 0.5)
    pixels, weight = _cut(data, variance, center_x, center_y, size)
    reach = max(2.0, psf.fwhm_px)
    px, py = np.array(x, float), np.array(y, float)
    for _ in range(n_iterations):
        flux, dx, dy, _ = _solve(pixels, weight, psf, px, py, center_x, center_y, size)
        px = np.clip(px + np.clip(dx, -_MAX_MOVE_PX, _MAX_MOVE_PX), x - reach, x + reach)
        py = np.clip(py + np.clip(dy, -_MAX_MOVE_PX, _MAX_MOVE_PX), y - reach, y + reach)
    flux, _, _, covariance = _solve(pixels, weight, psf, px, py, center_x, center_y, size)
    model = flux[:, None] * raw_stamps(psf, px, py, size, center_x, center_y).reshape(pixels.shape)
    degrees = np.maximum((weight > 0).sum(axis=1) - 3, 1)
    chi2 = (weight * (pixels - model) ** 2).sum(axis=1) / degrees
    failed = ~np.isfinite(flux)
    for values in (px, py, chi2):
        values[failed] = np.nan
    error = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return PointFit(flux, error[:, 0], px, py, error[:, 1], error[:, 2], covariance[:, 1, 2], chi2)


def _cut(data, variance, center_x, center_y, size):  # type: ignore[no-untyped-def]
    """Pixels and weights ``(n, size^2)`` float64, both 0 where nothing is known."""
    ny, nx = data.shape
    offset = np.arange(size) - size // 2
    rows = (center_y.astype(np.int64)[:, None] + offset)[:, :, None]
    columns = (center_x.astype(np.int64)[:, None] + offset)[:, None, :]
    inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    index = np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)
    pixels, noise = data[index].astype(float), variance[index].astype(float)
    known = inside & np.isfinite(pixels) & np.isfinite(noise) & (noise > 0)
    weight = np.where(known, 1 / np.where(known, noise, 1.0), 0.0)
    return np.where(known, pixels, 0.0).reshape(len(pixels), -1), weight.reshape(len(pixels), -1)


def _solve(pixels, weight, psf, x, y, center_x, center_y, size):  # type: ignore[no-untyped-def]
    """Flux, step of the position, covariance of (flux, x, y) at the given positions."""
    place, h = (size, center_x, center_y), _STEP_PX
    slope_x = (raw_stamps(psf, x + h, y, *place) - raw_stamps(psf, x - h, y, *place)) / (2 * h)
    slope_y = (raw_stamps(psf, x, y + h, *place) - raw_stamps(psf, x, y - h, *place)) / (2 * h)
    design = np.stack([raw_stamps(psf, x, y, *place), slope_x, slope_y], axis=1).reshape(len(x), 3, -1)
    normal = np.einsum("nip,np,njp->nij", design, weight, design, optimize=True)
    right = np.einsum("nip,np,np->ni", design, weight, pixels, optimize=True)
    # Scaled to a unit diagonal; a source without known pixels gets the unit matrix and NaN after.
    scale = np.sqrt(np.diagonal(normal, axis1=1, axis2=2))
    scaled = normal / np.where(scale > 0, scale, 1.0)[:, :, None] / np.where(scale > 0, scale, 1.0)[:, None, :]
    valid = (scale > 0).all(axis=1) & (np.linalg.det(scaled) > 1e-4)
    scaled[~valid] = np.eye(3)
    scale = np.where(valid[:, None], scale, np.nan)
    inverse = np.linalg.inv(scaled) / scale[:, :, None] / scale[:, None, :]
    solution = (inverse @ right[:, :, None])[:, :, 0]
    # The position's columns were fitted as flux * d(psf)/dx: divide by the flux of the fixed-position fit.
    fixed = right[:, 0] / np.where(normal[:, 0, 0] > 0, normal[:, 0, 0], np.nan)
    divisor = np.where(np.abs(fixed) > 1e-12, fixed, np.nan)
    covariance = inverse.copy()
    covariance[:, 1:, :] /= divisor[:, None, None]
    covariance[:, :, 1:] /= divisor[:, None, None]
    step = solution[:, 1:] / divisor[:, None]
    step = np.where(np.isfinite(step), step, 0.0)
    return solution[:, 0], step[:, 0], step[:, 1], covariance
