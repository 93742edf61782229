"""Any calibrated FITS image: one file, one image, optional mask and weight.

What a header does not say falls back to a documented value, so that `seechange subtract` and
`seechange calibrate` work on files of any origin.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadExposure, ParameterError
from seechange_assets.instruments.base import Instrument, RawCcd
from seechange_assets.instruments.decam import ALL_STEPS, GAIA_COLORS
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
from seechange_assets.products import ExposureInfo, Flag, FlagImage, FloatImage, ImageInfo, wcs_from_text

#: Header keywords that may hold a value, best first.
KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "gain": ("GAIN", "EGAIN", "ARAWGAIN", "GAINA", "CCDGAIN"),
    "read_noise": ("RDNOISE", "READNOIS", "RON", "RDNOISEA"),
    "saturation": ("SATURATE", "SATURAT", "ESATUR", "SATLEVEL", "SATURATA"),
    "exptime_s": ("EXPTIME", "EXPOSURE", "EXPOSED", "ITIME"),
    "filter": ("FILTER", "BAND", "FILTNAM", "FILTER1"),
    "airmass": ("AIRMASS", "SECZ"),
    "target": ("OBJECT", "TARGET", "TARGNAME"),
    "project": ("PROPID", "PROJECT", "PROGRAM"),
    "field": ("FIELD", "FIELDID"),
    "pixel_scale_arcsec": ("PIXSCALE", "PIXSCAL1", "SECPIX", "PIXELSCL"),
}
#: Used where neither header nor override says. The date is Gaia's epoch, which leaves proper motions out; a
#: saturation nobody reaches leaves bright stars unflagged; the gain is estimated (`estimate_gain`).
DEFAULT_MJD, DEFAULT_EXPTIME_S, DEFAULT_READ_NOISE, DEFAULT_SATURATION = 57388.5, 1.0, 5.0, 1e9
UNKNOWN_FILTER = "unknown"
_LIMITS = {
    "gain": (1e-6, 1e9), "read_noise": (0.0, 1e6), "saturation": (1e-6, 1e12), "exptime_s": (0.0, 1e8),
    "airmass": (0.0, 100.0), "pixel_scale_arcsec": (1e-4, 1e4), "mjd": (40000.0, 90000.0),
}  # fmt: skip
_TEXTS = ("exposure", "ccd", "instrument", "field", "filter", "target", "project")


class Generic(Instrument):
    """A single calibrated image per file, its only CCD called ``01``."""

    name = "generic"
    telescope = "any"
    ccds = ("01",)
    filters = ("u", "g", "r", "i", "z", "Y", UNKNOWN_FILTER)
    gaia_colors: ClassVar[dict[str, tuple[float, ...]]] = GAIA_COLORS

    def read_exposure(self, path: Path) -> ExposureInfo:
        """See `Instrument.read_exposure`; the position is that of the image's centre, NaN without a WCS."""
        raw = read_image(path)
        info = raw.info
        ra_deg, dec_deg = _centre(info.wcs_guess, raw.data.shape)
        key = exposure_key(self.name, info.mjd)
        return ExposureInfo(
            key=key, instrument=self.name, kind="science", night=night_of(info.mjd), mjd=info.mjd,
            exptime_s=info.exptime_s, ra_deg=ra_deg, dec_deg=dec_deg, airmass=info.airmass, target=info.target,
            project=info.project, field=field_name(info.field, ra_deg, dec_deg), filters={"01": info.filter},
        )  # fmt: skip

    def read_ccd(self, path: Path, ccd: str) -> RawCcd:
        """See `Instrument.read_ccd`."""
        if ccd not in self.ccds:
            raise BadExposure(f"{path}: a generic image has the CCD '01', not {ccd!r}")
        raw = read_image(path)
        exposure = self.read_exposure(path)
        return replace(raw, info=replace(raw.info, exposure=exposure.key, field=exposure.field))


def read_image(
    path: Path,
    mask: Path | None = None,
    weight: Path | None = None,
    extension: str | int | None = None,
    overrides: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Sequence[str]] | None = None,
) -> RawCcd:
    """Read a calibrated image with what its header says of it.

    Parameters
    ----------
    path : Path
        FITS file.
    mask : Path, optional
        FITS file of the same shape; non-zero pixels are flagged BAD.
    weight : Path, optional
        FITS file of the same shape; inverse variance [1/ADU^2], 0 where there is no data.
    extension : str or int, optional
        Extension of the image (and of mask and weight where they have it); default: the first with an image.
    overrides : mapping, optional
        Values for fields of `ImageInfo` (``gain``, ``filter``, ``mjd`` ...) that go before the header.
    keywords : mapping, optional
        Header keywords for fields of `ImageInfo`, tried before `KEYWORDS`.

    Returns
    -------
    RawCcd
        ``info.steps_done`` says that every step is done; flags and variance where given.

    Raises
    ------
    BadExposure
        Unreadable file or header value, other shape.
    ParameterError
        An override that names no field or has an impossible value.
    """
    overrides = _checked_overrides(overrides or {})
    with open_fits(path) as hdus:
        place = _first_image(path, hdus) if extension is None else extension
        data = read_pixels(path, hdus, place)
        header = Keywords(path, f"extension {place}", hdus[place].header, hdus[0].header)
        guess = wcs_text(hdus[place].header)
        info = image_info(path, header, guess, estimate_gain(data), overrides, keywords)
    flags = None if mask is None else _read_mask(mask, extension, data.shape)
    variance = None if weight is None else _read_variance(weight, extension, data.shape)
    return RawCcd(info, data, (), flags, variance)


