"""Master calibration frames: clipped stacks of biases, darks and flats, in strips of rows to bound memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import Flag, FlagImage, FloatImage, Master
from seechange_assets.science.readout import amplifier_signal, ccd_shape, check_pixels, linearize, overscan_level

if TYPE_CHECKING:
    from seechange_assets.instruments.base import Amplifier, RawCcd

#: Rows that are stacked at a time: 256 x 2048 float32 are 2 MB per frame.
CHUNK_ROWS = 256
#: A pixel of the flat outside this range is bad; a pixel of the bias this many sigma off its neighbours is hot.
GOOD_FLAT, HOT_SIGMA = (0.3, 3.0), 30.0


def build_bias(
    frames: "Sequence[RawCcd]",
    *,
    calibration: str = "",
    clip_sigma: float = 4.0,
    min_frames: int = 3,
    max_level_deviation: float = 10.0,
    validity_days: float = 30.0,
) -> Master:
    """Stack bias frames of one CCD: overscan-corrected, trimmed, clipped about the median.

    Clipping uses the read noise measured in the overscan, not the scatter of the few values of a pixel, so a
    cosmic ray is rejected even among three frames.

    Parameters
    ----------
    frames : sequence of RawCcd
        Bias frames of one CCD.
    calibration : str
        Name of the calibration run.
    clip_sigma : float
        Values this many sigma from the median of their pixel are left out.
    min_frames : int
        Fewest usable frames.
    max_level_deviation : float
        A frame whose median level above overscan is farther than this from the others' [ADU] is left out (light leak).
    validity_days : float
        The master is valid from this long before the first frame to this long after the last [day].

    Returns
    -------
    Master
        ``data`` in ADU on the trimmed CCD; hot pixels flagged BAD; ``noise`` the noise of a pixel [ADU].

    Raises
    ------
    BadPixels
        Too few usable frames.
    """
    frames, levels, medians = _informative(frames)
    usable = np.abs(medians - np.median(medians)) <= max_level_deviation if len(frames) else np.zeros(0, bool)
    kept = _usable(frames, levels, usable, "bias", min_frames)
    noise = float(np.median([amp.read_noise / amp.gain for amp in kept[0][0].amplifiers]))

    # Digitisation and the overscan's own error add to the read noise.
    clip_noise = np.full(len(kept), np.hypot(noise, 0.6), np.float32)
    data = _stack(kept, amplifier_signal, np.ones(len(kept), np.float32), clip_noise, clip_sigma)
    return _master("bias", kept, data, _hot_pixels(data, noise / np.sqrt(len(kept))), calibration, validity_days, noise)


def build_flat(
    frames: "Sequence[RawCcd]",
    bias: Master,
    *,
    calibration: str = "",
    flat_type: str = "",
    clip_sigma: float = 4.0,
    min_frames: int = 3,
    min_level_adu: float = 2000.0,
    max_saturated_fraction: float = 0.01,
    validity_days: float = 30.0,
) -> Master:
    """Stack flat fields of one CCD and filter, each normalised to its own median, to a flat of median 1.

    Each frame is corrected for overscan, bias, linearity and gain differences first. Clipping (with the shot
    noise of each frame) rejects cosmic rays, and stars in twilight flats with dithers between them.

    Parameters
    ----------
    frames : sequence of RawCcd
        Flat fields of one CCD and filter.
    bias : Master
        For the same CCD.
    min_level_adu : float
        Frames with a lower median are left out: too noisy.
    max_saturated_fraction : float
        Frames with more saturated pixels are left out.
    flat_type : str
        Recorded: ``dome``, ``twilight`` or ``sky``.
    calibration, clip_sigma, min_frames, validity_days
        As for `build_bias`.

    Returns
    -------
    Master
        Pixels outside 0.3 to 3 are flagged BAD; ``noise`` is the relative noise of a pixel.

    Raises
    ------
    BadPixels
        Too few usable frames.
    """
    frames, levels, medians = _informative(frames)
    saturated = np.array([_saturated_fraction(frame) for frame in frames])
    usable = (medians >= min_level_adu) & (saturated <= max_saturated_fraction)
    kept = _usable(frames, levels, usable, "flat", min_frames)
    signal = _calibrated_signal(bias)
    norms = np.array([_flat_norm(frame, level, signal) for frame, level in kept], np.float32)
    gain, read_noise = kept[0][0].info.gain, kept[0][0].info.read_noise
    noises = np.sqrt(norms / gain + (read_noise / gain) ** 2) / norms

    # A response above the median has more noise in proportion to its root; 1.2 covers a vignetted field.
    data = _stack(kept, signal, norms, (1.2 * noises).astype(np.float32), clip_sigma)
    data /= np.nanmedian(data)
    flags = np.zeros(data.shape, np.uint16)
    flags[~((data > GOOD_FLAT[0]) & (data < GOOD_FLAT[1]))] = Flag.BAD
    flags |= bias.flags
    master = _master("flat", kept, data, flags, calibration, validity_days, float(np.median(noises)))
    return replace(master, flat_type=flat_type)


def build_dark(
    frames: "Sequence[RawCcd]",
    bias: Master,
    *,
    calibration: str = "",
    clip_sigma: float = 4.0,
    min_frames: int = 3,
    min_exptime_s: float = 10.0,
    max_level_deviation: float = 10.0,
    validity_days: float = 30.0,
) -> Master:
    """Stack dark frames of one CCD to a dark rate: bias-corrected, linear, gains equalised, per second.

    Frames of different exposure times may be mixed; each counts by its noise.

    Parameters
    ----------
    frames : sequence of RawCcd
        Dark frames of one CCD.
    bias : Master
        For the same CCD.
    min_exptime_s : float
        Shorter frames are left out.
    max_level_deviation : float
        Frames whose median rate, over the longest exposure, is farther than this from the others' [ADU] are left out.
    calibration, clip_sigma, min_frames, validity_days
        As for `build_bias`.

    Returns
    -------
    Master
        ``data`` in ADU/s; hot pixels flagged BAD; ``noise`` the noise of a pixel [ADU/s].

    Raises
    ------
    BadPixels
        Too few usable frames.
    """
    frames, levels, medians = _informative([f for f in frames if f.info.exptime_s >= min_exptime_s])
    times = np.array([frame.info.exptime_s for frame in frames])
    rates = medians / times if len(frames) else medians
    usable = np.abs(rates - np.median(rates)) * times.max() <= max_level_deviation if len(frames) else np.zeros(0, bool)
    kept = _usable(frames, levels, usable, "dark", min_frames)
    norms = times[usable].astype(np.float32)
    gain, read_noise = kept[0][0].info.gain, kept[0][0].info.read_noise
    collected = np.maximum(medians[usable], 0) / gain
    noises = (np.sqrt((read_noise / gain) ** 2 + 0.36 + collected) / norms).astype(np.float32)
    data = _stack(kept, _calibrated_signal(bias), norms, noises, clip_sigma)
    noise = float(1 / np.sqrt(np.sum(1 / noises.astype(np.float64) ** 2)))
    flags = _hot_pixels(data, noise) | bias.flags
    return _master("dark", kept, data, flags, calibration, validity_days, noise * float(np.sqrt(len(kept))))


def _informative(
    frames: "Sequence[RawCcd]",
) -> "tuple[list[RawCcd], list[list[NDArray[np.float32]]], NDArray[np.float64]]":
    """The frames that were read out at all, their overscan levels, their median signals."""
    kept = []
    for frame in frames:
        try:
            check_pixels(frame)
        except BadPixels:
            continue
        kept.append(frame)
    levels = [_levels(frame) for frame in kept]
    return kept, levels, np.array([_median_signal(f, level) for f, level in zip(kept, levels, strict=True)])


def _calibrated_signal(bias: Master) -> Callable[..., FloatImage]:
    """A function that gives the signal of part of an amplifier after bias, linearity and gain equalisation."""

    def signal(frame: "RawCcd", amp: "Amplifier", level: NDArray[np.float32], rows: slice) -> FloatImage:
        part = amplifier_signal(frame, amp, level, rows)
        part -= bias.data[amp.ccd][rows]
        linearize(part, amp.nonlinearity)
        part *= np.float32(amp.gain / frame.info.gain)
        return part

    return signal


def _levels(frame: "RawCcd") -> list[NDArray[np.float32]]:
    """Overscan levels of each amplifier."""
    return [overscan_level(frame.data[amp.raw_overscan]) for amp in frame.amplifiers]


def _median_signal(frame: "RawCcd", levels: list[NDArray[np.float32]]) -> float:
    """Median signal above overscan of a thin sample of pixels [ADU]."""
    parts = [
        (frame.data[amp.raw_data][::4, ::16] - level[::4, None]).ravel()
        for amp, level in zip(frame.amplifiers, levels, strict=True)
    ]
    return float(np.nanmedian(np.concatenate(parts)))


def _saturated_fraction(frame: "RawCcd") -> float:
    return float(np.mean([np.mean(frame.data[amp.raw_data][::4, ::4] >= amp.saturation) for amp in frame.amplifiers]))


def _flat_norm(frame: "RawCcd", levels: list[NDArray[np.float32]], signal: Callable[..., FloatImage]) -> float:
    """Median of the central half of a corrected flat [ADU], from one row in eight."""
    values = []
    for amp, level in zip(frame.amplifiers, levels, strict=True):
        n = len(level)
        values.append(signal(frame, amp, level, slice(n // 4, 3 * n // 4, 8)).ravel())
    return float(np.nanmedian(np.concatenate(values)))


_Kept = list[tuple["RawCcd", list[NDArray[np.float32]]]]


def _usable(
    frames: "Sequence[RawCcd]",
    levels: list[list[NDArray[np.float32]]],
    usable: NDArray[np.bool_],
    kind: str,
    min_frames: int,
) -> _Kept:
    kept = [(frame, level) for frame, level, good in zip(frames, levels, usable, strict=True) if good]
    if len(kept) < min_frames:
        where = f" of CCD {frames[0].info.ccd}" if len(frames) else ""
        raise BadPixels(
            f"master {kind}{where}: {len(kept)} of {len(frames)} frames are usable, {min_frames} required: take more"
        )
    return kept


def _stack(
    kept: _Kept,
    signal: Callable[..., FloatImage],
    norms: NDArray[np.float32],
    noises: NDArray[np.float32],
    clip_sigma: float,
) -> FloatImage:
    """Clipped mean of all frames, each divided by its norm, strip by strip."""
    amplifiers = kept[0][0].amplifiers
    data = np.empty(ccd_shape(amplifiers), np.float32)
    for i, amp in enumerate(amplifiers):
        height = amp.ccd[0].stop - amp.ccd[0].start
        for start in range(0, height, CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, height))
            cube = np.stack([signal(frame, frame.amplifiers[i], levels[i], rows) for frame, levels in kept])
            cube /= norms[:, None, None]
            data[amp.ccd][rows] = clipped_mean(cube, noises, np.float32(clip_sigma))
    return data


@njit(cache=True)
def clipped_mean(cube, noises, clip_sigma):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Mean over the first axis of the values within clip_sigma of their median, weighted by their own noise.

    Values that are not finite are left out; NaN where there is no other.
    """
    n, ny, nx = cube.shape
    mean = np.empty((ny, nx), np.float32)
    values = np.empty(n, np.float32)
    for y in range(ny):
        for x in range(nx):
            m = 0
            for k in range(n):
                value = cube[k, y, x]
                if not np.isfinite(value):
                    continue
                j = m
                while j > 0 and values[j - 1] > value:
                    values[j] = values[j - 1]
                    j -= 1
                values[j] = value
                m += 1
            # With an even number the lower middle: cosmic rays only add.
            middle = values[(m - 1) // 2] if m > 0 else np.float32(np.nan)
            total, weight = 0.0, 0.0
            for k in range(n):
                if abs(cube[k, y, x] - middle) <= clip_sigma * noises[k]:
                    total += cube[k, y, x] / noises[k] ** 2
                    weight += 1 / noises[k] ** 2
            mean[y, x] = total / weight if weight > 0 else middle
    return mean


def _hot_pixels(data: FloatImage, noise: float) -> FlagImage:
    """Flag pixels of a master bias that stand out of their row by far more than noise and fixed pattern."""
    middle = np.median(np.nan_to_num(data), axis=1, keepdims=True)
    residual = data - middle
    scatter = max(1.4826 * float(np.nanmedian(np.abs(residual[::8]))), noise)
    flags = np.zeros(data.shape, np.uint16)
    flags[np.abs(residual) > HOT_SIGMA * scatter] = Flag.BAD
    return flags


def _master(
    kind: str, kept: _Kept, data: FloatImage, flags: FlagImage, calibration: str, validity_days: float, noise: float
) -> Master:
    info = kept[0][0].info
    mjds = [frame.info.mjd for frame, _ in kept]
    empty = ~np.isfinite(data)
    flags[empty] |= np.uint16(Flag.NO_DATA)
    data[empty] = 1.0 if kind == "flat" else 0.0
    return Master(
        kind=kind, calibration=calibration, ccd=info.ccd, instrument=info.instrument,
        filter=info.filter if kind == "flat" else "", valid_from=min(mjds) - validity_days,
        valid_to=max(mjds) + validity_days, data=data, flags=flags,
        members=tuple(sorted(frame.info.exposure for frame, _ in kept)), noise=float(noise / np.sqrt(len(kept))),
    )  # fmt: skip
