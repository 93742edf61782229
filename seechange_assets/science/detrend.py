"""From raw numbers to a calibrated image: every step of the camera's calibration, flags, cosmic rays, trails."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels, MasterNotFound, ParameterError
from seechange_assets.products import Flag, FlagImage, FloatImage, Image, ImageInfo, Master
from seechange_assets.science.cosmic_rays import find_cosmic_rays
from seechange_assets.science.fringe import subtract_fringes
from seechange_assets.science.readout import (
    amplifier_signal,
    ccd_shape,
    check_pixels,
    linearize,
    overscan_level,
    where,
)
from seechange_assets.science.trails import find_trails

if TYPE_CHECKING:
    from seechange_assets.instruments.base import RawCcd

#: Every step, in the order in which they are applied, and those wanted unless configured otherwise.
ALL_STEPS = ("overscan", "bias", "linearity", "dark", "flat", "fringe", "illumination")
STEPS = ("overscan", "bias", "linearity", "flat")
#: Steps that need a master frame of the same name.
MASTER_STEPS = ("bias", "dark", "flat", "fringe", "illumination")
#: A flat below this is no response at all.
MIN_FLAT = 0.1


def detrend(
    raw: "RawCcd",
    masters: Mapping[str, Master],
    bad_pixels: FlagImage,
    *,
    steps: Sequence[str] = STEPS,
    skip_by_filter: Mapping[str, Sequence[str]] | None = None,
    cosmic_rays: bool = True,
    cosmic_ray_sigma: float = 4.2,
    cosmic_ray_neighbor_fraction: float = 0.4,
    cosmic_ray_sharpness_margin: float = 1.1,
    trails: bool = True,
    trail_min_length_px: int = 400,
    bleed_length_px: int = 8,
    max_saturated_fraction: float = 0.5,
) -> Image:
    """Calibrate one CCD.

    In this order: saturated pixels and bleed trails from the raw numbers; per amplifier the row-wise
    overscan level and the trim; bias; linearity, ``true = m (1 + c m)`` with the amplifier's c; gain
    equalisation to the mean gain of the CCD; dark, scaled by the exposure time; flat; fringes, scaled by a fit to
    the sky; illumination; known bad pixels; NaN; cosmic rays; satellite trails. Steps that `raw` has behind it
    (``info.steps_done``) are left out; a frame without amplifiers is taken as trimmed and equalised.

    Parameters
    ----------
    raw : RawCcd
        Pixels as read.
    masters : mapping of kind to Master
        One for each step to be applied that needs one; see `kinds_of_masters`.
    bad_pixels : ndarray of uint16, shape of the CCD
        Standing `Flag` bits.
    steps : sequence of str
        Wanted steps, some of `ALL_STEPS`.
    skip_by_filter : mapping of filter to steps, optional
        Wanted steps that are left out in a filter (fringes in the blue).
    cosmic_rays : bool
        Whether to look for cosmic rays, with the next three, see `find_cosmic_rays`.
    trails : bool
        Whether to look for satellite trails, at least `trail_min_length_px` long, see `find_trails`.
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
    plan = plan_steps(raw.info, steps, skip_by_filter)
    used = _required_masters(raw.info, plan, masters)
    todo = tuple(step for step, fate in plan.items() if fate == "applied")
    check_pixels(raw)
    data, saturated = _trimmed(raw, todo, used.get("bias"))
    fraction = float(saturated.mean())
    if fraction > max_saturated_fraction:
        raise BadPixels(
            f"{where(raw.info)}: {fraction:.0%} of the pixels are saturated: exposed in daylight or on the Moon?"
        )
    flags = _initial_flags(raw, bad_pixels, saturated, data.shape, bleed_length_px)
    for master in used.values():
        _check_shape(raw.info, master, data.shape)
        if master.kind != "fringe":  # where the pattern is unknown the pixel is still good
            flags |= master.flags
    amplitude = _apply_masters(raw.info, data, flags, used)
    info = replace(
        raw.info, steps_done=tuple(dict.fromkeys((*raw.info.steps_done, *todo))),
        saturation=_calibrated_saturation(raw, todo, used),
    )  # fmt: skip
    _fill_missing(raw.info, data, flags)
    if cosmic_rays:
        hit = find_cosmic_rays(
            data, flags, gain=info.gain, read_noise=info.read_noise, sigma=cosmic_ray_sigma,
            neighbor_fraction=cosmic_ray_neighbor_fraction, sharpness_margin=cosmic_ray_sharpness_margin,
        )  # fmt: skip
        flags[hit] |= np.uint16(Flag.COSMIC_RAY)
    if trails:
        find_trails(data, flags, min_length_px=trail_min_length_px)
    used_names = {kind: master.calibration for kind, master in used.items()}
    return Image(info, data, flags, used_names, plan, amplitude)


