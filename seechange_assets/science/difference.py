"""A new image minus its reference: registration, flux scale, PSF matching and a calibrated score.

The steps, in the order of `subtract`: refine the reference's WCS star to star, warp it, bring
it to the new image's counts, level the sky that is left, fill what either image does not
know, subtract properly (`science.zogy`), and give the score the noise it really has.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import (
    Background,
    Difference,
    Flag,
    FlagImage,
    FloatImage,
    Image,
    Psf,
    Reference,
    Sources,
    Wcs,
    ZeroPoint,
    wcs_from_text,
)
from seechange_assets.science.alignment import Alignment, align
from seechange_assets.science.background import level_map
from seechange_assets.science.inpaint import grow_flags, inpaint
from seechange_assets.science.matched_psf import difference_psf_model, psf_pairs, stamp_size
from seechange_assets.science.matching_kernel import ImagePair
from seechange_assets.science.noise import variance_map
from seechange_assets.science.score_calibration import SAMPLING, SKY_BOX_PX, calibrated, mesh, rendered
from seechange_assets.science.star_match import MIN_STARS, FluxScale, flux_scale, psf_flux_error
from seechange_assets.science.subtraction_checks import check_inputs, check_overlap
from seechange_assets.science.subtraction_methods import check_method, subtract_pair
from seechange_assets.science.warp import warp_image
from seechange_assets.science.zogy import Subtraction

Pixels = NDArray[np.intp]

_MIN_MARGIN_PX = 32
_BRIGHT_SNR = (100.0, 30.0)  # of the stars that show the error of the PSFs: the second where the first finds too few
_MIN_BRIGHT = 4
_STAR_SCORE = 0.5
_FEW_STARS = 20
_MAX_PSF_ERROR = 0.3


def subtract(
    image: Image,
    background: Background,
    psf: Psf,
    wcs: Wcs,
    zp: ZeroPoint,
    sources: Sources,
    reference: Reference,
    *,
    method: str = "zogy",
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
    min_overlap: float = 0.1,
    max_masked: float = 0.9,
    grow_fwhm: float = 1.0,
    psf_error: float = 0.002,
    reference_id: str = "",
) -> Difference:
    """Subtract a reference from a new image.

    Parameters
    ----------
    image, background, psf, wcs, zp, sources
        The new image and its calibration.
    reference : Reference
    method : str
        ``zogy`` (proper subtraction), ``alard_lupton`` (fitted kernel of Gaussians, varying over the field), ``sfft``
        (fitted kernel of free pixels, likewise) or ``direct`` (plain difference, for comparison).
    match_radius_arcsec, min_stars_linear
        See `science.alignment.align`.
    min_overlap : float
        Least fraction of the new image that the reference must cover.
    max_masked : float
        Largest fraction of the reference's pixels that may be flagged.
    grow_fwhm : float
        Flags are grown by this many FWHM (of the wider PSF), the reach of the filter.
    psf_error : float
        Least relative error of the PSF models; what the bright stars show beyond it is added.
    reference_id : str
        Recorded in the product.

    Returns
    -------
    Difference

    Raises
    ------
    ReferenceUnusable
        Other filter, no WCS, pixel scales that differ more than twice, empty or masked
        reference, too little overlap, a PSF that does not fit its stamp, too few stars for a kernel.
    """
    check_method(method)
    check_inputs(image, psf, wcs, reference, max_masked=max_masked)
    alignment = align(
        reference.sources,
        reference.wcs.header,
        sources,
        wcs.header,
        match_radius_arcsec=match_radius_arcsec,
        min_stars_linear=min_stars_linear,
    )
    stars = _common_stars(sources, reference.sources, alignment)
    scale = flux_scale(psf, reference.psf, *stars)
    if scale is None:
        scale = FluxScale(10 ** (0.4 * (zp.zp - reference.zp.zp)), np.nan, np.nan, 0)
    # The PSFs below have sum 1 on their stamps: the scale is that of the light on the stamps.
    scale = replace(scale, factor=scale.factor * psf.enclosed / reference.psf.enclosed)
    _check_scale(scale, image)
    pair = _common_grid(image, background, wcs, reference, alignment, scale, min_overlap)
    size = stamp_size(psf, reference.psf)
    psfs = psf_pairs(psf, reference.psf, wcs.header, alignment.header, size)
    margin = max(size // 2, _MIN_MARGIN_PX)
    where = f"{image.info.exposure} {image.info.ccd}"
    raw, kernels = subtract_pair(method, pair, psfs, _common_places(sources, alignment), margin, where)
    # Their work is done, and the maps below want the memory.
    pair = replace(pair, new=np.empty((0, 0), np.float32), reference=np.empty((0, 0), np.float32))
    radius = int(np.ceil(grow_fwhm * max(psf.fwhm_px, reference.psf.fwhm_px)))
    flags = _grown(pair.flags, radius)
    error = max(_star_error(raw, flags, sources, alignment, psf.fwhm_px), psf_error)
    if scale.n_stars < _FEW_STARS and np.isfinite(scale.scatter):
        error = max(error, scale.scatter)  # too few residuals to judge by: no star is subtracted better than it repeats
    sky_variances = _sky_variances(pair)
    registration_px = alignment.noise_px if np.isfinite(alignment.noise_px) else 0.0
    maps = calibrated(raw, pair, flags, registration_px, error, psf.enclosed)
    return Difference(
        info=image.info,
        **maps,
        flags=flags,
        psf=replace(difference_psf_model(psf, kernels, sky_variances, image.data.shape, size), enclosed=psf.enclosed),
        wcs=wcs,
        zp=zp.zp,
        zp_err=zp.zp_err,
        limiting_magnitude=zp.zp - 2.5 * np.log10(5 * _median_error(maps["flux_err"], flags)),
        method=method,
        flux_scale=scale.factor,
        reference_wcs=alignment.header,
        reference_id=reference_id,
        n_alignment_stars=alignment.n_stars,
        alignment_rms_px=alignment.rms_px,
        masked_fraction=float(np.mean(flags != 0)),
        psf_flux_error=psf_flux_error(psf, reference.psf, *stars, sources),
    )


def _common_stars(
    sources: Sources, reference: Sources, alignment: Alignment
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Matched pairs that are stars in both images; all pairs where such are too few.

    The PSF flux of a galaxy grows with the seeing, so galaxies would bias the flux scale.
    """
    new, old = alignment.new_rows, alignment.reference_rows
    scores = np.minimum(sources.table["star_score"][new], reference.table["star_score"][old])
    is_star = np.asarray(scores, float) > _STAR_SCORE
    return (new[is_star], old[is_star]) if is_star.sum() >= MIN_STARS else (new, old)


