"""Search and robust fit behind `astrometry`: from a pattern match to a polynomial between planes."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import AstrometryError
from seechange_assets.products import ImageInfo
from seechange_assets.science.pattern_match import PatternMatch, log10_poisson_tail, match_pattern
from seechange_assets.science.sip import monomials
from seechange_assets.science.tangent_plane import FloatArray, TangentPlane, sky_position, unit_vectors

if TYPE_CHECKING:
    from astropy.wcs import WCS

# Brightest stars tried in turn, and how many more catalogue stars go with them: the brightest
# stars of the sky are saturated in the image, so the lists overlap only in part.
_TIERS = (150, 600)
_CATALOG_EXCESS = 2.5
# At last all sources meet the brightest catalogue stars, so many for each source within the image and at least so
# many: in a crowd the fainter ones, far below the depth of the sources, are only chance neighbours and cost time.
_FIT_EXCESS, _FIT_STARS = 5.0, 5000
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
class Stars:
    """Usable sources, brightest first: pixel positions, their errors [arcsec], row in `Sources`."""

    x: FloatArray
    y: FloatArray
    error: FloatArray
    snr: FloatArray
    row: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class CatalogField:
    """Catalogue stars near the image, brightest first, at the epoch of the image."""

    vectors: FloatArray
    error: FloatArray
    row: NDArray[np.intp]
    n_inside: int


@dataclass(frozen=True, slots=True)
class AstrometricFit:
    """Polynomial from the guess's plane to the plane of the solution."""

    plane: TangentPlane
    degree: int
    unit: float
    coefficients: FloatArray
    scatter: float
    used: NDArray[np.bool_]
    source: NDArray[np.intp]
    star: NDArray[np.intp]

    def apply(self, points: FloatArray) -> FloatArray:
        """Points of the header's plane in the plane of the solution [arcsec]."""
        moved: FloatArray = monomials(points / self.unit, self.degree) @ self.coefficients
        return moved


