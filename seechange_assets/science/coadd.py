"""Deep references: exposures of one field on one grid, averaged without their blemishes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import (
    Background,
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

_CHUNK_ROWS = 256
#: Gain of the coadd's photon noise is meaningless where images differ; `variance` carries it.
_STAR_CORE_FWHM = 2.0


@dataclass(frozen=True, slots=True)
class CoaddInput:
    """One exposure with its calibration. ``sources`` are those of ``psf.photometry``."""

    image: Image
    background: Background
    sources: Sources
    psf: Psf
    wcs: Wcs
    zp: ZeroPoint


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
    inputs: Sequence[CoaddInput],
    *,
    clip_sigma: float = 4.0,
    clip_star_fraction: float = 0.3,
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
) -> Coadd:
    """Average exposures of one field and filter.

    Each input is background-subtracted, scaled to the zero point of the sharpest one, registered on
    it star to star, warped, and weighted by its inverse variance (sky alone: weights that
    follow the sources' photon noise would bias them low). A pixel that departs from the median of
    the inputs by more than `clip_sigma` of its noise, plus `clip_star_fraction` of the median
    where that is bright (stars differ by seeing), is left out: cosmic rays, streaks, asteroids.

    Parameters
    ----------
    inputs : sequence of CoaddInput
        Of one filter.
    clip_sigma : float
        Threshold of the clipping, used with three inputs or more.
    clip_star_fraction : float
        Allowance for differences between PSFs, relative to the median.
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
    base = _checked_base(inputs)
    target = inputs[base]
    stack = [
        _on_grid(item, target, match_radius_arcsec=match_radius_arcsec, min_stars_linear=min_stars_linear)
        for item in inputs
    ]
    data, variance, flags = (np.stack(planes) for planes in zip(*stack, strict=True))
    weight = np.array([1 / float(np.median(v[np.isfinite(v)])) if np.isfinite(v).any() else 0.0 for v in variance])
    out = _empty(target.image.data.shape)
    _clipped_mean(
        data,
        variance,
        flags,
        weight.astype(np.float32),
        np.float32(clip_sigma if len(inputs) >= 3 else np.inf),
        np.float32(clip_star_fraction),
        *out,
    )
    return Coadd(*out, base, target.zp.zp)


def build_reference(
    inputs: Sequence[CoaddInput],
    *,
    name: str,
    extract: Callable[[Image, Background], Sources],
    model_psf: Callable[[Image, Background, Sources], Psf],
    solve: Callable[[Image, Sources], Wcs] | None = None,
    calibrate: Callable[[Image, Sources, Psf, Wcs], ZeroPoint] | None = None,
    clip_sigma: float = 4.0,
    clip_star_fraction: float = 0.3,
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
    box_size_px: int = 256,
) -> Reference:
    """A coadd with its own background, sources and PSF, ready to be subtracted.

    Parameters
    ----------
    inputs : sequence of CoaddInput
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
    zp = replace(target.zp, zp=stacked.zp) if calibrate is None else calibrate(image, sources, psf, wcs)
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


def _checked_base(inputs: Sequence[CoaddInput]) -> int:
    """Index of the sharpest input; refuses what cannot be averaged."""
    if not inputs:
        raise ReferenceUnusable("reference: no images to coadd; relax the selection or add exposures")
    filters = sorted({item.image.info.filter for item in inputs})
    if len(filters) > 1:
        raise ReferenceUnusable(f"reference: images in different filters ({', '.join(filters)}); select one filter")
    for item in inputs:
        if not np.isfinite(item.zp.zp):
            raise ReferenceUnusable(f"reference: {item.image.info.exposure} has no zero point; calibrate it or leave it out")
    return int(np.argmin([item.psf.fwhm_px * item.image.info.pixel_scale_arcsec for item in inputs]))


def _on_grid(
    item: CoaddInput, target: CoaddInput, *, match_radius_arcsec: float, min_stars_linear: int
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


def _empty(shape: tuple[int, int]) -> tuple[FloatImage, FloatImage, FlagImage, FlagImage]:
    return (
        np.zeros(shape, np.float32),
        np.full(shape, np.inf, np.float32),
        np.zeros(shape, np.uint16),
        np.zeros(shape, np.uint16),
    )


def _coadd_info(inputs: Sequence[CoaddInput], stacked: Coadd) -> ImageInfo:
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
def _clipped_mean(  # type: ignore[no-untyped-def]
    data, variance, flags, weight, clip_sigma, star_fraction, out, out_variance, out_flags, out_count
):
    n, ny, nx = data.shape
    values, noises = np.empty(n, np.float32), np.empty(n, np.float32)
    index = np.empty(n, np.int64)
    for y in range(ny):
        for x in range(nx):
            valid = 0
            seen = np.uint16(0)
            for k in range(n):
                if flags[k, y, x] == 0 and np.isfinite(data[k, y, x]) and np.isfinite(variance[k, y, x]):
                    values[valid], noises[valid], index[valid] = data[k, y, x], variance[k, y, x], k
                    valid += 1
                else:
                    seen |= flags[k, y, x]
            if valid == 0:
                out_flags[y, x] = seen | _NO_DATA
                continue
            middle = np.median(values[:valid])
            # Two values cannot tell which is wrong; with fewer than three none is clipped ...
            limit_floor = star_fraction * max(middle, np.float32(0))
            total, total_weight, total_variance, used = np.float32(0), np.float32(0), np.float32(0), 0
            for m in range(valid):
                limit = clip_sigma * np.sqrt(noises[m]) + limit_floor
                if valid < 3 or abs(values[m] - middle) <= limit:
                    w = weight[index[m]]
                    total += w * values[m]
                    total_weight += w
                    total_variance += w * w * noises[m]
                    used += 1
            if used == 0:
                out_flags[y, x] = seen | _NO_DATA
                continue
            out[y, x] = total / total_weight
            out_variance[y, x] = total_variance / (total_weight * total_weight)
            out_count[y, x] = used


_NO_DATA = np.uint16(Flag.NO_DATA)