def _common_places(sources: Sources, alignment: Alignment) -> NDArray[np.float64]:
    """Places (n, 2) of what both images show, the most significant first."""
    rows = sources.table[alignment.new_rows]
    order = np.argsort(-np.asarray(rows["snr"], float), kind="stable")
    return np.stack([np.asarray(rows[axis], float) for axis in ("x", "y")], axis=1)[order]


def _median_error(flux_err: FloatImage, flags: FlagImage) -> float:
    """Typical error of a PSF flux on unflagged pixels; NaN where there are none."""
    usable = flags[::SAMPLING, ::SAMPLING] == 0
    return float(np.median(flux_err[::SAMPLING, ::SAMPLING][usable])) if usable.any() else float("nan")


def _check_scale(scale: FluxScale, image: Image) -> None:
    if not (np.isfinite(scale.factor) and scale.factor > 0):
        raise ReferenceUnusable(
            f"{image.info.exposure} {image.info.ccd}: no flux scale between image and reference: fewer than 3 stars in "
            "common and no zero points; calibrate both or give another reference"
        )


def _common_grid(
    image: Image,
    background: Background,
    wcs: Wcs,
    reference: Reference,
    alignment: Alignment,
    scale: FluxScale,
    min_overlap: float,
) -> ImagePair:
    """Warp, scale, level and fill; the arrays ZOGY wants."""
    factor = np.float32(scale.factor)
    warped, reference_variance, warped_flags = warp_image(
        reference.data,
        reference.variance,
        reference.flags,
        wcs_from_text(alignment.header),
        wcs_from_text(wcs.header),
        image.data.shape,
    )
    check_overlap(warped_flags, image, min_overlap)
    warped *= factor
    reference_variance *= factor**2
    new = image.data - level_map(background)
    new_variance = variance_map(image, background)
    flags = image.flags | warped_flags
    flags[~np.isfinite(image.data)] |= np.uint16(Flag.NO_DATA)
    new -= _residual_sky(new - warped, flags)
    # What one image does not know is filled in both, so that the fills subtract like the sky does.
    new = inpaint(new, flags)
    warped = inpaint(warped, flags)
    return ImagePair(
        new,
        warped,
        _finite_variance(new_variance, flags),
        _finite_variance(reference_variance, flags),
        flags,
    )


