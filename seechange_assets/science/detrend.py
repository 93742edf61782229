"""From raw numbers to a calibrated image: overscan, bias, linearity, gain, flat, flags, cosmic rays."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels, MasterNotFound
from seechange_assets.products import Flag, FlagImage, FloatImage, Image, ImageInfo, Master
from seechange_assets.science.cosmic_rays import find_cosmic_rays

if TYPE_CHECKING:
    from seechange_assets.instruments.base import Amplifier, RawCcd

STEPS = ("overscan", "bias", "linearity", "flat")
#: Rows over which the overscan level is smoothed where its rows do not differ by more than their noise.
OVERSCAN_ROWS = 31
#: A flat below this is no response at all.
MIN_FLAT = 0.1


def detrend(
    raw: "RawCcd",
    bias: Master | None,
    flat: Master | None,
    bad_pixels: FlagImage,
    *,
    steps: Sequence[str] = STEPS,
    cosmic_rays: bool = True,
    cosmic_ray_sigma: float = 5.0,
    cosmic_ray_neighbor_fraction: float = 0.4,
    cosmic_ray_contrast_margin: float = 1.4,
    bleed_length_px: int = 8,
    max_saturated_fraction: float = 0.5,
) -> Image:
    """Calibrate one CCD.

    In this order: saturated pixels and bleed trails from the raw numbers; per amplifier the row-wise
    overscan level and the trim; bias; linearity, ``true = m (1 + c m)`` with the amplifier's c; gain
    equalisation to the mean gain of the CCD; flat; known bad pixels; NaN; cosmic rays. Steps that
    `raw` has behind it (``info.steps_done``) are skipped; a frame without amplifiers is taken as trimmed and equalised.

    Parameters
    ----------
    raw : RawCcd
        Pixels as read.
    bias, flat : Master or None
        Needed when the step of that name is still to be done.
    bad_pixels : ndarray of uint16, shape of the CCD
        Standing `Flag` bits.
    steps : sequence of str
        Wanted steps among overscan, bias, linearity, flat.
    cosmic_rays : bool
        Whether to look for cosmic rays, with the next three, see `find_cosmic_rays`.
    bleed_length_px : int
        Saturated runs along a column longer than this are bleed trails; their surroundings are flagged BLEED.
    max_saturated_fraction : float
        More saturated pixels than this make the CCD useless.

    Returns
    -------
    Image
        Float32 ADU. NaN pixels of the input hold the median of the image and are flagged NO_DATA.

    Raises
    ------
    BadPixels
        Nothing finite, all pixels equal, or too many saturated.
    MasterNotFound
        A step lacks its master.
    """
    todo = tuple(step for step in steps if step not in raw.info.steps_done)
    masters = _required_masters(raw.info, todo, bias, flat)
    _check_pixels(raw)
    data, saturated = _trimmed(raw, todo, masters.get("bias"))
    fraction = float(saturated.mean())
    if fraction > max_saturated_fraction:
        raise BadPixels(
            f"{_where(raw.info)}: {fraction:.0%} of the pixels are saturated: exposed in daylight or on the Moon?"
        )
    flags = _initial_flags(raw, bad_pixels, saturated, data.shape, bleed_length_px)
    for master in masters.values():
        _check_shape(raw.info, master, data.shape)
        flags |= master.flags
    if "flat" in masters:
        _divide_by_flat(data, flags, masters["flat"].data)
    info = replace(
        raw.info, steps_done=tuple(dict.fromkeys((*raw.info.steps_done, *todo))),
        saturation=_calibrated_saturation(raw, todo, masters.get("flat")),
    )  # fmt: skip
    _fill_missing(raw.info, data, flags)
    if cosmic_rays:
        hit = find_cosmic_rays(
            data, flags, gain=info.gain, read_noise=info.read_noise, sigma=cosmic_ray_sigma,
            neighbor_fraction=cosmic_ray_neighbor_fraction, contrast_margin=cosmic_ray_contrast_margin,
        )  # fmt: skip
        flags[hit] |= np.uint16(Flag.COSMIC_RAY)
    return Image(info, data, flags, {kind: master.calibration for kind, master in masters.items()})


def overscan_level(strip: NDArray[np.float32]) -> NDArray[np.float32]:
    """The bias level of each row from its overscan pixels, shape ``(rows, columns)``.

    A clipped mean per row, pulled to the running mean of `OVERSCAN_ROWS` rows: by a Wiener
    factor, so that real row-to-row changes are followed and mere read noise is averaged.

    Returns
    -------
    ndarray of float32, shape ``(rows,)``, ADU
    """
    from scipy.ndimage import uniform_filter1d

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


def _where(info: ImageInfo) -> str:
    return f"{info.exposure} CCD {info.ccd}"


def _required_masters(
    info: ImageInfo, todo: Sequence[str], bias: Master | None, flat: Master | None
) -> dict[str, Master]:
    given = {"bias": bias, "flat": flat}
    needed = {}
    for kind, master in given.items():
        if kind in todo:
            if master is None:
                raise MasterNotFound(
                    f"{_where(info)}: no master {kind} for MJD {info.mjd:.2f}, filter {info.filter}: ingest some"
                )
            needed[kind] = master
    return needed


def _check_pixels(raw: "RawCcd") -> None:
    """Refuse frames that hold no information."""
    sections = [amp.raw_data for amp in raw.amplifiers] or [(slice(None), slice(None))]
    low, high = np.inf, -np.inf
    for section in sections:
        # fmin and fmax skip NaN, and are NaN only when nothing is finite.
        part = raw.data[section]
        low, high = min(low, float(np.fmin.reduce(part, axis=None))), max(high, float(np.fmax.reduce(part, axis=None)))
    if not (np.isfinite(low) or np.isfinite(high)):
        raise BadPixels(f"{_where(raw.info)}: no finite pixel: is the file empty?")
    if low == high:
        raise BadPixels(f"{_where(raw.info)}: every pixel is {low:g}: the CCD was not read out")


def _trimmed(raw: "RawCcd", todo: Sequence[str], bias: Master | None) -> tuple[FloatImage, NDArray[np.bool_]]:
    """The CCD frame through gain equalisation, and which of its pixels are saturated."""
    if not raw.amplifiers:
        data = raw.data.astype(np.float32)
        if bias is not None:
            data -= bias.data
        return data, raw.data >= raw.info.saturation
    shape = ccd_shape(raw.amplifiers)
    data, saturated = np.empty(shape, np.float32), np.empty(shape, bool)
    for amp in raw.amplifiers:
        np.greater_equal(raw.data[amp.raw_data], amp.saturation, out=saturated[amp.ccd])
        levels = overscan_level(raw.data[amp.raw_overscan]) if "overscan" in todo else None
        part = amplifier_signal(raw, amp, levels)
        if bias is not None:
            if bias.data.shape != shape:
                _check_shape(raw.info, bias, shape)
            part -= bias.data[amp.ccd]
        if "linearity" in todo:
            linearize(part, amp.nonlinearity)
        part *= np.float32(amp.gain / raw.info.gain)
        data[amp.ccd] = part
    return data, saturated


def ccd_shape(amplifiers: "Sequence[Amplifier]") -> tuple[int, int]:
    """Shape of the trimmed CCD that the amplifiers tile."""
    return max(amp.ccd[0].stop for amp in amplifiers), max(amp.ccd[1].stop for amp in amplifiers)


def _check_shape(info: ImageInfo, master: Master, shape: tuple[int, ...]) -> None:
    if master.data.shape != shape:
        raise BadPixels(
            f"{_where(info)}: master {master.kind} {master.calibration} has shape {master.data.shape}, the CCD {shape}"
        )


def _initial_flags(
    raw: "RawCcd", bad_pixels: FlagImage, saturated: NDArray[np.bool_], shape: tuple[int, ...], bleed_length_px: int
) -> FlagImage:
    """Standing bad pixels, the file's own flags, saturation and bleeding."""
    if bad_pixels.shape != shape and not raw.amplifiers and not bad_pixels.any():
        # A calibrated frame may be a cut-out, or trimmed further than the CCD.
        bad_pixels = np.zeros(shape, np.uint16)
    if bad_pixels.shape != shape:
        raise BadPixels(f"{_where(raw.info)}: bad-pixel mask of shape {bad_pixels.shape} for pixels of shape {shape}")
    flags = bad_pixels.astype(np.uint16)
    if raw.flags is not None:
        flags |= raw.flags
    flags[saturated] |= np.uint16(Flag.SATURATED)
    if raw.amplifiers:
        rows, columns = np.nonzero(saturated)
        by_column = np.lexsort((rows, columns))
        rows, columns = rows[by_column], columns[by_column]
        _flag_bleeding(flags, rows, columns, bleed_length_px, np.uint16(Flag.BLEED))
    return flags


