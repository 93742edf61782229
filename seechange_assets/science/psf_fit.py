"""Fit a spatially varying PSF to the stars of an image, and measure every source with it.

The table of the PSF starts as the Moffat function of the mean star. Each round renders the model at every star,
maps the residuals back to the table (Anderson & King 2000, PASP 112, 1360, section 5, iterate likewise), and fits
them, entry by entry, with a polynomial of the position; a weak prior keeps entries that no star constrains near the
start. Neighbours are subtracted with the PSF itself.
"""

from dataclasses import replace

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import TooFewStars
from seechange_assets.products import Background, Image, Psf, Sources
from seechange_assets.science.joint_photometry import (
    MODEL_ACCURACY,
    Frame,
    JointPhotometry,
    joint_photometry,
    sky_free_frame,
)
from seechange_assets.science.leftover_light import blank_noise, enclosed_light
from seechange_assets.science.psf import (
    empty_photometry,
    enclosed_at,
    gaussian_psf,
    moffat_psf,
    native_size,
    oversampling_for,
    polynomial_terms,
)
from seechange_assets.science.psf_photometry import unit_stamps
from seechange_assets.science.shapes import FWHM_PER_SIGMA
from seechange_assets.science.stellar_locus import profile_fwhm
from seechange_assets.science.unseen_sources import unseen_sources

# Below the first, a Moffat function of the mean star is all there is; stars that polynomials of degree 1, 2, 3 want.
MIN_STARS_PIXELS, MIN_STARS_OF_DEGREE = 5, (20, 60, 400)
# Width of the prior around the start: a share of the entry itself, plus one of the peak.
PRIOR_OF_ENTRY, PRIOR_OF_PEAK = 0.3, 0.005
# Where stars are crowded, what varies over the field is held to this share of the entry alone (15 % of the width are
# two thirds of a wing): given a share of the peak in each, hundreds of entries of the wings take up neighbours and sky
# that differ from place to place, and with the sum of the PSF the fluxes go wrong by per cents.
VARIATION_OF_ENTRY, LEAST_VARIATION_OF_PEAK = 1.0, 1e-5
# Terms of third degree are small, and are held closer to zero by this factor: fewer of them is less noise.
N_LARGE_TERMS, PRIOR_OF_CUBIC = 6, 0.07
ROUNDS, CLIP_SIGMA = 4, 4.0
# From this round on the model is good enough to tell by its misfit what is no star.
FIRST_GOOD_ROUND = 2
# With more known sources than this in the area of a PSF stamp, those that nobody knew are looked for as well: they
# move the zero point by some ten millimagnitudes at 1, and not by what can be measured at 0.1.
CROWDED_PER_STAMP = 0.3
# A star is isolated if no neighbour within this many FWHM has more than this share of its flux.
ISOLATION_FWHM, ISOLATION_FLUX = 2.0, 0.1

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]


def build_psf(
    image: Image,
    background: Background,
    sources: Sources,
    *,
    degree: int = 3,
    oversampling: int = 0,
    radius_fwhm: float = 3.0,
    min_snr: float = 20.0,
    max_stars: int = 500,
    reserved_fraction: float = 0.15,
) -> Psf:
    """Model the PSF of an image and measure the PSF flux of all its sources.

    Parameters
    ----------
    image, background, sources
        Of one image.
    degree : int
        Highest degree of the variation with position. Fewer than 400 stars allow 2, fewer than 60 allow 1, fewer than
        20 allow 0. A width that varies by 15 % changes the shape of the PSF to third order: at degree 2 fluxes are
        0.2 % too high where stars are sharpest.
    oversampling : int
        Table entries per pixel; 0 chooses from the seeing.
    radius_fwhm : float
        Radius of the model in units of the seeing.
    min_snr : float
        Stars fainter than this do not take part.
    max_stars : int
        The brightest this many stars take part.
    reserved_fraction : float
        Share of the stars kept out of the fit, to test it: ``chi2`` is theirs if there are five or more.

    Returns
    -------
    Psf
        ``form`` is ``pixels``; with fewer than five stars ``moffat``, or ``gaussian`` when only the seeing is known.

    Raises
    ------
    TooFewStars
        If the sources do not even tell the seeing.
    """
    if not np.isfinite(sources.fwhm_px):
        raise TooFewStars("psf", 0, 1, "Lower the detection threshold or check the exposure.")
    frame = sky_free_frame(image, background)
    stars = select_stars(sources, image.data.shape, min_snr=min_snr, max_stars=max_stars)
    start = _start(frame, sources, stars, oversampling, radius_fwhm)
    if stars.size < MIN_STARS_PIXELS:
        return _measured(start, frame, sources, np.zeros(0, int), np.zeros(0, int))
    reserved = _reserved(stars, reserved_fraction)
    used = np.setdiff1d(stars, reserved)
    psf, used = _fitted(start, frame, sources, used, degree)
    return _measured(psf, frame, sources, used, reserved)


