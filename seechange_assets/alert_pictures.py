"""The three stamps of an alert as a picture: a PNG, or half blocks for a terminal."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAMPS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
#: Pixels of the picture per pixel of a stamp, and between stamps.
SCALE, GAP = 4, 4


def pixels_of(stamp: bytes) -> NDArray[np.float32]:
    """The image of a stamp: FITS, or the raw big-endian square of ``ls4.v0_2``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    from astropy.io import fits

    if stamp.startswith(b"SIMPLE"):
        try:
            with fits.open(io.BytesIO(stamp)) as hdus:
                return np.array(hdus[0].data, np.float32)
        except (OSError, TypeError) as error:
            raise ValueError(f"a stamp that is no FITS file: {error}") from error
    side = round((len(stamp) / 4) ** 0.5)
    if side * side * 4 != len(stamp) or not stamp:
        raise ValueError(f"a stamp of {len(stamp)} bytes is neither FITS nor a square of float32")
    return np.frombuffer(stamp, ">f4").reshape(side, side).astype(np.float32)


def grey(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pixels as 0 ... 255, linear between the 1st and the 99.5th percentile; y grows upwards."""
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, (1.0, 99.5)) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num(pixels, nan=low) - low) / max(high - low, 1e-12)
    shown: NDArray[np.uint8] = (255.0 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)[::-1]
    return shown


def triplet(alert: Mapping[str, Any]) -> NDArray[np.uint8]:
    """New, reference and difference side by side; what is missing is left out."""
    parts = [grey(pixels_of(alert[name])) for name in STAMPS if alert.get(name)]
    if not parts:
        return np.zeros((1, 1), np.uint8)
    height = max(part.shape[0] for part in parts)
    columns = []
    for part in parts:
        columns += [np.pad(part, ((0, height - part.shape[0]), (0, 0))), np.full((height, 1), 255, np.uint8)]
    return np.hstack(columns[:-1])


def triplet_png(alert: Mapping[str, Any]) -> bytes:
    """The triplet as a PNG."""
    from PIL import Image

    picture = np.kron(triplet(alert), np.ones((SCALE, SCALE), np.uint8))
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def triplet_text(alert: Mapping[str, Any], step: int = 1) -> str:
    """The triplet for a terminal with 24-bit colours: each character is two pixels, one above the other."""
    picture = triplet(alert)[::step, ::step]
    if picture.shape[0] % 2:
        picture = np.vstack([picture, np.zeros((1, picture.shape[1]), np.uint8)])
    lines = []
    for upper, lower in zip(picture[::2].tolist(), picture[1::2].tolist(), strict=True):
        cells = [f"\x1b[38;2;{a};{a};{a}m\x1b[48;2;{b};{b};{b}m▀" for a, b in zip(upper, lower, strict=True)]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
