"""What tells a transient from an artefact, for many detections at once.

Most tests compare how well other shapes than a point source explain the difference, and need no
new fits: the score image already holds the matched-filter response at every pixel, and two
responses are correlated by the PSF's autocorrelation. Only what is sharper than the PSF is looked
for in the pixels themselves. All stamps are ``(n, s, s)``, odd, centred on the detection's pixel,
with the sign of the detection taken out (the source is positive), and 0 where nothing is known.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf
from seechange_assets.science.psf import raw_stamps

FloatArray = NDArray[np.float64]

# A second lobe of less significance (gain in chi^2, some 20 independent places searched) is noise.
DIPOLE_MIN_CHI2 = 16.0
DIPOLE_REACH_FWHM = (0.6, 2.0)
TRAIL_LENGTHS_FWHM = (1.5, 3.0, 6.0)
TRAIL_ANGLES = 16
NEIGHBOUR_EXCESS = 3.0
# The Gaussian weight of the moments is this much wider than the PSF.
MOMENT_WEIGHT_FWHM = 1.2
PSF_MARGIN = 1.1
# Shapes of a cosmic ray around a pixel: (dy, dx) of its pixels.
COSMIC_RAY_SHAPES = (
    ((0, 0),),
    ((0, 0), (0, 1)),
    ((0, 0), (1, 0)),
    ((0, 0), (1, 1)),
    ((0, 0), (1, -1)),
    ((0, -1), (0, 0), (0, 1)),
    ((-1, 0), (0, 0), (1, 0)),
    ((-1, -1), (0, 0), (1, 1)),
    ((-1, 1), (0, 0), (1, -1)),
)


@dataclass(frozen=True, slots=True)
class Response:
    """Matched-filter responses of a PSF, ``(size, size)`` around the peak.

    ``correlation`` is the correlation coefficient of the noise of the score at two pixels, and at
    the same time the score around a source centred on a pixel, for a peak of 1; ``source`` is
    ``(n, size, size)``, the same for each source at its sub-pixel position, 1 on the central pixel.
    """

    correlation: FloatArray
    source: FloatArray


def matched_filter_response(psf: Psf, x: FloatArray, y: FloatArray, size: int) -> Response:
    """Response of the matched filter to point sources at (x, y); the PSF is that of each position."""
    from scipy.signal import fftconvolve

    reach = size // 2 + int(np.ceil(2 * psf.fwhm_px))
    template = raw_stamps(psf, np.floor(x + 0.5), np.floor(y + 0.5), 2 * reach + 1)
    shifted = raw_stamps(psf, x, y, 2 * reach + 1)
    cut = slice(reach - size // 2, reach + size // 2 + 1)
    if len(shifted) == 0:
        return Response(np.ones((size, size)), np.ones((0, size, size)))
    source = fftconvolve(shifted, template[:, ::-1, ::-1], mode="same", axes=(1, 2))[:, cut, cut]
    middle = template.mean(axis=0)
    correlation = fftconvolve(middle, middle[::-1, ::-1], mode="same")[cut, cut]
    center = size // 2
    return Response(correlation / correlation[center, center], source / source[:, center, center, None, None])


def dipole_scores(score: FloatArray, response: Response, fwhm_px: float) -> FloatArray:
    """Flux ratio (0 … 1) of the best negative neighbour to the detection; 0 if it is not significant.

    A point source predicts the score at every pixel around it. Where the rest, in units of its
    noise, is most negative within reach, two sources of opposite sign are solved for (2x2 least squares).
    """
    half = score.shape[-1] // 2
    distance = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]) / fwhm_px
    inside = (distance >= DIPOLE_REACH_FWHM[0]) & (distance <= DIPOLE_REACH_FWHM[1])
    rho = response.correlation[inside]
    peak = score[:, half, half][:, None]
    value = score[:, inside]
    rest = value - peak * response.source[:, inside]
    free = np.maximum(1 - rho**2, 0.05)
    gain = np.where(rest < 0, rest**2 / free, 0.0)
    best = gain.argmax(axis=1)
    row = np.arange(len(best))
    negative = -rest[row, best]
    positive = np.maximum(peak[:, 0] - rho[best] * value[row, best], 1e-6)
    ratio = np.minimum(negative / positive, positive / np.maximum(negative, 1e-6))
    return np.where(gain[row, best] > DIPOLE_MIN_CHI2, np.clip(ratio, 0.0, 1.0), 0.0)


def trail_scores(score: FloatArray, response: Response, fwhm_px: float) -> FloatArray:
    """How much better a trail explains the difference than a point: ``1 - (S_point / S_trail)^2``, at least 0.

    The matched filter of a trail is the mean of the PSF's along it; its noise follows from the correlation.
    """
    templates = _trail_templates(score.shape[-1], fwhm_px)
    noise = np.sqrt(np.einsum("tp,pq,tq->t", templates, _covariance(response.correlation), templates, optimize=True))
    half = score.shape[-1] // 2
    point = score[:, half, half]
    # What is clearly brighter than the detection is a neighbour's, not the rest of a trail.
    own = np.where(score <= point[:, None, None] + NEIGHBOUR_EXCESS, score, 0.0)
    trail = (own.reshape(len(score), score.shape[-1] ** 2) @ templates.T / noise).max(axis=1)
    return np.where(trail > point, 1 - (point / np.maximum(trail, 1e-6)) ** 2, 0.0)


def _trail_templates(size: int, fwhm_px: float) -> FloatArray:
    """Pixels on lines through the centre, ``(n_templates, size^2)``, each with sum 1."""
    half = size // 2
    templates = []
    for length in TRAIL_LENGTHS_FWHM:
        reach = min(length * fwhm_px / 2, half)
        step = np.linspace(-reach, reach, 4 * int(np.ceil(reach)) + 1)
        for angle in np.pi * np.arange(TRAIL_ANGLES) / TRAIL_ANGLES:
            line = np.zeros((size, size))
            line[np.rint(step * np.sin(angle)).astype(int) + half, np.rint(step * np.cos(angle)).astype(int) + half] = 1
            templates.append(line.ravel() / line.sum())
    return np.array(templates)


def _covariance(correlation: FloatArray) -> FloatArray:
    """Covariance of the score at all pairs of pixels of a stamp, ``(size^2, size^2)``."""
    size = correlation.shape[0]
    padded = np.pad(correlation, size // 2)
    row, column = (index.ravel() for index in np.indices((size, size)))
    covariance: FloatArray = padded[row[:, None] - row + size - 1, column[:, None] - column + size - 1]
    return covariance


def cosmic_ray_scores(pixel_snr: FloatArray, point_snr: FloatArray) -> FloatArray:
    """By how many sigma one to three pixels in a row explain the difference better than the PSF.

    ``sqrt(S_ray^2 - 1.1 S_point^2)``, the root of the gain in chi^2 with one flux fitted to either; 0 if
    none. The factor leaves room for an imperfect PSF, or any bright undersampled star would show a gain.

    Parameters
    ----------
    pixel_snr : ndarray, shape (n, s, s)
        Difference over its noise.
    point_snr : ndarray, shape (n,)
        S/N of the PSF fit.
    """
    half = pixel_snr.shape[-1] // 2
    best = np.zeros(len(pixel_snr))
    for shape in COSMIC_RAY_SHAPES:
        total = np.zeros((len(pixel_snr), 3, 3))
        for dy, dx in shape:
            total += pixel_snr[:, half - 1 + dy : half + 2 + dy, half - 1 + dx : half + 2 + dx]
        best = np.maximum(best, total.max(axis=(1, 2)) / np.sqrt(len(shape)))
    return np.sqrt(np.maximum(best**2 - PSF_MARGIN * point_snr**2, 0.0))


def negative_fractions(score: FloatArray, n_sigma: float) -> tuple[FloatArray, FloatArray]:
    """Pixels below ``-n_sigma`` over those above, by number and by sum; infinite without any above.

    Taken on the matched-filtered image: on single pixels, noise alone would fill the box of a faint
    source with as many negative outliers as it has positive pixels.
    """
    below, above = score < -n_sigma, score > n_sigma
    axes = (1, 2)
    n_below, n_above = below.sum(axis=axes), above.sum(axis=axes)
    sum_below, sum_above = -(score * below).sum(axis=axes), (score * above).sum(axis=axes)
    has_any = n_above > 0
    return (
        np.where(has_any, n_below / np.maximum(n_above, 1), np.inf),
        np.where(has_any, sum_below / np.maximum(sum_above, 1e-30), np.inf),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """Second moments of each detection: centroid relative to the stamp's centre, FWHM and elongation.

    ``position_angle_deg`` is the angle of the major axis from +x towards +y, in (-90, 90].
    """

    dx: FloatArray
    dy: FloatArray
    fwhm_px: FloatArray
    elongation: FloatArray
    position_angle_deg: FloatArray


def moments(
    signal: FloatArray, variance: FloatArray, dx: FloatArray, dy: FloatArray, fwhm_px: float, *, n_iterations: int = 3
) -> Shape:
    """Gaussian-weighted second moments, the weight's own narrowing taken out.

    For a Gaussian source of covariance C under a Gaussian weight W the weighted covariance M obeys
    ``M^-1 = C^-1 + W^-1`` (Bernstein & Jarvis 2002, AJ 123, 583, sec. 3). The weight is fixed to 1.2 FWHM
    of the PSF: an adaptive one runs away on the noise of a source of S/N 5. Noise makes faint sources
    look elongated, so the anisotropy is shrunk by its own signal-to-noise (1 at high S/N, 0 in pure noise).

    Parameters
    ----------
    signal, variance : ndarray, shape (n, s, s)
    dx, dy : ndarray, shape (n,)
        First guess of the centroid relative to the central pixel.
    fwhm_px : float
        FWHM of the PSF.
    """
    half = signal.shape[-1] // 2
    grid = np.arange(-half, half + 1, dtype=np.float64)
    width = (MOMENT_WEIGHT_FWHM * fwhm_px / np.sqrt(8 * np.log(2))) ** 2
    start_x, start_y = np.clip(dx, -half, half), np.clip(dy, -half, half)
    dx, dy = start_x.copy(), start_y.copy()
    for _ in range(n_iterations):
        u, v = grid[None, None, :] - dx[:, None, None], grid[None, :, None] - dy[:, None, None]
        weight = signal * np.exp(-(u**2 + v**2) / (2 * width))
        total = weight.sum(axis=(1, 2))
        safe = np.where(total > 0, total, np.inf)
        # Under the weight the centroid moves by half of what a point source is off, hence twice the step.
        dx = np.clip(dx + 2 * (weight * u).sum(axis=(1, 2)) / safe, start_x - fwhm_px, start_x + fwhm_px)
        dy = np.clip(dy + 2 * (weight * v).sum(axis=(1, 2)) / safe, start_y - fwhm_px, start_y + fwhm_px)
    u, v = grid[None, None, :] - dx[:, None, None], grid[None, :, None] - dy[:, None, None]
    kernel = np.exp(-(u**2 + v**2) / (2 * width))
    total = (signal * kernel).sum(axis=(1, 2))
    safe = np.where(total > 0, total, np.nan)
    xx, yy, xy = ((signal * kernel * p).sum(axis=(1, 2)) / safe for p in (u * u, v * v, u * v))
    e1_variance, e2_variance = (
        (variance * (kernel * p) ** 2).sum(axis=(1, 2)) / safe**2 for p in (u * u - v * v, 2 * u * v)
    )
    return _shape(dx, dy, xx, yy, xy, (e1_variance + e2_variance) / 2, width)


def _shape(dx, dy, xx, yy, xy, anisotropy_variance, width) -> Shape:  # type: ignore[no-untyped-def]
    spread = np.hypot(xx - yy, 2 * xy) / 2
    # Rice bias: in pure noise |(xx - yy, 2 xy)|^2 averages to twice the variance of a component.
    shrink = np.sqrt(np.maximum(1 - anisotropy_variance * 2 / np.maximum(4 * spread**2, 1e-30), 0.0))
    mean = (xx + yy) / 2
    axes = []
    for weighted in (mean + shrink * spread, mean - shrink * spread):
        clipped = np.clip(weighted, 0.02 * width, 0.95 * width)  # beyond: no information left under the weight
        axes.append(1 / (1 / clipped - 1 / width))
    major, minor = axes
    angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2
    fwhm = np.sqrt(8 * np.log(2)) * (major * minor) ** 0.25
    return Shape(dx, dy, fwhm, np.sqrt(major / minor), np.where(angle <= -90, angle + 180, angle))
