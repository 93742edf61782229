"""Sky level and rms of an image on a mesh of boxes, and their rendering at full size.

Each box is sigma-clipped, its level is the mode of what is left, and its rms comes from
the pixels fainter than the mode, which no source can contaminate. Bertin & Arnouts
(1996, A&AS 117, 393, section 3.1) describe the mesh; the treatment of trends and
of boxes at the border is our own.
"""

from dataclasses import replace

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import Background, FloatImage, Image
from seechange_assets.science.ordering import ascending, part_medians
from seechange_assets.science.source_mask import (
    BIN_PX,
    bin_sums,
    excess_of_bins,
    large_sources,
    relaxed,
    small_sources,
)

CLIP_SIGMA = 3.0
MAX_ITERATIONS = 12
# A box (or the part of it inside the image) needs this share of usable pixels, else its neighbours stand in.
MIN_USABLE_FRACTION = 0.2
# Fewer boxes have no trend; large sources that take more than this share of an image are none.
MIN_BOXES_TREND, MAX_LARGE_SHARE = 6, 0.5
# The slope inside a box comes from the medians of so many by so many parts of it, each with at least so many pixels.
PARTS, MIN_PART_PIXELS = 4, 64
# Of larger boxes every other row (third, ...) tells the slope: its error is then 0.02 sigma at the border of a box.
SLOPE_PIXELS = 16384
# Of the boxes around one without data, row by row.
NEIGHBOUR_WEIGHT = np.array([0.01, 1.0, 0.01, 1.0, 1.0, 1.0, 0.01, 1.0, 0.01])
# Mean beyond the median by more than this many sigma: too crowded for the extrapolation to the mode.
CROWDED_SKEW = 0.3
# How far beyond the median, in units of (mean - median), the sky lies. Once the sources are masked faint ones and the
# skew of the Poisson noise are left: the latter asks for -1, and 0.5 costs it 0.006 sigma at 1000 electrons.
SKEW_FACTOR, SKEW_FACTOR_MASKED = 1.5, 0.5

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]
Axes = tuple[FloatArray, ...]


def measure_background(
    image: Image, *, box_size_px: int = 256, form: str = "map", polynomial_degree: int = 2, mask_passes: int = 1
) -> Background:
    """Measure the sky of an image.

    Parameters
    ----------
    image : Image
        Flagged and non-finite pixels are ignored.
    box_size_px : int
        Side of a box of the mesh; a smaller image is one box.
    form : str
        ``map`` follows the mesh, ``polynomial`` a robust fit to it, ``scalar`` is its median everywhere.
    polynomial_degree : int
        Of the polynomial; lower where fewer boxes than coefficients were measured.
    mask_passes : int
        How often sources are masked by what the sky so far leaves of the image, and the boxes measured again.

    Returns
    -------
    Background

    Raises
    ------
    BadPixels
        If no box has usable pixels, or if they are all equal.
    """
    usable = (image.flags == 0) & np.isfinite(image.data)
    where = f"{image.info.exposure} {image.info.ccd}"
    sky = sky_of_pixels(image.data, usable, box_size_px, where, mask_passes=mask_passes)
    if form == "scalar":
        return _scalar(sky)
    return _polynomial(sky, polynomial_degree) if form == "polynomial" else sky


def sky_of_pixels(
    data: FloatImage,
    usable: Mask,
    box_size_px: int,
    where: str,
    *,
    mask_passes: int = 0,
    skew_factor: float = SKEW_FACTOR_MASKED,
) -> Background:
    """As `measure_background`, of bare pixels; ``where`` names them in errors.

    ``skew_factor`` is that of the masked image, see `mode_and_rms`.
    """
    box = int(min(box_size_px, max(data.shape)))
    # Boxes that will be measured again are sampled on every other row first.
    level, rms = _measure_boxes(data, usable, box, every=2 if mask_passes else 1)
    if not np.isfinite(level).any():
        raise BadPixels(f"background of {where}: no box of {box} px has enough usable pixels; check the flags")
    if np.nanmax(rms) <= 0:
        raise BadPixels(f"background of {where}: all usable pixels are equal, the CCD was not read out")
    sky = _sky_of_boxes(level, rms, box, data.shape)
    for _ in range(mask_passes):
        open_sky = usable & ~_covered(data, usable, sky)
        level, rms = _measure_boxes(data, open_sky, box, skew_factor=skew_factor)
        if not np.nanmax(rms, initial=0.0) > 0:
            break
        sky = _sky_of_boxes(level, rms, box, data.shape)
    return sky


