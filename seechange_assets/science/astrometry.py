"""Astrometric solution of one CCD against a catalogue of stars.

Three steps: a pattern match around the telescope's own WCS that survives errors of pointing,
rotation and scale (`pattern_match`); an iterative fit with outlier rejection of a polynomial
on top of that WCS, so distortions the header knows are kept; and the solution written as a
TAN-SIP header (`sip`). A solution that could be chance is an error, never a product.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import AstrometryError, CatalogError, TooFewStars
from seechange_assets.products import ImageInfo, SkyCatalog, Sources, Wcs, header_text, wcs_from_text
from seechange_assets.science.astrometry_fit import (
    AstrometricFit,
    CatalogField,
    Search,
    Stars,
    border_points,
    find_solution,
)
from seechange_assets.science.sip import sip_header
from seechange_assets.science.tangent_plane import (
    MAS_PER_RADIAN,
    FloatArray,
    TangentPlane,
    east_north,
    moved,
    sky_position,
    unit_vectors,
)

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

_BRIGHT_SNR = 100.0


def solve_wcs(
    sources: Sources,
    info: ImageInfo,
    shape: tuple[int, int],
    catalog: SkyCatalog,
    *,
    max_catalog_mag: float = 22.0,
    catalog_range_mag: float = 12.0,
    min_catalog_stars: int = 10,
    max_stars: int = 2000,
    match_radius_arcsec: float = 2.0,
    min_matched: int = 10,
    min_fraction_matched: float = 0.1,
    max_residual_arcsec: float = 0.15,
    max_offset_arcsec: float = 60.0,
    max_rotation_deg: float = 0.5,
    max_scale_error: float = 0.01,
    max_log10_chance: float = -8.0,
    max_degree: int = 3,
    error_floor_mas: float = 10.0,
    clip_sigma: float = 4.0,
) -> Wcs:
    """Fit the WCS of an image to a catalogue, starting from ``info.wcs_guess``.

    Parameters
    ----------
    sources : Sources
        Rows with ``is_good`` take part.
    info : ImageInfo
        Gives the header's WCS and the epoch (``mjd_mid``).
    shape : tuple of int
        ``(ny, nx)``.
    catalog : SkyCatalog
        Stars that cover the image with a margin of `max_offset_arcsec`.
    max_catalog_mag, catalog_range_mag : float
        G magnitudes used: from ``max - range`` to ``max``.
    min_catalog_stars : int
        Fewer usable catalogue stars are an error of the catalogue.
    max_stars : int
        Brightest sources used.
    match_radius_arcsec : float
        Largest distance of a matched pair in the solution.
    min_matched, min_fraction_matched : int, float
        Fewest stars in the fit, and fewest as a fraction of the shorter list.
    max_residual_arcsec : float
        Largest robust scatter, mean of the two axes.
    max_offset_arcsec, max_rotation_deg, max_scale_error : float
        How wrong the header may be.
    max_log10_chance : float
        Largest log10 of the probability that the pattern match is chance.
    max_degree : int
        Highest degree of the distortion polynomial; few stars lower it.
    error_floor_mas : float
        Added in quadrature to every position error (turbulence, unmodelled pixels).
    clip_sigma : float
        Stars beyond this many robust standard deviations leave the fit.

    Returns
    -------
    Wcs

    Raises
    ------
    TooFewStars
        Fewer than `min_matched` usable sources.
    CatalogError
        The catalogue has too few stars.
    AstrometryError
        No header WCS, no significant match (told apart: mirrored or rotated headers), or
        a solution that fails a limit.
    """
    stars = _usable_stars(sources, max_stars)
    if len(stars.x) < min_matched:
        advice = "A shallower threshold, a longer exposure or fewer masked pixels give more."
        raise TooFewStars(f"wcs of {info.exposure} {info.ccd}", len(stars.x), min_matched, advice)
    search = _search(
        info,
        shape,
        max_offset=max_offset_arcsec,
        max_rotation=np.radians(max_rotation_deg),
        max_scale_error=max_scale_error,
        match_radius=match_radius_arcsec,
        min_matched=min_matched,
        max_log10_chance=max_log10_chance,
        max_degree=max_degree,
        error_floor=error_floor_mas / 1000.0,
        clip_sigma=clip_sigma,
    )
    stars = replace(stars, error=stars.error * search.pixel_scale)
    magnitudes = (max_catalog_mag - catalog_range_mag, max_catalog_mag)
    field = _catalog_field(catalog, search, magnitudes, min_catalog_stars)
    fit = find_solution(stars, field, search)
    solution = _solution(fit, stars, field, search, catalog)
    _check(solution, fit, search, min(len(stars.x), field.n_inside), min_fraction_matched, max_residual_arcsec)
    return solution


def _usable_stars(sources: Sources, max_stars: int) -> Stars:
    """Good sources with finite positions; position errors still in pixels."""
    table = sources.table
    x, y = np.asarray(table["x"], float), np.asarray(table["y"], float)
    error = np.hypot(np.asarray(table["x_err"], float), np.asarray(table["y_err"], float)) / np.sqrt(2.0)
    flux = np.asarray(table["flux_auto"], float)
    good = np.asarray(table["is_good"], bool) & np.isfinite(x) & np.isfinite(y) & np.isfinite(flux) & (flux > 0)
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(-flux[rows], kind="stable")][:max_stars]
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.nan_to_num(flux / np.asarray(table["flux_auto_err"], float), posinf=0.0)
    typical = np.nanmedian(error[rows]) if np.isfinite(error[rows]).any() else 0.1
    error = np.where(np.isfinite(error) & (error >= 0), error, typical)
    return Stars(x[rows], y[rows], error[rows], snr[rows], rows)


def catalog_cone(info: ImageInfo, shape: tuple[int, int], max_offset_arcsec: float) -> tuple[float, float, float]:
    """Circle of sky [deg: ra, dec, radius] a catalogue must cover to solve an image.

    The circle around the header's image, wider by `max_offset_arcsec` and 3 % for rotation and scale.

    Raises
    ------
    AstrometryError
        The header has no usable celestial WCS.
    """
    guess, plane = _header_wcs(info, shape)
    ny, nx = shape
    x, y = np.array([0.0, nx - 1.0, 0.0, nx - 1.0]), np.array([0.0, 0.0, ny - 1.0, ny - 1.0])
    corners = unit_vectors(*guess.all_pix2world(x, y, 0, ra_dec_order=True))
    radius = np.degrees(np.arccos(np.clip(corners @ unit_vectors(plane.ra_deg, plane.dec_deg), -1.0, 1.0))).max()
    return plane.ra_deg, plane.dec_deg, float(1.03 * radius + np.sqrt(2.0) * max_offset_arcsec / 3600.0)


def _header_wcs(info: ImageInfo, shape: tuple[int, int]) -> tuple["WCS", TangentPlane]:
    """The WCS the header believes, and the tangent plane at its image centre."""
    where = f"{info.exposure} {info.ccd}"
    if not info.wcs_guess:
        raise AstrometryError(f"wcs of {where}: the header has no WCS to start from")
    guess = wcs_from_text(info.wcs_guess)
    if not guess.has_celestial:
        raise AstrometryError(f"wcs of {where}: the header's WCS is not celestial (CTYPE {list(guess.wcs.ctype)})")
    guess = guess.celestial
    ny, nx = shape
    ra, dec = (float(v) for v in guess.all_pix2world((nx - 1) / 2.0, (ny - 1) / 2.0, 0, ra_dec_order=True))
    if not (np.isfinite(ra) and np.isfinite(dec)):
        raise AstrometryError(f"wcs of {where}: the header's WCS gives no position for the image centre")
    return guess, TangentPlane(ra, dec)


def _search(info: ImageInfo, shape: tuple[int, int], **limits: float) -> Search:
    """Read the header's WCS and put the working plane at the image centre."""
    guess, plane = _header_wcs(info, shape)
    ny, nx = shape
    x, y = (nx - 1) / 2.0, (ny - 1) / 2.0
    search = Search(info, shape, guess, plane, 1.0, **limits)  # type: ignore[arg-type]
    step = np.diff(search.to_plane(np.array([x, x + 1, x]), np.array([y, y, y + 1])), axis=0)
    jacobian = np.stack([step[0], step[0] + step[1]])
    return replace(search, pixel_scale=float(np.sqrt(abs(np.linalg.det(jacobian)))))


