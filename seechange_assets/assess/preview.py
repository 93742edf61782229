"""Small pictures of products for the lineage page: PNG, at most 10 kB.

Fifteen greys and one colour for "no data", four bits a pixel, each pixel drawn 2 x 2 or larger: a
doubled pixel fills one byte, so the picture is twice as large on the page at the same number of bytes.
"""

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets import products as p
from seechange_assets.products import Flag

MAX_BYTES = 10_000
#: Longer side of the picture in its own pixels, tried from the left until the PNG is small enough.
SIDES = (192, 160, 128, 112, 96, 80, 64, 48, 32)
#: Longer side on the page that a picture is enlarged to [screen pixel].
SHOWN_SIDE = 256
N_GREYS = 15
NO_DATA_RGB = (74, 96, 150)
#: Rows of stamps: at 41 pixels a stamp, four rows of noise still stay below the limit.
N_STAMP_ROWS = 4

Grey = NDArray[np.float32]  # 0 black … 1 white, NaN no data


def preview_markdown(product: Any) -> str | None:
    """A line on what is seen and the PNG inside, as Markdown; None where no picture helps."""
    png = preview_png(product)
    if png is None:
        return None
    return f"{_caption(product)}\n\n![preview](data:image/png;base64,{base64.b64encode(png).decode()})"


def preview_png(product: Any) -> bytes | None:
    """PNG of images, meshes, PSFs and the first cutouts; None for other products."""
    for grey in _pictures(product):
        if grey.size == 0:
            return None
        png = _encode(grey)
        if len(png) <= MAX_BYTES:
            return png
    return None


def _caption(product: Any) -> str:
    match product:
        case p.Difference():
            return (
                "Significance, the strongest pixel of each block. White: brighter than the reference; black: fainter."
            )
        case p.Cutouts():
            count = min(N_STAMP_ROWS, len(product.sub))
            return f"New, reference, difference of the first {count} of {len(product.sub)} detections."
        case p.Background():
            return f"Sky level, one square for each box of {product.box_size_px} pixels."
        case p.Psf():
            return "Point spread function, logarithmic over four decades."
    return "Stars and sky, y upwards; blue: no data." if isinstance(product, (p.Image, p.Reference)) else "y upwards."


def _pictures(product: Any) -> Iterable[Grey]:
    """The picture of a product, ever smaller."""
    pictures: Iterable[Grey] = ()
    match product:
        case p.Image() | p.Reference():
            pixels = _valid(product.data, product.flags)
            pictures = (_stretch_sky(_block_mean(pixels, side)) for side in SIDES)
        case p.Master():
            pixels = _valid(product.data, product.flags)
            pictures = (_stretch_percentiles(_block_mean(pixels, side)) for side in SIDES)
        case p.Difference():
            score = _valid(product.score, product.flags)
            pictures = (_stretch_significance(_block_extreme(score, side)) for side in SIDES)
        case p.Background():
            pictures = (_stretch_percentiles(_block_mean(product.level_mesh, side)) for side in SIDES)
        case p.Psf():
            pictures = (_stretch_decades(_block_mean(product.coefficients[0], side)) for side in SIDES)
        case p.Cutouts():
            pictures = (_stamp_rows(product, count) for count in range(min(N_STAMP_ROWS, len(product.sub)), 0, -1))
    return pictures


def _valid(pixels: NDArray[Any], flags: NDArray[np.uint16]) -> Grey:
    """Pixels as float32, NaN where a detector defect or the edge of the data is flagged."""
    unknown = np.uint16(Flag.BAD | Flag.NO_DATA | Flag.OUT_OF_BOUNDS)  # of the type of the flags: a quarter of the time
    return np.where(flags & unknown, np.float32(np.nan), pixels)


def _stamp_rows(cutouts: p.Cutouts, count: int) -> Grey:
    """The first `count` detections, one row each, on one scale within the row."""
    gap = np.full((cutouts.size, 2), np.nan, np.float32)
    rows: list[Grey] = []
    for i in reversed(range(count)):  # y runs upwards, the first detection comes on top
        new, ref, sub = _stretch_stamps(np.stack([cutouts.new[i], cutouts.ref[i], cutouts.sub[i]]))
        rows += [np.hstack([new, gap, ref, gap, sub]), np.full((2, 3 * cutouts.size + 4), np.nan, np.float32)]
    return np.vstack(rows[:-1])


