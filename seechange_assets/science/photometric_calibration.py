"""Zero point, aperture corrections and depth of one image from the stars its WCS matched to Gaia."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import TooFewStars
from seechange_assets.products import Background, ImageInfo, Psf, Sources, Wcs, ZeroPoint

if TYPE_CHECKING:
    from astropy.table import Table

FloatArray = NDArray[np.float64]
GaiaMagnitude = Callable[[str, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

MAG_PER_RELATIVE_FLUX = 2.5 / np.log(10.0)
_ROUNDS = 30
_HUBER = 1.345
_MIN_APERTURE_STARS = 10
# Gaia magnitudes without a stated error.
_UNKNOWN_ERROR_MAG = 0.01


@dataclass(frozen=True, slots=True)
class _Stars:
    """Candidates for the fit: row in `Sources`, magnitudes, BP-RP, error of the difference [mag]."""

    row: NDArray[np.intp]
    catalog: FloatArray
    instrumental: FloatArray
    color: FloatArray
    error: FloatArray


def calibrate_photometry(
    image_info: ImageInfo,
    sources: Sources,
    psf: Psf,
    background: Background,
    wcs: Wcs,
    gaia_magnitude: GaiaMagnitude,
    *,
    min_stars: int = 10,
    match_radius_arcsec: float = 1.0,
    min_snr: float = 10.0,
    preferred_snr: float = 30.0,
    preferred_stars: int = 50,
    bright_snr: float = 100.0,
    bright_stars: int = 200,
    brightest_snr: float = 200.0,
    brightest_stars: int = 100,
    well_fitted_stars: int = 100,
    min_color: float = 0.5,
    max_color: float = 3.0,
    fit_color_term: bool = False,
    color_pivot: float = 0.8,
    clip_sigma: float = 4.0,
    error_floor_mag: float = 0.0005,
    min_aperture_snr: float = 50.0,
    limit_sigma: float = 5.0,
    residual_box_px: int = 512,
    min_box_stars: int = 5,
) -> ZeroPoint:
    """Calibrate PSF fluxes to AB magnitudes.

    A Huber M-estimate with clipping: weights are the inverse of the measured variance plus the
    extra variance the stars show (flat-field, variability, colours), so a few very bright
    stars do not decide alone. The error of the zero point is the sandwich estimate from the
    residuals themselves, with a floor.

    Parameters
    ----------
    image_info : ImageInfo
        Gives filter, gain and name.
    sources, psf, background, wcs
        The image's products; fluxes are ``psf.photometry`` for the pairs in ``wcs.matches``.
    gaia_magnitude : callable
        ``(filter, mag_g, bp_rp) -> AB magnitude`` of the instrument.
    min_stars : int
        Fewest stars in the fit.
    match_radius_arcsec : float
        Largest distance of a star from its catalogue entry.
    min_snr : float
        Lowest signal-to-noise of a PSF flux, predicted from the catalogue.
    preferred_snr, preferred_stars : float, int
        If as many stars reach this signal-to-noise, the fainter ones, which unseen neighbours brighten, do
        not take part.
    bright_snr, bright_stars : float, int
        The same once more, for fields so crowded that most stars have such neighbours: the noise of brighter stars
        is below what stars differ by anyway, so little is lost with the others.
    brightest_snr, brightest_stars : float, int
        And once more: what neighbours too faint or too close to be known add is a share of the flux that falls as
        one over the flux, 3 mmag at S/N 100 to 200 and below 1 beyond 250 at 20 times the usual density.
    well_fitted_stars : int
        In a crowded field, of more stars than this the half that the PSF fits better takes part, but at least so many:
        a neighbour too close to be known brightens a star and shows in its chi2. At 20 times the usual density the
        worst quarter is 5 mmag brighter than the best. A flux and its chi2 have no noise in common, so the choice
        itself adds no bias.
    min_color, max_color : float
        Range of BP-RP; stars without a colour stay if the transform gives them a magnitude.
    fit_color_term, color_pivot : bool, float
        Fit ``zp + color_term * (BP-RP - color_pivot)``.
    clip_sigma : float
        Stars beyond this many robust standard deviations leave the fit.
    error_floor_mag : float
        Added to ``zp_err`` in quadrature.
    min_aperture_snr : float
        Stars below this signal-to-noise do not enter the aperture corrections.
    limit_sigma : float
        Significance of a point source at ``limiting_magnitude``.
    residual_box_px, min_box_stars : int
        Side [pixel] of the boxes of the residual map, and the fewest stars in one.

    Returns
    -------
    ZeroPoint

    Raises
    ------
    TooFewStars
        Fewer than `min_stars` stars before or after clipping.
    """
    stars = _calibration_stars(
        image_info,
        sources,
        psf,
        wcs,
        gaia_magnitude,
        match_radius_arcsec,
        ((brightest_snr, brightest_stars), (bright_snr, bright_stars), (preferred_snr, preferred_stars), (min_snr, 0)),
        well_fitted_stars if _is_crowded(sources, psf) else len(sources.table),
        (min_color, max_color),
        fit_color_term,
    )
    step = f"zero point of {image_info.exposure} {image_info.ccd}"
    if len(stars.row) < min_stars:
        raise TooFewStars(step, len(stars.row), min_stars, _advice(wcs, image_info))
    offset = stars.color - color_pivot if fit_color_term else None
    fit = _robust_line(stars.catalog - stars.instrumental, stars.error, offset, clip_sigma)
    n_used = int(fit.used.sum())
    if n_used < min_stars:
        raise TooFewStars(
            step, n_used, min_stars, f"{len(stars.row) - n_used} others disagree by {clip_sigma:g} sigma."
        )
    enclosed_err = MAG_PER_RELATIVE_FLUX * psf.enclosed_err / psf.enclosed
    residual_map, residual_map_err = _residual_map(
        sources.table[stars.row], fit, psf.shape, residual_box_px, min_box_stars
    )
    return ZeroPoint(
        zp=fit.constant,
        zp_err=float(np.linalg.norm([fit.constant_err, enclosed_err, error_floor_mag])),
        scatter=fit.scatter,
        color_term=fit.slope,
        n_stars=n_used,
        aperture_radii_px=tuple(float(radius) for radius in sources.aperture_radii_px),
        aperture_corrections=aperture_corrections(sources, psf, min_aperture_snr),
        limiting_magnitude=fit.constant - 2.5 * np.log10(limiting_flux(image_info, psf, background, limit_sigma)),
        stars=_star_table(stars, fit),
        residual_map=residual_map,
        residual_map_err=residual_map_err,
        residual_box_px=residual_box_px,
    )


def aperture_corrections(sources: Sources, psf: Psf, min_snr: float) -> tuple[float, ...]:
    """Magnitudes to add to each aperture magnitude to reach the PSF-flux system.

    The median over bright, single stars of ``mag_psf - mag_aper``; the best ten serve where fewer
    reach `min_snr`. NaN where no star has both fluxes.
    """
    table = sources.table
    aperture = np.asarray(table["flux_aper"], float).reshape(len(table), -1)
    flux = np.asarray(psf.photometry["flux_psf"], float)
    snr = _ratio(flux, np.asarray(psf.photometry["flux_psf_err"], float))
    single = np.asarray(table["is_good"], bool) & (np.asarray(table["extraction_flags"]) == 0) & (snr > 0)
    stars = single & np.asarray(table["is_star"], bool)
    for candidates in (stars, single):
        rows = np.flatnonzero(candidates)
        rows = rows[np.argsort(-snr[rows], kind="stable")]
        n = max(int((snr[rows] >= min_snr).sum()), min(_MIN_APERTURE_STARS, len(rows)))
        if n >= 3:
            return tuple(_median_difference(flux[rows[:n]], column[rows[:n]]) for column in aperture.T)
    return (float("nan"),) * aperture.shape[1]


def limiting_flux(info: ImageInfo, psf: Psf, background: Background, significance: float) -> float:
    """Flux [ADU] of a point source at that significance, optimally measured at the image centre.

    Variance ``rms^2 A + F / gain`` with A the PSF's effective area, solved for F (King 1983, PASP 95, 163).
    """
    from seechange_assets.science.psf import effective_area, render

    ny, nx = psf.shape
    area = effective_area(render(psf, [(nx - 1) / 2.0], [(ny - 1) / 2.0])[0])
    sky = (background.rms * psf.blank_noise) ** 2 * area
    poisson = significance**2 / info.gain if np.isfinite(info.gain) and info.gain > 0 else 0.0
    on_table = 0.5 * (poisson + np.sqrt(poisson**2 + 4.0 * significance**2 * sky))
    return float(on_table / psf.enclosed)


def _calibration_stars(
    info: ImageInfo,
    sources: Sources,
    psf: Psf,
    wcs: Wcs,
    gaia_magnitude: GaiaMagnitude,
    radius_arcsec: float,
    snr_limits: tuple[tuple[float, int], ...],
    n_well_fitted: int,
    colors: tuple[float, float],
    needs_color: bool,
) -> _Stars:
    """Matched good sources with a usable flux, colour and catalogue magnitude."""
    matches = wcs.matches
    rows = np.asarray(matches["source"], int)
    flux = np.asarray(psf.photometry["flux_psf"], float)[rows]
    flux_err = np.asarray(psf.photometry["flux_psf_err"], float)[rows]
    mag_g = np.asarray(matches["mag_g"], float)
    color = np.asarray(matches["mag_bp"], float) - np.asarray(matches["mag_rp"], float)
    with np.errstate(invalid="ignore", divide="ignore"):
        catalog = np.asarray(gaia_magnitude(info.filter, mag_g, color), float)
        catalog_err = _catalog_error(matches, info.filter, mag_g, color, gaia_magnitude)
        instrumental = -2.5 * np.log10(flux)
        distance = np.hypot(np.asarray(matches["d_ra_mas"], float), np.asarray(matches["d_dec_mas"], float)) / 1000.0
        usable = np.asarray(sources.table["is_good"], bool)[rows] & (distance <= radius_arcsec)
        usable &= (_ratio(flux, flux_err) > 0) & np.isfinite(catalog) & np.isfinite(instrumental)
        in_range = (color >= colors[0]) & (color <= colors[1])
        usable &= in_range if needs_color else in_range | np.isnan(color)
        usable &= _bright_enough(catalog, flux, flux_err, usable, snr_limits)
        usable &= _well_fitted(np.asarray(psf.photometry["chi2"], float)[rows], usable, n_well_fitted)
        error = np.hypot(MAG_PER_RELATIVE_FLUX * flux_err / flux, catalog_err)
    return _Stars(rows[usable], catalog[usable], instrumental[usable], color[usable], error[usable])


def _catalog_error(
    matches: "Table", filter_name: str, mag_g: FloatArray, color: FloatArray, gaia_magnitude: GaiaMagnitude
) -> FloatArray:
    """Error of the transformed magnitude [mag]: of G, and of the colour times the slope of the transform."""
    mag_g_err, bp_err, rp_err = (np.asarray(matches[name], float) for name in ("mag_g_err", "mag_bp_err", "mag_rp_err"))
    step = 0.05
    above, below = (np.asarray(gaia_magnitude(filter_name, mag_g, color + d), float) for d in (step, -step))
    slope = np.nan_to_num((above - below) / (2 * step))
    color_err = np.nan_to_num(np.hypot(bp_err, rp_err))
    error: FloatArray = np.hypot(np.where(np.isfinite(mag_g_err), mag_g_err, _UNKNOWN_ERROR_MAG), slope * color_err)
    return error


def _bright_enough(
    catalog: FloatArray,
    flux: FloatArray,
    flux_err: FloatArray,
    usable: NDArray[np.bool_],
    limits: tuple[tuple[float, int], ...],
) -> NDArray[np.bool_]:
    """Stars over the first limit that enough reach (limit, stars), by the signal-to-noise that the catalogue predicts.

    A cut on the measured one would keep faint stars whose noise is positive and bias the zero point.
    """
    sample = usable & (_ratio(flux, flux_err) >= limits[-1][0])
    if not sample.any():
        return sample
    zero_point = float(np.median(catalog[sample] + 2.5 * np.log10(flux[sample])))
    expected = _ratio(10 ** (-0.4 * (catalog - zero_point)), flux_err)
    limit = next(snr for snr, wanted in limits if (usable & (expected >= snr)).sum() >= wanted)
    bright: NDArray[np.bool_] = expected >= limit
    return bright


def _is_crowded(sources: Sources, psf: Psf) -> bool:
    """Whether the stamps of the sources overlap often: the rule by which the PSF fit looks for unseen sources."""
    from seechange_assets.science.psf import native_size
    from seechange_assets.science.psf_fit import CROWDED_PER_STAMP

    return bool(len(sources.table) * native_size(psf) ** 2 > CROWDED_PER_STAMP * psf.shape[0] * psf.shape[1])


def _well_fitted(chi2: FloatArray, usable: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """The usable stars up to their median chi2, or the `least` that have the lowest."""
    n = int(usable.sum())
    if n <= least:
        return usable
    rank = np.argsort(np.argsort(np.where(usable & np.isfinite(chi2), chi2, np.inf), kind="stable"), kind="stable")
    better: NDArray[np.bool_] = usable & (rank < max(least, (n + 1) // 2))
    return better


def _advice(wcs: Wcs, info: ImageInfo) -> str:
    """Why there may be too few, from what the matches show."""
    matches = wcs.matches
    with_color = int(np.sum(np.isfinite(np.asarray(matches["mag_bp"], float) - np.asarray(matches["mag_rp"], float))))
    return f"{len(matches)} sources match the catalogue, {with_color} of them with a colour (filter {info.filter})."


@dataclass(frozen=True, slots=True)
class _Line:
    """A robust constant, with a slope if asked for."""

    constant: float
    constant_err: float
    slope: float
    scatter: float
    residual: FloatArray
    used: NDArray[np.bool_]


def _robust_line(values: FloatArray, error: FloatArray, offset: FloatArray | None, clip_sigma: float) -> _Line:
    """Huber M-estimate of ``constant + slope * offset`` with an extra variance common to all stars.

    The covariance is the sandwich ``B^-1 (sum w^2 r^2 x x^T) B^-1`` (Huber 1967): it holds even where
    the stated errors do not.
    """
    columns = [np.ones_like(values)] if offset is None else [np.ones_like(values), offset]
    design = np.stack(columns, axis=1)
    used = np.ones(len(values), bool)
    residual = values - np.median(values)
    for _ in range(_ROUNDS):
        extra = _extra_variance(residual[used] - np.median(residual[used]), error[used])
        sigma = np.sqrt(error**2 + extra + 1e-12)
        size = np.abs(residual) / sigma
        weight = used * np.minimum(1.0, _HUBER / np.maximum(size, 1e-12)) / sigma**2
        normal = design.T @ (weight[:, None] * design)
        solution = np.linalg.solve(normal, design.T @ (weight * values))
        residual = values - design @ solution
        normalised = np.abs(residual) / sigma
        keep = normalised <= clip_sigma * max(1.4826 * float(np.median(normalised[used])), 1e-6)
        if np.array_equal(keep, used):
            break
        used = keep
    n = int(used.sum())
    pulls = (weight * residual)[:, None] * design
    bread = np.linalg.inv(normal)
    covariance = bread @ (pulls[used].T @ pulls[used]) @ bread * (n / max(n - design.shape[1], 1))
    slope = float(solution[1]) if offset is not None else 0.0
    scatter = float(1.4826 * np.median(np.abs(residual[used])))
    return _Line(float(solution[0]), float(np.sqrt(covariance[0, 0])), slope, scatter, residual, used)


def _extra_variance(residual: FloatArray, error: FloatArray) -> float:
    """Variance that, added to every star's own, makes the median size of the residuals that of a Gaussian."""
    low, high = 0.0, float(1.4826 * np.median(np.abs(residual))) ** 2

    def width(extra: float) -> float:
        return float(1.4826 * np.median(np.abs(residual) / np.sqrt(error**2 + extra + 1e-12)))

    if width(low) <= 1.0:
        return low
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if width(middle) > 1.0 else (low, middle)
    return high