def _catalog_field(
    catalog: SkyCatalog, search: Search, magnitudes: tuple[float, float], min_stars: int
) -> CatalogField:
    """Catalogue stars in the padded footprint, moved to the epoch of the image, brightest first."""
    table = catalog.table
    names = ("ra", "dec", "ra_err", "dec_err", "pm_ra", "pm_dec", "mag_g")
    column = {name: np.asarray(table[name], float) for name in names}
    usable = np.isfinite(column["ra"]) & np.isfinite(column["dec"])
    usable &= (column["mag_g"] >= magnitudes[0]) & (column["mag_g"] <= magnitudes[1])
    rows = np.flatnonzero(usable)
    if len(rows) < min_stars:
        raise CatalogError(
            f"wcs of {search.where}: catalogue {catalog.name} has {len(rows)} stars of G {magnitudes[0]:.1f} to "
            f"{magnitudes[1]:.1f} for this field, {min_stars} required: use a deeper or a complete catalogue"
        )
    rows = rows[np.argsort(column["mag_g"][rows], kind="stable")]
    years = 2000.0 + (search.info.mjd_mid - 51544.5) / 365.25 - catalog.epoch_yr
    ra, dec, pm_ra, pm_dec = (column[name][rows] for name in ("ra", "dec", "pm_ra", "pm_dec"))
    vectors = moved(ra, dec, pm_ra, pm_dec, years)
    near, inside = _in_footprint(search.plane.project(vectors), search)
    if near.sum() < search.min_matched:
        raise AstrometryError(
            f"wcs of {search.where}: {near.sum()} of the {len(rows)} stars of catalogue {catalog.name} lie in the "
            f"footprint around RA {search.plane.ra_deg:.4f} Dec {search.plane.dec_deg:.4f}: it points elsewhere"
        )
    error = np.nan_to_num(np.hypot(column["ra_err"], column["dec_err"])[rows] / np.sqrt(2.0)) / 1000.0
    return CatalogField(vectors[near], error[near], rows[near], int(inside.sum()))