def _blocks(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """View ``(ny, nx, step * step)`` of whole blocks, at most `side` of them along the longer side."""
    step = max(1, -(-max(pixels.shape) // side))
    ny, nx = (max(1, n // step) for n in pixels.shape)
    height, width = (min(step, n) for n in pixels.shape)
    cut = pixels[: ny * height, : nx * width].reshape(ny, height, nx, width)
    return cut.swapaxes(1, 2).reshape(ny, nx, height * width)


def _block_mean(pixels: NDArray[Any], side: int) -> Grey:
    """Mean of the valid pixels of each block, NaN where a block has none."""
    blocks = _blocks(pixels, side)
    valid = np.isfinite(blocks)
    count = valid.sum(axis=2)
    total = np.where(valid, blocks, 0).sum(axis=2, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _block_extreme(pixels: NDArray[Any], side: int) -> Grey:
    """The value of largest modulus in each block, so that a point source stays visible."""
    blocks = _blocks(pixels, side)
    strength = np.where(np.isfinite(blocks), np.abs(blocks), -1)
    at = strength.argmax(axis=2)[..., None]
    return np.take_along_axis(blocks, at, axis=2)[..., 0]


def _stretch_sky(pixels: Grey) -> Grey:
    """Asinh from 3 sigma below the sky to the brightest stars: shows the noise and the stars."""
    sky, sigma = _level_and_noise(pixels)
    return _asinh(pixels, sky, sigma, low=-3.0, high=_high(pixels, sky, sigma, 99.8))


def _stretch_stamps(pixels: Grey) -> Grey:
    """Asinh on the noise of the difference (the last stamp), about zero."""
    _, sigma = _level_and_noise(pixels[-1])
    return _asinh(pixels, 0.0, sigma, low=-5.0, high=_high(pixels, 0.0, sigma, 99.8))


def _stretch_significance(score: Grey) -> Grey:
    """Zero is the middle grey, +-15 sigma the ends."""
    return np.clip(score / 30 + 0.5, 0, 1)


def _stretch_decades(pixels: Grey) -> Grey:
    peak = float(pixels[np.isfinite(pixels)].max(initial=1e-30))
    return (1 + np.log10(np.clip(pixels / peak, 1e-4, 1)) / 4).astype(np.float32)


def _stretch_percentiles(pixels: Grey) -> Grey:
    """Linear between the 1st and 99th percentile; a constant is the middle grey."""
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        return pixels
    low, high = np.percentile(finite, [1, 99])
    if high <= low:
        return np.where(np.isfinite(pixels), np.float32(0.5), np.float32(np.nan))
    return np.clip((pixels - low) / (high - low), 0, 1)


def _asinh(pixels: Grey, level: float, sigma: float, *, low: float, high: float) -> Grey:
    """Lupton et al. (1999): linear at the noise, logarithmic far above; `low` and `high` in sigma."""
    scaled = np.arcsinh((pixels - level) / (3 * sigma))
    black, white = np.arcsinh(low / 3), np.arcsinh(high / 3)
    return np.clip((scaled - black) / (white - black), 0, 1).astype(np.float32)


def _level_and_noise(pixels: Grey) -> tuple[float, float]:
    """Median and robust standard deviation; 0 and 1 where there is nothing to measure."""
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        return 0.0, 1.0
    level = float(np.median(finite))
    return level, max(1.4826 * float(np.median(np.abs(finite - level))), 1e-6)


def _high(pixels: Grey, level: float, sigma: float, percentile: float) -> float:
    """A high percentile in sigma above the level, but never so low that noise looks like stars."""
    finite = pixels[np.isfinite(pixels)]
    top = float(np.percentile(finite, percentile)) if finite.size else level
    return max((top - level) / sigma, 15.0)


def _encode(grey: Grey) -> bytes:
    from PIL import Image as Picture

    levels = np.where(np.isfinite(grey), np.nan_to_num(grey) * (N_GREYS - 1) + 0.5, N_GREYS).astype(np.uint8)
    enlarge = 2 * max(1, SHOWN_SIDE // (2 * max(grey.shape)))
    pixels = levels[::-1].repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    picture = Picture.fromarray(pixels, "P")
    greys = [round(255 * i / (N_GREYS - 1)) for i in range(N_GREYS)]
    picture.putpalette([value for level in greys for value in (level, level, level)] + list(NO_DATA_RGB))
    stream = io.BytesIO()
    picture.save(stream, "PNG", bits=4)
    return stream.getvalue()