def _sky_of_boxes(level: FloatArray, rms: FloatArray, box: int, shape: tuple[int, int]) -> Background:
    """Boxes without data filled, outliers filtered."""
    axes = _axes(box, shape)
    level, rms = (_filtered(_filled(mesh, axes), axes) for mesh in (level, np.where(rms > 0, rms, np.nan)))
    rms = np.maximum(rms, 1e-3 * np.median(rms))
    return Background(
        level_mesh=level.astype(np.float32), rms_mesh=rms.astype(np.float32), box_size_px=box,
        shape=(int(shape[0]), int(shape[1])), level=float(np.median(level)), rms=float(np.median(rms)),
    )  # fmt: skip


def _covered(data: FloatImage, usable: Mask, sky: Background) -> Mask:
    """Pixels under sources, at the resolution of the bins of `source_mask`.

    Large sources are held against the lower of the map and its trend, because their halos have lifted the map
    around them; if most of the image then looks like one, it is the sky that no polynomial follows, and none is
    believed. Small sources are held against the map.
    """
    sums = bin_sums(data, usable)
    rms = _rendered(sky.rms_mesh, sky, smooth=False, step=BIN_PX)
    excess = excess_of_bins(sums, _rendered(sky.level_mesh, sky, smooth=True, step=BIN_PX), rms)
    box = max(sky.box_size_px // BIN_PX, 1)
    large = np.zeros(excess.shape, bool)
    if sky.level_mesh.size >= MIN_BOXES_TREND:
        trend = _trend(sky.level_mesh.astype(np.float64), _axes(sky.box_size_px, sky.shape))
        lower = np.minimum(sky.level_mesh, trend.astype(np.float32))
        large = large_sources(excess_of_bins(sums, _rendered(lower, sky, smooth=True, step=BIN_PX), rms), box)
        large &= large.mean() < MAX_LARGE_SHARE
    small = small_sources(excess)
    for i, j in np.ndindex(sky.level_mesh.shape):
        cut = np.s_[i * box : (i + 1) * box, j * box : (j + 1) * box]
        small[cut] = relaxed(small[cut], excess[cut], (sums[1][cut] > 0) & ~large[cut])
    covered = (small | large).repeat(BIN_PX, axis=0).repeat(BIN_PX, axis=1)
    return covered[: data.shape[0], : data.shape[1]]


def _scalar(sky: Background) -> Background:
    """One level and one rms for the whole image."""
    return replace(
        sky, level_mesh=np.full((1, 1), sky.level, np.float32), rms_mesh=np.full((1, 1), sky.rms, np.float32),
        box_size_px=max(sky.shape),
    )  # fmt: skip


def _polynomial(sky: Background, degree: int) -> Background:
    """The level as a polynomial of the position, in the boxes of the mesh."""
    level = _trend(sky.level_mesh.astype(np.float64), _axes(sky.box_size_px, sky.shape), degree)
    return replace(sky, level_mesh=level.astype(np.float32), level=float(np.median(level)))


def level_map(background: Background) -> FloatImage:
    """Sky level at every pixel [ADU], float32 ``(ny, nx)``: a natural bicubic spline through the box centres."""
    return _rendered(background.level_mesh, background, smooth=True)


def rms_map(background: Background) -> FloatImage:
    """Sky rms at every pixel [ADU], float32 ``(ny, nx)``: bilinear, so that it stays positive."""
    return _rendered(background.rms_mesh, background, smooth=False)


def _measure_boxes(
    data: FloatImage, usable: Mask, box: int, *, skew_factor: float = SKEW_FACTOR, every: int = 1
) -> tuple[FloatArray, FloatArray]:
    """Level and rms of each box, NaN where too few pixels are usable; of every so many rows.

    The level is that in the middle of the box.
    """
    ny, nx = data.shape
    level = np.full((-(-ny // box), -(-nx // box)), np.nan)
    rms = np.full_like(level, np.nan)
    for i, j in np.ndindex(level.shape):
        cut = np.s_[i * box : (i + 1) * box : every, j * box : (j + 1) * box]
        inside = usable[cut]
        if np.count_nonzero(inside) >= max(MIN_USABLE_FRACTION * inside.size, 9):
            pixels = _leveled(data[cut], inside, *_slope(data[cut], inside))
            level[i, j], rms[i, j] = mode_and_rms(pixels, skew_factor)
    return level, rms


def _slope(data: FloatImage, usable: Mask) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Plane through the sky of a box, zero in its middle: left in, it would pass for noise of the sky.

    It is the sum of what is returned: one value for each row and one for each column. Zero where too few parts of
    the box have a median to tell.
    """
    ny, nx = data.shape
    step = max(data.size // SLOPE_PIXELS, 1)
    edges = [np.arange(PARTS + 1) * n // PARTS for n in (-(-ny // step), nx)]
    medians = part_medians(data, usable, step, edges[0], edges[1], MIN_PART_PIXELS)
    # Middle of each part where the box runs from -1 to 1.
    middles = [(edge[1:] + edge[:-1] - 1) / max(edge[-1] - 1, 1) - 1.0 for edge in edges]
    up, along = np.meshgrid(*middles, indexing="ij")
    known = np.isfinite(medians)
    if np.count_nonzero(known) <= PARTS * PARTS // 2:
        return np.zeros(ny, np.float32), np.zeros(nx, np.float32)
    along, up = _least_absolute_plane(np.stack([medians[known], along[known], up[known]], axis=1))
    return np.linspace(-up, up, ny, dtype=np.float32), np.linspace(-along, along, nx, dtype=np.float32)


@numba.njit(cache=True)
def _leveled(data, usable, of_row, of_column):  # type: ignore[no-untyped-def]
    """The usable pixels less a plane, ``(n,)`` float32."""
    pixels, n = np.empty(data.size, np.float32), 0
    for row in range(data.shape[0]):
        for column in range(data.shape[1]):
            if usable[row, column]:
                pixels[n] = data[row, column] - (of_row[row] + of_column[column])
                n += 1
    return pixels[:n]


@numba.njit(cache=True)
def _least_absolute_plane(known):  # type: ignore[no-untyped-def]
    """Slopes along x and y of the plane of least absolute residuals through rows of (value, x, y), by reweighting.

    As `_least_absolute`, for points that lie on no line: more than half of a grid.
    """
    value, x, y = known[:, 0] - known[:, 0].mean(), known[:, 1], known[:, 2]
    weight = np.ones(value.size)
    level = along = up = 0.0
    for _ in range(10):
        total = weight.sum()
        mean_x, mean_y, mean = (weight * x).sum() / total, (weight * y).sum() / total, (weight * value).sum() / total
        dx, dy, rest = x - mean_x, y - mean_y, weight * (value - mean)
        xx, xy, yy = (weight * dx * dx).sum(), (weight * dx * dy).sum(), (weight * dy * dy).sum()
        right_x, right_y = (rest * dx).sum(), (rest * dy).sum()
        area = xx * yy - xy * xy
        along, up = (yy * right_x - xy * right_y) / area, (xx * right_y - xy * right_x) / area
        level = mean - along * mean_x - up * mean_y
        residual = np.abs(value - level - along * x - up * y)
        weight = 1.0 / np.maximum(residual, 1e-3 * np.median(residual) + 1e-12)
    return along, up


def mode_and_rms(pixels: NDArray[np.float32], skew_factor: float = SKEW_FACTOR) -> tuple[float, float]:
    """Sky level and noise of pixels that also hold sources.

    Clipping at 3 sigma around the median converges first. The level is ``median - factor (mean - median)``
    (with 1.5 the empirical mode of SExtractor), or the median where sources skew the rest too much.
    The rms is that of the pixels below the level, mirrored.

    Returns
    -------
    tuple of float
        Level and rms, in the unit of the pixels.
    """
    ordered = ascending(np.ravel(pixels))
    origin = float(ordered[ordered.size // 2])
    centered, total, squares = _running_sums(ordered, origin)
    low, high = 0, centered.size
    for _ in range(MAX_ITERATIONS):
        median, mean, sigma = _statistics(centered, total, squares, low, high)
        new_low = int(np.searchsorted(centered, median - CLIP_SIGMA * sigma, side="left"))
        new_high = int(np.searchsorted(centered, median + CLIP_SIGMA * sigma, side="right"))
        if (new_low, new_high) == (low, high) or new_high - new_low < 5:
            break
        low, high = new_low, new_high
    median, mean, sigma = _statistics(centered, total, squares, low, high)
    level = median if abs(mean - median) > CROWDED_SKEW * sigma else median - skew_factor * (mean - median)
    return origin + level, _lower_rms(centered, total, squares, low, level)


@numba.njit(cache=True)
def _running_sums(ordered, origin):  # type: ignore[no-untyped-def]
    """Values less the origin, their running sum and that of their squares, the last two from zero."""
    n = ordered.size
    centered = np.empty(n)
    sums = np.zeros((2, n + 1))
    total = squares = 0.0
    for k in range(n):
        value = ordered[k] - origin
        centered[k] = value
        total += value
        squares += value * value
        sums[0, k + 1], sums[1, k + 1] = total, squares
    return centered, sums[0], sums[1]


def _statistics(
    ordered: FloatArray, total: FloatArray, squares: FloatArray, low: int, high: int
) -> tuple[float, float, float]:
    """Median, mean and standard deviation of ``ordered[low:high]`` from running sums."""
    n = high - low
    median = 0.5 * (ordered[low + (n - 1) // 2] + ordered[low + n // 2])
    mean = (total[high] - total[low]) / n
    return median, mean, float(np.sqrt(max((squares[high] - squares[low]) / n - mean**2, 0.0)))


def _lower_rms(ordered: FloatArray, total: FloatArray, squares: FloatArray, low: int, level: float) -> float:
    """Root mean square distance below `level`, corrected for the tail cut off at 3 sigma."""
    middle = int(np.searchsorted(ordered, level, side="left"))
    n = middle - low
    if n < 3:
        return 0.0
    below = (squares[middle] - squares[low]) - 2.0 * level * (total[middle] - total[low]) + n * level**2
    return float(np.sqrt(max(below / n, 0.0))) / TRUNCATED_RMS


# Standard deviation of a unit Gaussian cut at +-3 sigma: sqrt(1 - 2 k phi(k) / (2 Phi(k) - 1)).
TRUNCATED_RMS = 0.98658


def _filled(mesh: FloatArray, axes: Axes) -> FloatArray:
    """Give boxes without data the trend of the others and the mean departure of their neighbours from it."""
    trend = _trend(mesh, axes)
    rest = mesh - trend
    while np.isnan(rest).any():
        padded = np.pad(rest, 1, constant_values=np.nan)
        around = np.stack(
            [padded[1 + i : 1 + i + mesh.shape[0], 1 + j : 1 + j + mesh.shape[1]]
             for i in (-1, 0, 1) for j in (-1, 0, 1)]
        )  # fmt: skip
        # Boxes that share a side come first: they hold the gradient along the other axis.
        known = np.isfinite(around) * NEIGHBOUR_WEIGHT[:, None, None]
        total = known.sum(axis=0)
        mean = np.where(known > 0, around * known, 0.0).sum(axis=0) / np.maximum(total, 1e-9)
        rest = np.where(np.isnan(rest) & (total > 0), mean, rest)
    return trend + rest


def _filtered(mesh: FloatArray, axes: Axes) -> FloatArray:
    """3x3 median of the mesh around its smooth trend.

    Taking the trend out first keeps a gradient of the sky unharmed at the border, where a plain
    median of the padded mesh flattens it.
    """
    from scipy.ndimage import median_filter

    if mesh.size < MIN_BOXES_TREND:
        return mesh
    trend = _trend(mesh, axes)
    filtered: FloatArray = median_filter(mesh - trend, size=3, mode="nearest")
    return trend + filtered


def _axes(box: int, shape: tuple[int, int]) -> Axes:
    """Centres of the boxes along y and x in units of half the image: the last box may be narrow, its step short."""
    return tuple(2 * _centers(n, box) / n - 1 for n in shape)


def _centers(n: int, box: int) -> FloatArray:
    """Middle of each box along an axis [pixel]."""
    edges = np.append(np.arange(0, n, box), n)
    return np.asarray((edges[:-1] + edges[1:] - 1) / 2.0)


def _trend(mesh: FloatArray, axes: Axes, degree: int = 2) -> FloatArray:
    """Polynomial of least absolute residuals through the measured boxes, at all boxes."""
    known = np.isfinite(mesh).ravel()
    v, u = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    # Two boxes for each coefficient of a plane, four for higher powers; never one that an axis has no boxes for.
    while degree > 0 and (known.sum() < (degree + 1) * (degree + 2) * min(degree, 2) or min(mesh.shape) <= degree):
        degree -= 1
    powers = [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]
    terms = np.stack([u**i * v**j for i, j in powers], axis=1)
    trend: FloatArray = terms @ _least_absolute(terms[known], mesh.ravel()[known])
    return trend.reshape(mesh.shape)


def _least_absolute(terms: FloatArray, values: FloatArray) -> FloatArray:
    """Coefficients of least absolute residuals, by reweighting: a box full of a galaxy must not bend the trend."""
    weight = np.ones(values.size)
    coefficients: NDArray[np.floating] = np.zeros(terms.shape[1])
    for _ in range(10):
        coefficients = np.linalg.lstsq(terms * weight[:, None], values * weight, rcond=None)[0]
        residual = np.abs(values - terms @ coefficients)
        weight = 1.0 / np.sqrt(np.maximum(residual, 1e-3 * np.median(residual) + 1e-12))
    return np.asarray(coefficients, np.float64)


def _rendered(mesh: FloatImage, background: Background, *, smooth: bool, step: int = 1) -> FloatImage:
    """Interpolate the mesh to all pixels, or to the middle of each bin of `step` pixels: one matrix per axis."""
    along = [_interpolation_matrix(n, background.box_size_px, smooth, step) for n in background.shape]
    return along[0] @ (mesh @ along[1].T)


def _interpolation_matrix(n: int, box: int, smooth: bool, step: int = 1) -> FloatImage:
    """Weights ``(n / step, n_boxes)`` of each box at the middle of each bin of one axis.

    Beyond the outer centres the smooth form goes on in a straight line, the other stays constant.
    """
    from scipy.interpolate import CubicSpline

    centers = _centers(n, box)
    if centers.size == 1:
        return np.ones((-(-n // step), 1), np.float32)
    pixels = np.arange(0, n, step) + (step - 1) / 2.0
    inner = np.clip(pixels, centers[0], centers[-1])
    unit = np.eye(centers.size)
    if not smooth:
        return np.stack([np.interp(inner, centers, row) for row in unit], axis=1).astype(np.float32)
    spline = CubicSpline(centers, unit, bc_type="natural")
    slopes = spline(inner, 1)
    weights: FloatArray = spline(inner) + slopes * (pixels - inner)[:, None]
    return weights.astype(np.float32)