def _finite_variance(variance: FloatImage, flags: FlagImage) -> FloatImage:
    """The variance with unknown values replaced by the typical one."""
    known = variance[::SAMPLING, ::SAMPLING]
    typical = np.float32(np.median(known[np.isfinite(known)])) if np.isfinite(known).any() else np.float32(1)
    variance[~np.isfinite(variance) | (flags != 0)] = typical
    return variance


def _sky_variances(pair: ImagePair) -> tuple[float, float]:
    cut = np.s_[::SAMPLING, ::SAMPLING]
    return float(np.median(pair.new_variance[cut])), float(np.median(pair.reference_variance[cut]))


def _residual_sky(difference: FloatImage, flags: FlagImage) -> FloatImage:
    """Smooth level that is left in the plain difference: medians of boxes, interpolated."""
    cut = np.s_[::SAMPLING, ::SAMPLING]
    center, _ = mesh(difference[cut], flags[cut] == 0, SKY_BOX_PX // SAMPLING)
    return rendered(center, difference.shape, SKY_BOX_PX)


def _grown(flags: FlagImage, radius: int) -> FlagImage:
    """Flags spread by the reach of the filter; the border of the overlap stays where it is."""
    edge = np.uint16(Flag.OUT_OF_BOUNDS)
    return grow_flags(flags & ~edge, radius) | (flags & edge)


def _star_error(raw: Subtraction, flags: FlagImage, sources: Sources, alignment: Alignment, fwhm_px: float) -> float:
    """Relative residual of bright matched stars beyond noise and registration: the error of the PSF models.

    Root of the mean square of S / S_R (flux of the difference over that of the star) within one FWHM
    of a star; the median of the stars, so that variables do not count.
    """
    rows = sources.table[alignment.new_rows]
    ny, nx = flags.shape
    steps = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (2, 0), (-2, 0), (0, 2), (0, -2)])
    offset = np.rint(steps * fwhm_px / 2).astype(int)
    x = np.clip(np.rint(rows["x"]).astype(int)[:, None] + offset[:, 0], 1, nx - 2)
    y = np.clip(np.rint(rows["y"]).astype(int)[:, None] + offset[:, 1], 1, ny - 2)
    static = raw.flux_new[y, x] - raw.flux[y, x]
    variance = np.maximum(raw.flux_variance[y, x], 0)
    clean = (flags[y, x] == 0).all(axis=1) & (static > 0).all(axis=1)
    for limit in _BRIGHT_SNR:
        bright = clean & (static[:, 0] > limit * np.sqrt(variance[:, 0]))
        if bright.sum() >= _MIN_BRIGHT:
            break
    else:
        return 0.0
    excess = raw.flux[y, x] ** 2 - variance - _registration_variance(raw, y, x, alignment.noise_px)
    square = np.median((excess[bright] / static[bright] ** 2).mean(axis=1))
    return float(min(np.sqrt(max(square, 0.0)), _MAX_PSF_ERROR))


def _registration_variance(raw: Subtraction, y: Pixels, x: Pixels, noise_px: float) -> NDArray[np.float64]:
    """V_ast of eq. 33 at some pixels, from the gradient of the reference's part of the flux."""
    if not np.isfinite(noise_px):
        return np.zeros(x.shape)

    def static(rows: Pixels, columns: Pixels) -> NDArray[np.float64]:
        return np.asarray(raw.flux_new[rows, columns] - raw.flux[rows, columns], np.float64)

    slope_x = (static(y, x + 1) - static(y, x - 1)) / 2
    slope_y = (static(y + 1, x) - static(y - 1, x)) / 2
    return np.asarray(noise_px**2 * (slope_x**2 + slope_y**2))