def _in_footprint(points: FloatArray, search: Search) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which plane points lie in the image padded by the header's possible error, and which in the image itself."""
    ny, nx = search.shape
    x, y = (nx - 1) / 2.0, (ny - 1) / 2.0
    corners = search.to_plane(np.array([x, x + 1, x]), np.array([y, y, y + 1]))
    pixels = (points - corners[0]) @ np.linalg.inv(corners[1:] - corners[0])
    radius_px = np.hypot(nx, ny) / 2.0
    pad = search.max_offset / search.pixel_scale + radius_px * (search.max_rotation + search.max_scale_error)
    half = np.array([nx, ny]) / 2.0
    with np.errstate(invalid="ignore"):
        return (np.abs(pixels) <= half + pad).all(axis=1), (np.abs(pixels) <= half).all(axis=1)


def _solution(fit: AstrometricFit, stars: Stars, field: CatalogField, search: Search, catalog: SkyCatalog) -> Wcs:
    """Write the header, then measure the residuals with exactly that header."""
    header, degree = sip_header(lambda x, y: fit.plane.deproject(fit.apply(search.to_plane(x, y))), search.shape)
    header["NAXIS1"], header["NAXIS2"] = search.shape[::-1]
    text = header_text(header)
    matches, bright = _matches(text, fit, stars, field, catalog, search.match_radius)
    ra, dec = np.asarray(matches["d_ra_mas"]), np.asarray(matches["d_dec_mas"])
    return Wcs(
        header=text,
        degree=degree,
        n_matched=int(np.sum(matches["used"])),
        n_catalog=field.n_inside,
        residual_ra_mas=_robust_scatter(ra),
        residual_dec_mas=_robust_scatter(dec),
        residual_ra_bright_mas=_robust_scatter(ra[bright]),
        residual_dec_bright_mas=_robust_scatter(dec[bright]),
        catalog=catalog.name,
        matches=matches,
    )


