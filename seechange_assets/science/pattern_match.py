"""Find the shift, rotation and scale between two star lists when the header is only roughly right.

The header fixes orientation and scale to within a known tolerance, so few
hypotheses are left: for each rotation and scale of a small grid the offsets of all pairs
of neighbours are put into a 2-D histogram, and the true transform stands out as one
crowded bin (a discrete cross-correlation, as in SCAMP: Bertin 2006, ASPC 351, 112). A match
is believed only if the crowd is far beyond what unrelated lists give by chance, all
hypotheses tried counted in.

Coordinates are tangent-plane arcsec around a common origin (the image centre).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Indices = NDArray[np.int64]

_MAX_PAIRS = 400_000


@dataclass(frozen=True, slots=True)
class PatternMatch:
    """The most voted similarity ``catalog = scale * R(rotation) @ source + offset``.

    ``rotation`` in radian (counter-clockwise), ``offset`` in arcsec; ``n_votes`` pairs agree where
    ``n_expected`` would by chance; ``log10_chance`` is the logarithm of the probability that
    unrelated lists give a crowd like this anywhere in the search (upper bound).
    """

    rotation: float
    scale: float
    offset: tuple[float, float]
    n_votes: int
    n_expected: float
    log10_chance: float

    def apply(self, points: Points) -> Points:
        """Transform points of shape ``(n, 2)``."""
        moved: Points = self.scale * points @ _rotation_matrix(self.rotation).T + np.asarray(self.offset)
        return moved


def match_pattern(
    sources: Points,
    catalog: Points,
    *,
    max_offset: float,
    max_rotation: float,
    max_scale_error: float,
    bin_size: float,
) -> PatternMatch | None:
    """Vote for the similarity that brings `sources` onto `catalog`.

    Parameters
    ----------
    sources, catalog : (n, 2), (m, 2) float64
        Positions [arcsec] in one tangent plane, the origin near the centre of `sources`.
    max_offset : float
        Largest shift [arcsec] in each axis.
    max_rotation, max_scale_error : float
        Half width of the search in rotation [radian] and in scale (fraction).
    bin_size : float
        Bin of the offsets [arcsec]; four neighbouring bins are counted together, so
        distortions up to about `bin_size` are tolerated.

    Returns
    -------
    PatternMatch or None
        None if no pair of stars is within reach at all. Deterministic: of equal crowds the
        transform nearest to the header wins.
    """
    radius = float(np.hypot(sources[:, 0], sources[:, 1]).max()) if len(sources) else 0.0
    reach = np.sqrt(2.0) * max_offset + radius * (max_rotation + max_scale_error)
    i, j = _neighbour_pairs(sources, catalog, reach)
    if len(i) == 0:
        return None
    grid = _hypotheses(radius, max_rotation, max_scale_error, bin_size)
    n_bins = int(np.ceil(2 * max_offset / bin_size))
    best, best_votes = (0.0, 1.0), -1
    for rotation, scale in grid:
        votes = _crowds(_offsets(sources, catalog, i, j, rotation, scale), max_offset, bin_size, n_bins)
        highest = int(votes.max())
        if highest > best_votes:
            best, best_votes = (rotation, scale), highest
    return _describe(_offsets(sources, catalog, i, j, *best), best, len(grid), max_offset, bin_size, n_bins)


def log10_poisson_tail(n: float, expected: float) -> float:
    """log10 of the probability of `n` or more events (rounded down) where `expected` are the mean.

    From `scipy.special`: importing `scipy.stats` alone takes longer than a whole solution.
    """
    from scipy.special import pdtrc

    if n < 1.0:
        return 0.0
    with np.errstate(divide="ignore"):
        return float(np.log10(pdtrc(np.floor(n) - 1.0, expected)))


def _rotation_matrix(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _neighbour_pairs(sources: Points, catalog: Points, reach: float) -> tuple[Indices, Indices]:
    """Indices of all pairs closer than `reach`; the faint end is cut where there are too many."""
    from scipy.spatial import cKDTree

    tree = cKDTree(catalog)
    counts = tree.query_ball_point(sources, reach, return_length=True)
    n_sources = int(np.searchsorted(np.cumsum(counts), _MAX_PAIRS, side="right"))
    found = tree.query_ball_point(sources[:n_sources], reach, return_sorted=True)
    i = np.repeat(np.arange(n_sources), counts[:n_sources])
    j = np.concatenate([np.asarray(row, dtype=np.int64) for row in found]) if len(i) else np.empty(0, np.int64)
    return i, j


def _hypotheses(
    radius: float, max_rotation: float, max_scale_error: float, bin_size: float
) -> list[tuple[float, float]]:
    """Rotations and scales spaced so that the outermost star moves one bin per step, nearest to (0, 1) first."""
    step = bin_size / max(radius, bin_size)

    def axis(half_width: float) -> NDArray[np.float64]:
        n = int(np.ceil(half_width / step))
        return np.linspace(-half_width, half_width, 2 * n + 1)

    grid = [(float(t), float(1 + s)) for t in axis(max_rotation) for s in axis(max_scale_error)]
    return sorted(grid, key=lambda h: (round(h[0] ** 2 + (h[1] - 1) ** 2, 12), h))


def _offsets(sources: Points, catalog: Points, i: Indices, j: Indices, rotation: float, scale: float) -> Points:
    turned = scale * sources @ _rotation_matrix(rotation).T
    difference: Points = catalog[j] - turned[i]
    return difference


def _crowds(offsets: Points, max_offset: float, bin_size: float, n_bins: int) -> NDArray[np.int64]:
    """Number of offsets in every square of 2x2 bins, shape ``(n_bins - 1, n_bins - 1)``."""
    cell = np.floor((offsets + max_offset) / bin_size).astype(np.int64)
    inside = ((cell >= 0) & (cell < n_bins)).all(axis=1)
    flat = cell[inside, 1] * n_bins + cell[inside, 0]
    counts = np.bincount(flat, minlength=n_bins * n_bins).reshape(n_bins, n_bins)
    rows = counts[:-1] + counts[1:]
    return rows[:, :-1] + rows[:, 1:]


def _describe(
    offsets: Points, best: tuple[float, float], n_hypotheses: int, max_offset: float, bin_size: float, n_bins: int
) -> PatternMatch:
    """Mean offset of the winning crowd and its significance.

    The chance level comes from the rest of the same histogram. Real star fields cluster,
    so counts are divided by the observed ratio of variance to mean (quasi-Poisson).
    """
    votes = _crowds(offsets, max_offset, bin_size, n_bins)
    y, x = np.unravel_index(int(votes.argmax()), votes.shape)
    corner = np.array([x, y]) * bin_size - max_offset
    inside = ((offsets >= corner) & (offsets < corner + 2 * bin_size)).all(axis=1)
    offset = np.median(offsets[inside], axis=0)
    rest = np.ones(votes.shape, bool)
    rest[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] = False
    background = votes[rest] if rest.any() else votes.ravel()
    expected = max(float(background.mean()), 1.0 / max(background.size, 1))
    dispersion = max(1.0, float(background.var()) / expected)
    n_votes = int(votes[y, x])
    chance = log10_poisson_tail(n_votes / dispersion, expected / dispersion)
    log10_chance = min(0.0, chance + float(np.log10(n_hypotheses * votes.size)))
    return PatternMatch(*best, (float(offset[0]), float(offset[1])), n_votes, expected, log10_chance)
