"""Astrometric solution of one CCD against a catalogue of stars.

Three steps: a pattern match around the telescope's own WCS that survives errors of pointing,
rotation and scale (`pattern_match`); an iterative fit with outlier rejection of a polynomial
on top of that WCS, so distortions the header knows are kept; and the solution written as a
TAN-SIP header (`sip`). A solution that could be chance is an error, never a product.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import AstrometryError, CatalogError, TooFewStars
from seechange_assets.products import ImageInfo, SkyCatalog, Sources, Wcs, header_text, wcs_from_text
from seechange_assets.science.pattern_match import PatternMatch, match_pattern
from seechange_assets.science.sip import monomials, sip_header
from seechange_assets.science.tangent_plane import (
    MAS_PER_RADIAN,
    TangentPlane,
    east_north,
    moved,
    sky_position,
    unit_vectors,
)

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

# Brightest stars tried in turn, and how many more catalogue stars go with them: the brightest
# stars of the sky are saturated in the image, so the lists overlap only in part.
_TIERS = (150, 600)
_CATALOG_EXCESS = 2.5
_MIN_BIN_ARCSEC = 2.0
_MIN_BIN_PX = 3.0
_FIT_ROUNDS = 8
_CLIP_ROUNDS = 10
# A distortion polynomial needs this many matched stars per term and this gain in prediction.
_STARS_PER_TERM = 1.8
_IMPROVEMENT = 0.9
# What a missing distortion does at the border, in units of what it does to a typical star.
_BORDER_TOLERANCE = 2.0
# Stars are not clipped for being better than their errors say: with few stars an exact fit through a
# handful of them would otherwise throw out all others.
_MIN_SCATTER = 0.5
# Transforms one search can tell apart, about 10^3 turns and scales times 10^3 shifts: each could be lucky.
_LOG10_TRIALS = 6.0
_BRIGHT_SNR = 100.0
_DIAGNOSIS_LOG10_CHANCE = -4.0
_ORIENTATIONS = {
    "mirrored in x": (-1, 1, False),
    "mirrored in y": (1, -1, False),
    "rotated by 180 degrees": (-1, -1, False),
    "mirrored along the diagonal": (1, 1, True),
    "rotated by 90 degrees": (-1, 1, True),
    "rotated by -90 degrees": (1, -1, True),
    "mirrored along the other diagonal": (-1, -1, True),
}


@dataclass(frozen=True, slots=True)
class _Stars:
    """Usable sources, brightest first: pixel positions, their errors [arcsec], row in `Sources`."""

    x: NDArray
    y: NDArray
    error: NDArray
    snr: NDArray
    row: NDArray


@dataclass(frozen=True, slots=True)
class _Field:
    """Catalogue stars near the image, brightest first, at the epoch of the image."""

    vectors: NDArray
    error: NDArray
    row: NDArray
    n_inside: int


@dataclass(frozen=True, slots=True)
class _Fit:
    """Polynomial from the guess's plane to the plane of the solution."""

    plane: TangentPlane
    degree: int
    unit: float
    coefficients: NDArray
    scatter: float
    used: NDArray
    source: NDArray
    star: NDArray

    def apply(self, points: NDArray) -> NDArray:
        return monomials(points / self.unit, self.degree) @ self.coefficients


