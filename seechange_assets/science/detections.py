"""Detections: significant peaks of the score image, both signs.

The score image is the matched-filter statistic of Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27,
Eq. 17): S/N of a point source at each pixel. A detection is a local maximum of its absolute
value, moved to where the flux peaks: the score tells whether, the flux tells where. Everything
after one threshold pass works on the list of significant pixels.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.errors import TooManyDetections
from seechange_assets.products import Detections, Difference, Flag
from seechange_assets.science.streaks import elongated_islands, peaks_in_line

if TYPE_CHECKING:
    from astropy.table import Table

# The matched filter turns a dipole into two lobes 2 sqrt(2) sigma = 1.2 FWHM apart; 1.5 joins them.
DIPOLE_SEPARATION = 1.5
# Around a very bright peak, imperfections of the PSF leave side peaks of this fraction of its score.
WING_FRACTION = 0.02
WING_RADIUS_FWHM = 5.0
# On a bright star that varied, the score is flat or has a dent, because the noise there (registration, PSF) follows
# the star: what belongs to one summit of the flux loses no more of the score than this on the way up.
SUMMIT_SCORE = 0.7


def detect(
    difference: Difference,
    *,
    threshold: float = 5.0,
    separation_fwhm: float = 1.0,
    edge_fwhm: float = 2.0,
    streak_length_fwhm: float = 4.5,
    star_residual_fraction: float = 0.03,
    max_detections: int = 5000,
) -> Detections:
    """Find peaks of ``|score|`` above `threshold`.

    Parameters
    ----------
    difference : Difference
        With unit noise in ``score``; flagged and non-finite pixels make no detection.
    threshold : float
        Least |score| of a peak.
    separation_fwhm : float
        Peaks of one sign closer than this are one detection; of opposite sign (a dipole) closer than
        1.5 times this. The stronger peak gives position and sign.
    edge_fwhm : float
        Width of the border, of the image and of the overlap with the reference, left out.
    streak_length_fwhm : float
        A connected, elongated region longer than this is one detection of kind ``streak``.
    star_residual_fraction : float
        A peak below this fraction of the star underneath is of kind ``star_residual``.
    max_detections : int
        More than this is a failed subtraction.

    Returns
    -------
    Detections
        Sorted by decreasing |score|.

    Raises
    ------
    TooManyDetections
        Above `max_detections`.
    """
    fwhm = difference.psf.fwhm_px
    border = int(np.ceil(edge_fwhm * fwhm))
    y, x = _significant_pixels(difference.score, difference.flags, threshold, border)
    island = _islands(y, x, difference.score.shape)
    peak = _peak_indices(y, x, difference.score)
    peak = _summits(difference.flux, difference.score, y, x, peak)
    _refuse_excess(peak.size, 20 * max_detections, difference)
    peak = peak[np.argsort(-np.abs(difference.score[y[peak], x[peak]]), kind="stable")]
    sizes = np.bincount(island, minlength=1)
    keep, streak, n_pixels = _merge(
        x, y, island, peak, sizes, difference.score, fwhm, separation_fwhm, streak_length_fwhm
    )
    rows = peak[keep]
    near_edge = _flags_around(difference.flags, x[rows], y[rows], border) & Flag.OUT_OF_BOUNDS
    inside = near_edge == 0
    rows, streak, n_pixels = rows[inside], streak[inside], n_pixels[inside]
    _refuse_excess(rows.size, max_detections, difference)
    residual = _on_star_residual(difference, x[rows], y[rows], star_residual_fraction)
    kind = np.where(streak, "streak", np.where(residual, "star_residual", "point")).astype("U13")
    return Detections(table=_table(difference, x[rows], y[rows], n_pixels, kind), threshold=float(threshold))


def _refuse_excess(n_found: int, n_allowed: int, difference: Difference) -> None:
    if n_found > n_allowed:
        raise TooManyDetections(
            f"{difference.info.exposure} {difference.info.ccd}: {n_found} peaks in the score image, "
            f"{n_allowed} allowed; check the subtraction's alignment and PSF, or raise detections.max_detections"
        )


@njit(cache=True)
def _significant_pixels(score, flags, threshold, border):  # type: ignore[no-untyped-def]
    """Row-major (y, x) of unflagged pixels with |score| above the threshold, border left out."""
    ny, nx = score.shape
    count = 0
    for j in range(border, ny - border):
        for i in range(border, nx - border):
            count += (abs(score[j, i]) > threshold) and flags[j, i] == 0
    y = np.empty(count, np.int32)
    x = np.empty(count, np.int32)
    k = 0
    for j in range(border, ny - border):
        for i in range(border, nx - border):
            if abs(score[j, i]) > threshold and flags[j, i] == 0:
                y[k], x[k] = j, i
                k += 1
    return y, x


@njit(cache=True)
def _islands(y, x, shape):  # type: ignore[no-untyped-def]
    """Label 8-connected significant pixels: ``(n,)`` int64, consecutive from 0 (union-find)."""
    n = y.size
    index = np.zeros((shape[0], shape[1]), np.int32)
    parent = np.arange(n)
    for k in range(n):
        index[y[k], x[k]] = k + 1
    for k in range(n):
        for dy, dx in ((0, -1), (-1, -1), (-1, 0), (-1, 1)):
            j, i = y[k] + dy, x[k] + dx
            if j >= 0 and 0 <= i < shape[1] and index[j, i] > 0:
                a, b = k, index[j, i] - 1
                while parent[a] != a:
                    a = parent[a]
                while parent[b] != b:
                    b = parent[b]
                parent[max(a, b)] = min(a, b)
                parent[k] = min(a, b)
    label = np.empty(n, np.int64)
    n_labels = 0
    for k in range(n):
        root = k
        while parent[root] != root:
            root = parent[root]
        if root == k:
            label[k] = n_labels
            n_labels += 1
        else:
            label[k] = label[root]
    return label


@njit(cache=True)
def _peak_indices(y, x, score):  # type: ignore[no-untyped-def]
    """Indices of the local maxima of |score| among the significant pixels.

    Flagged neighbours with a finite score count: the shoulder of a masked cosmic ray is no peak.
    """
    ny, nx = score.shape
    is_peak = np.ones(y.size, np.bool_)
    for k in range(y.size):
        value = abs(score[y[k], x[k]])
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                j, i = y[k] + dy, x[k] + dx
                if (dy == 0 and dx == 0) or j < 0 or i < 0 or j >= ny or i >= nx:
                    continue
                other = abs(score[j, i])
                earlier = dy < 0 or (dy == 0 and dx < 0)
                if other > value or (earlier and other == value):
                    is_peak[k] = False
    return np.flatnonzero(is_peak)


def _summits(
    flux: NDArray[Any], score: NDArray[Any], y: NDArray[Any], x: NDArray[Any], peak: NDArray[Any]
) -> NDArray[np.int64]:
    """Indices of the significant pixels in which the ways up the flux end, one for each summit."""
    end_y, end_x = _climb(flux, score, y[peak], x[peak], SUMMIT_SCORE)
    place = y.astype(np.int64) * score.shape[1] + x  # ascending, as the pixels come row by row
    wanted = end_y * score.shape[1] + end_x
    index = np.minimum(np.searchsorted(place, wanted), max(place.size - 1, 0))
    found = place[index] == wanted  # the way may end in a flagged pixel or below the threshold: then it is not gone
    return np.unique(np.where(found, index, peak))


@njit(cache=True)
def _climb(flux, score, y, x, fraction):  # type: ignore[no-untyped-def]
    """Steepest way up |flux| from each pixel, as far as |score| keeps `fraction` of its start and its sign."""
    ny, nx = score.shape
    end_y, end_x = y.astype(np.int64), x.astype(np.int64)
    for k in range(y.size):
        j, i = end_y[k], end_x[k]
        sign = np.sign(score[j, i])
        least = fraction * abs(score[j, i])
        moved = True
        while moved:
            moved = False
            best = sign * flux[j, i]
            for v in range(max(j - 1, 0), min(j + 2, ny)):
                for u in range(max(i - 1, 0), min(i + 2, nx)):
                    if sign * flux[v, u] > best and sign * score[v, u] >= least:
                        best, end_y[k], end_x[k] = sign * flux[v, u], v, u
                        moved = True
            j, i = end_y[k], end_x[k]
    return end_y, end_x


def _merge(
    x: NDArray[Any],
    y: NDArray[Any],
    island: NDArray[Any],
    peak: NDArray[Any],
    sizes: NDArray[Any],
    score: NDArray[Any],
    fwhm: float,
    separation_fwhm: float,
    streak_length_fwhm: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Indices into `peak` (sorted by |score|) that stay, whether each is a streak, and its pixels."""
    position = np.column_stack([x[peak], y[peak]]).astype(np.float64)
    value = score[y[peak], x[peak]].astype(np.float64)
    long = elongated_islands(x, y, island, streak_length_fwhm * fwhm)
    group = np.arange(peak.size)
    _join_first(group, np.where(long[island[peak]], island[peak], -1))
    alive = (group == np.arange(peak.size)) & _stronger_than_neighbours(position, value, fwhm, separation_fwhm)
    # A peak merged into a streak may stand beside it, but a streak's own best peak always stays.
    streak = long[island[peak]]
    alive |= streak & (group == np.arange(peak.size))
    keep = np.flatnonzero(alive)
    pixels = sizes[island[peak[keep]]]
    line = peaks_in_line(position[keep], value[keep] > 0, fwhm)
    first = np.arange(keep.size)
    _join_first(first, line)
    pixels = np.bincount(first, weights=pixels, minlength=keep.size).astype(np.int64)
    single = first == np.arange(keep.size)
    return keep[single], (streak[keep] | (line >= 0))[single], pixels[single]


