"""What the read-out leaves in the pixels: overscan level, non-linearity, the layout of the amplifiers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import FloatImage, ImageInfo

if TYPE_CHECKING:
    from seechange_assets.instruments.base import Amplifier, RawCcd

#: Rows over which the overscan level is smoothed where its rows do not differ by more than their noise.
OVERSCAN_ROWS = 31


def where(info: ImageInfo) -> str:
    """Exposure and CCD, for messages."""
    return f"{info.exposure} CCD {info.ccd}"


def overscan_level(strip: NDArray[np.float32]) -> NDArray[np.float32]:
    """The bias level of each row from its overscan pixels, shape ``(rows, columns)``.

    A clipped mean per row, pulled to the running mean of `OVERSCAN_ROWS` rows: by a Wiener
    factor, so that real row-to-row changes are followed and mere read noise is averaged.

    Pixels that are not finite count as missing; a row without any takes the level of the rows near it.

    Returns
    -------
    ndarray of float32, shape ``(rows,)``, ADU
    """
    from scipy.ndimage import uniform_filter1d

    finite = np.isfinite(strip)
    if not finite.all():
        return _level_with_gaps(strip, finite)
    middle = np.median(strip, axis=1)
    residual = strip - middle[:, None]
    scatter = 1.4826 * np.median(np.abs(residual)) + 1e-3
    # The median of a few pixels is coarse, in integers more so; 4 sigma keeps all but cosmic rays and bleeding.
    kept = np.abs(residual) < 4 * max(scatter, 0.5)
    rows = np.where(kept, strip, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    smooth = uniform_filter1d(rows, OVERSCAN_ROWS, mode="nearest")
    expected = scatter**2 / strip.shape[1] * (1 - 1 / OVERSCAN_ROWS)
    deviation = rows - smooth
    observed = (1.4826 * np.median(np.abs(deviation - np.median(deviation)))) ** 2
    follow = max(0.0, 1 - expected / observed) if observed > 0 else 0.0
    # A row that jumps by far more than the rest is real (a read-out glitch): follow it in full.
    outlier = np.abs(deviation) > 6 * np.sqrt(max(observed, expected))
    level: NDArray[np.float32] = (smooth + np.where(outlier, 1.0, follow) * deviation).astype(np.float32)
    return level


def amplifier_signal(
    raw: "RawCcd", amplifier: "Amplifier", levels: NDArray[np.float32] | None, rows: slice = slice(None)
) -> FloatImage:
    """The pixels of one amplifier above its overscan level, for some rows of its section."""
    section = raw.data[amplifier.raw_data][rows]
    signal: FloatImage = section.astype(np.float32) if levels is None else section - levels[rows, None]
    return signal


def linearize(adu: FloatImage, coefficient: float) -> None:
    """Correct the response in place: ``true = m (1 + c m)`` with m the signal above bias [ADU]."""
    if coefficient:
        adu += np.float32(coefficient) * adu * adu


def _level_with_gaps(strip: NDArray[np.float32], finite: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The level from the rows that have finite values, the missing ones among them replaced by their median."""
    some = np.flatnonzero(finite.any(axis=1))
    if not some.size:
        return np.zeros(len(strip), np.float32)
    middle = np.nanmedian(np.where(finite[some], strip[some], np.nan), axis=1)
    level = overscan_level(np.where(finite[some], strip[some], middle[:, None]).astype(np.float32))
    filled: NDArray[np.float32] = np.interp(np.arange(len(strip)), some, level).astype(np.float32)
    return filled


def ccd_shape(amplifiers: "Sequence[Amplifier]") -> tuple[int, int]:
    """Shape of the trimmed CCD that the amplifiers tile."""
    return max(amp.ccd[0].stop for amp in amplifiers), max(amp.ccd[1].stop for amp in amplifiers)


def check_pixels(raw: "RawCcd") -> None:
    """Refuse frames that hold no information.

    Raises
    ------
    BadPixels
        Nothing finite, or all pixels equal.
    """
    sections = [amp.raw_data for amp in raw.amplifiers] or [(slice(None), slice(None))]
    low, high = np.inf, -np.inf
    for section in sections:
        # fmin and fmax skip NaN, and are NaN only when nothing is finite.
        part = raw.data[section]
        low, high = min(low, float(np.fmin.reduce(part, axis=None))), max(high, float(np.fmax.reduce(part, axis=None)))
    if not (np.isfinite(low) or np.isfinite(high)):
        raise BadPixels(f"{where(raw.info)}: no finite pixel: is the file empty?")
    if low == high:
        raise BadPixels(f"{where(raw.info)}: every pixel is {low:g}: the CCD was not read out")