@dataclass(frozen=True, slots=True)
class _Search:
    """What the steps share: the image, the header's WCS and the limits of the search."""

    info: ImageInfo
    shape: tuple[int, int]
    guess: "WCS"
    plane: TangentPlane
    pixel_scale: float
    max_offset: float
    max_rotation: float
    max_scale_error: float
    match_radius: float
    min_matched: int
    max_log10_chance: float
    max_degree: int
    error_floor: float
    clip_sigma: float

    @property
    def where(self) -> str:
        return f"{self.info.exposure} {self.info.ccd}"

    def to_plane(self, x: NDArray, y: NDArray) -> NDArray:
        """Pixels to the tangent plane [arcsec] at the image centre, as the header believes."""
        return self.plane.project(unit_vectors(*self.guess.all_pix2world(x, y, 0, ra_dec_order=True)))


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
    stars = _usable_stars(sources, info, max_stars)
    if len(stars.x) < min_matched:
        advice = "A shallower threshold, a longer exposure or fewer masked pixels give more."
        raise TooFewStars(f"wcs of {info.exposure} {info.ccd}", len(stars.x), min_matched, advice)
    search = _search(
        info, shape, max_offset=max_offset_arcsec, max_rotation=np.radians(max_rotation_deg),
        max_scale_error=max_scale_error, match_radius=match_radius_arcsec, min_matched=min_matched,
        max_log10_chance=max_log10_chance, max_degree=max_degree, error_floor=error_floor_mas / 1000.0,
        clip_sigma=clip_sigma,
    )  # fmt: skip
    stars = replace(stars, error=stars.error * search.pixel_scale)
    magnitudes = (max_catalog_mag - catalog_range_mag, max_catalog_mag)
    field = _catalog_field(catalog, search, magnitudes, min_catalog_stars)
    fit = _find_solution(stars, field, search)
    solution = _solution(fit, stars, field, search, sources, catalog)
    _check(solution, fit, search, min(len(stars.x), field.n_inside), min_fraction_matched, max_residual_arcsec)
    return solution


def _usable_stars(sources: Sources, info: ImageInfo, max_stars: int) -> _Stars:
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
    return _Stars(x[rows], y[rows], error[rows], snr[rows], rows)


def _search(info: ImageInfo, shape: tuple[int, int], **limits: float) -> _Search:
    """Read the header's WCS and put the working plane at the image centre."""
    where = f"{info.exposure} {info.ccd}"
    if not info.wcs_guess:
        raise AstrometryError(f"wcs of {where}: the header has no WCS to start from")
    guess = wcs_from_text(info.wcs_guess)
    if not guess.has_celestial:
        raise AstrometryError(f"wcs of {where}: the header's WCS is not celestial (CTYPE {list(guess.wcs.ctype)})")
    guess = guess.celestial
    ny, nx = shape
    x, y = (nx - 1) / 2.0, (ny - 1) / 2.0
    ra, dec = (float(v) for v in guess.all_pix2world(x, y, 0, ra_dec_order=True))
    if not (np.isfinite(ra) and np.isfinite(dec)):
        raise AstrometryError(f"wcs of {where}: the header's WCS gives no position for the image centre")
    search = _Search(info, shape, guess, TangentPlane(ra, dec), 1.0, **limits)  # type: ignore[arg-type]
    step = np.diff(search.to_plane(np.array([x, x + 1, x]), np.array([y, y, y + 1])), axis=0)
    jacobian = np.stack([step[0], step[0] + step[1]])
    return replace(search, pixel_scale=float(np.sqrt(abs(np.linalg.det(jacobian)))))


def _catalog_field(catalog: SkyCatalog, search: _Search, magnitudes: tuple[float, float], min_stars: int) -> _Field:
    """Catalogue stars in the padded footprint, moved to the epoch of the image, brightest first."""
    table = catalog.table
    column = {name: np.asarray(table[name], float) for name in ("ra", "dec", "ra_err", "dec_err", "pm_ra", "pm_dec", "mag_g")}
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
    vectors = moved(*(column[name][rows] for name in ("ra", "dec", "pm_ra", "pm_dec")), years)
    near, inside = _in_footprint(search.plane.project(vectors), search)
    if near.sum() < search.min_matched:
        raise AstrometryError(
            f"wcs of {search.where}: {near.sum()} of the {len(rows)} stars of catalogue {catalog.name} lie in the footprint "
            f"around RA {search.plane.ra_deg:.4f} Dec {search.plane.dec_deg:.4f}: header and catalogue are of different fields"
        )
    error = np.nan_to_num(np.hypot(column["ra_err"], column["dec_err"])[rows] / np.sqrt(2.0)) / 1000.0
    return _Field(vectors[near], error[near], rows[near], int(inside.sum()))


