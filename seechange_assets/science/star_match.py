"""The same stars in two images: which row is which, and the ratio of their fluxes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf, Sources
from seechange_assets.science.psf import polynomial_terms

if TYPE_CHECKING:
    from astropy.table import Table

MIN_STARS = 3
_MODE_RADIUS_PX = 1.0  # stars that belong together agree on the offset of the two images to this
_CLIP_SIGMA = 4.0
_MAX_CANDIDATES = 3000
_ERROR_CLIP_SIGMA = 3.5
_SCATTERS = np.linspace(0.0, 0.05, 101)  # relative, that PSF models may cause
#: Variance of a flux from the noise of the PSF's shape over that from the noise of the pixels, for one and the same
#: star: 2.1 to 2.5 for Moffat profiles of beta 2.5 to 4.5 whose width and beta are both free, within 2 FWHM.
_SHAPE_VARIANCE = 2.3

FloatArray = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class FluxScale:
    """Factor from the reference's counts to the new image's, with its error and the stars' relative scatter."""

    factor: float
    error: float
    scatter: float
    n_stars: int


def bright_stars(sources: Sources, *, min_snr: float = 10.0, min_number: int = 30) -> NDArray[np.intp]:
    """Rows fit for matching: good stars, or all good sources where stars are few; brightest 3000."""
    table = sources.table
    usable = np.asarray(table["is_good"], bool) & (np.asarray(table["snr"], float) >= min_snr)
    stars = usable & np.asarray(table["is_star"], bool)
    chosen = stars if stars.sum() >= min_number else usable
    rows = np.flatnonzero(chosen & np.isfinite(table["x"]) & np.isfinite(table["y"]))
    return rows[np.argsort(-np.asarray(table["snr"], float)[rows], kind="stable")][:_MAX_CANDIDATES]


def match_positions(predicted: FloatArray, found: FloatArray, radius_px: float) -> tuple[Rows, Rows]:
    """Pair points that agree up to a common offset.

    The offset on which most pairs within `radius_px` agree is found first, so that in a
    crowded field a wrong neighbour does not win over the right star a pixel farther away.

    Parameters
    ----------
    predicted, found : ndarray of float, shape (n, 2) and (m, 2)
        Positions [pixel] of the same grid.
    radius_px : float
        Largest distance of a pair.

    Returns
    -------
    tuple of ndarray of int
        Rows of `predicted` and of `found`, pair by pair; each row at most once.
    """
    from scipy.spatial import cKDTree

    none = np.zeros(0, np.intp)
    if len(predicted) == 0 or len(found) == 0:
        return none, none
    tree = cKDTree(found)
    pairs = tree.query_ball_point(predicted, radius_px)
    rows = np.repeat(np.arange(len(predicted)), [len(p) for p in pairs])
    if rows.size == 0:
        return none, none
    offsets = found[np.concatenate([np.asarray(p, np.intp) for p in pairs if p])] - predicted[rows]
    shift = _common_offset(offsets)
    distance, nearest = tree.query(predicted + shift, distance_upper_bound=min(radius_px, 2 * _MODE_RADIUS_PX))
    first = np.flatnonzero(np.isfinite(distance))
    # Nearest both ways: a found star keeps the closest of those that want it.
    order = first[np.argsort(distance[first], kind="stable")]
    _, keep = np.unique(nearest[order], return_index=True)
    chosen = np.sort(order[keep])
    return chosen, nearest[chosen]


def flux_scale(new: Psf, reference: Psf, new_rows: Rows, reference_rows: Rows) -> FluxScale | None:
    """Robust ratio of the PSF fluxes of matched stars, new over reference; None with fewer than 3.

    A weighted median, then a mean of the stars within 4 robust sigmas, weighted by the photon errors plus the
    scatter beyond them. For the weights that scatter (variables, PSF models) is the one of the better-measured half,
    because faint galaxies taken for stars would pass for it; the scatter of all is what is returned.
    """
    ratio, error = _ratios(new.photometry[new_rows], reference.photometry[reference_rows])
    if ratio.size < MIN_STARS:
        return None
    center, scatter = _weighted_median(ratio, error**-2), 0.0
    for _ in range(5):
        deviation = np.abs(ratio - center)
        spread = np.hypot(error, scatter)
        keep = deviation <= _CLIP_SIGMA * np.maximum(spread, 1e-4 * center)
        if keep.sum() < MIN_STARS:
            keep = deviation <= np.sort(deviation)[MIN_STARS - 1]
        weight = 1 / (error[keep] ** 2 + scatter**2 + (1e-4 * center) ** 2)
        center = float(np.sum(weight * ratio[keep]) / weight.sum())
        scatter = _intrinsic(ratio - center, error, error <= np.median(error))
    everyone = _intrinsic(ratio - center, error, np.ones(ratio.size, bool))
    return FluxScale(center, float(weight.sum() ** -0.5), max(scatter, everyone) / center, int(keep.sum()))


def psf_flux_error(
    new: Psf, reference: Psf, new_rows: Rows, reference_rows: Rows, sources: Sources | None = None
) -> float:
    """Relative error of the PSF fluxes of the new image that comes from its PSF model.

    The larger of two: how its stars repeat, which shows models that do not fit, and what the noise of the stars it
    was made from leaves undetermined between them, which those stars themselves do not show.

    Beyond the photon noise the flux ratios of the stars scatter because both models are wrong from place to place.
    The mean variance of that scatter is taken, every scatter weighted with its likelihood for Gaussian ratios (stars
    beyond 3.5 sigma, such as variables, left out). The variance of a model goes with the inverse of the information
    its stars gave, which shares it between the two.

    Parameters
    ----------
    new, reference : Psf
        With the photometry of all sources.
    new_rows, reference_rows : ndarray of int
        Matched stars.
    sources : Sources, optional
        Those the new image's PSF was made from; without them only the repetition counts.

    Returns
    -------
    float
    """
    undetermined = shape_noise(new, sources) if sources is not None else 0.0
    return max(_repetition_error(new, reference, new_rows, reference_rows), undetermined)


