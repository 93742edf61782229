"""Trails of satellites and aircraft in a single exposure: long, straight, as wide as the seeing or wider.

A Hough transform of the brighter blocks of the image names lines. Each is then looked at in the pixels: cut into
pieces, the median along each piece shows a trail's cross-section, while stars, being short, do not survive the
median. A line is a trail when enough pieces in a row show a narrow peak and the peaks lie on one straight line. That
refuses what else is long: galaxies and the halos of bright stars are wide, bleeding and bad columns follow the columns
exactly.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import Flag, FlagImage, FloatImage
from seechange_assets.science.blocks import block_means

#: Blocks of the Hough transform [pixel], mesh of its sky [blocks], and the significance of its points.
BLOCK_PX, SKY_BLOCKS, POINT_SIGMA = 4, 32, 2.5
N_ANGLES, MIN_BLOCKS = 360, 100
#: Blocks of which more than this part of the box around them is bright belong to something round.
CROWD_BLOCKS, CROWDED = 9, 0.5
#: A line is looked at when its points exceed the expected number by this many sigma; so many lines at most.
LINE_SIGMA, MAX_LINES = 6.0, 12
#: Length of a piece, half-width of its cross-section, where its sky begins [pixel].
PIECE_PX, HALF_WIDTH_PX, SKY_FROM_PX = 64, 24, 14
#: A piece shows the trail when the peak stands this many sigma out of the sky on both sides; so many pieces of those
#: between the trail's ends must.
PIECE_SIGMA, MIN_SHARE = 5.0, 0.7
#: Beside a trail, at this distance, less than this part of its height is left.
WIDE_AT_PX, WIDE_RATIO = 10, 0.35
#: The pieces' peaks lie on one line with this rms [pixel].
MAX_BEND_PX = 1.5
#: Lines closer to a row or column than this over their whole length [pixel] are the detector's.
MIN_SHEAR_PX = 6.0
#: The flags reach to where the trail sinks below this part of the noise of a pixel.
FLAG_TO_SIGMA = 0.25

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trail:
    """A straight trail from (x1, y1) to (x2, y2), flagged to `half_width_px` on either side."""

    x1: float
    y1: float
    x2: float
    y2: float
    half_width_px: float


def find_trails(data: FloatImage, flags: FlagImage, *, min_length_px: int = 400) -> list[Trail]:
    """Find trails and flag their pixels STREAK, in place.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Calibrated image [ADU], sky included or subtracted.
    flags : ndarray of uint16
        Flagged pixels are left out; receives the new flags.
    min_length_px : int
        Shorter trails are not looked for (on small CCDs: 60 % of the shorter side).

    Returns
    -------
    list of Trail
    """
    length = min(float(min_length_px), 0.6 * min(data.shape))
    if min(data.shape) < 4 * HALF_WIDTH_PX:
        return []
    significance, rms = _significance(data, flags)
    if rms <= 0:
        return []
    points = _thin_points(significance)
    found: list[Trail] = []
    for _ in range(MAX_LINES):
        line = _strongest_line(points, length / BLOCK_PX)
        if line is None:
            break
        angle, offset = line
        trail = _measured(data, flags, rms, angle, offset, length)
        if trail is not None:
            found.append(trail)
            _flag(flags, trail)
        _clear(points, angle, offset, 4.0 if trail is None else max(4.0, 2 * trail.half_width_px / BLOCK_PX))
    return found


def _significance(data: FloatImage, flags: FlagImage) -> tuple[FloatImage, float]:
    """Blocks above a mesh of medians in units of their noise, and the noise of a pixel [ADU] (0: nothing usable)."""
    from seechange_assets.science.background import level_map, sky_of_pixels

    blocks, counts = block_means(data, flags, BLOCK_PX)
    usable = counts >= BLOCK_PX**2 // 2
    if usable.sum() < MIN_BLOCKS or np.ptp(blocks[usable]) == 0:
        return np.zeros_like(blocks), 0.0
    try:
        blocks -= level_map(sky_of_pixels(blocks, usable, SKY_BLOCKS, "the search for trails"))
    except BadPixels:
        return np.zeros_like(blocks), 0.0
    noise = 1.4826 * float(np.median(np.abs(blocks[usable])))
    return np.where(usable, blocks / max(noise, 1e-12), 0).astype(np.float32), noise * BLOCK_PX


def _thin_points(significance: FloatImage) -> NDArray[np.bool_]:
    """Bright blocks without those amid many others: stars with their halos and galaxies fill a box, lines do not."""
    from scipy.ndimage import uniform_filter

    points = significance > POINT_SIGMA
    dense: NDArray[np.bool_] = uniform_filter(points.astype(np.float32), CROWD_BLOCKS) > CROWDED
    return points & ~dense


def _strongest_line(points: NDArray[np.bool_], min_length: float) -> tuple[float, float] | None:
    """Angle of the normal [radian] and offset [block] of the line with the most points beyond expectation, or None.

    A line is ``x cos + y sin = offset``; the expectation is the density of points times the length inside the image.
    """
    ny, nx = points.shape
    y, x = np.nonzero(points)
    if len(y) < 0.3 * min_length:
        return None
    angles = np.pi * np.arange(N_ANGLES) / N_ANGLES
    reach = int(np.ceil(np.hypot(ny, nx))) + 2
    votes = _hough(y.astype(np.float64), x.astype(np.float64), np.cos(angles), np.sin(angles), reach).astype(float)
    # Three neighbouring offsets together: over a long line the step in angle spreads it.
    votes[:, 1:-1] = votes[:, :-2] + votes[:, 1:-1] + votes[:, 2:]
    chords = _chords(angles, np.arange(-reach, reach + 1), (ny, nx))
    expected = 3 * chords * len(y) / points.size
    excess = np.where(chords >= min_length, (votes - expected) / np.sqrt(expected + 3.0), -np.inf)
    # The points of sources cluster: the real scatter is wider than Poisson's.
    usual = excess[np.isfinite(excess)]
    scatter = max(1.0, 1.4826 * float(np.median(np.abs(usual - np.median(usual))))) if usual.size else 1.0
    best = np.unravel_index(np.argmax(excess), excess.shape)
    if excess[best] < LINE_SIGMA * scatter:
        return None
    return float(angles[best[0]]), float(best[1] - reach)


@njit(cache=True)
def _hough(y, x, cos, sin, reach):  # type: ignore[no-untyped-def]
    """Number of points in each cell (angle, offset from -reach to reach)."""
    votes = np.zeros((len(cos), 2 * reach + 1), np.int32)
    for i in range(len(y)):
        for a in range(len(cos)):
            votes[a, int(np.floor(x[i] * cos[a] + y[i] * sin[a] + 0.5)) + reach] += 1
    return votes


def _chords(angles: NDArray[np.float64], offsets: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Length of each line inside the image, shape (angles, offsets)."""
    low, high = np.full((len(angles), len(offsets)), -np.inf), np.full((len(angles), len(offsets)), np.inf)
    normal = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for axis, size in ((0, shape[1]), (1, shape[0])):
        start = offsets[None, :] * normal[:, axis, None]
        along = ((-normal[:, 1], normal[:, 0])[axis])[:, None]
        along = np.where(np.abs(along) < 1e-9, 1e-9, along)
        ends = (0 - start) / along, (size - 1 - start) / along
        low, high = np.maximum(low, np.minimum(*ends)), np.minimum(high, np.maximum(*ends))
    lengths: FloatArray = np.maximum(high - low, 0.0)
    return lengths