def plan_steps(
    info: ImageInfo, steps: Sequence[str] = STEPS, skip_by_filter: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """What becomes of each wanted step: ``applied``, ``upstream`` (the file has it behind it), ``skipped``.

    Parameters
    ----------
    info : ImageInfo
        Filter and steps done.
    steps : sequence of str
        Wanted steps, any order.
    skip_by_filter : mapping of filter to steps, optional
        Steps left out in a filter.

    Raises
    ------
    ParameterError
        For an unknown step.
    """
    unknown = [step for step in steps if step not in ALL_STEPS]
    if unknown:
        raise ParameterError(f"image: unknown step {unknown[0]!r}: expected some of {', '.join(ALL_STEPS)}")
    skipped = (skip_by_filter or {}).get(info.filter, ())
    plan = {}
    for step in ALL_STEPS:
        if step in info.steps_done:
            plan[step] = "upstream"
        elif step in steps:
            plan[step] = "skipped" if step in skipped else "applied"
    return plan


def kinds_of_masters(plan: Mapping[str, str]) -> tuple[str, ...]:
    """The kinds of master that the steps to be applied need."""
    return tuple(step for step, fate in plan.items() if fate == "applied" and step in MASTER_STEPS)


def _required_masters(info: ImageInfo, plan: Mapping[str, str], masters: Mapping[str, Master]) -> dict[str, Master]:
    needed = kinds_of_masters(plan)
    for kind in needed:
        if kind not in masters:
            raise MasterNotFound(
                f"{where(info)}: no master {kind} for MJD {info.mjd:.2f}, filter {info.filter}: ingest some"
            )
    return {kind: masters[kind] for kind in needed}


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


def _check_shape(info: ImageInfo, master: Master, shape: tuple[int, ...]) -> None:
    if master.data.shape != shape:
        raise BadPixels(
            f"{where(info)}: master {master.kind} {master.calibration} has shape {master.data.shape}, the CCD {shape}"
        )


def _initial_flags(
    raw: "RawCcd", bad_pixels: FlagImage, saturated: NDArray[np.bool_], shape: tuple[int, ...], bleed_length_px: int
) -> FlagImage:
    """Standing bad pixels, the file's own flags, saturation and bleeding."""
    if bad_pixels.shape != shape and not raw.amplifiers and not bad_pixels.any():
        # A calibrated frame may be a cut-out, or trimmed further than the CCD.
        bad_pixels = np.zeros(shape, np.uint16)
    if bad_pixels.shape != shape:
        raise BadPixels(f"{where(raw.info)}: bad-pixel mask of shape {bad_pixels.shape} for pixels of shape {shape}")
    flags = bad_pixels.astype(np.uint16)
    if raw.flags is not None:
        flags |= raw.flags
    if raw.variance is not None:
        flags[~np.isfinite(raw.variance)] |= np.uint16(Flag.NO_DATA)
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


def _apply_masters(info: ImageInfo, data: FloatImage, flags: FlagImage, masters: Mapping[str, Master]) -> float:
    """Dark, flat, fringe and illumination, in place; returns the amplitude of the fringes [ADU], NaN if not fitted."""
    if "dark" in masters:
        data -= masters["dark"].data * np.float32(info.exptime_s)
    if "flat" in masters:
        _divide(data, flags, masters["flat"].data)
    amplitude = float("nan")
    if "fringe" in masters:
        amplitude = subtract_fringes(data, flags, masters["fringe"].data)
    if "illumination" in masters:
        _divide(data, flags, masters["illumination"].data)
    return amplitude


def _divide(data: FloatImage, flags: FlagImage, response: FloatImage) -> None:
    """Divide in place; pixels without response are flagged and left undivided."""
    dead = ~(response > MIN_FLAT)
    np.divide(data, response, out=data, where=~dead)
    flags[dead] |= np.uint16(Flag.BAD)


def _calibrated_saturation(raw: "RawCcd", todo: Sequence[str], masters: Mapping[str, Master]) -> float:
    """The lowest level [calibrated ADU] at which a pixel may have been saturated."""
    levels = [raw.info.saturation]
    if raw.amplifiers:
        levels = []
        for amp in raw.amplifiers:
            level = amp.saturation
            if "overscan" in todo:
                level -= float(np.median(overscan_level(raw.data[amp.raw_overscan])))
            if "linearity" in todo:
                level *= 1 + amp.nonlinearity * level
            levels.append(level * amp.gain / raw.info.gain)
    level = min(levels)
    for kind in ("flat", "illumination"):
        if kind in masters:
            level /= max(1.0, float(np.percentile(masters[kind].data[::8, ::8], 99)))
    return level


def _fill_missing(info: ImageInfo, data: FloatImage, flags: FlagImage) -> None:
    """Flag pixels that are not finite and give them the median of the others, so that filters stay finite."""
    missing = ~np.isfinite(data)
    if not missing.any():
        return
    if missing.all():
        raise BadPixels(f"{where(info)}: no finite pixel after calibration: are the masters sound?")
    data[missing] = np.median(data[~missing])
    flags[missing] |= np.uint16(Flag.NO_DATA)
