"""Where the stars lie among the sizes of all sources: the seeing, and a star score.

All stars of an image have one size, up to a slow drift over the CCD; galaxies are larger, artefacts have any size.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.science.psf import polynomial_terms
from seechange_assets.science.shapes import FWHM_PER_SIGMA

# Sizes of galaxies beyond the stellar locus fall off exponentially with this scale in ln(size);
# artefacts of any size make up a small constant density.
GALAXY_SIZE_SCALE, ARTEFACT_DENSITY = 0.35, 0.05
# Between these S/N a source has a say in where the locus lies.
LOCUS_SNR, LOCUS_MIN_STARS = 20.0, 8
# How many sources tell the seeing at most, and how far the vote of each spreads in ln(size) at least.
MAX_VOTERS, MIN_VOTE_WIDTH = 1000, 0.03
# The locus is never narrower than this in ln(size); the second where too few stars tell its width.
MIN_LOCUS_SCATTER, UNKNOWN_LOCUS_SCATTER = 0.01, 0.03

FloatArray = NDArray[np.float64]


def stellar_size(log_size: FloatArray, snr: FloatArray, clean: NDArray[np.bool_]) -> float:
    """The most frequent ln(size), each source voting with its brightness.

    Every source spreads its vote over the error of its size. Bright sources count more (by the logarithm of
    their S/N), because among them stars prevail, while most faint ones are galaxies; blended ones count half. A plain
    mode of the same sizes follows any three galaxies that happen to agree where stars are few.

    Parameters
    ----------
    log_size, snr : ndarray, shape (n,)
        At least one source; those of the highest S/N are used.
    clean : ndarray of bool, shape (n,)
        Neither blended nor cut.
    """
    best = np.argsort(-snr, kind="stable")[:MAX_VOTERS]
    size, snr = log_size[best], snr[best]
    width = np.hypot(1.0 / snr, MIN_VOTE_WIDTH)
    vote = np.log(np.maximum(snr, 3.0)) * np.where(clean[best], 1.0, 0.5) / width
    density = np.exp(-0.5 * ((size[:, None] - size[None, :]) / width[None, :]) ** 2) @ vote
    return float(size[int(np.argmax(density))])


def profile_fwhm(
    data: NDArray[np.floating], x: FloatArray, y: FloatArray, sigma_px: FloatArray, masked: NDArray[np.bool_]
) -> tuple[float, float]:
    """FWHM and Moffat exponent of the mean profile of some stars.

    The pixels of all stars, divided by the sum under each star's Gaussian, make one radial
    profile that is sampled much finer than the pixels; a Moffat function is fitted to it.

    Returns
    -------
    tuple of float
        FWHM [pixel] and beta. NaNs if fewer than 20 pixels are left.
    """
    from scipy.optimize import least_squares

    radius, value = _profile(data, masked, x, y, sigma_px)
    keep = np.isfinite(value)
    if keep.sum() < 20:
        return float("nan"), float("nan")
    radius, value = radius[keep], value[keep]
    scale = float(np.median(sigma_px)) * FWHM_PER_SIGMA

    def residuals(p: FloatArray) -> FloatArray:
        alpha2 = (0.5 * scale * p[1]) ** 2 / (2.0 ** (1.0 / p[2]) - 1.0)
        misfit: FloatArray = p[0] * (1.0 + radius**2 / alpha2) ** -p[2] - value
        return misfit

    peak = float(np.percentile(value, 98))
    fit = least_squares(residuals, [peak, 1.0, 3.0], loss="soft_l1", f_scale=0.05 * peak,
                        bounds=([0.0, 0.3, 1.3], [np.inf, 3.0, 20.0]))  # fmt: skip
    return float(scale * fit.x[1]), float(fit.x[2])


@numba.njit(cache=True)
def _profile(data, masked, x, y, sigma):  # type: ignore[no-untyped-def]
    """Distance and normalised value of the pixels within three sigma of each star."""
    ny, nx = data.shape
    reach = 3.0 * np.max(sigma)
    side = 2 * int(np.ceil(reach)) + 1
    radius = np.full(x.size * side * side, np.nan)
    value = np.full(x.size * side * side, np.nan)
    at = 0
    for s in range(x.size):
        cx, cy = int(np.floor(x[s] + 0.5)), int(np.floor(y[s] + 0.5))
        first, total = at, 0.0
        for j in range(max(cy - side // 2, 0), min(cy + side // 2, ny - 1) + 1):
            for i in range(max(cx - side // 2, 0), min(cx + side // 2, nx - 1) + 1):
                r2 = (i - x[s]) ** 2 + (j - y[s]) ** 2
                if r2 > reach * reach or masked[j, i]:
                    continue
                total += data[j, i] * np.exp(-0.5 * r2 / sigma[s] ** 2)
                radius[at], value[at] = np.sqrt(r2), data[j, i]
                at += 1
        for k in range(first, at):
            value[k] = value[k] / total if total > 0.0 else np.nan
    return radius[:at], value[:at]


def star_scores(
    x: FloatArray, y: FloatArray, size: FloatArray, snr: FloatArray, clean: NDArray[np.bool_], shape: tuple[int, int]
) -> FloatArray:
    """Probability, 0 to 1, that a source of this size is a star, stars and galaxies being equally likely.

    The locus of the stars is a polynomial of the position fitted to the most frequent ln(size). Around it a star has a
    Gaussian error ``sqrt(1/snr² + scatter²)`` (1/snr is the Fisher error of the width of a Gaussian source
    with free flux); a galaxy has an exponential excess blurred by the same error. Faint sources therefore
    end near one half: nothing is known of them.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Positions [pixel].
    size : ndarray, shape (n,)
        Any measure of size; NaN gives score 0.
    snr : ndarray, shape (n,)
    clean : ndarray of bool, shape (n,)
        Sources fit to define the locus.
    shape : tuple of int
        ``(ny, nx)`` of the image.
    """
    from scipy.special import erfcx

    with np.errstate(divide="ignore", invalid="ignore"):
        log_size, measured = np.log(size), np.isfinite(size) & (size > 0) & (snr > 0)
    if not measured.any():
        return np.zeros(x.size)
    offset, scatter = _locus_offsets(x, y, log_size, snr, clean, measured, shape)
    error = np.sqrt(1.0 / np.maximum(snr[measured], 0.1) ** 2 + scatter**2)
    z = offset[measured]
    gauss = np.exp(-0.5 * (z / error) ** 2)
    star = gauss / (np.sqrt(2.0 * np.pi) * error)
    argument = (error / GALAXY_SIZE_SCALE - z / error) / np.sqrt(2.0)
    tail = 2.0 * np.exp(0.5 * (error / GALAXY_SIZE_SCALE) ** 2 - z / GALAXY_SIZE_SCALE)
    blurred = np.where(argument > -5.0, gauss * erfcx(np.maximum(argument, -5.0)), tail)
    galaxy = blurred / (2.0 * GALAXY_SIZE_SCALE)
    scores = np.zeros(x.size)
    scores[measured] = star / (star + galaxy + ARTEFACT_DENSITY)
    return scores


def _locus_offsets(
    x: FloatArray, y: FloatArray, log_size: FloatArray, snr: FloatArray, clean: NDArray[np.bool_],
    measured: NDArray[np.bool_], shape: tuple[int, int],
) -> tuple[FloatArray, float]:  # fmt: skip
    """ln(size) relative to the locus at each position, and the scatter of the locus."""
    bright = measured & clean & (snr > LOCUS_SNR)
    sample = bright if bright.sum() >= LOCUS_MIN_STARS else measured
    mode = stellar_size(log_size[sample], snr[sample], clean[sample])
    width, degree = 0.15, 0
    locus = np.full(x.size, mode)
    scatter = UNKNOWN_LOCUS_SCATTER
    for _ in range(6):
        stars = sample & (np.abs(log_size - locus) < width)
        n = int(stars.sum())
        if n < LOCUS_MIN_STARS:
            break
        # Each coefficient wants some ten stars behind it.
        degree = 2 if n >= 60 else 1 if n >= 30 else 0
        terms = polynomial_terms(x, y, degree, shape)
        locus = terms @ np.linalg.lstsq(terms[stars], log_size[stars], rcond=None)[0]
        residual = log_size[stars] - locus[stars]
        scatter = max(1.4826 * float(np.median(np.abs(residual))), MIN_LOCUS_SCATTER)
        width = min(max(3.0 * scatter, 0.03), 0.15)
    return log_size - locus, scatter