@dataclass(frozen=True, slots=True)
class Search:
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
        """Exposure and CCD, for messages."""
        return f"{self.info.exposure} {self.info.ccd}"

    def to_plane(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Pixels to the tangent plane [arcsec] at the image centre, as the header believes."""
        return self.plane.project(unit_vectors(*self.guess.all_pix2world(x, y, 0, ra_dec_order=True)))


def find_solution(stars: Stars, field: CatalogField, search: Search) -> AstrometricFit:
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


def _log10_chance(fit: AstrometricFit, n_sources: int, field: CatalogField, search: Search) -> float:
    """Upper bound of log10 of the probability that unrelated lists agree as well as this fit.

    By chance ``n_sources * density * pi r^2`` pairs fall within the clipping radius r; every term
    of the polynomial can make one more star agree.
    """
    ny, nx = search.shape
    density = max(field.n_inside, 1) / (nx * ny * search.pixel_scale**2)
    radius = search.clip_sigma * max(fit.scatter, search.error_floor)
    expected = n_sources * density * np.pi * radius**2
    n_free = fit.coefficients.shape[0]
    return log10_poisson_tail(int(fit.used.sum()) - n_free, expected) + _LOG10_TRIALS


def _vote(points: FloatArray, catalog: FloatArray, search: Search, bin_size: float) -> PatternMatch | None:
    return match_pattern(
        points,
        catalog,
        max_offset=search.max_offset,
        max_rotation=search.max_rotation,
        max_scale_error=search.max_scale_error,
        bin_size=bin_size,
    )


def _failure(
    best: PatternMatch | None, stars: Stars, catalog: FloatArray, search: Search, bin_size: float, excess: float
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
            return f"{message}. The header is {name}: {match.n_votes} stars agree after undoing that; correct its CD"
    return message


def _reoriented(
    x: FloatArray, y: FloatArray, search: Search, orientation: tuple[int, int, bool]
) -> tuple[FloatArray, FloatArray]:
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
    match: PatternMatch,
    points: FloatArray,
    stars: Stars,
    field: CatalogField,
    search: Search,
    bright: tuple[int, int],
    radius: float,
) -> AstrometricFit | None:
    """Alternate matching and fitting: affine on the bright stars, then all stars, distortions and a smaller radius."""
    centre = search.plane.deproject(match.apply(np.zeros((1, 2))))[0]
    plane = TangentPlane(*(float(v) for v in sky_position(centre)))
    catalog = plane.project(field.vectors)
    predicted = plane.project(search.plane.deproject(match.apply(points)))
    padding = len(catalog) / max(field.n_inside, 1)
    everything = len(points), int(max(_FIT_EXCESS * len(points), _FIT_STARS) * padding)
    fit: AstrometricFit | None = None
    for step in range(_FIT_ROUNDS):
        first = step < 2
        n, m = bright if first else everything
        source, star = _mutual_pairs(predicted[:n], catalog[:m], radius)
        if len(source) < search.min_matched:
            return None
        variance = stars.error[source] ** 2 + field.error[star] ** 2 + search.error_floor**2
        previous = fit
        fit = _fit(
            points[source],
            catalog[star],
            np.sqrt(np.maximum(variance, 1e-8)),
            1 if first else search.max_degree,
            search,
        )
        fit = replace(fit, plane=plane, source=source, star=star)
        settled = not first and previous is not None and np.array_equal(source, previous.source)
        if settled and radius <= search.match_radius:
            break
        predicted = fit.apply(points)
        radius = max(search.match_radius, min(radius, 6.0 * fit.scatter))
    return fit if fit is not None and fit.used.sum() >= search.min_matched else None


def _mutual_pairs(points: FloatArray, catalog: FloatArray, radius: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs that are each other's nearest neighbour within `radius`."""
    from scipy.spatial import cKDTree

    distance, star = cKDTree(catalog).query(points, distance_upper_bound=radius)
    source = np.flatnonzero(np.isfinite(distance))
    star = star[source]
    _, back = cKDTree(points).query(catalog[star])
    mutual = back == source
    return source[mutual], star[mutual]


def _fit(points: FloatArray, target: FloatArray, error: FloatArray, max_degree: int, search: Search) -> AstrometricFit:
    """The degree that best predicts each star from all others, starting from a linear transform.

    A higher degree must improve the prediction by 10 % and be no less certain at the border of
    the image, stars there or not, than the lower degree is wrong there.
    """
    border = border_points(search)
    unit = float(np.abs(border).max())
    best: AstrometricFit | None = None
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
            best = AstrometricFit(
                search.plane, degree, unit, coefficients, scatter, used, np.empty(0, int), np.empty(0, int)
            )
            best_miss = miss
    assert best is not None
    return best


def _left_out_miss(
    basis: FloatArray, target: FloatArray, error: FloatArray, coefficients: FloatArray, used: NDArray[np.bool_]
) -> float:
    """Median distance [arcsec] between each star and its prediction by a fit without it."""
    design = np.where(used[:, None], basis / error[:, None], 0.0)
    leverage = np.einsum("ij,jk,ik->i", design, np.linalg.pinv(design.T @ design), design)
    distance = np.hypot(*(target - basis @ coefficients).T)
    return float(np.median(distance / np.maximum(1.0 - leverage, 0.05)))


def border_points(search: Search) -> FloatArray:
    """Corners and mid-points of the image's edges in the header's plane."""
    ny, nx = search.shape
    x, y = np.meshgrid([0.0, (nx - 1) / 2.0, nx - 1.0], [0.0, (ny - 1) / 2.0, ny - 1.0])
    return search.to_plane(x.ravel(), y.ravel())


def _robust_solution(
    basis: FloatArray, target: FloatArray, error: FloatArray, clip_sigma: float
) -> tuple[FloatArray, NDArray[np.bool_], float, FloatArray]:
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
    covariance: FloatArray = scatter**2 * np.linalg.pinv(design.T @ design)
    return solution.astype(np.float64), used, arcsec, covariance