def estimate_gain(data: NDArray[np.float32]) -> float:
    """A gain [e-/ADU] that explains the noise of the sky as shot noise, 1 for sky-subtracted images.

    An upper limit in truth, as other noise adds; it matters only for the shot noise of bright sources.
    """
    sample = data[:: max(1, data.shape[0] // 512), :]
    difference = sample[:, 1:] - sample[:, :-1]
    difference = difference[np.isfinite(difference)]
    if difference.size == 0:
        return 1.0
    sky = float(np.nanmedian(sample))
    # Neighbours of resampled images are correlated, which their difference would take for low noise.
    rms = 1.4826 * max(float(np.median(np.abs(difference))) / math.sqrt(2), float(np.nanmedian(np.abs(sample - sky))))
    # Below some five sigma the sky has been subtracted, and says nothing.
    return float(np.clip(sky / rms**2, 0.01, 1000.0)) if rms > 0 and sky > 5 * rms else 1.0


def _checked_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in overrides.items():
        if name in _LIMITS:
            low, high = _LIMITS[name]
            try:
                checked[name] = float(value)
            except (TypeError, ValueError) as error:
                raise ParameterError(f"image {name} {str(value)[:40]!r} is not a number") from error
            if not low <= checked[name] <= high:
                raise ParameterError(f"image {name} {value} is outside {low:g} to {high:g}")
        elif name in _TEXTS:
            checked[name] = clean_text(str(value))
        else:
            raise ParameterError(f"image has no value {name!r}: expected one of {', '.join((*_LIMITS, *_TEXTS))}")
    return checked


def _first_image(path: Path, hdus: Any) -> int:
    for i, hdu in enumerate(hdus):
        if len(image_shape(hdu)) == 2:
            return i
    raise BadExposure(f"{path}: no extension holds a two-dimensional image")


def image_info(
    path: Path,
    header: Keywords,
    guess: str,
    default_gain: float,
    overrides: Mapping[str, Any],
    keywords: Mapping[str, Sequence[str]] | None = None,
) -> ImageInfo:
    """Every field from the override, else the header, else the fall-back; ``guess`` is the text of the WCS."""
    keywords = keywords or {}

    def names(field: str) -> tuple[str, ...]:
        return (*keywords.get(field, ()), *KEYWORDS[field])

    def number(field: str, default: float) -> float:
        if field in overrides:
            return float(overrides[field])
        low, high = _LIMITS[field]
        return header.number(*names(field), low=low, high=high, default=default)

    def text(field: str, default: str = "") -> str:
        return overrides.get(field) or clean_text(header.text(*names(field), default=default)) or default

    gain = number("gain", math.nan)
    scale = number("pixel_scale_arcsec", math.nan) if "pixel_scale_arcsec" in overrides or not guess else _scale(guess)
    name = overrides.get("filter") or (header.text(*names("filter"), default="").split() or [UNKNOWN_FILTER])[0]
    dated = header.raw("DATE-OBS")[1] is not None or header.raw("MJD-OBS")[1] is not None
    return ImageInfo(
        exposure=overrides.get("exposure") or clean_text(path.name.split(".")[0]) or "image",
        ccd=overrides.get("ccd", "01"), instrument=overrides.get("instrument", Generic.name), field=text("field"),
        filter=clean_text(name), mjd=overrides.get("mjd") or (header.start_mjd() if dated else DEFAULT_MJD),
        exptime_s=number("exptime_s", DEFAULT_EXPTIME_S), airmass=number("airmass", math.nan), target=text("target"),
        project=text("project"), gain=gain if math.isfinite(gain) else default_gain,
        read_noise=number("read_noise", DEFAULT_READ_NOISE), saturation=number("saturation", DEFAULT_SATURATION),
        pixel_scale_arcsec=scale, wcs_guess=guess, steps_done=ALL_STEPS,
    )  # fmt: skip


def _scale(guess: str) -> float:
    """Pixel scale [arcsec] of a WCS, from its linear part."""
    from astropy.wcs.utils import proj_plane_pixel_scales

    return float(np.mean(proj_plane_pixel_scales(wcs_from_text(guess)))) * 3600


def _centre(guess: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if not guess:
        return math.nan, math.nan
    ra, dec = wcs_from_text(guess).all_pix2world((shape[1] - 1) / 2, (shape[0] - 1) / 2, 0)
    return float(ra) % 360.0, float(dec)


def _companion(path: Path, extension: str | int | None, shape: tuple[int, ...]) -> FloatImage:
    with open_fits(path) as hdus:
        place = _first_image(path, hdus) if extension is None else extension
        pixels = read_pixels(path, hdus, place)
    if pixels.shape != shape:
        raise BadExposure(f"{path}: shape {pixels.shape} differs from the image's {shape}")
    return pixels


def _read_mask(path: Path, extension: str | int | None, shape: tuple[int, ...]) -> FlagImage:
    mask = _companion(path, extension, shape)
    return np.where(mask != 0, np.uint16(Flag.BAD), np.uint16(0))


def _read_variance(path: Path, extension: str | int | None, shape: tuple[int, ...]) -> FloatImage:
    weight = _companion(path, extension, shape)
    with np.errstate(divide="ignore"):
        return np.where(weight > 0, 1 / weight, np.inf).astype(np.float32)
