"""Sky level and rms of an image on a mesh of boxes, and their rendering at full size.

Each box is sigma-clipped, its level is the mode of what is left, and its rms comes from
the pixels fainter than the mode, which no source can contaminate. Bertin & Arnouts
(1996, A&AS 117, 393, section 3.1) describe the mesh; the treatment of trends and
of boxes at the border is our own.
"""

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import Background, FloatImage, Image

CLIP_SIGMA = 3.0
MAX_ITERATIONS = 12
# A box (or the part of it inside the image) needs this share of usable pixels, else its neighbours stand in.
MIN_USABLE_FRACTION = 0.2
# Mean beyond the median by more than this many sigma: too crowded for the extrapolation to the mode.
CROWDED_SKEW = 0.3

FloatArray = NDArray[np.float64]


def measure_background(image: Image, *, box_size_px: int = 256) -> Background:
    """Measure the sky of an image.

    Parameters
    ----------
    image : Image
        Flagged and non-finite pixels are ignored.
    box_size_px : int
        Side of a box of the mesh; a smaller image is one box.

    Returns
    -------
    Background

    Raises
    ------
    BadPixels
        If no box has usable pixels, or if they are all equal.
    """
    usable = (image.flags == 0) & np.isfinite(image.data)
    return sky_of_pixels(image.data, usable, box_size_px, f"{image.info.exposure} {image.info.ccd}")


def sky_of_pixels(data: FloatImage, usable: NDArray[np.bool_], box_size_px: int, where: str) -> Background:
    """As `measure_background`, of bare pixels; ``where`` names them in errors."""
    ny, nx = data.shape
    box = int(min(box_size_px, max(ny, nx)))
    level, rms = _measure_boxes(data, usable, box)
    if not np.isfinite(level).any():
        raise BadPixels(f"background of {where}: no box of {box} px has enough usable pixels; check the flags")
    if np.nanmax(rms) <= 0:
        raise BadPixels(f"background of {where}: all usable pixels are equal, the CCD was not read out")
    level, rms = _filtered(_filled(level)), _filtered(_filled(np.where(rms > 0, rms, np.nan)))
    return Background(
        level_mesh=level.astype(np.float32),
        rms_mesh=np.maximum(rms, 1e-3 * np.median(rms)).astype(np.float32),
        box_size_px=box,
        shape=(ny, nx),
        level=float(np.median(level)),
        rms=float(np.median(rms)),
    )


def level_map(background: Background) -> FloatImage:
    """Sky level at every pixel [ADU], float32 ``(ny, nx)``: a natural bicubic spline through the box centres."""
    return _rendered(background.level_mesh, background, smooth=True)


def rms_map(background: Background) -> FloatImage:
    """Sky rms at every pixel [ADU], float32 ``(ny, nx)``: bilinear, so that it stays positive."""
    return _rendered(background.rms_mesh, background, smooth=False)