def select_stars(sources: Sources, shape: tuple[int, int], *, min_snr: float, max_stars: int) -> NDArray[np.intp]:
    """Rows of isolated, unflagged stars away from the border, brightest first."""
    from scipy.spatial import cKDTree

    table, fwhm_px = sources.table, sources.fwhm_px
    if len(table) == 0:
        return np.zeros(0, np.intp)
    x, y, flux = (np.asarray(table[name], float) for name in ("x", "y", "flux_auto"))
    margin = 1.5 * fwhm_px
    fit = np.asarray(table["is_star"]) & (np.asarray(table["snr"]) >= min_snr)
    fit &= (x > margin) & (x < shape[1] - 1 - margin) & (y > margin) & (y < shape[0] - 1 - margin)
    pairs = cKDTree(np.stack([x, y], axis=1)).query_pairs(ISOLATION_FWHM * fwhm_px, output_type="ndarray")
    one, other = pairs[:, 0], pairs[:, 1]
    fit[one[flux[other] > ISOLATION_FLUX * flux[one]]] = False
    fit[other[flux[one] > ISOLATION_FLUX * flux[other]]] = False
    rows = np.flatnonzero(fit)
    return rows[np.argsort(-np.asarray(table["snr"])[rows], kind="stable")][:max_stars]


def model_fwhm(psf: Psf) -> float:
    """FWHM [pixel] of the PSF, averaged over a 3x3 grid of places and pixel phases."""
    size = native_size(psf)
    ny, nx = psf.shape
    u, v = (axis.ravel() for axis in np.meshgrid(np.arange(3), np.arange(3)))
    x, y = np.floor((u + 0.5) / 3 * nx) + (u - 1) / 3, np.floor((v + 0.5) / 3 * ny) + (v - 1) / 3
    center = (np.floor(x + 0.5), np.floor(y + 0.5))
    stamps = unit_stamps(psf, x, y, size, center)
    frame = stamps.reshape(3, 3, size, size).swapaxes(1, 2).reshape(3 * size, 3 * size)
    at_x, at_y = x - center[0] + u * size + size // 2, y - center[1] + v * size + size // 2
    sigma = np.full(9, psf.fwhm_px / FWHM_PER_SIGMA)
    return profile_fwhm(frame, at_x, at_y, sigma, np.zeros(frame.shape, bool))[0]


def _start(frame: Frame, sources: Sources, stars: NDArray[np.intp], oversampling: int, radius_fwhm: float) -> Psf:
    """The Moffat function of the mean star, or a Gaussian of the seeing when there is none."""
    fwhm_px, shape = sources.fwhm_px, frame.data.shape
    size = max(2 * int(np.ceil(radius_fwhm * fwhm_px)) + 1, 11)
    per_pixel = oversampling or oversampling_for(fwhm_px)
    if stars.size:
        x, y = (np.asarray(sources.table[name], float)[stars[:100]] for name in ("x", "y"))
        sigma = np.full(x.size, fwhm_px / FWHM_PER_SIGMA)
        profile, beta = profile_fwhm(frame.data, x, y, sigma, ~frame.usable)
        if np.isfinite(profile):
            return moffat_psf(profile, beta, shape, size, per_pixel)
    return gaussian_psf(fwhm_px, shape, size, per_pixel)


