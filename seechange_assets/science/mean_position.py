"""Mean positions of objects from all their detections."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Position error [deg] taken where a measurement has none, and the least one believed.
UNKNOWN_ERROR_DEG, LEAST_ERROR_DEG = 1.0 / 3600.0, 1e-8
#: Fewest detections among which one can be told to be off.
_FEWEST_TO_CLIP = 4
_ITERATIONS = 5


class MeanPositions(NamedTuple):
    """One row per object: mean [deg], errors [deg, ra times cos(dec)], covariance [deg^2], detections used."""

    ra: FloatArray
    dec: FloatArray
    ra_err: FloatArray
    dec_err: FloatArray
    ra_dec_cov: FloatArray
    n_used: NDArray[np.int64]


def mean_positions(
    group: NDArray[np.intp], ra: FloatArray, dec: FloatArray, ra_err: FloatArray, dec_err: FloatArray,
    ra_dec_cov: FloatArray, first_ra: FloatArray, first_dec: FloatArray, *, clip_sigma: float = 3.0,
) -> MeanPositions:  # fmt: skip
    """Weighted mean position of each group of detections, with its covariance.

    Weights are ``1 / (ra_err^2 + dec_err^2)``: the error of a PSF position is the PSF's width over the S/N, so this
    is a weight with (S/N)^2. Of four detections and more, those farther than `clip_sigma` (robust scatter or their own
    error, whichever is larger) from the median are left out, until no more are. The covariance is that of the
    weighted mean, ``sum w^2 C / (sum w)^2``, times chi^2 per degree of freedom where that exceeds 1.

    Parameters
    ----------
    group : ndarray, shape (n,)
        Row of the object of each detection.
    ra, dec, ra_err, dec_err, ra_dec_cov : ndarray, shape (n,)
        Positions [deg], errors (ra times cos(dec)) and covariance [deg, deg^2]; NaN errors count as 1 arcsec.
    first_ra, first_dec : ndarray, shape (m,)
        A position near each object, from which offsets are taken: right ascension may cross 0h.

    Returns
    -------
    MeanPositions
        NaN for objects without detections.
    """
    cos_dec = np.cos(np.deg2rad(first_dec))
    d_ra = (ra - first_ra[group] + 180.0) % 360.0 - 180.0
    offset = np.column_stack([d_ra * cos_dec[group], dec - first_dec[group]])
    variance = np.square(np.column_stack([_known_error(ra_err), _known_error(dec_err)]))
    used = _unclipped(group, offset, variance, clip_sigma)
    group, offset, variance = group[used], offset[used], variance[used]
    covariance = np.where(np.isfinite(ra_dec_cov), ra_dec_cov, 0.0)[used]
    n_objects = len(first_ra)
    weight = 1.0 / variance.sum(axis=1)
    total, count = _sums(group, weight, n_objects), np.bincount(group, minlength=n_objects)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (_sums(group, weight * part, n_objects) / total for part in offset.T)
        residual = np.square(offset - np.column_stack([x, y])[group]) / variance
        chi2 = _sums(group, residual.sum(axis=1), n_objects) / np.maximum(2 * count - 2, 1)
        scale = np.where(count > 2, np.maximum(chi2, 1.0), 1.0) / total**2
        terms = (variance[:, 0], variance[:, 1], covariance)
        var_ra, var_dec, cov = (scale * _sums(group, weight**2 * term, n_objects) for term in terms)
        mean_ra = (first_ra + x / np.maximum(cos_dec, 1e-9)) % 360.0
    mean_dec = np.clip(first_dec + y, -90.0, 90.0)
    return MeanPositions(mean_ra, mean_dec, np.sqrt(var_ra), np.sqrt(var_dec), cov, count)


def _known_error(error: FloatArray) -> FloatArray:
    known: FloatArray = np.where(np.isfinite(error) & (error > 0), error, UNKNOWN_ERROR_DEG)
    return np.maximum(known, LEAST_ERROR_DEG)


def _sums(group: NDArray[np.intp], values: FloatArray, n_objects: int) -> FloatArray:
    sums: FloatArray = np.bincount(group, values, n_objects).astype(float)
    return sums


def _unclipped(
    group: NDArray[np.intp], offset: FloatArray, variance: FloatArray, clip_sigma: float
) -> NDArray[np.bool_]:
    """Which detections stay when those far from their object's median are left out."""
    used = np.ones(len(group), bool)
    rows = np.flatnonzero(np.bincount(group)[group] >= _FEWEST_TO_CLIP) if len(group) else np.empty(0, np.intp)
    for _ in range(_ITERATIONS):
        if len(rows) == 0:
            break
        _, mine = np.unique(group[rows], return_inverse=True)
        before = used[rows]
        kept = _close_to_median(mine, offset[rows], variance[rows], before, clip_sigma)
        n_kept, n_changed = np.bincount(mine, kept), np.bincount(mine, kept != before)
        goes_on = ((n_kept >= 2) & (n_changed > 0))[mine]
        rows = rows[goes_on]
        used[rows] = kept[goes_on]
    return used


def _close_to_median(
    group: NDArray[np.intp], offset: FloatArray, variance: FloatArray, used: NDArray[np.bool_], clip_sigma: float
) -> NDArray[np.bool_]:
    """Which detections lie near the median of those of their group that are used."""
    distance = offset - _medians(group[used], offset[used])[group]
    scatter = 1.4826 * _medians(group[used], np.abs(distance[used]))[group]
    limit = clip_sigma**2 * np.maximum(variance, scatter**2)
    near: NDArray[np.bool_] = (np.square(distance) / limit).sum(axis=1) <= 2.0
    return near


def _medians(group: NDArray[np.intp], values: FloatArray) -> FloatArray:
    """Median of both columns for each group; every group has a row."""
    count = np.bincount(group)
    start = np.cumsum(count) - count
    columns = []
    for column in values.T:
        ordered = column[np.lexsort((column, group))]
        columns.append((ordered[start + (count - 1) // 2] + ordered[start + count // 2]) / 2.0)
    return np.column_stack(columns)