def _clear(points: NDArray[np.bool_], angle: float, offset: float, distance: float) -> None:
    """Remove the points near a line, in place."""
    y, x = np.nonzero(points)
    near = np.abs(x * np.cos(angle) + y * np.sin(angle) - offset) <= distance
    points[y[near], x[near]] = False


def _measured(
    data: FloatImage, flags: FlagImage, rms: float, angle: float, offset: float, min_length_px: float
) -> Trail | None:
    """The trail along a line of the Hough transform, or None where the pixels show none."""
    normal = np.array([np.cos(angle), np.sin(angle)])
    # A block's centre in pixels.
    start = offset * BLOCK_PX * normal + (BLOCK_PX - 1) / 2
    for attempt in range(3):
        along = np.array([-normal[1], normal[0]])
        t = _inside(start, along, data.shape)
        if len(t) < min_length_px:
            return None
        profiles, noise = _cross_sections(data, flags, rms, start, along, normal, t)
        centers = t[0] + PIECE_PX * (np.arange(len(profiles)) + 0.5)
        peaks, good = _peaks(profiles, noise, narrow=attempt > 0)
        first, last = _longest_run(good, np.isfinite(noise))
        if (last - first) * PIECE_PX < min_length_px:
            return None
        chosen = np.flatnonzero(good[first:last]) + first
        slope, shift, bend = _robust_line(centers[chosen], peaks[chosen])
        start, normal = start + shift * normal, normal - slope * along
        normal /= np.hypot(*normal)
    if bend > MAX_BEND_PX:
        return None
    return _trail_from(profiles[chosen], rms, start, normal, centers, (first, last), data.shape)