def shape_noise(psf: Psf, sources: Sources) -> float:
    """Relative error of fluxes from the noise of the stars a PSF was fitted to, rms over the field.

    At a place with the terms t of the polynomial it is sqrt(2.3 t A^-1 t), A the sum of (S/N)^2 t t over the stars: the
    covariance of a linear fit, times the part of a star's noise that the shape turns into flux.

    Parameters
    ----------
    psf : Psf
    sources : Sources
        Row for row those of its photometry.

    Returns
    -------
    float
        0 where the stars do not determine the terms.
    """
    used = np.asarray(psf.photometry["used"], bool)
    x, y = (np.asarray(sources.table[name], float)[used] for name in ("x", "y"))
    snr = np.asarray(psf.photometry["flux_psf"], float)[used] / np.asarray(psf.photometry["flux_psf_err"], float)[used]
    terms = polynomial_terms(x, y, psf.degree, psf.shape) * np.nan_to_num(snr)[:, None]
    if np.linalg.matrix_rank(terms) < terms.shape[1]:
        return 0.0
    middles = (np.arange(9) + 0.5) / 9
    grid_y, grid_x = (axis.ravel() for axis in np.meshgrid(middles * psf.shape[0], middles * psf.shape[1]))
    field = polynomial_terms(grid_x, grid_y, psf.degree, psf.shape)
    variance = np.einsum("ni,ij,nj->n", field, np.linalg.inv(terms.T @ terms), field)
    return float(min(np.sqrt(_SHAPE_VARIANCE * variance.mean()), _SCATTERS[-1]))


def _repetition_error(new: Psf, reference: Psf, new_rows: Rows, reference_rows: Rows) -> float:
    """The part of `psf_flux_error` that the flux ratios show; 0 with fewer than 3 stars."""
    ratio, error = _ratios(new.photometry[new_rows], reference.photometry[reference_rows])
    if ratio.size < MIN_STARS:
        return 0.0
    center = _weighted_median(ratio, error**-2)
    deviation, error = ratio / center - 1.0, error / center
    keep, scatter = np.ones(ratio.size, bool), 0.0
    for _ in range(10):
        variance = error[keep, None] ** 2 + _SCATTERS**2
        likelihood = -np.sum(np.log(variance) + deviation[keep, None] ** 2 / variance, axis=0)
        probability = np.exp(0.5 * (likelihood - likelihood.max()))
        scatter = float(np.sqrt(np.average(_SCATTERS**2, weights=probability)))
        kept, keep = keep, np.abs(deviation) < _ERROR_CLIP_SIGMA * np.hypot(error, scatter)
        if np.array_equal(kept, keep) or keep.sum() < MIN_STARS:
            break
    ours, theirs = _information(new), _information(reference)
    share = theirs / (ours + theirs) if ours + theirs > 0 else 0.5
    return scatter * float(np.sqrt(share))


def _information(psf: Psf) -> float:
    """Sum of the squared S/N of the stars a PSF was fitted to."""
    used = psf.photometry[np.asarray(psf.photometry["used"], bool)]
    snr = np.asarray(used["flux_psf"], float) / np.asarray(used["flux_psf_err"], float)
    return float(np.nansum(snr**2))


def _intrinsic(deviation: FloatArray, error: FloatArray, chosen: NDArray[np.bool_]) -> float:
    """Robust scatter of the chosen stars beyond their errors."""
    observed = 1.4826 * np.median(np.abs(deviation[chosen]))
    return float(np.sqrt(max(observed**2 - np.median(error[chosen]) ** 2, 0.0)))


def _common_offset(offsets: FloatArray) -> FloatArray:
    """Centre of the densest clump of offsets; of equally dense ones the closest to zero."""
    from scipy.spatial import cKDTree

    tree = cKDTree(offsets)
    crowd = tree.query_ball_point(offsets, _MODE_RADIUS_PX, return_length=True)
    best = np.lexsort((np.hypot(*offsets.T), -crowd))[0]
    return np.asarray(np.median(offsets[tree.query_ball_point(offsets[best], _MODE_RADIUS_PX)], axis=0))


def _ratios(new: "Table", reference: "Table") -> tuple[FloatArray, FloatArray]:
    """Flux ratios and their errors of the stars with S/N > 20 in both (S/N > 5 if those are few)."""
    f_new, f_ref = (np.asarray(t["flux_psf"], float) for t in (new, reference))
    e_new, e_ref = (np.asarray(t["flux_psf_err"], float) for t in (new, reference))
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.minimum(f_new / e_new, f_ref / e_ref)
        ratio, error = f_new / f_ref, f_new / f_ref * np.hypot(e_new / f_new, e_ref / f_ref)
    for limit in (20.0, 5.0):
        keep = np.isfinite(ratio) & np.isfinite(error) & (snr > limit)
        if keep.sum() >= 10:
            break
    return ratio[keep], error[keep]


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    # No single bright star may decide: weights are capped at ten times their median.
    weights = np.minimum(weights, 10 * np.median(weights))
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