def _join_first(group: NDArray[np.int64], label: NDArray[np.int64]) -> None:
    """Give all members of a label >= 0 the index of its first member, in place."""
    for value in np.unique(label[label >= 0]):
        members = np.flatnonzero(label == value)
        group[members] = members[0]


def _stronger_than_neighbours(
    position: NDArray[Any], value: NDArray[Any], fwhm: float, separation_fwhm: float
) -> NDArray[np.bool_]:
    """Greedy merge: walk from the strongest peak down, each one kept swallows its neighbours."""
    from scipy.spatial import cKDTree

    alive = np.ones(value.size, bool)
    if value.size < 2:
        return alive
    pairs = cKDTree(position).query_pairs(
        max(DIPOLE_SEPARATION * separation_fwhm, WING_RADIUS_FWHM) * fwhm, output_type="ndarray"
    )
    strong, weak = np.sort(pairs, axis=1).T  # peaks come sorted by |score|
    distance = np.hypot(*(position[strong] - position[weak]).T) / fwhm
    opposite = value[strong] * value[weak] < 0
    reach = separation_fwhm * np.where(opposite, DIPOLE_SEPARATION, 1.0)
    faint = np.abs(value[weak]) < WING_FRACTION * np.abs(value[strong])
    joined = (distance <= reach) | faint
    strong, weak = strong[joined], weak[joined]
    for k in np.argsort(strong, kind="stable"):
        if alive[strong[k]]:
            alive[weak[k]] = False
    return alive