def _star_table(stars: _Stars, fit: _Line) -> "Table":
    from astropy.table import Table

    return Table(
        {
            "source": stars.row.astype(np.int32),
            "mag_catalog": stars.catalog.astype(np.float32),
            "mag_instrumental": stars.instrumental.astype(np.float32),
            "color": stars.color.astype(np.float32),
            "residual": fit.residual.astype(np.float32),
            "used": fit.used,
        }
    )


def _residual_map(
    rows: "Table", fit: _Line, shape: tuple[int, int], box_px: int, min_stars: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Medians of the residuals of the used stars in boxes of the image, and their errors; NaN below `min_stars`."""
    n_y, n_x = (max(round(side / box_px), 1) for side in shape)
    column = np.clip((np.asarray(rows["x"]) * n_x / shape[1]).astype(int), 0, n_x - 1)
    row = np.clip((np.asarray(rows["y"]) * n_y / shape[0]).astype(int), 0, n_y - 1)
    value, error = np.full((n_y, n_x), np.nan, np.float32), np.full((n_y, n_x), np.nan, np.float32)
    for j, i in np.ndindex(n_y, n_x):
        inside = fit.residual[fit.used & (row == j) & (column == i)]
        if inside.size >= min_stars:
            value[j, i] = np.median(inside)
            # The median of a Gaussian sample scatters 1.25 times as much as its mean.
            error[j, i] = 1.25 * 1.4826 * np.median(np.abs(inside - value[j, i])) / np.sqrt(inside.size)
    return value, error


def _median_difference(flux: FloatArray, aperture: FloatArray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = -2.5 * np.log10(flux / aperture)
    difference = difference[np.isfinite(difference)]
    return float(np.median(difference)) if len(difference) >= 3 else float("nan")


def _ratio(flux: FloatArray, error: FloatArray) -> NDArray[np.float64]:
    """Signal-to-noise; 0 where it is not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = flux / error
    return np.where(np.isfinite(ratio) & (error > 0), ratio, 0.0)