def _inside(start: FloatArray, along: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Positions along a line [pixel], in steps of one, at which it is inside the image."""
    reach = int(np.hypot(shape[0], shape[1])) + 2
    ny, nx = shape
    middle = float(np.dot(np.array([(nx - 1) / 2, (ny - 1) / 2]) - start, along))
    t = np.round(middle) + np.arange(-reach, reach + 1.0)
    x, y = start[0] + t * along[0], start[1] + t * along[1]
    inside = (x >= 0) & (x <= nx - 1) & (y >= 0) & (y <= ny - 1)
    kept: FloatArray = t[inside]
    return kept


def _cross_sections(
    data: FloatImage,
    flags: FlagImage,
    rms: float,
    start: FloatArray,
    along: FloatArray,
    normal: FloatArray,
    t: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Median cross-section of each piece above its sides, and its noise (infinite where too little is unflagged)."""
    ny, nx = data.shape
    n = len(t) // PIECE_PX
    u = np.arange(-HALF_WIDTH_PX, HALF_WIDTH_PX + 1)
    x = np.rint(start[0] + t[: n * PIECE_PX, None] * along[0] + u * normal[0]).astype(int)
    y = np.rint(start[1] + t[: n * PIECE_PX, None] * along[1] + u * normal[1]).astype(int)
    outside = (x < 0) | (x >= nx) | (y < 0) | (y >= ny)
    x, y = np.clip(x, 0, nx - 1), np.clip(y, 0, ny - 1)
    values = np.where(outside | (flags[y, x] != 0), np.nan, data[y, x]).reshape(n, PIECE_PX, len(u))
    counts = np.isfinite(values).sum(axis=1)
    profiles = _medians(values)
    side = np.abs(u) >= SKY_FROM_PX
    sky = np.where(np.isfinite(profiles[:, side]), profiles[:, side], np.nan)
    level = _medians(sky[..., None])
    profiles = profiles - level
    scatter = 1.4826 * _medians(np.abs(sky - level)[..., None])
    # The standard error of a median of Gaussian values.
    noise = np.maximum(1.2533 * rms / np.sqrt(np.maximum(np.median(counts, axis=1), 1)), scatter[:, 0])
    noise[~np.isfinite(noise) | (np.median(counts, axis=1) < PIECE_PX / 3)] = np.inf
    return profiles, noise


def _medians(values: FloatArray) -> FloatArray:
    """Median over axis 1 without NaN; NaN where there is nothing else."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(values).sum(axis=1, keepdims=True)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    high = np.minimum(high, values.shape[1] - 1)
    middle = (np.take_along_axis(ordered, low, 1) + np.take_along_axis(ordered, high, 1)) / 2
    medians: FloatArray = np.where(count > 0, middle, np.nan)[:, 0]
    return medians


def _peaks(profiles: FloatArray, noise: FloatArray, *, narrow: bool) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Where each cross-section peaks [pixel from the line], and whether the peak is significant (and narrow)."""
    filled = np.nan_to_num(profiles)
    smooth = (filled[:, :-2] + filled[:, 1:-1] + filled[:, 2:]) / 3
    reach = SKY_FROM_PX if not narrow else 4
    middle = smooth.shape[1] // 2
    window = smooth[:, middle - reach : middle + reach + 1]
    at = window.argmax(axis=1)
    height = window[np.arange(len(window)), at] if len(window) else np.zeros(0)
    good = height > PIECE_SIGMA * noise / np.sqrt(3)
    peaks = (at - reach).astype(float)
    if narrow and len(window):
        wide = (smooth[:, middle - WIDE_AT_PX] + smooth[:, middle + WIDE_AT_PX]) / 2
        good &= wide < WIDE_RATIO * height + 2 * noise
        weights = np.maximum(window, 0) * (np.abs(np.arange(-reach, reach + 1) - peaks[:, None]) <= 2)
        peaks = (weights * np.arange(-reach, reach + 1)).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)
    return peaks, good