def _in_footprint(points: NDArray, search: _Search) -> tuple[NDArray, NDArray]:
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


def _find_solution(stars: _Stars, field: _Field, search: _Search) -> _Fit:
    """Try the brightest stars first, then more, then a coarser histogram; the first significant match is fitted."""
    points, catalog = search.to_plane(stars.x, stars.y), search.plane.project(field.vectors)
    bin_size = max(_MIN_BIN_ARCSEC, _MIN_BIN_PX * search.pixel_scale)
    excess = _CATALOG_EXCESS * len(catalog) / max(field.n_inside, 1)
    best: PatternMatch | None = None
    for coarser in (1.0, 2.0):
        for tier in _TIERS:
            n_catalog = int(tier * excess)
            match = _vote(points[:tier], catalog[:n_catalog], search, coarser * bin_size)
            if match is not None and (best is None or match.log10_chance < best.log10_chance):
                best = match
            if match is None:
                continue
            fit = _refine(match, points, stars, field, search, (tier, n_catalog), 2 * coarser * bin_size)
            if fit is not None and _log10_chance(fit, len(stars.x), field, search) <= search.max_log10_chance:
                return fit
    raise AstrometryError(_failure(best, stars, catalog, search, bin_size, excess))


def _log10_chance(fit: _Fit, n_sources: int, field: _Field, search: _Search) -> float:
    """Upper bound of log10 of the probability that unrelated lists agree as well as this fit.

    By chance ``n_sources * density * pi r^2`` pairs fall within the clipping radius r; every term
    of the polynomial can make one more star agree.
    """
    from scipy.stats import poisson

    ny, nx = search.shape
    density = max(field.n_inside, 1) / (nx * ny * search.pixel_scale**2)
    radius = search.clip_sigma * max(fit.scatter, search.error_floor)
    expected = n_sources * density * np.pi * radius**2
    n_free = fit.coefficients.shape[0]
    log_chance = poisson.logsf(int(fit.used.sum()) - n_free - 1, expected)
    return float(log_chance / np.log(10.0) + _LOG10_TRIALS)


def _vote(points: NDArray, catalog: NDArray, search: _Search, bin_size: float) -> PatternMatch | None:
    return match_pattern(
        points,
        catalog,
        max_offset=search.max_offset,
        max_rotation=search.max_rotation,
        max_scale_error=search.max_scale_error,
        bin_size=bin_size,
    )


def _failure(
    best: PatternMatch | None, stars: _Stars, catalog: NDArray, search: _Search, bin_size: float, excess: float
) -> str:
    """What the search found, and whether another orientation of the header would have matched."""
    found = "no pair within reach"
    if best is not None:
        found = (
            f"best agreement {best.n_votes} stars where {best.n_expected:.1f} are chance "
            f"(log10 probability {best.log10_chance:.1f}, {search.max_log10_chance:.0f} required)"
        )
    message = (
        f"wcs of {search.where}: {len(stars.x)} sources do not match {len(catalog)} catalogue stars within "
        f"{search.max_offset:.0f} arcsec, {np.degrees(search.max_rotation):.2f} deg and "
        f"{100 * search.max_scale_error:.1f} % of scale around the header's WCS: {found}"
    )
    tier = _TIERS[0]
    for name, orientation in _ORIENTATIONS.items():
        points = search.to_plane(*_reoriented(stars.x[:tier], stars.y[:tier], search, orientation))
        match = _vote(points, catalog[: int(tier * excess)], search, bin_size)
        if match is not None and match.log10_chance <= _DIAGNOSIS_LOG10_CHANCE:
            return f"{message}. The header is {name}: {match.n_votes} stars agree after undoing that; correct its CD matrix"
    return message


