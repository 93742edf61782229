"""The whole science path for two calibrated images, without any database."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import (
    Background,
    CalibratedImage,
    Difference,
    Flag,
    FloatImage,
    Image,
    Reference,
    SkyCatalog,
    Sources,
    Wcs,
    ZeroPoint,
    wcs_from_text,
)
from seechange_assets.science.astrometry import solve_wcs
from seechange_assets.science.background import level_map, measure_background
from seechange_assets.science.difference import subtract
from seechange_assets.science.noise import variance_map
from seechange_assets.science.photometric_calibration import calibrate_photometry
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources

if TYPE_CHECKING:
    from seechange_assets.instruments.base import RawCcd

FloatArray = NDArray[np.float64]
#: Magnitude in a filter from (filter, Gaia G, BP-RP), as `Instrument.gaia_magnitude`.
GaiaMagnitude = Callable[[str, FloatArray, FloatArray], FloatArray]

#: Zero point of images of which nothing is known; its error is NaN.
UNKNOWN_ZERO_POINT = 25.0


def plain_g(_filter: str, mag_g: FloatArray, _color: FloatArray) -> FloatArray:
    """Gaia's G for every filter, where no colour transform is known."""
    return mag_g


def subtract_images(
    new: "RawCcd",
    reference: "RawCcd",
    catalog: SkyCatalog | None = None,
    *,
    method: str = "zogy",
    gaia_magnitude: GaiaMagnitude = plain_g,
    box_size_px: int = 256,
    ignore_filter: bool = False,
) -> tuple[Difference, CalibratedImage, Reference]:
    """Subtract one calibrated image from another.

    Both get background, sources and PSF of their own. The WCS is that of the header or, with a catalogue,
    solved on it; so is the zero point. Without a catalogue the new image has zero point 25 with
    an error of NaN, and the two are brought to one scale by the stars they share.

    Parameters
    ----------
    new, reference : RawCcd
        Calibrated frames.
    catalog : SkyCatalog, optional
        Stars around the field.
    method : str
        See `science.difference.subtract`.
    gaia_magnitude : callable
        ``Instrument.gaia_magnitude`` of the camera; Gaia's G by default.
    box_size_px : int
        Mesh of the backgrounds; images smaller than that are one box.
    ignore_filter : bool
        Subtract although the filters' names differ.

    Returns
    -------
    tuple of Difference, CalibratedImage, Reference
        The difference on the grid of `new`, the calibrated new image, and the reference as used.

    Raises
    ------
    ReferenceUnusable, TooFewStars, BadPixels, AstrometryError
        From the steps; each says which.
    """
    if ignore_filter:
        reference = replace(reference, info=replace(reference.info, filter=new.info.filter))
    c = calibrate(new, catalog, gaia_magnitude=gaia_magnitude, box_size_px=box_size_px)
    old = calibrate(reference, catalog, gaia_magnitude=gaia_magnitude, box_size_px=box_size_px)
    deep = as_reference(old, reference.variance)
    difference = subtract(c.image, c.background, c.psf, c.wcs, c.zp, c.sources, deep, method=method)
    return difference, c, deep


def calibrate(
    raw: "RawCcd",
    catalog: SkyCatalog | None,
    *,
    gaia_magnitude: GaiaMagnitude = plain_g,
    box_size_px: int = 256,
    stage: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> CalibratedImage:
    """Background, sources, PSF, WCS and zero point of one calibrated frame; see `subtract_images`.

    Each step runs inside ``stage(name)``, for whoever wants to time it.
    """
    with stage("background"):
        image = _as_image(raw)
        background = measure_background(image, box_size_px=box_size_px)
        image = _with_gain(image, background)
    with stage("sources"):
        sources = extract_sources(image, background)
    with stage("psf"):
        psf = build_psf(image, background, sources)
    if catalog is None:
        return CalibratedImage(image, background, sources, psf, _header_wcs(image), _unknown_zero_point(sources))
    with stage("wcs"):
        wcs = solve_wcs(sources, image.info, image.data.shape, catalog)
    with stage("zp"):
        zp = calibrate_photometry(image.info, sources, psf, background, wcs, gaia_magnitude)
    return CalibratedImage(image, background, sources, psf, wcs, zp)


def as_reference(calibrated: CalibratedImage, variance: FloatImage | None = None, name: str = "given") -> Reference:
    """A calibrated image in the role of a reference; its file's own variance is used if there is one."""
    image, background = calibrated.image, calibrated.background
    return Reference(
        name=name,
        info=image.info,
        data=image.data - level_map(background),
        variance=variance_map(image, background) if variance is None else variance,
        flags=image.flags,
        sources=calibrated.sources,
        psf=calibrated.psf,
        wcs=calibrated.wcs,
        zp=calibrated.zp,
        members=(image.info.exposure,),
    )


def _as_image(raw: "RawCcd") -> Image:
    """The frame with flags for what is not finite, has no weight or is saturated."""
    data = np.array(raw.data, np.float32)
    flags = np.zeros(data.shape, np.uint16) if raw.flags is None else np.array(raw.flags)
    flags[~np.isfinite(data)] |= np.uint16(Flag.NO_DATA)
    if raw.variance is not None:
        flags[~np.isfinite(raw.variance)] |= np.uint16(Flag.NO_DATA)
    if np.isfinite(raw.info.saturation) and raw.info.saturation > 0:
        flags[data >= raw.info.saturation] |= np.uint16(Flag.SATURATED)
    return Image(raw.info, data, flags)


def _with_gain(image: Image, background: Background) -> Image:
    """Where the header has no gain, the sky's own photon noise gives it, if the sky is still there."""
    gain = image.info.gain
    if np.isfinite(gain) and gain > 0:
        return image
    gain = background.level / background.rms**2 if background.level > background.rms else 1.0
    return replace(image, info=replace(image.info, gain=float(gain)))


def _header_wcs(image: Image) -> Wcs:
    from astropy.table import Table

    text = image.info.wcs_guess
    if not text.strip() or not wcs_from_text(text).has_celestial:
        raise ReferenceUnusable(
            f"{image.info.exposure}: the header has no celestial WCS; give an image whose astrometry is solved"
        )
    nan = float("nan")
    return Wcs(text, 1, 0, 0, nan, nan, nan, nan, "header", Table())


def _unknown_zero_point(sources: Sources) -> ZeroPoint:
    from astropy.table import Table

    nan = float("nan")
    radii = sources.aperture_radii_px
    return ZeroPoint(UNKNOWN_ZERO_POINT, nan, nan, 0.0, 0, radii, tuple(0.0 for _ in radii), nan, Table())
