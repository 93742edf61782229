"""Small pictures of products for the lineage page: PNG, at most 10 kB."""

import base64
import io
from typing import Any

import numpy as np

from seechange_assets import products as p

MAX_BYTES = 10_000
SIDE = 128


def preview_markdown(product: Any) -> str | None:
    """A picture of the product as Markdown with the PNG inside, or None where none helps."""
    png = preview_png(product)
    if png is None:
        return None
    return f"![preview](data:image/png;base64,{base64.b64encode(png).decode()})"


def preview_png(product: Any) -> bytes | None:
    """PNG of images, meshes, PSFs and the first cutouts; None for other products."""
    pixels = _pixels(product)
    if pixels is None or pixels.size == 0:
        return None
    for side in (SIDE, 96, 64, 48):
        png = _encode(_shrink(pixels, side))
        if len(png) <= MAX_BYTES:
            return png
    return None


def _pixels(product: Any) -> np.ndarray | None:
    match product:
        case p.Image() | p.Master() | p.Reference() | p.Difference():
            return product.data
        case p.Background():
            return product.level_mesh
        case p.Psf():
            return product.coefficients[0]
        case p.Cutouts():
            return _triplets(product)
    return None


def _triplets(cutouts: p.Cutouts, count: int = 4) -> np.ndarray:
    """The first stamps, one row each: new, reference, difference, each stretched on its own."""
    rows = [
        np.hstack([_stretch(stamp) for stamp in (cutouts.new[i], cutouts.ref[i], cutouts.sub[i])])
        for i in range(min(count, len(cutouts.sub)))
    ]
    return np.vstack(rows) if rows else np.empty((0, 0))


def _shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Mean over blocks so that the longer side has at most `side` pixels."""
    step = max(1, -(-max(pixels.shape) // side))
    ny, nx = (n // step * step for n in pixels.shape)
    blocks = pixels[:ny, :nx].reshape(ny // step, step, nx // step, step)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(blocks.astype(np.float32)).mean(axis=(1, 3))


def _stretch(pixels: np.ndarray) -> np.ndarray:
    """Pixels between the 1st and 99.5th percentile to 0 … 1; NaN is 0."""
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        return np.zeros_like(pixels)
    low, high = np.percentile(finite, [1, 99.5])
    return np.nan_to_num(np.clip((pixels - low) / max(high - low, 1e-12), 0, 1))


def _encode(pixels: np.ndarray) -> bytes:
    from PIL import Image as Picture

    grey = (_stretch(pixels)[::-1] * 255).astype(np.uint8)
    enlarge = max(1, SIDE // max(grey.shape))
    picture = Picture.fromarray(np.kron(grey, np.ones((enlarge, enlarge), np.uint8)))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
