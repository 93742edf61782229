"""DECam: 62 CCDs of 2048 x 4096 pixels at 0.263 arcsec/pixel on the CTIO 4.0-m telescope.

Two kinds of file are read: raw exposures (two amplifiers per extension, with sections in the header) and
products of the community pipeline (Valdes, Gruendl & DES Project 2014, ASPC 485, 379), where the mask and the
weight lie beside the image: ``*_ooi_*`` with ``*_ood_*`` and ``*_oow_*``. Without them such an image is refused:
its bad pixels would pass for good ones.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadExposure
from seechange_assets.instruments.base import Amplifier, Instrument, RawCcd
from seechange_assets.instruments.headers import (
    Keywords,
    clean_text,
    exposure_key,
    field_name,
    image_shape,
    night_of,
    open_fits,
    read_pixels,
    wcs_text,
)
from seechange_assets.products import ExposureInfo, Flag, FlagImage, FloatImage, ImageInfo

if TYPE_CHECKING:
    from astropy.io.fits import HDUList

#: Gaia to DECam: m = G - sum c_i (BP-RP)^i, as SeeChange derived from DECaLS stars.
GAIA_COLORS: dict[str, tuple[float, ...]] = {
    "g": (0.07926061, -0.18958323, -0.50588824, 0.11476034),
    "r": (-0.28526417, 0.65444024, -0.25415955, -0.00204337),
    "i": (-0.2491122, 0.51709843, 0.02919352, -0.02097517),
    "z": (-0.38939061, 0.70406435, 0.04190059, -0.01617815),
}

#: Community pipeline masks are codes from version 3.5 on, bits before.
MASK_CODES = {
    1: Flag.BAD, 2: Flag.NO_DATA, 3: Flag.SATURATED, 4: Flag.BLEED, 5: Flag.COSMIC_RAY, 6: Flag.BAD, 7: Flag.BAD,
    8: Flag.STREAK,
}  # fmt: skip
MASK_BITS = {1: Flag.BAD, 2: Flag.SATURATED, 4: Flag.INTERPOLATED, 16: Flag.COSMIC_RAY, 64: Flag.BLEED, 128: Flag.BAD}
ALL_STEPS = ("overscan", "bias", "linearity", "dark", "flat", "fringe", "illumination")


class DECam(Instrument):
    """The Dark Energy Camera."""

    name = "decam"
    telescope = "CTIO 4.0-m"
    site = (-70.80653, -30.16967, 2207.0)
    ccds = tuple(f"{side}{number}" for side in "NS" for number in range(1, 32))
    ccd_shape = (4096, 2048)
    pixel_scale_arcsec = 0.263
    filters = ("g", "r", "i", "z", "Y", "u", "VR")
    gaia_colors: ClassVar[dict[str, tuple[float, ...]]] = GAIA_COLORS
    #: Fringes are seen in z and Y alone.
    skip_by_filter: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(("u", "g", "r", "i", "VR"), ("fringe",))

    raw_shape: ClassVar[tuple[int, int]] = (4146, 2160)
    #: Where a header does not say: gain [e-/ADU], read noise [e-], saturation [ADU].
    default_gain: ClassVar[float] = 4.0
    default_read_noise: ClassVar[float] = 7.0
    default_saturation: ClassVar[float] = 44000.0
    #: CCDs with a lasting defect, flagged as a whole.
    broken_ccds: ClassVar[tuple[str, ...]] = ("S7", "N30")

    def bad_pixels(self, ccd: str) -> FlagImage:
        """Whole CCDs that are known to be broken; single bad pixels come from the masters."""
        return np.full(self.ccd_shape, Flag.BAD if ccd in self.broken_ccds else 0, np.uint16)

    def read_exposure(self, path: Path) -> ExposureInfo:
        """See `Instrument.read_exposure`."""
        with open_fits(path) as hdus:
            primary = Keywords(path, "primary header", hdus[0].header)
            product = primary.text("PRODTYPE", default="image")
            if product != "image" or "_ood_" in path.name or "_oow_" in path.name:
                raise BadExposure(
                    f"{path}: a mask or weight (PRODTYPE {product[:20]!r}): give the image they belong to"
                )
            if _is_calibrated(hdus):
                _companions(path)
            kind = primary.kind("OBSTYPE")
            mjd = primary.start_mjd()
            ra_deg = dec_deg = math.nan
            if kind == "science":
                ra_deg, dec_deg = primary.angle("RA", 0.0, 360.0, hours=True) % 360.0, primary.angle("DEC", -90.0, 90.0)
            name = primary.filter_name(self.filters) if kind in ("science", "flat") else self.filters[0]
            return ExposureInfo(
                key=exposure_key(self.name, mjd), instrument=self.name, kind=kind, night=night_of(mjd), mjd=mjd,
                exptime_s=primary.exptime_s(kind), ra_deg=ra_deg, dec_deg=dec_deg,
                airmass=primary.number("AIRMASS", low=0.9, high=40.0, default=math.nan),
                target=clean_text(primary.text("OBJECT", default="")),
                project=clean_text(primary.text("PROPID", default="")),
                field=field_name(primary.text("FIELD", default=""), ra_deg, dec_deg),
                filters=dict.fromkeys(self._present(path, hdus), name), flat_type=primary.flat_type("OBSTYPE"),
            )  # fmt: skip

    def read_ccd(self, path: Path, ccd: str) -> RawCcd:
        """See `Instrument.read_ccd`; a community-pipeline image comes with the mask and weight beside it."""
        exposure = self.exposure_of(path)
        if ccd not in exposure.filters:
            raise BadExposure(f"{path}: holds no CCD {ccd!r}, only {', '.join(exposure.filters)}")
        with open_fits(path, is_checked=True) as hdus:
            keywords = Keywords(path, ccd, hdus[ccd].header, hdus[0].header)
            data = read_pixels(path, hdus, ccd)
            guess = wcs_text(hdus[ccd].header) if exposure.kind == "science" else ""
            raw = not _is_calibrated(hdus)
        amplifiers = self._amplifiers(keywords, data.shape) if raw else ()
        flags = variance = None
        if not raw:
            flags, variance = _mask_and_weight(path, ccd, data.shape)
        info = self._info(exposure, ccd, keywords, amplifiers, guess)
        return RawCcd(info, data, amplifiers, flags, variance)

    def _present(self, path: Path, hdus: "HDUList") -> list[str]:
        """The science CCDs in a file; focus and guide CCDs of raw files are passed over."""
        names = [hdu.name for hdu in hdus[1:]]
        present = [ccd for ccd in self.ccds if ccd in names]
        if not present or len(set(names)) != len(names):
            raise BadExposure(f"{path}: extensions {','.join(names)[:60]}: expected N1 to N31, S1 to S31, each once")
        if _is_calibrated(hdus):
            return present
        promised = Keywords(path, "primary header", hdus[0].header).number(
            "NEXTEND", low=1, high=100, default=len(names)
        )
        if len(names) != promised:
            raise BadExposure(
                f"{path}: {len(names)} extensions where NEXTEND promises {promised:g}: incomplete, transfer it again"
            )
        for ccd in present:
            if image_shape(hdus[ccd]) != self.raw_shape:
                raise BadExposure(f"{path}: {ccd}: shape {image_shape(hdus[ccd])} (y, x), expected {self.raw_shape}")
        return present

    def _amplifiers(self, header: Keywords, shape: tuple[int, ...]) -> tuple[Amplifier, ...]:
        """Both amplifiers of a raw extension; the one with the smaller columns reads the left half."""
        sections = {name: header.section(f"DATASEC{name}", (shape[0], shape[1])) for name in "AB"}
        order = sorted("AB", key=lambda name: sections[name][1].start)
        amplifiers, left = [], 0
        for name in order:
            rows, columns = sections[name]
            overscan = header.section(f"BIASSEC{name}", (shape[0], shape[1]))
            if (overscan[0].start, overscan[0].stop) != (rows.start, rows.stop):
                raise header.refuse(f"BIASSEC{name}", "must have the rows of the data section")
            ccd = slice(0, rows.stop - rows.start), slice(left, left + columns.stop - columns.start)
            left = ccd[1].stop
            amplifiers.append(
                Amplifier(
                    name, (rows, columns), overscan, ccd,
                    header.number(f"GAIN{name}", low=0.05, high=50.0, default=self.default_gain),
                    header.number(f"RDNOISE{name}", low=0.0, high=200.0, default=self.default_read_noise),
                    header.number(f"SATURAT{name}", low=1000.0, high=400000.0, default=self.default_saturation),
                )
            )  # fmt: skip
        if (ccd[0].stop, left) != self.ccd_shape:
            raise header.refuse("DATASECA and DATASECB", f"make {left} x {ccd[0].stop} pixels, not 2048 x 4096")
        return tuple(amplifiers)

    def _info(
        self, exposure: ExposureInfo, ccd: str, header: Keywords, amplifiers: tuple[Amplifier, ...], guess: str
    ) -> ImageInfo:
        if amplifiers:
            gain = sum(amp.gain for amp in amplifiers) / 2
            saturation = min(amp.saturation * amp.gain / gain for amp in amplifiers)
            read_noise = math.hypot(*(amp.read_noise for amp in amplifiers)) / math.sqrt(2)
        else:
            # The pipeline equalises the amplifiers to the average raw gain of the camera.
            gain = header.number("ARAWGAIN", "GAIN", "GAINA", low=0.05, high=50.0, default=self.default_gain)
            saturation = header.number(
                "SATURATE", "SATURATA", low=1000.0, high=400000.0, default=self.default_saturation
            )
            read_noise = header.number("RDNOISE", "RDNOISEA", low=0.0, high=200.0, default=self.default_read_noise)
        return ImageInfo(
            exposure=exposure.key, ccd=ccd, instrument=self.name, field=exposure.field, filter=exposure.filters[ccd],
            mjd=exposure.mjd, exptime_s=exposure.exptime_s, airmass=exposure.airmass, target=exposure.target,
            project=exposure.project, gain=gain, read_noise=read_noise, saturation=saturation,
            pixel_scale_arcsec=self.pixel_scale_arcsec, wcs_guess=guess, steps_done=() if amplifiers else ALL_STEPS,
        )  # fmt: skip


def pipeline_flags(mask: NDArray[np.integer], version: str) -> FlagImage:
    """A community-pipeline mask as `Flag` bits.

    Parameters
    ----------
    mask : ndarray of int
    version : str
        PLVER of the file, like ``V4.8.2a``: codes from 3.5 on, bits before.
    """
    numbers = [int(part) for part in "".join(c if c.isdigit() else " " for c in version).split()[:2]]
    flags = np.zeros(mask.shape, np.uint16)
    if numbers and numbers < [3, 5]:
        for bit, flag in MASK_BITS.items():
            flags[(mask & bit) != 0] |= np.uint16(flag)
        return flags
    flags[mask != 0] = Flag.BAD
    for code, flag in MASK_CODES.items():
        flags[mask == code] = flag
    return flags


def _is_calibrated(hdus: "HDUList") -> bool:
    """Whether the community pipeline made this file."""
    return str(hdus[0].header.get("PROCTYPE", "")).strip().lower() not in ("", "raw")


def _companions(path: Path) -> tuple[Path, Path]:
    """The files of mask and weight beside a community-pipeline image."""
    mask, weight = (path.with_name(path.name.replace("_ooi_", part)) for part in ("_ood_", "_oow_"))
    if "_ooi_" not in path.name or not (mask.is_file() and weight.is_file()):
        raise BadExposure(
            f"{path}: a community-pipeline image without its mask and weight: they must lie beside it, named like it"
            " with _ood_ and _oow_ for _ooi_"
        )
    return mask, weight


def _mask_and_weight(path: Path, ccd: str, shape: tuple[int, ...]) -> tuple[FlagImage, FloatImage]:
    """Flags and variance of a CCD of a community-pipeline image."""
    mask_path, weight_path = _companions(path)
    with open_fits(mask_path) as hdus:
        mask = read_pixels(mask_path, hdus, ccd).astype(np.int64)
        flags = pipeline_flags(_same_shape(mask, shape, mask_path), str(hdus[0].header.get("PLVER", "")))
    with open_fits(weight_path) as hdus:
        weight = _same_shape(read_pixels(weight_path, hdus, ccd), shape, weight_path)
    with np.errstate(divide="ignore"):
        variance = np.where(weight > 0, 1 / weight, np.inf).astype(np.float32)
    return flags, variance


def _same_shape(array: NDArray, shape: tuple[int, ...], path: Path) -> NDArray:
    if array.shape != shape:
        raise BadExposure(f"{path}: shape {array.shape} differs from the image's {shape}: is it of the same exposure?")
    return array