def _flags_around(flags: NDArray[Any], x: NDArray[Any], y: NDArray[Any], radius: int) -> NDArray[np.uint16]:
    """OR of the flags in the box of `radius` pixels around each position."""
    offset = np.arange(-radius, radius + 1)
    rows = np.clip(y[:, None] + offset, 0, flags.shape[0] - 1)
    columns = np.clip(x[:, None] + offset, 0, flags.shape[1] - 1)
    box = flags[rows[:, :, None], columns[:, None, :]].reshape(x.size, offset.size**2)
    combined: NDArray[np.uint16] = np.bitwise_or.reduce(box, axis=1)
    return combined


def _on_star_residual(difference: Difference, x: NDArray[Any], y: NDArray[Any], fraction: float) -> NDArray[np.bool_]:
    """Whether a peak is what an imperfect PSF leaves of the bright source underneath.

    The pixel noise tells the counts of that source: noise^2 = sky variance + counts / gain. A peak of the
    difference within one FWHM of it and below `fraction` of it, or next to saturated pixels, is a residual.
    """
    radius = max(1, round(difference.psf.fwhm_px))
    saturated = _flags_around(difference.flags, x, y, radius) & (Flag.SATURATED | Flag.BLEED)
    gain = difference.info.gain
    if not np.isfinite(gain) or gain <= 0 or x.size == 0:
        return saturated > 0
    sample = difference.noise[::16, ::16]
    sky_variance = float(np.median(sample[np.isfinite(sample)])) ** 2
    offset = np.arange(-radius, radius + 1)
    rows = np.clip(y[:, None] + offset, 0, difference.noise.shape[0] - 1)[:, :, None]
    columns = np.clip(x[:, None] + offset, 0, difference.noise.shape[1] - 1)[:, None, :]
    noise, data = (np.nan_to_num(image[rows, columns]) for image in (difference.noise, difference.data))
    star_counts = gain * (noise.max(axis=(1, 2)).astype(np.float64) ** 2 - sky_variance)
    residual: NDArray[np.bool_] = np.abs(data).max(axis=(1, 2)) < fraction * star_counts
    return residual | (saturated > 0)