def _reoriented(x: NDArray, y: NDArray, search: _Search, orientation: tuple[int, int, bool]) -> tuple[NDArray, NDArray]:
    """Pixels mirrored or turned around the header's reference pixel, or the centre if that is outside."""
    ny, nx = search.shape
    pivot = np.asarray(search.guess.wcs.crpix, float) - 1.0
    if not (0 <= pivot[0] < nx and 0 <= pivot[1] < ny):
        pivot = np.array([(nx - 1) / 2.0, (ny - 1) / 2.0])
    sign_x, sign_y, swap = orientation
    dx, dy = x - pivot[0], y - pivot[1]
    if swap:
        dx, dy = dy, dx
    return pivot[0] + sign_x * dx, pivot[1] + sign_y * dy


def _refine(
    match: PatternMatch, points: NDArray, stars: _Stars, field: _Field, search: _Search, bright: tuple[int, int], radius: float
) -> _Fit | None:
    """Alternate matching and fitting: affine on the bright stars, then all stars, distortions and a smaller radius."""
    centre = search.plane.deproject(match.apply(np.zeros((1, 2))))[0]
    plane = TangentPlane(*(float(v) for v in sky_position(centre)))
    catalog = plane.project(field.vectors)
    predicted = plane.project(search.plane.deproject(match.apply(points)))
    fit: _Fit | None = None
    for step in range(_FIT_ROUNDS):
        first = step < 2
        n, m = bright if first else (len(points), len(catalog))
        source, star = _mutual_pairs(predicted[:n], catalog[:m], radius)
        if len(source) < search.min_matched:
            return None
        variance = stars.error[source] ** 2 + field.error[star] ** 2 + search.error_floor**2
        previous = fit
        fit = _fit(points[source], catalog[star], np.sqrt(variance), 1 if first else search.max_degree, search)
        fit = replace(fit, plane=plane, source=source, star=star)
        if not first and previous is not None and np.array_equal(source, previous.source) and radius <= search.match_radius:
            break
        predicted = fit.apply(points)
        radius = max(search.match_radius, min(radius, 6.0 * fit.scatter))
    return fit if fit is not None and fit.used.sum() >= search.min_matched else None


def _mutual_pairs(points: NDArray, catalog: NDArray, radius: float) -> tuple[NDArray, NDArray]:
    """Pairs that are each other's nearest neighbour within `radius`."""
    from scipy.spatial import cKDTree

    distance, star = cKDTree(catalog).query(points, distance_upper_bound=radius)
    source = np.flatnonzero(np.isfinite(distance))
    star = star[source]
    _, back = cKDTree(points).query(catalog[star])
    mutual = back == source
    return source[mutual], star[mutual]


def _fit(points: NDArray, target: NDArray, error: NDArray, max_degree: int, search: _Search) -> _Fit:
    """The degree that best predicts each star from all others, starting from a linear transform.

    A higher degree must improve the prediction by 10 % and be no less certain at the border of
    the image, stars there or not, than the lower degree is wrong there.
    """
    border = _border_points(search)
    unit = float(np.abs(border).max())
    best: _Fit | None = None
    best_miss = np.inf
    for degree in range(1, max_degree + 1):
        basis = monomials(points / unit, degree)
        if degree > 1 and len(points) < _STARS_PER_TERM * basis.shape[1]:
            break
        coefficients, used, scatter, covariance = _robust_solution(basis, target, error, search.clip_sigma)
        miss = _left_out_miss(basis, target, error, coefficients, used)
        at_border = monomials(border / unit, degree)
        uncertain = np.sqrt(np.einsum("ij,jk,ik->i", at_border, covariance, at_border).max())
        if best is None or (miss < _IMPROVEMENT * best_miss and uncertain <= _BORDER_TOLERANCE * best_miss):
            best = _Fit(search.plane, degree, unit, coefficients, scatter, used, np.empty(0, int), np.empty(0, int))
            best_miss = miss
    assert best is not None
    return best


def _left_out_miss(basis: NDArray, target: NDArray, error: NDArray, coefficients: NDArray, used: NDArray) -> float:
    """Median distance [arcsec] between each star and its prediction by a fit without it."""
    design = np.where(used[:, None], basis / error[:, None], 0.0)
    leverage = np.einsum("ij,jk,ik->i", design, np.linalg.pinv(design.T @ design), design)
    distance = np.hypot(*(target - basis @ coefficients).T)
    return float(np.median(distance / np.maximum(1.0 - leverage, 0.05)))


