"""The noise a subtraction really has: a score of unit noise, flux errors, and the noise per pixel."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import Background, Flag, FlagImage, FloatImage
from seechange_assets.science.background import rms_map
from seechange_assets.science.matching_kernel import ImagePair
from seechange_assets.science.zogy import Subtraction

SAMPLING = 4  # every fourth pixel per axis is enough for a robust scatter, and nearly independent
SKY_BOX_PX = 64 * SAMPLING
_NORM_BOX_PX = 128 * SAMPLING
_MIN_SAMPLES = 100


def calibrated(
    raw: Subtraction, pair: ImagePair, flags: FlagImage, registration_px: float, error: float, enclosed: float
) -> dict[str, FloatImage]:
    """Score with unit noise on blank sky, fluxes of whole stars, and the noise per pixel.

    Theory gives the noise for white input; frames that were resampled before are not white, and a measured rms may be
    wrong, so the scatter on blank sky, box by box, corrects the variance of the sky. The photon noise of sources
    follows from the gain and stays as it is: resampling correlates it, and adds up to the same in a flux. The noise
    per pixel takes the same correction: it is the noise on the scale of the PSF, so photometry that treats pixels as
    independent gets the right errors.

    Parameters
    ----------
    raw : Subtraction
        Its arrays are used up.
    pair : ImagePair
        The images that were subtracted; its variances are used up.
    flags : ndarray of uint16, shape (ny, nx)
        Those of the difference.
    registration_px : float
        Error of the registration per axis [pixel].
    error : float
        Relative error of the PSF models on static sources.
    enclosed : float
        Share of a star's light that its PSF holds.

    Returns
    -------
    dict of str to ndarray of float32
        ``data, noise, score, flux, flux_err``; NaN where the reference does not reach.
    """
    _level_blank_sky(raw, flags)
    cut = np.s_[::SAMPLING, ::SAMPLING]
    blank = _blank_sky(raw, flags)
    sampled = raw.flux_variance[cut]
    white = np.asarray(raw.flux[cut] / np.sqrt(np.maximum(sampled, np.float32(1e-30))), np.float32)
    _, spread = mesh(white, blank, _NORM_BOX_PX // SAMPLING)
    factor = rendered(spread**2, flags.shape, _NORM_BOX_PX)
    noise = pair.new_variance
    noise += pair.reference_variance
    _correct_sky(noise, _typical(noise[cut], blank, flags.shape), factor)
    np.sqrt(noise, out=noise)
    _correct_sky(raw.flux_variance, _typical(sampled, blank, flags.shape), factor)
    score = _score(raw.flux, raw.flux_new, raw.flux_variance, np.float32(registration_px**2), np.float32(error**2))
    flux, sigma = raw.flux, raw.flux_variance
    flux /= np.float32(enclosed)
    sigma /= np.float32(enclosed)
    maps = {"data": raw.difference, "noise": noise, "score": score, "flux": flux, "flux_err": sigma}
    unknown = (flags & np.uint16(Flag.OUT_OF_BOUNDS)) != 0
    for array in maps.values():
        array[unknown] = np.nan
    return maps


def _typical(sampled: FloatImage, blank: NDArray[np.bool_], shape: tuple[int, int]) -> FloatImage:
    """What a variance is on blank sky, at every pixel."""
    return rendered(mesh(sampled, blank, _NORM_BOX_PX // SAMPLING)[0], shape, _NORM_BOX_PX)


@njit(cache=True)
def _correct_sky(variance, sky, factor):  # type: ignore[no-untyped-def]
    """Multiply, in place, the part of a variance that is not above the sky's."""
    ny, nx = variance.shape
    for y in range(ny):
        for x in range(nx):
            part = min(variance[y, x], sky[y, x])
            variance[y, x] += (factor[y, x] - np.float32(1)) * part


