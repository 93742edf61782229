"""How much of a pixel's light can be starlight, judged by its neighbours.

A pixel of a sky seen through the atmosphere is ``sum a_j P(x - x_j)`` with ``a_j >= 0``: whatever stars and galaxies
are there. If weights ``w_i >= 0`` of some neighbours satisfy ``sum_i w_i P(x_i - x_j) >= P(x_0 - x_j)`` for a star at
any place ``x_j``, then no scene can make the pixel brighter than ``sum_i w_i d_i``: more is a cosmic ray. The weights
of least noise are a least-distance problem (Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23).
The neighbours are chosen in many ways, so that some of them lie beside a track however it runs.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Seeing [pixel] of the tables; finer steps change no limit by more than the margin that is left for it.
GRID_STEP_PX, GRID_MIN_PX, GRID_MAX_PX = 0.1, 0.9, 8.0
#: No weight is zero, so that a neighbour that is not free always spoils its pattern.
TINY_WEIGHT = 1e-9
#: Slopes of the wings that bracket real seeing (Moffat's beta).
BETAS = (2.8, 4.8)
#: Stars up to this distance [pixel] are considered, so far apart.
REACH_PX, STEP_PX = 4.0, 0.25

Points = tuple[tuple[int, int], ...]

#: Neighbours (dy, dx) that judge a pixel; every pattern is used in all its rotations and reflections.
PATTERNS: tuple[Points, ...] = (
    # All around: single hits.
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    # Above and below a horizontal track, one or two pixels wide.
    ((-1, 0), (1, 0)),
    ((-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 0), (1, 1)),
    ((-1, -1), (-1, 0), (-1, 1), (2, -1), (2, 0), (2, 1)),
    ((-2, -1), (-2, 0), (-2, 1), (2, -1), (2, 0), (2, 1)),
    # A flat angle.
    ((-1, 0), (-1, 1), (1, -1), (1, 0)),
    ((-2, 0), (-2, 1), (2, -1), (2, 0)),
    ((-1, 0), (-1, 1), (2, -1), (2, 0), (2, -2)),
    # Diagonal tracks, thin and thick.
    ((-1, 1), (1, -1)),
    ((-1, 1), (1, -1), (-1, 2), (-2, 1), (1, -2), (2, -1)),
    ((-1, 2), (-2, 1), (1, -2), (2, -1), (-2, 2), (2, -2)),
    # The ends of tracks.
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (1, -1), (1, 0), (1, 1)),
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (1, -1)),
    # One side alone is free.
    ((-1, -1), (-1, 0), (-1, 1)),
    ((-2, -1), (-2, 0), (-2, 1)),
    ((-1, -1), (-1, 0), (0, -1)),
    ((-2, -2), (-2, -1), (-1, -2)),
    # Around blots.
    ((-2, -1), (-2, 0), (-2, 1), (-1, -2), (0, -2), (1, -2), (2, -1), (2, 0), (2, 1), (-1, 2), (0, 2), (1, 2)),
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (1, -1), (2, -1), (2, 0), (2, 1), (0, 2), (1, 2), (-1, 2)),
)
#: Pixels hit together with the one in the middle, whose sum stands out where no single one does; all free pixels that
#: touch them judge.
COMPANIONS: tuple[Points, ...] = (
    ((0, 1),),
    ((1, 1),),
    ((0, -1), (0, 1)),
    ((0, 1), (0, 2)),
    ((-1, -1), (1, 1)),
    ((0, -1), (1, 1)),
    ((0, 1), (1, 2)),
    ((-1, 0), (0, 1)),
    ((0, 1), (1, 0), (1, 1)),
)
#: At most so many pixels, all in a square of this side around the middle one.
MOST_PIXELS, SIDE = 18, 7
#: A pixel and its four neighbours (dy, dx).
_CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


@lru_cache(maxsize=32)
def star_bounds(fwhm_px: float) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    """Patterns of pixels and their weights for stars of this seeing and all wider ones.

    Returns
    -------
    counts : ndarray of int64, shape (n, 2)
        Companions of the middle pixel in each pattern, and all its pixels but the middle one, companions first.
    places : ndarray of int64, shape (n, MOST_PIXELS)
        Their places in the flattened SIDE x SIDE pixels around the middle one.
    weights : ndarray of float64, shape (n, MOST_PIXELS)
        Light of the middle pixel minus the weighted sum is at most 0 where there are only stars; -1 for companions.
    """
    stars = _star_values(fwhm_px)
    found: dict[tuple[Points, Points], FloatArray] = {}
    patterns: list[tuple[Points, Points]] = [((), pattern) for pattern in PATTERNS]
    patterns += [(companions, _touching(companions)) for companions in COMPANIONS]
    for companions, neighbors in patterns:
        weights = _least_weights(stars, companions, neighbors)
        for turn in range(8):
            turned = _turned(neighbors, turn)
            order = sorted(range(len(turned)), key=turned.__getitem__)
            key = (tuple(sorted(_turned(companions, turn))), tuple(turned[i] for i in order))
            found.setdefault(key, weights[order])
    counts = np.array([(len(c), len(c) + len(n)) for c, n in found], np.int64)
    places = np.zeros((len(found), MOST_PIXELS), np.int64)
    table = np.zeros((len(found), MOST_PIXELS))
    for k, ((companions, neighbors), weights) in enumerate(found.items()):
        places[k, : counts[k, 1]] = [(dy + SIDE // 2) * SIDE + dx + SIDE // 2 for dy, dx in companions + neighbors]
        table[k, : counts[k, 1]] = [*(-1.0 for _ in companions), *weights]
    return counts, places, table


def grid_fwhm(fwhm_px: float) -> float:
    """The next smaller seeing for which tables are made."""
    return float(np.clip(np.floor(fwhm_px / GRID_STEP_PX + 1e-6) * GRID_STEP_PX, GRID_MIN_PX, GRID_MAX_PX))


def moffat_pixels(fwhm_px: float, beta: float, x: FloatArray, y: FloatArray) -> FloatArray:
    """A Moffat star averaged over the pixels at distances (x, y) from it, any scale."""
    alpha2 = (fwhm_px / 2) ** 2 / (2 ** (1 / beta) - 1)
    sub = (np.arange(4) - 1.5) / 4
    total = np.zeros(np.broadcast(x, y).shape)
    for dx in sub:
        for dy in sub:
            total += (1 + ((x + dx) ** 2 + (y + dy) ** 2) / alpha2) ** -beta
    return total / 16


def _star_values(fwhm_px: float) -> FloatArray:
    """Pixels (dy, dx) = -3 .. 3 of stars all over the surroundings, (n, 7, 7)."""
    axis = np.arange(-REACH_PX, REACH_PX + STEP_PX / 2, STEP_PX)
    sy, sx = (a.ravel()[:, None, None] for a in np.meshgrid(axis, axis, indexing="ij"))
    dy, dx = np.arange(-3, 4)[None, :, None], np.arange(-3, 4)[None, None, :]
    return np.concatenate([moffat_pixels(fwhm_px, beta, dx - sx, dy - sy) for beta in BETAS])


def _least_weights(stars: FloatArray, companions: Points, neighbors: Points) -> FloatArray:
    """Weights of least noise with which the neighbours bound the middle pixel and its companions for all stars."""
    from scipy.optimize import nnls

    rows, columns = 3 + np.array(neighbors).T
    light = stars[:, 3, 3] + sum(stars[:, 3 + dy, 3 + dx] for dy, dx in companions)
    values = stars[:, rows, columns] / light[:, None]
    n = len(neighbors)
    # Neither may a star exceed its bound, nor a weight be negative.
    conditions = np.concatenate([values, np.eye(n)])
    needed = np.concatenate([np.ones(len(values)), np.zeros(n)])
    scale = np.linalg.norm(conditions, axis=1)
    stacked = np.concatenate([(conditions / scale[:, None]).T, (needed / scale)[None]])
    target = np.zeros(n + 1)
    target[n] = 1.0
    rest = stacked @ nnls(stacked, target)[0] - target
    weights: FloatArray = np.maximum(-rest[:n] / rest[n], TINY_WEIGHT)
    # Rounding must not leave a star above its bound.
    return weights / float((values @ weights).min())


def _touching(companions: Points) -> Points:
    """Pixels that touch the middle one or a companion."""
    hit = {(0, 0), *companions}
    return tuple(sorted({(y + j, x + i) for y, x in hit for j in (-1, 0, 1) for i in (-1, 0, 1)} - hit))


def _turned(points: Points, turn: int) -> Points:
    """The points in one of eight rotations and reflections."""
    turned = [(dy, -dx if turn >= 4 else dx) for dy, dx in points]
    for _ in range(turn % 4):
        turned = [(dx, -dy) for dy, dx in turned]
    return tuple(turned)


@lru_cache(maxsize=1)
def peak_sharpness() -> tuple[FloatArray, FloatArray]:
    """A grid of FWHM and the median ratio of the four neighbours' mean to the peak of a star, both rising."""
    grid = np.geomspace(GRID_MIN_PX, GRID_MAX_PX, 40)
    phases = (np.arange(8) + 0.5) / 8 - 0.5
    py, px = (a.ravel() for a in np.meshgrid(phases, phases, indexing="ij"))
    ratios = []
    for fwhm in grid:
        stars = [[moffat_pixels(fwhm, beta, dx - px, dy - py) for dy, dx in _CROSS] for beta in BETAS]
        ratios.append(np.median([(s[1] + s[2] + s[3] + s[4]) / 4 / s[0] for s in stars]))
    return grid, np.array(ratios)