def _border_points(search: _Search) -> NDArray:
    """Corners and mid-points of the image's edges in the header's plane."""
    ny, nx = search.shape
    x, y = np.meshgrid([0.0, (nx - 1) / 2.0, nx - 1.0], [0.0, (ny - 1) / 2.0, ny - 1.0])
    return search.to_plane(x.ravel(), y.ravel())


def _robust_solution(
    basis: NDArray, target: NDArray, error: NDArray, clip_sigma: float
) -> tuple[NDArray, NDArray, float, NDArray]:
    """Weighted least squares with Huber weights, then clipping at `clip_sigma` robust deviations.

    Returns coefficients ``(n_terms, 2)``, the stars used, their scatter [arcsec per axis] and the
    covariance of the coefficients of one axis, scaled to the observed scatter.
    """
    used = np.ones(len(basis), bool)
    freedom = np.sqrt(len(basis) / max(len(basis) - basis.shape[1], 1))
    huber = np.ones(len(basis))
    for _ in range(_CLIP_ROUNDS):
        weight = np.where(used, huber, 0.0) / error
        solution = np.linalg.lstsq(basis * weight[:, None], target * weight[:, None], rcond=None)[0]
        residual = (target - basis @ solution) / error[:, None]
        scatter = max(1.4826 * freedom * float(np.median(np.abs(residual[used]))), _MIN_SCATTER)
        size = np.hypot(*residual.T) / np.sqrt(2.0)
        huber = np.sqrt(np.minimum(1.0, 1.345 * scatter / np.maximum(size, 1e-12)))
        keep = (np.abs(residual) <= clip_sigma * scatter).all(axis=1)
        if np.array_equal(keep, used) or keep.sum() < _STARS_PER_TERM * basis.shape[1]:
            break
        used = keep
    arcsec = 1.4826 * float(np.median(np.abs(residual[used] * error[used, None])))
    design = basis[used] / error[used, None]
    return solution, used, arcsec, scatter**2 * np.linalg.pinv(design.T @ design)


def _solution(fit: _Fit, stars: _Stars, field: _Field, search: _Search, sources: Sources, catalog: SkyCatalog) -> Wcs:
    """Write the header, then measure the residuals with exactly that header."""
    header, degree = sip_header(
        lambda x, y: fit.plane.deproject(fit.apply(search.to_plane(x, y))), search.shape
    )
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
    text: str, fit: _Fit, stars: _Stars, field: _Field, catalog: SkyCatalog, radius: float
) -> tuple["Table", NDArray]:
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
    for name in ("mag_g", "mag_bp", "mag_rp", "mag_g_err"):
        table[name] = np.asarray(catalog.table[name], np.float32)[rows]
    table["d_ra_mas"], table["d_dec_mas"] = d_ra.astype(np.float32), d_dec.astype(np.float32)
    table["used"] = fit.used
    return table[near], stars.snr[fit.source][near] > _BRIGHT_SNR


def _robust_scatter(values: NDArray) -> float:
    """1.4826 times the median absolute deviation; NaN below three values."""
    if len(values) < 3:
        return float("nan")
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _check(
    solution: Wcs, fit: _Fit, search: _Search, n_shorter: int, min_fraction: float, max_residual_arcsec: float
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


def _departure(fit: _Fit, search: _Search) -> tuple[float, float, float]:
    """Offset of the image centre [arcsec], rotation [radian] and scale error against the header."""
    points = _border_points(search)
    target = search.plane.project(fit.plane.deproject(fit.apply(points)))
    basis = np.column_stack([np.ones(len(points)), points])
    linear = np.linalg.lstsq(basis, target, rcond=None)[0]
    matrix = linear[1:].T
    rotation = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
    return float(np.hypot(*linear[0])), float(abs(rotation)), float(abs(np.sqrt(abs(np.linalg.det(matrix))) - 1.0))