def _longest_run(good: NDArray[np.bool_], usable: NDArray[np.bool_]) -> tuple[int, int]:
    """First and one past the last piece of the best stretch: good pieces are more than `MIN_SHARE` of the usable."""
    best, bounds, total, start = 0.0, (0, 0), 0.0, 0
    for i, (is_good, is_usable) in enumerate(zip(good, usable, strict=True)):
        if total <= 0:
            total, start = 0.0, i
        total += (1 - MIN_SHARE) if is_good else -MIN_SHARE * is_usable
        if is_good and total > best:
            best, bounds = total, (start, i + 1)
    return bounds


def _robust_line(t: FloatArray, u: FloatArray) -> tuple[float, float, float]:
    """Slope, value at t = 0 and rms of a straight line through most of the points (Theil-Sen)."""
    i, j = np.triu_indices(len(t), 1)
    slope = float(np.median((u[j] - u[i]) / (t[j] - t[i]))) if len(i) else 0.0
    shift = float(np.median(u - slope * t))
    return slope, shift, 1.4826 * float(np.median(np.abs(u - shift - slope * t)))


def _trail_from(
    profiles: FloatArray,
    rms: float,
    start: FloatArray,
    normal: FloatArray,
    centers: FloatArray,
    run: tuple[int, int],
    shape: tuple[int, ...],
) -> Trail | None:
    """Ends and width of a measured trail; None where it follows a row or column of the detector."""
    along = np.array([-normal[1], normal[0]])
    t = _inside(start, along, shape)
    low, high = centers[run[0]] - PIECE_PX / 2, centers[run[1] - 1] + PIECE_PX / 2
    # What ends near the edge of the image goes on to the edge.
    low = t[0] if low - t[0] < 1.5 * PIECE_PX else low
    high = t[-1] if t[-1] - high < 1.5 * PIECE_PX else high
    one, other = start + low * along, start + high * along
    if min(abs(other - one)) < MIN_SHEAR_PX:
        return None
    profile = np.nanmean(profiles, axis=0)
    above = profile > FLAG_TO_SIGMA * rms
    half = 2
    while half < HALF_WIDTH_PX and (above[HALF_WIDTH_PX - half] or above[HALF_WIDTH_PX + half]):
        half += 1
    return Trail(float(one[0]), float(one[1]), float(other[0]), float(other[1]), float(half))


def _flag(flags: FlagImage, trail: Trail) -> None:
    """Flag the pixels of a trail STREAK, in place."""
    one, other = np.array([trail.x1, trail.y1]), np.array([trail.x2, trail.y2])
    length = float(np.hypot(*(other - one)))
    along = (other - one) / length
    t = np.arange(0, length + 0.5, 0.5)[:, None]
    u = np.arange(-trail.half_width_px, trail.half_width_px + 0.25, 0.5)
    x = np.rint(one[0] + t * along[0] - u * along[1]).astype(int)
    y = np.rint(one[1] + t * along[1] + u * along[0]).astype(int)
    inside = (x >= 0) & (x < flags.shape[1]) & (y >= 0) & (y < flags.shape[0])
    flags[y[inside], x[inside]] |= np.uint16(Flag.STREAK)