def _reserved(stars: NDArray[np.intp], fraction: float) -> NDArray[np.intp]:
    """Every k-th star in order of brightness, so that both samples have the same fluxes."""
    if fraction <= 0 or stars.size < 2 * MIN_STARS_PIXELS:
        return stars[:0]
    every = max(round(1.0 / fraction), 2)
    return stars[every // 2 :: every]


def _fitted(
    start: Psf, frame: Frame, sources: Sources, used: NDArray[np.intp], degree: int
) -> tuple[Psf, NDArray[np.intp]]:
    """Rounds of photometry and correction; the stars that survive the rejection come back too."""
    x, y = (np.asarray(sources.table[name], float) for name in ("x", "y"))
    degree = min(degree, sum(used.size >= wanted for wanted in MIN_STARS_OF_DEGREE))
    psf = _with_degree(start, degree)
    crowded = _is_crowded(psf, len(x))
    prior = _prior(start, psf.coefficients.shape[0], crowded=crowded)
    nearby = _with_neighbours(x, y, used, native_size(start))
    fit_x, fit_y = x[nearby], y[nearby]
    for turn in range(ROUNDS):
        fit = joint_photometry(psf, frame, fit_x, fit_y)
        if crowded and turn == 1:
            fit_x, fit_y = _with_unseen(psf, frame, fit, (x, y), (fit_x, fit_y), (x[used], y[used]))
            fit = joint_photometry(psf, frame, fit_x, fit_y, start=fit)
        at = np.searchsorted(nearby, used)
        if turn >= FIRST_GOOD_ROUND:
            keep = _survivors(fit.flux[at], fit.misfit[at])
            used, at = used[keep], at[keep]
        else:
            keep = np.isfinite(fit.flux[at]) & (fit.flux[at] > 0)
            used, at = used[keep], at[keep]
        if used.size < MIN_STARS_PIXELS:
            return start, used
        psf = _corrected(psf, start, prior, frame, fit, at, x[used], y[used], clip=turn > 0)
    return replace(psf, form="pixels", fwhm_px=model_fwhm(psf)), used


def _with_degree(psf: Psf, degree: int) -> Psf:
    """The same PSF with room for a variation of that degree."""
    n_terms = (degree + 1) * (degree + 2) // 2
    coefficients = np.zeros((n_terms, *psf.coefficients.shape[1:]))
    coefficients[0] = psf.coefficients[0]
    return replace(psf, coefficients=coefficients, degree=degree)


def _prior(start: Psf, n_terms: int, *, crowded: bool) -> FloatArray:
    """Inverse variance ``(n_terms, size, size)`` of what is held to the start or to zero; infinite outside a circle."""
    table = start.coefficients[0]
    half = table.shape[0] // 2
    axis = np.arange(-half, half + 1)
    inside = axis[:, None] ** 2 + axis[None, :] ** 2 <= (half + 0.5) ** 2
    width = np.repeat((PRIOR_OF_ENTRY * np.abs(table) + PRIOR_OF_PEAK * table.max())[None], n_terms, axis=0)
    if crowded:
        width[1:] = VARIATION_OF_ENTRY * np.abs(table) + LEAST_VARIATION_OF_PEAK * table.max()
    width[N_LARGE_TERMS:] *= PRIOR_OF_CUBIC
    return np.where(inside, width**-2.0, np.inf)


def _with_neighbours(x: FloatArray, y: FloatArray, stars: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Rows of the stars and of all sources whose stamps overlap theirs, in rising order."""
    from scipy.spatial import cKDTree

    everything = cKDTree(np.stack([x, y], axis=1))
    touching = everything.query_ball_point(np.stack([x[stars], y[stars]], axis=1), float(size), p=np.inf)
    return np.unique(np.concatenate([np.asarray(rows, np.intp) for rows in touching]))


def _is_crowded(psf: Psf, n_sources: int) -> bool:
    """Whether the stamps of the sources overlap often."""
    return bool(n_sources * native_size(psf) ** 2 > CROWDED_PER_STAMP * psf.shape[0] * psf.shape[1])


def _with_unseen(
    psf: Psf,
    frame: Frame,
    fit: JointPhotometry,
    known: tuple[FloatArray, FloatArray],
    fitted: tuple[FloatArray, FloatArray],
    near: tuple[FloatArray, FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """The fitted positions and, after them, the sources that nobody knew and that their fit left behind."""
    x, y = unseen_sources(psf, frame, fit, *known, near)
    return np.concatenate([fitted[0], x]), np.concatenate([fitted[1], y])


def _survivors(flux: FloatArray, misfit: FloatArray) -> Mask:
    """Stars whose misfit is not far above that of the others."""
    usable = np.isfinite(flux) & (flux > 0) & np.isfinite(misfit)
    if not usable.any():
        return usable
    middle = np.median(misfit[usable])
    spread = 1.4826 * np.median(np.abs(misfit[usable] - middle))
    good: Mask = usable & (misfit <= middle + CLIP_SIGMA * max(spread, 0.1))
    return good


def _corrected(
    psf: Psf,
    start: Psf,
    prior: FloatArray,
    frame: Frame,
    fit: JointPhotometry,
    rows: NDArray[np.intp],
    x: FloatArray,
    y: FloatArray,
    *,
    clip: bool,
) -> Psf:
    """One round: residuals of the stars back to the table, entry by entry a polynomial of the position."""
    terms = polynomial_terms(x, y, psf.degree, psf.shape)
    n_terms, n_grid, _ = psf.coefficients.shape
    normal, vector = _back_projected(
        frame.data, fit.residual, frame.rms, frame.usable, frame.gain, fit.stamps[rows], x, y, fit.flux[rows],
        terms, psf.oversampling, n_grid, clip,
    )  # fmt: skip
    away = psf.coefficients.copy()
    away[0] -= start.coefficients[0]
    inside = np.isfinite(prior[0]).ravel()
    weight = np.ascontiguousarray(prior.reshape(n_terms, -1)[:, inside].T)
    matrix = normal.reshape(-1, n_terms, n_terms)[inside] + weight[:, :, None] * np.eye(n_terms)
    right = vector.reshape(-1, n_terms)[inside] - weight * away.reshape(n_terms, -1)[:, inside].T
    step = np.zeros((n_grid * n_grid, n_terms))
    step[inside] = np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    coefficients = psf.coefficients + step.T.reshape(psf.coefficients.shape)
    coefficients[~np.isfinite(prior)] = 0.0
    return replace(psf, coefficients=_normalised(coefficients, psf.oversampling))


def _normalised(coefficients: FloatArray, oversampling: int) -> FloatArray:
    """Unit flux everywhere: the mean table has it all, the variation none."""
    sums = coefficients.sum(axis=(1, 2)) / oversampling**2
    mean = coefficients[0] / sums[0]
    return np.concatenate([mean[None], coefficients[1:] - sums[1:, None, None] * mean])


def _measured(psf: Psf, frame: Frame, sources: Sources, used: NDArray[np.intp], reserved: NDArray[np.intp]) -> Psf:
    """The PSF with the photometry of all sources and its figures of merit."""
    table = empty_photometry(len(sources.table))
    x, y = (np.asarray(sources.table[name], float) for name in ("x", "y"))
    fit_x, fit_y, known = x, y, None
    # A fallback leaves residuals that are no sources.
    if psf.form == "pixels" and _is_crowded(psf, len(x)):
        known = joint_photometry(psf, frame, x, y, sweeps=2, fluxes_only=True)
        fit_x, fit_y = _with_unseen(psf, frame, known, (x, y), (x, y))
    everything = joint_photometry(psf, frame, fit_x, fit_y, refine_sky=True, start=known)
    fit = everything.first(len(x))
    table["chi2"] = fit.chi2
    table["used"][used] = True
    table["reserved"][reserved] = True
    total, total_err = enclosed_light(fit, frame, x, y, np.union1d(used, reserved))
    noise = blank_noise(everything, psf, frame, fit_x, fit_y)
    psf = replace(psf, enclosed=total, enclosed_err=total_err, blank_noise=noise)
    share = enclosed_at(psf, x, y)
    # The position was found on the same noise: where a peak of it lies, the flux is high by 1 / (S/N)^2.
    with np.errstate(divide="ignore", invalid="ignore"):
        at_peak = np.where(fit.flux > 0, fit.flux**2 / (fit.flux**2 + fit.flux_err**2), 1.0)
    table["flux_psf"], table["flux_psf_err"] = at_peak * fit.flux / share, fit.flux_err / share
    judges = reserved if reserved.size >= MIN_STARS_PIXELS else used
    values = fit.chi2[judges][np.isfinite(fit.chi2[judges])]
    chi2 = float(np.median(values)) if values.size else float("nan")
    return replace(psf, n_stars=int(used.size), chi2=chi2, photometry=table)


@numba.njit(cache=True)
def _back_projected(  # type: ignore[no-untyped-def]
    data, residual, rms, usable, gain, stamps, x, y, flux, terms, oversampling, n_grid, clip
):
    """Normal matrices ``(n_grid, n_grid, k, k)`` and vectors of the weighted residuals around each table entry."""
    n, size, _ = stamps.shape
    k = terms.shape[1]
    half, center = size // 2, n_grid // 2
    # Lower triangles, row after row, as one contiguous list per entry: the inner loop then runs over neighbours.
    packed = np.zeros((n_grid, n_grid, k * (k + 1) // 2))
    products = np.empty(k * (k + 1) // 2)
    vector = np.zeros((n_grid, n_grid, k))
    for s in range(n):
        for p in range(k):
            for q in range(p + 1):
                products[p * (p + 1) // 2 + q] = terms[s, p] * terms[s, q]
        low_x, low_y = int(np.floor(x[s] + 0.5)) - half, int(np.floor(y[s] + 0.5)) - half
        for j, i in np.ndindex(size, size):
            row, column = low_y + j, low_x + i
            if row < 0 or row >= data.shape[0] or column < 0 or column >= data.shape[1] or not usable[row, column]:
                continue
            own = flux[s] * stamps[s, j, i]
            left = float(residual[row, column])
            model = max(data[row, column] - left, 0.0)
            # Ten per cent of the neighbours' light counts as noise: they may be no stars.
            variance = float(rms[row, column]) ** 2 + model / gain
            variance += (MODEL_ACCURACY * own) ** 2 + (0.1 * (model - own)) ** 2
            if clip and left * left > 25.0 * variance:
                continue
            u, v = center + oversampling * (column - x[s]), center + oversampling * (row - y[s])
            _add_pixel(packed, vector, u, v, flux[s] * flux[s] / variance, left / flux[s], products, terms[s])
    normal = np.empty((n_grid, n_grid, k, k))
    for p in range(k):
        for q in range(p + 1):
            normal[:, :, p, q] = packed[:, :, p * (p + 1) // 2 + q]
            normal[:, :, q, p] = normal[:, :, p, q]
    return normal, vector


@numba.njit(cache=True)
def _add_pixel(packed, vector, u, v, weight, value, products, terms):  # type: ignore[no-untyped-def]
    """Share a pixel at (u, v) of the table among the four entries around it."""
    gu, gv = int(np.floor(u)), int(np.floor(v))
    if gu < 0 or gv < 0 or gu + 1 >= vector.shape[1] or gv + 1 >= vector.shape[0]:
        return
    for b, a in np.ndindex(2, 2):
        share = weight * (1.0 - abs(v - gv - b)) * (1.0 - abs(u - gu - a))
        for p in range(terms.size):
            vector[gv + b, gu + a, p] += share * value * terms[p]
        for m in range(products.size):
            packed[gv + b, gu + a, m] += share * products[m]
