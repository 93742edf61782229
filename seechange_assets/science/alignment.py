"""Registration of a reference on a new image, star to star.

Both images have an astrometric solution of their own; what they still disagree about is
removed by matching their stars directly, which leaves out the errors of the sky catalogue.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Sources, header_from_text, header_text, wcs_from_text
from seechange_assets.science.star_match import MIN_STARS, bright_stars, match_positions

if TYPE_CHECKING:
    from astropy.wcs import WCS

FloatArray = NDArray[np.float64]

_CLIP_SIGMA = 4.0
_POSITION_FLOOR_PX = 0.01  # centroids of the brightest stars are no better than this (PSF model, pixel response)


@dataclass(frozen=True, slots=True)
class Alignment:
    """Result of `align`.

    ``header`` is the text of the WCS of the reference's pixels, tied to the new image;
    ``rms_px`` the robust scatter of the matched stars per axis, ``noise_px`` the part of it that
    the stars' own position errors do not explain: the registration noise per axis. Rows pair
    the two source tables. With fewer than 3 stars the header is that of the reference,
    unchanged, and both numbers are NaN.
    """

    header: str
    n_stars: int
    rms_px: float
    noise_px: float
    reference_rows: NDArray[np.intp]
    new_rows: NDArray[np.intp]


def align(
    reference_sources: Sources,
    reference_wcs: str,
    new_sources: Sources,
    new_wcs: str,
    *,
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
) -> Alignment:
    """Refine the WCS of a reference so that its stars fall on those of the new image.

    Parameters
    ----------
    reference_sources, new_sources : Sources
    reference_wcs, new_wcs : str
        Header texts (TAN, TAN-SIP, TPV, ...).
    match_radius_arcsec : float
        How far the two solutions may disagree.
    min_stars_linear : int
        From this number of matched stars on a full linear correction is fitted, from 3 on a shift.

    Returns
    -------
    Alignment
    """
    from astropy.wcs.utils import proj_plane_pixel_scales

    old, new = wcs_from_text(reference_wcs), wcs_from_text(new_wcs)
    reference_rows, new_rows = bright_stars(reference_sources), bright_stars(new_sources)
    start, start_error = _positions(reference_sources, reference_rows)
    found, found_error = _positions(new_sources, new_rows)
    # Compared on the reference's pixels, because it is the reference's WCS that will be corrected.
    goal = _carried(found, new, old)
    radius = match_radius_arcsec / 3600 / float(np.mean(proj_plane_pixel_scales(old)))
    first, second = match_positions(start, goal, radius)
    if first.size < MIN_STARS:
        return Alignment(reference_wcs, int(first.size), np.nan, np.nan, reference_rows[first], new_rows[second])
    error = np.sqrt(start_error[first] ** 2 + found_error[second] ** 2 + _POSITION_FLOOR_PX**2)
    matrix, shift, keep = _fit_linear(start[first], goal[second], error, min_stars_linear)
    residual = goal[second] - start[first] @ matrix.T - shift
    rms, noise = _scatter(residual[keep], error[keep])
    header = _corrected_header(reference_wcs, old, matrix, shift)
    return Alignment(header, int(keep.sum()), rms, noise, reference_rows[first], new_rows[second])


def _positions(sources: Sources, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
    """Positions (n, 2) and their errors per axis (n,) [pixel]."""
    table = sources.table[rows]
    error = np.hypot(np.asarray(table["x_err"], float), np.asarray(table["y_err"], float)) / np.sqrt(2)
    position = np.stack([np.asarray(table["x"], float), np.asarray(table["y"], float)], axis=1)
    return position, np.where(np.isfinite(error), error, 0.1)


def _carried(position: FloatArray, source: "WCS", target: "WCS") -> FloatArray:
    """Pixel positions of one WCS on the pixels of another; far away where there is no counterpart."""
    if len(position) == 0:
        return position
    moved = np.stack(target.all_world2pix(*source.all_pix2world(*position.T, 0), 0, quiet=True), axis=1)
    return np.where(np.isfinite(moved), moved, -1e6)


def _fit_linear(
    start: FloatArray, goal: FloatArray, error: FloatArray, min_stars_linear: int
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """``goal = matrix @ start + shift`` by weighted least squares with outlier clipping."""
    center = start.mean(axis=0)
    keep = np.ones(len(start), bool)
    for _ in range(6):
        linear = keep.sum() >= min_stars_linear
        terms = np.concatenate([np.ones((len(start), 1)), (start - center) * linear], axis=1)
        weight = (keep / error)[:, None]
        solution = np.linalg.lstsq(terms * weight, (goal - start) * weight, rcond=1e-10)[0]
        residual = goal - start - terms @ solution
        distance = np.hypot(*residual.T) / error
        scale = max(np.median(distance[keep]) / np.sqrt(2 * np.log(2)), 1.0)  # Rayleigh median
        clipped = distance <= _CLIP_SIGMA * scale
        if clipped.sum() < MIN_STARS or (clipped == keep).all():
            break
        keep = clipped
    matrix = np.eye(2) + (solution[1:].T if linear else 0.0)
    return matrix, solution[0] + center - matrix @ center, keep


def _scatter(residual: FloatArray, error: FloatArray) -> tuple[float, float]:
    """Robust scatter per axis, and its part beyond the position errors, from the better-measured half.

    Never below what the fit itself leaves undetermined.
    """
    rms = float(1.4826 * np.median(np.abs(residual)))
    good = error <= np.median(error)
    bright = float(1.4826 * np.median(np.abs(residual[good])))
    expected = float(np.sqrt(np.median(error[good] ** 2) - _POSITION_FLOOR_PX**2))
    return rms, float(np.sqrt(max(bright**2 - expected**2, bright**2 / max(good.sum(), 1))))


def _corrected_header(text: str, wcs: "WCS", matrix: FloatArray, shift: FloatArray) -> str:
    """The header of the same WCS evaluated at ``matrix @ pixel + shift``.

    With u = pixel - CRPIX the new intermediate coordinates are CD · matrix · (u - u0): CRPIX and CD
    take the correction exactly for TAN and TPV; for SIP the distortion itself is not rotated,
    an error of the distortion (tens of pixels) times the rotation (1e-5), far below 0.01 px.
    """
    header = header_from_text(text)
    reference_pixel = np.linalg.solve(matrix, wcs.wcs.crpix - 1 - shift) + 1
    cd = wcs.pixel_scale_matrix @ matrix
    for i in (1, 2):
        for key in (f"CDELT{i}", f"CROTA{i}", f"PC{i}_1", f"PC{i}_2", f"PC00{i}001", f"PC00{i}002"):
            header.remove(key, ignore_missing=True)
        header[f"CRPIX{i}"] = float(reference_pixel[i - 1])
        for k in (1, 2):
            header[f"CD{i}_{k}"] = float(cd[i - 1, k - 1])
    return header_text(header)
