"""The fringe pattern of a CCD and filter, from exposures of the night sky."""

from collections.abc import Sequence

import numpy as np

from seechange_assets.errors import BadPixels
from seechange_assets.products import Flag, FloatImage, Image, Master
from seechange_assets.science.background import level_map, measure_background
from seechange_assets.science.masters import clipped_mean

#: Sources are masked above this many sigma of a pixel, or of the mean of 3 x 3 pixels (fringes themselves
#: reach one or two), and grown by so many pixels.
PIXEL_SIGMA, SMOOTH_SIGMA, GROW_PX = 5.0, 3.0, 4
#: Structure wider than this [pixel] belongs to the sky.
SKY_PX = 129


def build_fringe(
    images: Sequence[Image],
    *,
    calibration: str = "",
    clip_sigma: float = 3.0,
    min_frames: int = 5,
    smooth_px: float = 1.5,
    box_size_px: int = 256,
    validity_days: float = 90.0,
) -> Master:
    """Stack flat-fielded sky exposures, each as a fraction of its own sky, without sources and wide structure.

    Parameters
    ----------
    images : sequence of Image
        Exposures of one CCD and filter with dithers between them, calibrated through the flat.
    calibration : str
        Name of the calibration run.
    clip_sigma : float
        Values this many sigma from the median of their pixel are left out.
    min_frames : int
        Fewest exposures.
    smooth_px : float
        Sigma of the Gaussian that smooths the pattern [pixel]: fringes are wider, noise is not.
    box_size_px : int
        Boxes of the sky that is taken out of each exposure.
    validity_days : float
        Validity before the first and after the last exposure [day].

    Returns
    -------
    Master
        ``data``: fringes per unit of sky, mean 0; pixels that no exposure shows are 0 and flagged NO_DATA.

    Raises
    ------
    BadPixels
        Too few exposures with a sky.
    """
    kept, cube, noises = [], [], []
    for image in images:
        background = measure_background(image, box_size_px=box_size_px)
        if background.level < 3 * background.rms:
            continue  # the sky has been subtracted, or there is none to speak of
        cube.append(_relative_sky(image, level_map(background), background.rms))
        noises.append(background.rms / background.level)
        kept.append(image)
    if len(kept) < min_frames:
        where = f" of CCD {images[0].info.ccd}" if images else ""
        raise BadPixels(
            f"master fringe{where}: {len(kept)} of {len(images)} exposures are usable, {min_frames} required: take more"
        )
    pattern = clipped_mean(np.stack(cube), np.array(noises, np.float32), np.float32(clip_sigma))
    noise = float(1 / np.sqrt(np.sum(1 / np.square(noises))))
    return _fringe_master(kept, pattern, smooth_px, calibration, validity_days, noise)


def _relative_sky(image: Image, level: FloatImage, rms: float) -> FloatImage:
    """Deviation from the sky as a fraction of it, NaN in flagged pixels and around sources."""
    from scipy.ndimage import binary_dilation, uniform_filter

    residual = image.data - level
    bright = residual > PIXEL_SIGMA * rms
    bright |= uniform_filter(residual, 3) > SMOOTH_SIGMA * rms
    hidden = binary_dilation(bright, iterations=GROW_PX) | (image.flags != 0)
    return np.where(hidden, np.float32(np.nan), residual / level).astype(np.float32)


def _fringe_master(
    images: Sequence[Image], pattern: FloatImage, smooth_px: float, calibration: str, validity_days: float, noise: float
) -> Master:
    from scipy.ndimage import gaussian_filter, uniform_filter

    info = images[0].info
    seen = np.isfinite(pattern)
    weight = seen.astype(np.float32)
    filled = np.where(seen, pattern, np.float32(0))
    filled -= uniform_filter(filled, SKY_PX) / np.maximum(uniform_filter(weight, SKY_PX), np.float32(1e-3))
    filled[~seen] = 0
    if smooth_px > 0:
        filled = gaussian_filter(filled, smooth_px) / np.maximum(gaussian_filter(weight, smooth_px), np.float32(1e-3))
        # The variance of white noise falls by 4 pi s^2 under a Gaussian of sigma s.
        noise /= max(1.0, float(np.sqrt(4 * np.pi)) * smooth_px)
    filled[~seen] = 0
    flags = np.where(seen, np.uint16(0), np.uint16(Flag.NO_DATA))
    mjds = [image.info.mjd for image in images]
    return Master(
        kind="fringe", calibration=calibration, ccd=info.ccd, instrument=info.instrument, filter=info.filter,
        valid_from=min(mjds) - validity_days, valid_to=max(mjds) + validity_days, data=filled.astype(np.float32),
        flags=flags, members=tuple(sorted(image.info.exposure for image in images)), noise=noise,
    )  # fmt: skip