@njit(cache=True)
def _flag_bleeding(flags, rows, columns, min_length, bit):  # type: ignore[no-untyped-def]
    """Flag around saturated runs along columns: a pixel to each side, and half a dozen beyond the ends.

    `rows`, `columns` list the saturated pixels column by column with rising rows.
    """
    ny, nx = flags.shape
    start = 0
    for i in range(1, len(rows) + 1):
        if i < len(rows) and columns[i] == columns[start] and rows[i] == rows[i - 1] + 1:
            continue
        if i - start > min_length:
            x = columns[start]
            for y in range(max(rows[start] - 6, 0), min(rows[i - 1] + 7, ny)):
                for neighbor in range(max(x - 1, 0), min(x + 2, nx)):
                    flags[y, neighbor] |= bit
        start = i


def _divide_by_flat(data: FloatImage, flags: FlagImage, flat: FloatImage) -> None:
    """Divide in place; pixels without response are flagged and left undivided."""
    dead = ~(flat > MIN_FLAT)
    np.divide(data, flat, out=data, where=~dead)
    flags[dead] |= np.uint16(Flag.BAD)


def _calibrated_saturation(raw: "RawCcd", todo: Sequence[str], flat: Master | None) -> float:
    """The lowest level [calibrated ADU] at which a pixel may have been saturated."""
    levels = [raw.info.saturation]
    if raw.amplifiers:
        levels = []
        for amp in raw.amplifiers:
            level = amp.saturation
            if "overscan" in todo:
                level -= float(np.median(raw.data[amp.raw_overscan]))
            if "linearity" in todo:
                level *= 1 + amp.nonlinearity * level
            levels.append(level * amp.gain / raw.info.gain)
    if flat is None:
        return min(levels)
    return min(levels) / max(1.0, float(np.percentile(flat.data[::8, ::8], 99)))


def _fill_missing(info: ImageInfo, data: FloatImage, flags: FlagImage) -> None:
    """Flag pixels that are not finite and give them the median of the others, so that filters stay finite."""
    missing = ~np.isfinite(data)
    if not missing.any():
        return
    if missing.all():
        raise BadPixels(f"{_where(info)}: no finite pixel after calibration: are the masters sound?")
    data[missing] = np.median(data[~missing])
    flags[missing] |= np.uint16(Flag.NO_DATA)
