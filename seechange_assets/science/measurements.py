"""Measurements: photometry, shape and artefact diagnostics of each detection, and the cuts on them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError
from seechange_assets.products import Cutouts, Detections, Difference, Measurements, Reference, wcs_from_text
from seechange_assets.science import diagnostics
from seechange_assets.science.cutouts import cut_stamps, stamp_corners

if TYPE_CHECKING:
    from astropy.table import Table

FloatArray = NDArray[np.float64]
Thresholds = Mapping[str, float | None]

#: A measurement is bad, or deleted, when one of these reaches its threshold; None disables.
BAD_THRESHOLDS: dict[str, float | None] = {
    "fit_failed": 1.0,
    "distance_px": 5.0,
    "centroid_distance_px": 5.0,
    "elongation": 3.0,
    "width_ratio": 2.0,
    "n_bad_pixels": 1.0,
    "negative_fraction": 0.3,
    "negative_flux_fraction": 0.3,
    "dipole_score": 0.6,
    "trail_score": 0.4,
    "cosmic_ray_score": 5.0,
    "dark_sigma": 2.5,
}
DELETION_THRESHOLDS: dict[str, float | None] = BAD_THRESHOLDS | {
    "dipole_score": None,
    "trail_score": None,
    "cosmic_ray_score": None,
}
POGSON = 2.5 / np.log(10)
COLUMNS = (
    "detection", "x", "y", "x_err", "y_err", "xy_cov", "ra", "dec", "ra_err", "dec_err", "ra_dec_cov",
    "flux_psf", "flux_psf_err", "flux_aper", "flux_aper_err", "mag", "mag_err", "snr", "chi2", "score",
    "fwhm_px", "elongation", "position_angle_deg", "dipole_score", "trail_score", "negative_fraction",
    "negative_flux_fraction", "n_bad_pixels", "distance_px", "ref_source_distance_arcsec", "ref_source_mag",
    "ref_source_star_score", "cosmic_ray_score", "kind", "is_bad", "bad_reasons",
)  # fmt: skip


def measure(
    detections: Detections,
    cutouts: Cutouts,
    difference: Difference,
    reference: Reference | None = None,
    *,
    aperture_radii_fwhm: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0),
    fit_size_fwhm: float = 2.0,
    box_halfsize_fwhm: float = 2.0,
    negatives_n_sigma: float = 3.0,
    bad_thresholds: Thresholds | None = None,
    deletion_thresholds: Thresholds | None = None,
) -> Measurements:
    """Measure every detection and drop the worst.

    A detection of kind ``streak`` or ``star_residual`` is bad for that reason alone. Sources that faded are measured
    like those that brightened, with the sign taken out: what looks like a point source and left no dark hole in the
    sky is kept, with a negative flux.

    Parameters
    ----------
    detections, cutouts, difference
        Of the same CCD; row k of the detections has stamp k.
    reference : Reference, optional
        For the nearest reference source; without it those columns are NaN.
    aperture_radii_fwhm : tuple of float
        Aperture radii [FWHM of the difference]; beyond the cutout's edge the flux is NaN.
    fit_size_fwhm : float
        Half-width of the stamp of the PSF fit [FWHM].
    box_halfsize_fwhm : float
        Half-width of the box in which negative and flagged pixels are counted [FWHM].
    negatives_n_sigma : float
        Pixels of the score beyond this count as negative or positive.
    bad_thresholds, deletion_thresholds : mapping, optional
        Changes to `BAD_THRESHOLDS` and `DELETION_THRESHOLDS`: the value from which a row is bad, and
        from which it is left out. None disables a test.

    Returns
    -------
    Measurements

    Raises
    ------
    ParameterError
        For an unknown name among the thresholds.
    """
    bad = merged_thresholds(BAD_THRESHOLDS, bad_thresholds)
    deletion = merged_thresholds(DELETION_THRESHOLDS, deletion_thresholds)
    radii_px = tuple(float(r * difference.psf.fwhm_px) for r in aperture_radii_fwhm)
    columns = _fit_columns(detections, difference, fit_size_fwhm)
    columns |= _aperture_columns(cutouts, difference, columns, radii_px)
    columns |= _diagnostic_columns(detections, cutouts, difference, columns, box_halfsize_fwhm, negatives_n_sigma)
    columns |= _sky_columns(difference, columns)
    columns |= _reference_columns(difference, reference, columns)
    reasons = _reached(columns, bad)
    for row in np.flatnonzero(columns["kind"] != "point"):
        reasons[row].append(str(columns["kind"][row]))
    columns["is_bad"] = np.array([bool(r) for r in reasons], bool)
    columns["bad_reasons"] = np.array([",".join(r) for r in reasons], "U200")
    kept = np.array([not r for r in _reached(columns, deletion)], bool)
    return Measurements(_table(columns, kept), radii_px, difference.zp, difference.zp_err)


def merged_thresholds(defaults: Thresholds, changes: Thresholds | None) -> dict[str, float | None]:
    """Defaults with `changes` over them.

    Raises
    ------
    ParameterError
        For an unknown name.
    """
    unknown = sorted(set(changes or {}) - set(defaults))
    if unknown:
        raise ParameterError(f"measurements: unknown threshold {unknown[0]!r}; expected one of {', '.join(defaults)}")
    return {**defaults, **(changes or {})}


def _fit_columns(detections: Detections, difference: Difference, size_fwhm: float) -> dict[str, Any]:
    """PSF flux and position on the difference; rows keep the order of the detections."""
    from seechange_assets.science.psf_photometry import fit_position_and_flux

    found = detections.table
    x, y = np.asarray(found["x"], float), np.asarray(found["y"], float)
    size = 2 * int(np.ceil(size_fwhm * difference.psf.fwhm_px)) + 1
    variance = np.where(difference.flags == 0, np.square(difference.noise), np.inf)
    fit = fit_position_and_flux(difference.data, variance, difference.psf, x, y, size)
    measured = np.isfinite(fit.flux) & (fit.flux_err > 0)
    settled = measured & np.isfinite(fit.x_err) & np.isfinite(fit.y_err)
    # Where the position did not settle, it is that of the detection, with the error of a matched filter.
    position_err = difference.psf.fwhm_px / np.sqrt(8 * np.log(2)) / np.maximum(np.abs(fit.flux / fit.flux_err), 1.0)
    return {
        "detection": np.arange(len(found), dtype=np.int32),
        "x": fit.x,
        "y": fit.y,
        "x_err": np.where(settled, fit.x_err, position_err),
        "y_err": np.where(settled, fit.y_err, position_err),
        "xy_cov": np.where(settled, fit.xy_cov, 0.0),
        "flux_psf": fit.flux,
        # The PSF is not known better than this; it takes nothing from the significance.
        "flux_psf_err": np.hypot(
            _with_static_error(fit.flux_err, difference, fit.x, fit.y), difference.psf_flux_error * fit.flux
        ),
        "snr": fit.flux / fit.flux_err,
        "chi2": fit.chi2,
        "score": np.asarray(found["score"], np.float32),
        "kind": np.asarray(found["kind"], "U13"),
        "distance_px": np.hypot(fit.x - x, fit.y - y),
        "fit_failed": np.where(settled, 0.0, np.where(measured, 0.5, 1.0)),
    }


def _with_static_error(flux_err: FloatArray, difference: Difference, x: FloatArray, y: FloatArray) -> FloatArray:
    """Flux errors, not below those of the flux map at the place, which know how badly what is below subtracts."""
    ny, nx = difference.flux_err.shape
    known = np.isfinite(x) & np.isfinite(y)
    columns, rows = (np.rint(np.where(known, axis, 0)).astype(np.intp) for axis in (x, y))
    local = difference.flux_err[np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)].astype(np.float64)
    return np.asarray(np.where(known & np.isfinite(flux_err), np.fmax(flux_err, local), flux_err))


def _aperture_columns(
    cutouts: Cutouts, difference: Difference, columns: dict[str, Any], radii_px: tuple[float, ...]
) -> dict[str, Any]:
    """Sums in circles around the fitted position; NaN where a pixel is missing."""
    noise, _ = cut_stamps(difference.noise, difference.flags, cutouts.corner, cutouts.size)
    x, y = columns["x"] - cutouts.corner[:, 0], columns["y"] - cutouts.corner[:, 1]
    flux, variance = _aperture_sums(cutouts.sub, np.square(noise), x, y, np.asarray(radii_px, float))
    return {"flux_aper": flux, "flux_aper_err": np.sqrt(variance)}


@njit(cache=True)
def _aperture_sums(stamps, variance, x, y, radii):  # type: ignore[no-untyped-def]
    """Pixels on the rim count by the part of them inside, from 10x10 points."""
    n, size, _ = stamps.shape
    flux = np.zeros((n, radii.size))
    total_variance = np.zeros((n, radii.size))
    for k in range(n):
        for r in range(radii.size):
            radius = radii[r]
            if not (
                x[k] - radius > -0.5
                and y[k] - radius > -0.5
                and x[k] + radius < size - 0.5
                and y[k] + radius < size - 0.5
            ):
                flux[k, r] = np.nan
                total_variance[k, r] = np.nan
                continue
            for j in range(int(np.floor(y[k] - radius + 0.5)), int(np.floor(y[k] + radius + 0.5)) + 1):
                for i in range(int(np.floor(x[k] - radius + 0.5)), int(np.floor(x[k] + radius + 0.5)) + 1):
                    part = _part_inside(i - x[k], j - y[k], radius)
                    if part > 0:
                        flux[k, r] += part * stamps[k, j, i]
                        total_variance[k, r] += part * part * variance[k, j, i]
    return flux, total_variance


@njit(cache=True)
def _part_inside(dx, dy, radius):  # type: ignore[no-untyped-def]
    """Part of the pixel centred at (dx, dy) within `radius` of the origin."""
    distance = np.hypot(dx, dy)
    if distance < radius - 0.7072:
        return 1.0
    if distance > radius + 0.7072:
        return 0.0
    inside = 0
    for a in range(10):
        for b in range(10):
            inside += (dx - 0.45 + 0.1 * a) ** 2 + (dy - 0.45 + 0.1 * b) ** 2 < radius * radius
    return inside / 100.0


def _diagnostic_columns(
    detections: Detections,
    cutouts: Cutouts,
    difference: Difference,
    columns: dict[str, Any],
    box_halfsize_fwhm: float,
    n_sigma: float,
) -> dict[str, Any]:
    """Everything of `diagnostics`, on stamps in which the detection is positive."""
    fwhm = difference.psf.fwhm_px
    x, y = np.asarray(detections.table["x"], float), np.asarray(detections.table["y"], float)
    box = max(1, int(np.ceil(box_halfsize_fwhm * fwhm)))
    half = max(int(np.ceil(3 * fwhm)), box, 3)
    corner = stamp_corners(x, y, 2 * half + 1)
    sign = np.sign(columns["score"])[:, None, None]
    score, signal, noise = (
        _known_stamps(image, difference.flags, corner, 2 * half + 1)
        for image in (difference.score, difference.data, difference.noise)
    )
    score, signal = score * sign, signal * sign
    inner = (slice(None), slice(half - box, half + box + 1), slice(half - box, half + box + 1))
    response = diagnostics.matched_filter_response(difference.psf, x, y, 2 * half + 1)
    by_number, by_flux = diagnostics.negative_fractions(score[inner], n_sigma)
    pixel_snr = np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0)
    center = corner + half
    shape = diagnostics.moments(signal, noise**2, x - center[:, 0], y - center[:, 1], fwhm)
    return {
        "fwhm_px": shape.fwhm_px,
        "width_ratio": shape.fwhm_px / fwhm,
        "elongation": shape.elongation,
        "position_angle_deg": shape.position_angle_deg,
        "centroid_distance_px": np.hypot(
            center[:, 0] + shape.dx - columns["x"], center[:, 1] + shape.dy - columns["y"]
        ),
        "dipole_score": diagnostics.dipole_scores(score, response, fwhm),
        "trail_score": diagnostics.trail_scores(score, response, fwhm),
        "cosmic_ray_score": diagnostics.cosmic_ray_scores(pixel_snr, np.abs(columns["snr"])),
        "negative_fraction": by_number,
        "negative_flux_fraction": by_flux,
        "n_bad_pixels": _count_flagged(cutouts, x, y, box),
        "dark_sigma": _dark_sigma(cutouts, difference, columns, box),
    }


def _dark_sigma(cutouts: Cutouts, difference: Difference, columns: dict[str, Any], box: int) -> FloatArray:
    """Darkness, in errors of the difference's flux, of the image that holds no excess; 0 where it is not dark.

    Light cannot be negative: where a source faded the new image shows what is left of it, where one appeared the
    reference shows what was there before. A dip below the sky is noise of that image, and makes a peak of the other
    sign in the difference.
    """
    from seechange_assets.science.psf_photometry import unit_stamps

    n = len(cutouts.corner)
    half = cutouts.size // 2
    reach = min(box, half)
    inner = np.s_[:, half - reach : half + reach + 1, half - reach : half + reach + 1]
    faded = (columns["score"] < 0)[:, None, None]
    held = np.nan_to_num(np.where(faded, cutouts.new[inner], cutouts.ref[inner])).astype(np.float64)
    center = (cutouts.corner + half).astype(np.float64).T
    template = unit_stamps(difference.psf, columns["x"], columns["y"], 2 * reach + 1, (center[0], center[1]))
    flux = (template * held).sum(axis=(1, 2)) / np.maximum((template**2).sum(axis=(1, 2)), 1e-30)
    return np.maximum(-flux * columns["snr"] / columns["flux_psf"], 0.0) if n else np.zeros(0)


def _known_stamps(image: NDArray[Any], flags: NDArray[Any], corner: NDArray[Any], size: int) -> FloatArray:
    """Stamps of an image, 0 where a flag is set or no value is known."""
    stamps, stamp_flags = cut_stamps(image, flags, corner, size)
    return np.where((stamp_flags == 0) & np.isfinite(stamps), stamps, 0.0).astype(np.float64)


def _count_flagged(cutouts: Cutouts, x: FloatArray, y: FloatArray, box: int) -> NDArray[np.int32]:
    """Pixels flagged in the new image or the reference, in the box around each position.

    The flags of the difference are those two grown by the reach of its filter; counting them would
    reject sources whose own pixels are all good.
    """
    offset = np.arange(cutouts.size)
    near_x = np.abs(cutouts.corner[:, 0, None] + offset - np.floor(x + 0.5)[:, None]) <= box
    near_y = np.abs(cutouts.corner[:, 1, None] + offset - np.floor(y + 0.5)[:, None]) <= box
    flagged = (cutouts.new_flags | cutouts.ref_flags) != 0
    count: NDArray[np.int32] = np.sum(flagged & near_y[:, :, None] & near_x[:, None, :], axis=(1, 2)).astype(np.int32)
    return count


def _sky_columns(difference: Difference, columns: dict[str, Any]) -> dict[str, Any]:
    """Positions on the sky with errors from those in pixels, and magnitudes (NaN for negative flux)."""
    x, y = columns["x"], columns["y"]
    ra, dec = np.full(x.size, np.nan), np.full(x.size, np.nan)
    covariance = np.full((x.size, 2, 2), np.nan)
    known = np.isfinite(x) & np.isfinite(y)
    if known.any():
        wcs = difference.wcs.astropy()
        ra[known], dec[known] = wcs.all_pix2world(x[known], y[known], 0)
        pixel = np.empty((x.size, 2, 2))
        pixel[:, 0, 0], pixel[:, 1, 1] = columns["x_err"] ** 2, columns["y_err"] ** 2
        pixel[:, 0, 1] = pixel[:, 1, 0] = columns["xy_cov"]
        jacobian = _sky_jacobian(wcs, x[known], y[known], ra[known], dec[known])
        covariance[known] = jacobian @ pixel[known] @ jacobian.transpose(0, 2, 1)
    flux, positive = columns["flux_psf"], columns["flux_psf"] > 0
    safe = np.where(positive, flux, np.nan)
    return {
        "ra": ra,
        "dec": dec,
        "ra_err": np.sqrt(covariance[:, 0, 0]),
        "dec_err": np.sqrt(covariance[:, 1, 1]),
        "ra_dec_cov": covariance[:, 0, 1],
        "mag": difference.zp - 2.5 * np.log10(safe),
        "mag_err": np.hypot(POGSON * columns["flux_psf_err"] / safe, difference.zp_err),
    }


def _sky_jacobian(wcs: Any, x: FloatArray, y: FloatArray, ra: FloatArray, dec: FloatArray) -> FloatArray:
    """d(ra cos dec, dec) / d(x, y) [deg/pixel] by steps of one pixel, ``(n, 2, 2)``."""
    jacobian = np.empty((x.size, 2, 2))
    for axis, (dx, dy) in enumerate(((1.0, 0.0), (0.0, 1.0))):
        ra_step, dec_step = wcs.all_pix2world(x + dx, y + dy, 0)
        jacobian[:, 0, axis] = ((ra_step - ra + 180) % 360 - 180) * np.cos(np.radians(dec))
        jacobian[:, 1, axis] = dec_step - dec
    return jacobian


def _reference_columns(difference: Difference, reference: Reference | None, columns: dict[str, Any]) -> dict[str, Any]:
    """The reference's source nearest to each fit, with the WCS the subtraction refined."""
    n = columns["x"].size
    distance, mag, star_score = (np.full(n, np.nan) for _ in range(3))
    known = np.isfinite(columns["ra"])
    if reference is not None and known.any() and len(reference.sources.table):
        from scipy.spatial import cKDTree

        table = reference.sources.table
        wcs = wcs_from_text(difference.reference_wcs)
        tree = cKDTree(
            _unit_vectors(*wcs.all_pix2world(np.asarray(table["x"], float), np.asarray(table["y"], float), 0))
        )
        chord, row = tree.query(_unit_vectors(columns["ra"][known], columns["dec"][known]))
        distance[known] = np.degrees(2 * np.arcsin(chord / 2)) * 3600
        flux = np.asarray(table["flux_auto"], float)[row]
        mag[known] = reference.zp.zp - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        star_score[known] = np.asarray(table["star_score"], float)[row]
    return {"ref_source_distance_arcsec": distance, "ref_source_mag": mag, "ref_source_star_score": star_score}


def _unit_vectors(ra: FloatArray, dec: FloatArray) -> FloatArray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def _reached(columns: dict[str, Any], thresholds: Thresholds) -> list[list[str]]:
    """Names of the thresholds each row reaches; a value that could not be measured reaches none."""
    n = columns["x"].size
    reached: list[list[str]] = [[] for _ in range(n)]
    for name, limit in thresholds.items():
        if limit is not None:
            for row in np.flatnonzero(columns[name] >= limit):
                reached[row].append(name)
    return reached


def _table(columns: dict[str, Any], kept: NDArray[np.bool_]) -> "Table":
    from astropy.table import Table

    return Table({name: columns[name][kept] for name in COLUMNS})