def _table(
    difference: Difference, x: NDArray[Any], y: NDArray[Any], n_pixels: NDArray[Any], kind: NDArray[Any]
) -> "Table":
    from astropy.table import Table

    x_fine, y_fine = subpixel_peak(difference.flux, x, y)
    ra, dec = difference.wcs.astropy().all_pix2world(x_fine, y_fine, 0) if x.size else (x_fine, y_fine)
    radius = max(1, round(difference.psf.fwhm_px / 2))
    columns = {
        "x": x_fine,
        "y": y_fine,
        "ra": np.asarray(ra, np.float64),
        "dec": np.asarray(dec, np.float64),
        "score": difference.score[y, x],
        "flux": difference.flux[y, x],
        "flux_err": difference.flux_err[y, x],
        "n_pixels": n_pixels.astype(np.int32),
        "image_flags": _flags_around(difference.flags, x, y, radius),
        "kind": kind,
    }
    return Table(columns)


def subpixel_peak(
    score: NDArray[Any], x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vertex of the quadratic surface through the 3x3 pixels of |score| around each peak.

    Steps are limited to 0.7 px; where the surface has no maximum the pixel's centre stays.
    """
    offset = np.arange(-1, 2)
    box = score[(y[:, None] + offset)[:, :, None], (x[:, None] + offset)[:, None, :]].astype(np.float64)
    box = np.where(np.isfinite(box), box, 0.0) * np.sign(score[y, x])[:, None, None]
    column, row = box.sum(axis=1), box.sum(axis=2)
    slope_x, slope_y = (column[:, 2] - column[:, 0]) / 6, (row[:, 2] - row[:, 0]) / 6
    curve_x = (column[:, 0] - 2 * column[:, 1] + column[:, 2]) / 3
    curve_y = (row[:, 0] - 2 * row[:, 1] + row[:, 2]) / 3
    cross = (box[:, 2, 2] + box[:, 0, 0] - box[:, 0, 2] - box[:, 2, 0]) / 4
    determinant = curve_x * curve_y - cross**2
    valid = (determinant > 0) & (curve_x < 0)
    safe = np.where(valid, determinant, 1.0)
    dx = np.where(valid, (cross * slope_y - curve_y * slope_x) / safe, 0.0)
    dy = np.where(valid, (cross * slope_x - curve_x * slope_y) / safe, 0.0)
    return x + np.clip(dx, -0.7, 0.7), y + np.clip(dy, -0.7, 0.7)