def _measure_boxes(data: FloatImage, usable: NDArray[np.bool_], box: int) -> tuple[FloatArray, FloatArray]:
    """Level and rms of each box, NaN where too few pixels are usable."""
    ny, nx = data.shape
    level = np.full((-(-ny // box), -(-nx // box)), np.nan)
    rms = np.full_like(level, np.nan)
    for i, j in np.ndindex(level.shape):
        cut = np.s_[i * box : (i + 1) * box, j * box : (j + 1) * box]
        inside = usable[cut]
        pixels = data[cut][inside]
        if pixels.size >= max(MIN_USABLE_FRACTION * inside.size, 9):
            level[i, j], rms[i, j] = mode_and_rms(pixels)
    return level, rms


def mode_and_rms(pixels: NDArray[np.float32]) -> tuple[float, float]:
    """Sky level and noise of pixels that also hold sources.

    Clipping at 3 sigma around the median converges first. The level is ``2.5 median - 1.5 mean``
    (the empirical mode of SExtractor), or the median where sources skew the rest too much.
    The rms is that of the pixels below the level, mirrored.

    Returns
    -------
    tuple of float
        Level and rms, in the unit of the pixels.
    """
    ordered = np.sort(pixels, axis=None)
    origin = float(ordered[ordered.size // 2])
    centered = ordered.astype(np.float64) - origin
    total = np.concatenate([[0.0], np.cumsum(centered)])
    squares = np.concatenate([[0.0], np.cumsum(centered * centered)])
    low, high = 0, centered.size
    for _ in range(MAX_ITERATIONS):
        median, mean, sigma = _statistics(centered, total, squares, low, high)
        new_low = int(np.searchsorted(centered, median - CLIP_SIGMA * sigma, side="left"))
        new_high = int(np.searchsorted(centered, median + CLIP_SIGMA * sigma, side="right"))
        if (new_low, new_high) == (low, high) or new_high - new_low < 5:
            break
        low, high = new_low, new_high
    median, mean, sigma = _statistics(centered, total, squares, low, high)
    level = median if abs(mean - median) > CROWDED_SKEW * sigma else 2.5 * median - 1.5 * mean
    return origin + level, _lower_rms(centered, total, squares, low, level)


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


def _filled(mesh: FloatArray) -> FloatArray:
    """Give boxes without data the mean of their measured neighbours, ring by ring."""
    mesh = mesh.copy()
    while np.isnan(mesh).any():
        padded = np.pad(mesh, 1, constant_values=np.nan)
        around = np.stack(
            [padded[1 + i : 1 + i + mesh.shape[0], 1 + j : 1 + j + mesh.shape[1]]
             for i in (-1, 0, 1) for j in (-1, 0, 1)]
        )  # fmt: skip
        known = np.isfinite(around)
        count = known.sum(axis=0)
        mean = np.where(known, around, 0.0).sum(axis=0) / np.maximum(count, 1)
        mesh = np.where(np.isnan(mesh) & (count > 0), mean, mesh)
    return mesh


def _filtered(mesh: FloatArray) -> FloatArray:
    """3x3 median of the mesh around its smooth trend.

    Taking the trend out first keeps a gradient of the sky unharmed at the border, where a plain
    median of the padded mesh flattens it.
    """
    from scipy.ndimage import median_filter

    if mesh.size < 6:
        return mesh
    v, u = (axis.ravel() for axis in np.meshgrid(*(np.linspace(-1, 1, n) for n in mesh.shape), indexing="ij"))
    terms = np.stack([u**0, u, v, u * v, u**2, v**2][: 6 if mesh.size >= 24 else 3], axis=1)
    trend = (terms @ _least_absolute(terms, mesh.ravel())).reshape(mesh.shape)
    filtered: FloatArray = median_filter(mesh - trend, size=3, mode="nearest")
    return trend + filtered


def _least_absolute(terms: FloatArray, values: FloatArray) -> FloatArray:
    """Coefficients of least absolute residuals, by reweighting: a box full of a galaxy must not bend the trend."""
    weight = np.ones(values.size)
    coefficients: NDArray[np.floating] = np.zeros(terms.shape[1])
    for _ in range(10):
        coefficients = np.linalg.lstsq(terms * weight[:, None], values * weight, rcond=None)[0]
        residual = np.abs(values - terms @ coefficients)
        weight = 1.0 / np.sqrt(np.maximum(residual, 1e-3 * np.median(residual) + 1e-12))
    return np.asarray(coefficients, np.float64)


def _rendered(mesh: FloatImage, background: Background, *, smooth: bool) -> FloatImage:
    """Interpolate the mesh to all pixels: one matrix per axis."""
    along = [_interpolation_matrix(n, background.box_size_px, smooth) for n in background.shape]
    return along[0] @ (mesh @ along[1].T)


def _interpolation_matrix(n: int, box: int, smooth: bool) -> FloatImage:
    """Weights ``(n, n_boxes)`` of each box at each pixel of one axis.

    Beyond the outer centres the smooth form goes on in a straight line, the other stays constant.
    """
    from scipy.interpolate import CubicSpline

    edges = np.append(np.arange(0, n, box), n)
    centers = (edges[:-1] + edges[1:] - 1) / 2.0
    if centers.size == 1:
        return np.ones((n, 1), np.float32)
    pixels = np.arange(n, dtype=float)
    inner = np.clip(pixels, centers[0], centers[-1])
    unit = np.eye(centers.size)
    if not smooth:
        return np.stack([np.interp(inner, centers, row) for row in unit], axis=1).astype(np.float32)
    spline = CubicSpline(centers, unit, bc_type="natural")
    slopes = spline(inner, 1)
    weights: FloatArray = spline(inner) + slopes * (pixels - inner)[:, None]
    return weights.astype(np.float32)
