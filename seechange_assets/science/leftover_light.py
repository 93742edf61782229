"""What PSF photometry leaves around the stars and between them: light beyond the model, and the noise of a flux."""

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf
from seechange_assets.science.joint_photometry import Frame, JointPhotometry, core_information, core_light, core_spans
from seechange_assets.science.psf import native_size
from seechange_assets.science.psf_photometry import unit_stamps

# Light of a star beyond the table of a typical PSF, and its spread: Moffat profiles of beta 2.7 to 4 at 3 FWHM.
TYPICAL_LOSS, LOSS_SPREAD = 0.006, 0.004
# A ring this many times wider than the table shows that light; so much of it is in the ring for beta 3.
RING_RATIO, RING_SHARE = 1.5, 0.8
# Fewer stars than this agree by chance too often.
MIN_ENCLOSED_STARS = 15
# Places that are looked at for the noise, at least this many FWHM from every source; fewer places tell nothing.
BLANK_PLACES, BLANK_DISTANCE_FWHM, MIN_BLANK_PLACES = 4000, 2.5, 100

FloatArray = NDArray[np.float64]


def blank_noise(fit: JointPhotometry, psf: Psf, frame: Frame, x: FloatArray, y: FloatArray) -> float:
    """Scatter of the PSF flux on blank sky in units of what the noise of single pixels gives.

    Above 1 where sources too faint to be found (confusion) or correlated pixels add to the noise: the clipped scatter
    of fluxes on a grid of places away from all sources. 1 where there are too few such places.
    """
    from scipy.spatial import cKDTree

    ny, nx = frame.data.shape
    step = max(float(np.sqrt(nx * ny / BLANK_PLACES)), 2.0 * psf.fwhm_px)
    grid_x, grid_y = (
        axis.ravel() for axis in np.meshgrid(np.arange(step, nx - step, step), np.arange(step, ny - step, step))
    )
    if x.size and grid_x.size:
        distance, _ = cKDTree(np.stack([x, y], axis=1)).query(np.stack([grid_x, grid_y], axis=1))
        blank = distance > BLANK_DISTANCE_FWHM * psf.fwhm_px
        grid_x, grid_y = grid_x[blank], grid_y[blank]
    size = native_size(psf)
    middle = np.array([np.floor(nx / 2.0)]), np.array([np.floor(ny / 2.0)])
    stamp = unit_stamps(psf, *middle, size, middle)[0].astype(np.float32)
    low_x, low_y = (np.floor(axis).astype(np.int64) - size // 2 for axis in (grid_x, grid_y))
    pulls = _pulls(fit.residual, frame.weight, stamp, low_x, low_y, core_spans(psf))
    pulls = pulls[np.isfinite(pulls)]
    for _ in range(10):
        if pulls.size < MIN_BLANK_PLACES:
            return 1.0
        keep = np.abs(pulls - np.median(pulls)) < 4.0 * pulls.std()
        if keep.all():
            break
        pulls = pulls[keep]
    return float(pulls.std())


def enclosed_light(
    fit: JointPhotometry, frame: Frame, x: FloatArray, y: FloatArray, stars: NDArray[np.intp]
) -> tuple[float, float]:
    """Share of a star's light that the model's table holds and its error, from what is left around the stars.

    Model and neighbours taken out, the light left around a star grows with its flux; what undetected sources and
    the sky add does not. The slope within the table's radius corrects the model's own wings, the slope in a ring
    around it is the light outside; both are drawn to what is typical as far as they are uncertain.
    """
    stars = stars[np.isfinite(fit.flux[stars]) & (fit.flux[stars] > 0)]
    radius_px = fit.stamps.shape[-1] / 2.0
    radii = (0.0, radius_px, RING_RATIO * radius_px)
    left, variance = _light_left(
        fit.residual, frame.data, frame.rms, frame.usable, frame.gain, x[stars], y[stars], np.array(radii)
    )
    known = np.isfinite(left).all(axis=0)
    if known.sum() < MIN_ENCLOSED_STARS:
        return 1.0, LOSS_SPREAD
    flux = fit.flux[stars][known].astype(np.float64)
    inside, inside_error = _drawn(*_robust_slope(flux, left[0, known], variance[0, known]), 0.0)
    ring, ring_error = (value / RING_SHARE for value in _robust_slope(flux, left[1, known], variance[1, known]))
    outside, outside_error = _drawn(ring, ring_error, TYPICAL_LOSS)
    return float(1.0 / (1.0 + inside + outside)), float(np.hypot(inside_error, outside_error))


def _drawn(value: float, error: float, expected: float) -> tuple[float, float]:
    """A measured share of light and its error, drawn to what is expected as far as it is uncertain."""
    trust = 1.0 / (1.0 + (error / LOSS_SPREAD) ** 2)
    return trust * value + (1.0 - trust) * expected, float(np.sqrt(1.0 - trust)) * LOSS_SPREAD


def _robust_slope(x: FloatArray, y: FloatArray, variance: FloatArray) -> tuple[float, float]:
    """Slope of ``y = a + b x`` and its error; scatter beyond the variances counts as noise of every y."""
    design = np.stack([np.ones_like(x), x / x.max()], axis=1)
    used, total = np.ones(x.size, bool), variance.copy()
    for _ in range(10):
        weight = used / total
        covariance = np.linalg.pinv(design.T @ (weight[:, None] * design))
        line = covariance @ (design.T @ (weight * y))
        residual = y - design @ line
        spread = 1.4826 * float(np.median(np.abs(residual[used])))
        total = variance + max(spread**2 - float(np.median(variance[used])), 0.0)
        keep = residual**2 <= 9.0 * total
        if np.array_equal(keep, used) or keep.sum() < 3:
            break
        used = keep
    return float(line[1] / x.max()), float(np.sqrt(covariance[1, 1]) / x.max())


@numba.njit(cache=True)
def _light_left(residual, data, rms, usable, gain, x, y, radii):  # type: ignore[no-untyped-def]
    """Sums of the residual in rings and their variances; NaN where the border or a flag cuts one."""
    ny, nx = residual.shape
    n_rings = radii.size - 1
    out, variance = np.full((n_rings, x.size), np.nan), np.full((n_rings, x.size), np.nan)
    reach = int(np.ceil(radii[-1]))
    for s in range(x.size):
        cx, cy = int(np.floor(x[s] + 0.5)), int(np.floor(y[s] + 0.5))
        if cx - reach < 0 or cy - reach < 0 or cx + reach >= nx or cy + reach >= ny:
            continue
        area, known, total, noise = np.zeros(n_rings), np.zeros(n_rings), np.zeros(n_rings), np.zeros(n_rings)
        for row in range(cy - reach, cy + reach + 1):
            for column in range(cx - reach, cx + reach + 1):
                ring = np.searchsorted(radii, np.hypot(row - y[s], column - x[s]), side="right") - 1
                if ring >= n_rings:
                    continue
                area[ring] += 1
                if not usable[row, column]:
                    continue
                left = residual[row, column]
                known[ring] += 1
                total[ring] += left
                noise[ring] += float(rms[row, column]) ** 2 + max(data[row, column] - left, 0.0) / gain
        for ring in range(n_rings):
            if known[ring] >= 0.99 * area[ring]:
                out[ring, s], variance[ring, s] = total[ring] * area[ring] / known[ring], noise[ring]
    return out, variance


@numba.njit(cache=True)
def _pulls(residual, weight, stamp, low_x, low_y, spans):  # type: ignore[no-untyped-def]
    """PSF fluxes over their errors from the noise of the pixels; NaN where a flag is in the way."""
    pulls = np.full(low_x.size, np.nan)
    for s in range(low_x.size):
        information, share = core_information(weight, stamp, low_x[s], low_y[s], spans)
        if information > 0.0 and share > 0.99:
            pulls[s] = core_light(residual, weight, stamp, low_x[s], low_y[s], spans) / np.sqrt(information)
    return pulls
