"""Deep references: exposures of one field on one grid, averaged without their blemishes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import (
    Background,
    CalibratedImage,
    Flag,
    FlagImage,
    FloatImage,
    Image,
    ImageInfo,
    Psf,
    Reference,
    Sources,
    Wcs,
    ZeroPoint,
    wcs_from_text,
)
from seechange_assets.science.alignment import align
from seechange_assets.science.background import level_map, measure_background
from seechange_assets.science.noise import variance_map
from seechange_assets.science.warp import warp_image

_NO_DATA = np.uint16(Flag.NO_DATA)
_MIN_FOR_CLIPPING = 3  # two values cannot tell which of them is wrong


@dataclass(frozen=True, slots=True)
class Coadd:
    """Weighted mean of the inputs on the grid and zero point of ``base``, the index of the sharpest input.

    ``variance`` [ADU^2] is infinite and ``flags`` say ``NO_DATA`` where no input has a valid
    pixel. ``n_inputs`` counts the inputs that entered each pixel.
    """

    data: FloatImage
    variance: FloatImage
    flags: FlagImage
    n_inputs: FlagImage
    base: int
    zp: float


def coadd(
    inputs: Sequence[CalibratedImage],
    *,
    clip_sigma: float = 4.0,
    clip_star_fraction: float = 0.1,
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
) -> Coadd:
    """Average exposures of one field and filter.

    Each input is background-subtracted, scaled to the zero point of the sharpest one, registered on
    it star to star, warped, and weighted by its inverse variance (sky alone: weights that
    follow the sources' photon noise would bias them low). A pixel that departs from the median of
    the inputs by more than `clip_sigma` of its noise is left out: cosmic rays, streaks, asteroids.
    Stars differ by seeing, too, and clipping them would deform the PSF; so near bright pixels the
    allowance grows by the part by which the peaks of the sharpest and the worst input differ.

    Parameters
    ----------
    inputs : sequence of CalibratedImage
        Of one filter.
    clip_sigma : float
        Threshold of the clipping, used with three inputs or more.
    clip_star_fraction : float
        Allowance at stars beyond the seeing's (registration, shape), relative to the local maximum.
    match_radius_arcsec, min_stars_linear
        See `science.alignment.align`.

    Returns
    -------
    Coadd

    Raises
    ------
    ReferenceUnusable
        No inputs, different filters, or an input without a usable zero point.
    """
    from scipy.ndimage import maximum_filter

    base = _checked_base(inputs)
    data, variance, flags = _stacked(inputs, base, match_radius_arcsec, min_stars_linear)
    noise = [v[np.isfinite(v)] for v in variance[:, ::5, ::5]]
    weight = np.array([1 / float(np.median(v)) if v.size else 0.0 for v in noise], np.float32)
    fwhm = [item.psf.fwhm_px * item.image.info.pixel_scale_arcsec for item in inputs]
    fraction = np.float32(clip_star_fraction + 1 - (min(fwhm) / max(fwhm)) ** 2)
    median = _median_plane(data, variance)
    if len(inputs) >= _MIN_FOR_CLIPPING:
        reach = 2 * int(np.ceil(inputs[base].psf.fwhm_px / 2)) + 1
        allowance = fraction * np.maximum(maximum_filter(median, reach), 0)
    else:
        allowance = np.full(median.shape, np.inf, np.float32)
    mean, mean_variance, mean_flags, count = _clipped_mean(
        data, variance, flags, weight, median, allowance, np.float32(clip_sigma)
    )
    return Coadd(mean, mean_variance, mean_flags, count, base, inputs[base].zp.zp)


def build_reference(
    inputs: Sequence[CalibratedImage],
    *,
    name: str,
    extract: Callable[[Image, Background], Sources],
    model_psf: Callable[[Image, Background, Sources], Psf],
    solve: Callable[[Image, Sources], Wcs] | None = None,
    calibrate: Callable[[Image, Background, Sources, Psf, Wcs], ZeroPoint] | None = None,
    clip_sigma: float = 4.0,
    clip_star_fraction: float = 0.1,
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
    box_size_px: int = 256,
) -> Reference:
    """A coadd with its own background, sources and PSF, ready to be subtracted.

    Parameters
    ----------
    inputs : sequence of CalibratedImage
    name : str
        The reference set.
    extract, model_psf : callable
        `science.sources.extract_sources` and `science.psf_fit.build_psf`, their parameters bound.
    solve, calibrate : callable, optional
        Astrometry and photometry of the coadd; without them it keeps the WCS of the sharpest input
        and the common zero point.
    clip_sigma, clip_star_fraction, match_radius_arcsec, min_stars_linear
        See `coadd`.
    box_size_px : int
        Mesh of the coadd's own background.

    Returns
    -------
    Reference
    """
    stacked = coadd(
        inputs,
        clip_sigma=clip_sigma,
        clip_star_fraction=clip_star_fraction,
        match_radius_arcsec=match_radius_arcsec,
        min_stars_linear=min_stars_linear,
    )
    target = inputs[stacked.base]
    image = Image(_coadd_info(inputs, stacked), stacked.data, stacked.flags)
    background = measure_background(image, box_size_px=box_size_px)
    sources = extract(image, background)
    psf = model_psf(image, background, sources)
    wcs = target.wcs if solve is None else solve(image, sources)
    zp = replace(target.zp, zp=stacked.zp) if calibrate is None else calibrate(image, background, sources, psf, wcs)
    return Reference(
        name=name,
        info=image.info,
        data=stacked.data - level_map(background),
        variance=stacked.variance,
        flags=stacked.flags,
        sources=sources,
        psf=psf,
        wcs=wcs,
        zp=zp,
        members=tuple(item.image.info.exposure for item in inputs),
    )


def _checked_base(inputs: Sequence[CalibratedImage]) -> int:
    """Index of the sharpest input; refuses what cannot be averaged."""
    if not inputs:
        raise ReferenceUnusable("reference: no images to coadd; relax the selection or add exposures")
    filters = sorted({item.image.info.filter for item in inputs})
    if len(filters) > 1:
        raise ReferenceUnusable(f"reference: images in different filters ({', '.join(filters)}); select one filter")
    for item in inputs:
        if not np.isfinite(item.zp.zp):
            raise ReferenceUnusable(
                f"reference: {item.image.info.exposure} has no zero point; calibrate it or leave it out"
            )
    return int(np.argmin([item.psf.fwhm_px * item.image.info.pixel_scale_arcsec for item in inputs]))


def _on_grid(
    item: CalibratedImage, target: CalibratedImage, *, match_radius_arcsec: float, min_stars_linear: int
) -> tuple[FloatImage, FloatImage, FlagImage]:
    """Data, variance and flags of an input on the grid and zero point of `target`."""
    data = item.image.data - level_map(item.background)
    variance = variance_map(item.image, item.background)
    flags = item.image.flags
    if item is not target:
        alignment = align(
            item.sources,
            item.wcs.header,
            target.sources,
            target.wcs.header,
            match_radius_arcsec=match_radius_arcsec,
            min_stars_linear=min_stars_linear,
        )
        data, variance, flags = warp_image(
            data,
            variance,
            flags,
            wcs_from_text(alignment.header),
            wcs_from_text(target.wcs.header),
            target.image.data.shape,
        )
    factor = np.float32(10 ** (0.4 * (target.zp.zp - item.zp.zp)))
    return data * factor, variance * factor**2, flags


def _stacked(
    inputs: Sequence[CalibratedImage], base: int, match_radius_arcsec: float, min_stars_linear: int
) -> tuple[FloatImage, FloatImage, FlagImage]:
    """All inputs on one grid, (n, ny, nx); unknown pixels have infinite variance."""
    shape = (len(inputs), *inputs[base].image.data.shape)
    data, variance, flags = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.uint16)
    for k, item in enumerate(inputs):
        data[k], variance[k], flags[k] = _on_grid(
            item, inputs[base], match_radius_arcsec=match_radius_arcsec, min_stars_linear=min_stars_linear
        )
        variance[k][(flags[k] != 0) | ~np.isfinite(data[k])] = np.inf
    return data, variance, flags


def _coadd_info(inputs: Sequence[CalibratedImage], stacked: Coadd) -> ImageInfo:
    """The sharpest input's, with the total exposure time and the gain and noise of a weighted mean."""
    infos = [item.image.info for item in inputs]
    base = infos[stacked.base]
    depth = max(float(np.median(stacked.n_inputs)), 1.0)
    scale = [10 ** (0.4 * (stacked.zp - item.zp.zp)) for item in inputs]
    return replace(
        base,
        mjd=min(info.mjd for info in infos),
        exptime_s=float(sum(info.exptime_s for info in infos)),
        airmass=float(np.mean([info.airmass for info in infos])),
        gain=float(np.mean([info.gain / s for info, s in zip(infos, scale, strict=True)])) * depth,
        read_noise=base.read_noise * float(np.sqrt(depth)),
        saturation=min(info.saturation * s for info, s in zip(infos, scale, strict=True)),
        steps_done=(*base.steps_done, "coadd"),
    )


@njit(cache=True)
def _median_plane(data, variance):  # type: ignore[no-untyped-def]
    """Median of the valid values of each pixel; 0 where there are none."""
    n, ny, nx = data.shape
    values = np.empty(n, np.float32)
    out = np.zeros((ny, nx), np.float32)
    for y in range(ny):
        for x in range(nx):
            valid = 0
            for k in range(n):
                if np.isfinite(variance[k, y, x]):
                    # Insertion into the sorted values so far: the fastest sort for a handful.
                    value, m = data[k, y, x], valid
                    while m > 0 and values[m - 1] > value:
                        values[m] = values[m - 1]
                        m -= 1
                    values[m] = value
                    valid += 1
            if valid > 0:
                out[y, x] = (values[(valid - 1) // 2] + values[valid // 2]) / 2
    return out


@njit(cache=True)
def _clipped_mean(data, variance, flags, weight, median, allowance, clip_sigma):  # type: ignore[no-untyped-def]
    """Weighted mean, its variance, flags and number of inputs of each pixel."""
    n, ny, nx = data.shape
    out = np.zeros((ny, nx), np.float32)
    out_variance = np.full((ny, nx), np.inf, np.float32)
    out_flags = np.zeros((ny, nx), np.uint16)
    count = np.zeros((ny, nx), np.uint16)
    for y in range(ny):
        for x in range(nx):
            total, total_weight, total_variance = np.float32(0), np.float32(0), np.float32(0)
            used, seen = 0, np.uint16(0)
            valid = 0
            for k in range(n):
                valid += np.isfinite(variance[k, y, x])
            for k in range(n):
                noise = variance[k, y, x]
                if not np.isfinite(noise):
                    seen |= flags[k, y, x]
                    continue
                deviation = abs(data[k, y, x] - median[y, x])
                if valid < _MIN_FOR_CLIPPING or deviation <= clip_sigma * np.sqrt(noise) + allowance[y, x]:
                    total += weight[k] * data[k, y, x]
                    total_weight += weight[k]
                    total_variance += weight[k] * weight[k] * noise
                    used += 1
            if used > 0:
                out[y, x] = total / total_weight
                out_variance[y, x] = total_variance / (total_weight * total_weight)
            else:
                out_flags[y, x] = seen | _NO_DATA
            count[y, x] = used
    return out, out_variance, out_flags, count