def _blank_sky(raw: Subtraction, flags: FlagImage) -> NDArray[np.bool_]:
    """Sampled pixels on which both images together show no source of 3 sigma, and the difference none of 5.

    A limit on either image would cut off the noise of the difference where faint sources lie just below it, and make
    the rest look too quiet. The mean of both that shares no noise with the difference tells nothing about that.
    """
    cut = np.s_[::SAMPLING, ::SAMPLING]
    flux, sigma = raw.flux[cut], np.sqrt(np.maximum(raw.flux_variance[cut], 0))
    sky = (flags[cut] == 0) & (np.abs(flux) < 5 * sigma)
    new = raw.flux_new[cut]
    faint = sky & (new < 3 * sigma) & (new - flux < 3 * sigma)
    # Part of the difference's variance that is the new image's: S_N - share * S does not covary with S.
    share = float(np.clip(np.mean((new * flux)[faint]) / np.mean(np.square(flux[faint])), 0, 1)) if faint.any() else 0.5
    return np.asarray(sky & (new - np.float32(share) * flux < np.float32(3 * np.sqrt(share * (1 - share))) * sigma))


def _level_blank_sky(raw: Subtraction, flags: FlagImage) -> None:
    """Take out, in place, what sky is left: sources blur the first estimate, here they are known."""
    cut = np.s_[::SAMPLING, ::SAMPLING]
    blank = _blank_sky(raw, flags)
    for image in (raw.flux, raw.difference):
        center, _ = mesh(image[cut], blank, SKY_BOX_PX // SAMPLING)
        np.subtract(image, rendered(center, image.shape, SKY_BOX_PX), out=image)


def mesh(values: FloatImage, usable: NDArray[np.bool_], box: int) -> tuple[FloatImage, FloatImage]:
    """Median and robust sigma of boxes; boxes without data get the overall value."""
    ny, nx = values.shape
    shape = (-(-ny // box), -(-nx // box))
    center, sigma = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    for i, j in np.ndindex(shape):
        cut = np.s_[i * box : (i + 1) * box, j * box : (j + 1) * box]
        center[i, j], sigma[i, j] = _center_and_sigma(values[cut][usable[cut]])
    if np.isnan(center).any():
        overall = _center_and_sigma(values[usable])
        overall = overall if np.isfinite(overall[0]) else (0.0, 1.0)
        center[np.isnan(center)], sigma[np.isnan(sigma)] = overall
    return center, sigma


def _center_and_sigma(values: NDArray[np.float32]) -> tuple[float, float]:
    """Median and half the distance of the 15.87 and 84.13 percentiles; NaN for few values."""
    if values.size < _MIN_SAMPLES:
        return float("nan"), float("nan")
    low, middle, high = np.percentile(values, [15.87, 50, 84.13])
    return float(middle), float((high - low) / 2)


def rendered(mesh: FloatImage, shape: tuple[int, int], box: int) -> FloatImage:
    """A mesh interpolated bilinearly to all pixels."""
    return rms_map(Background(mesh, mesh, box, shape, 0.0, 0.0))


@njit(cache=True)
def _score(flux, flux_new, variance, registration, fraction):  # type: ignore[no-untyped-def]
    """Flux over its noise: photon noise, registration (eq. 33) and PSF error; `variance` turns into that noise.

    The last two follow the static sky, S_R = S_N - S, so they leave a new source its significance.
    """
    ny, nx = flux.shape
    score = np.empty_like(flux)
    half = np.float32(0.5)
    for y in range(ny):
        up, down = min(y + 1, ny - 1), max(y - 1, 0)
        for x in range(nx):
            right, left = min(x + 1, nx - 1), max(x - 1, 0)
            slope_x = half * (flux_new[y, right] - flux[y, right] - flux_new[y, left] + flux[y, left])
            slope_y = half * (flux_new[up, x] - flux[up, x] - flux_new[down, x] + flux[down, x])
            static = flux_new[y, x] - flux[y, x]
            # Rounding of the FFT may leave a tiny variance below zero beside a very bright star.
            total = max(variance[y, x], np.float32(1e-30))
            total += registration * (slope_x * slope_x + slope_y * slope_y) + fraction * static * static
            variance[y, x] = np.sqrt(total)
            score[y, x] = flux[y, x] / variance[y, x]
    return score