def _matches(
    text: str, fit: AstrometricFit, stars: Stars, field: CatalogField, catalog: SkyCatalog, radius: float
) -> tuple["Table", NDArray[np.bool_]]:
    """The table of matched pairs, and which of them are bright."""
    from astropy.table import Table

    found = unit_vectors(*wcs_from_text(text).all_pix2world(stars.x[fit.source], stars.y[fit.source], 0))
    expected = field.vectors[fit.star]
    ra, dec = sky_position(expected)
    east, north = east_north(ra, dec)
    d_ra, d_dec = (MAS_PER_RADIAN * np.sum((found - expected) * axis, axis=1) for axis in (east, north))
    near = np.hypot(d_ra, d_dec) <= 1000.0 * radius
    rows = field.row[fit.star]
    table = Table({"source": stars.row[fit.source].astype(np.int32), "ra": ra, "dec": dec})
    for name in ("mag_g", "mag_bp", "mag_rp", "mag_g_err", "mag_bp_err", "mag_rp_err"):
        table[name] = np.asarray(catalog.table[name], np.float32)[rows]
    table["d_ra_mas"], table["d_dec_mas"] = d_ra.astype(np.float32), d_dec.astype(np.float32)
    table["used"] = fit.used
    return table[near], stars.snr[fit.source][near] > _BRIGHT_SNR


def _robust_scatter(values: FloatArray) -> float:
    """1.4826 times the median absolute deviation; NaN below three values."""
    if len(values) < 3:
        return float("nan")
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _check(
    solution: Wcs, fit: AstrometricFit, search: Search, n_shorter: int, min_fraction: float, max_residual_arcsec: float
) -> None:
    """Refuse a solution that matches too little, scatters too much or is too far from the header."""
    required = max(search.min_matched, int(np.ceil(min_fraction * n_shorter)))
    if solution.n_matched < required:
        raise AstrometryError(
            f"wcs of {search.where}: {solution.n_matched} stars agree with the solution, {required} required "
            f"({100 * min_fraction:.0f} % of {n_shorter})"
        )
    residual = 0.5 * (solution.residual_ra_mas + solution.residual_dec_mas) / 1000.0
    if not residual <= max_residual_arcsec:
        raise AstrometryError(
            f"wcs of {search.where}: residual {residual:.3f} arcsec of {solution.n_matched} stars exceeds "
            f"{max_residual_arcsec:.3f} arcsec: check the image for trailing or a wrong catalogue"
        )
    offset, rotation, scale = _departure(fit, search)
    if offset > 1.5 * search.max_offset or rotation > 1.5 * search.max_rotation or scale > 1.5 * search.max_scale_error:
        raise AstrometryError(
            f"wcs of {search.where}: the solution lies {offset:.1f} arcsec, {np.degrees(rotation):.3f} deg and "
            f"{100 * scale:.2f} % of scale from the header's WCS, beyond the limits of the search"
        )


def _departure(fit: AstrometricFit, search: Search) -> tuple[float, float, float]:
    """Offset of the image centre [arcsec], rotation [radian] and scale error against the header."""
    points = border_points(search)
    target = search.plane.project(fit.plane.deproject(fit.apply(points)))
    basis = np.column_stack([np.ones(len(points)), points])
    linear = np.linalg.lstsq(basis, target, rcond=None)[0]
    matrix = linear[1:].T
    rotation = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
    return float(np.hypot(*linear[0])), float(abs(rotation)), float(abs(np.sqrt(abs(np.linalg.det(matrix))) - 1.0))
