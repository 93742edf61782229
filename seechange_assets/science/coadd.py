"""Deep references: exposures of one field on one grid, combined without their blemishes.

Memory is bounded whatever the number of inputs: each is warped alone, its pixels wait in a scratch
file, and all are combined strip by strip.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError, ReferenceUnusable
from seechange_assets.products import (
    Background,
    CalibratedImage,
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
from seechange_assets.science.clipping import NO_DATA, ClippedMean, clip_reach, clipped_mean
from seechange_assets.science.inpaint import grow_flags, inpaint
from seechange_assets.science.matched_psf import psf_pairs, stamp_size
from seechange_assets.science.noise import variance_map
from seechange_assets.science.proper_coadd import PsfStamps, proper_mean, proper_psf
from seechange_assets.science.warp import warp_image

METHODS = ("clipped_mean", "proper")
#: The strips of all inputs together, data and variance, take about this much memory [byte].
_STRIP_BYTES = 100e6
_STRIP_ROWS = (64, 512)


@dataclass(frozen=True, slots=True)
class Coadd:
    """Combination of the inputs on the grid and zero point of ``base``, the index of the sharpest input.

    ``variance`` [ADU^2] is infinite and ``flags`` say ``NO_DATA`` where no input has a valid pixel. It is the variance
    per pixel on the scale of the PSF, see `science.warp.warp_image`. ``n_inputs`` counts the inputs that entered each
    pixel. ``psf`` is the PSF at the centre that the inputs' PSFs predict: a stamp of sum 1, one entry per pixel.
    ``info`` is what a calibration needs to know of the whole, ``members`` the exposures inside.
    """

    data: FloatImage
    variance: FloatImage
    flags: FlagImage
    n_inputs: FlagImage
    base: int
    zp: float
    psf: NDArray[np.float64]
    info: ImageInfo
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """What is kept of an input while its pixels are away."""

    info: ImageInfo
    psf: Psf
    wcs: Wcs
    zp: float
    sources: Sources
    shape: tuple[int, int]

    @property
    def fwhm_arcsec(self) -> float:
        return self.psf.fwhm_px * self.info.pixel_scale_arcsec


def coadd(
    inputs: Sequence[CalibratedImage],
    *,
    method: str = "clipped_mean",
    clip_sigma: float = 4.0,
    clip_star_fraction: float = 0.1,
    match_radius_arcsec: float = 2.0,
    min_stars_linear: int = 10,
    scratch: Callable[[], BinaryIO] | None = None,
) -> Coadd:
    """Combine exposures of one field and filter.

    Each input is background-subtracted, scaled to the zero point of the sharpest one, registered on
    it star to star, warped, and weighted by its inverse variance (sky alone: weights that
    follow the sources' photon noise would bias them low). What departs from the median of the inputs is left
    out with its surroundings: cosmic rays, streaks, asteroids (`science.clipping`).

    Parameters
    ----------
    inputs : sequence of CalibratedImage
        Of one filter. Each is asked for twice and not kept, so a sequence may load them when asked.
    method : str
        ``clipped_mean`` (inverse-variance weighted) or ``proper`` (Zackay & Ofek 2017; see `science.proper_coadd`).
    clip_sigma : float
        Threshold of the clipping, used with three inputs or more.
    clip_star_fraction : float
        Allowance at stars beyond the seeing's (registration, shape), relative to the local maximum.
    match_radius_arcsec, min_stars_linear
        See `science.alignment.align`.
    scratch : callable, optional
        Opens the file in which pixels wait, 8 bytes for each pixel of each input; by default a nameless temporary one.

    Returns
    -------
    Coadd

    Raises
    ------
    ReferenceUnusable
        No inputs, different filters, or an input without a usable zero point.
    ParameterError
        An unknown method.
    """
    if method not in METHODS:
        raise ParameterError(f"reference.method {method!r} is not known: expected one of {', '.join(METHODS)}")
    members = [_member(item) for item in inputs]
    base = _checked_base(members)
    opened = cast("BinaryIO", tempfile.TemporaryFile()) if scratch is None else scratch()  # noqa: SIM115
    with opened as file:
        stack = _Stack(file, members, base)
        for item in inputs:
            stack.add(item, match_radius_arcsec=match_radius_arcsec, min_stars_linear=min_stars_linear)
        return _combined(stack, method, clip_sigma, clip_star_fraction)


def build_reference(
    inputs: Sequence[CalibratedImage],
    *,
    name: str,
    extract: Callable[[Image, Background], Sources],
    model_psf: Callable[[Image, Background, Sources], Psf],
    solve: Callable[[Image, Sources], Wcs] | None = None,
    calibrate: Callable[[Image, Background, Sources, Psf, Wcs], ZeroPoint] | None = None,
    method: str = "clipped_mean",
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
        See `coadd`.
    name : str
        The reference set.
    extract, model_psf : callable
        `science.sources.extract_sources` and `science.psf_fit.build_psf`, their parameters bound.
    solve, calibrate : callable, optional
        Astrometry and photometry of the coadd; without them it keeps the WCS of the sharpest input
        and the common zero point.
    method, clip_sigma, clip_star_fraction, match_radius_arcsec, min_stars_linear
        See `coadd`.
    box_size_px : int
        Mesh of the coadd's own background.

    Returns
    -------
    Reference
    """
    stacked = coadd(
        inputs,
        method=method,
        clip_sigma=clip_sigma,
        clip_star_fraction=clip_star_fraction,
        match_radius_arcsec=match_radius_arcsec,
        min_stars_linear=min_stars_linear,
    )
    image = Image(stacked.info, stacked.data, stacked.flags)
    background = measure_background(image, box_size_px=box_size_px)
    sources = extract(image, background)
    psf = model_psf(image, background, sources)
    wcs = inputs[stacked.base].wcs if solve is None else solve(image, sources)
    zp = inputs[stacked.base].zp if calibrate is None else calibrate(image, background, sources, psf, wcs)
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
        members=stacked.members,
    )


def _member(item: CalibratedImage) -> _Member:
    image = item.image
    return _Member(image.info, item.psf, item.wcs, item.zp.zp, item.sources, image.data.shape)


def _checked_base(members: Sequence[_Member]) -> int:
    """Index of the sharpest input; refuses what cannot be combined."""
    if not members:
        raise ReferenceUnusable("reference: no images to coadd; relax the selection or add exposures")
    filters = sorted({member.info.filter for member in members})
    if len(filters) > 1:
        raise ReferenceUnusable(f"reference: images in different filters ({', '.join(filters)}); select one filter")
    for member in members:
        if not np.isfinite(member.zp):
            raise ReferenceUnusable(
                f"reference: {member.info.exposure} has no zero point; calibrate it or leave it out"
            )
    return int(np.argmin([member.fwhm_arcsec for member in members]))


class _Stack:
    """All inputs on the grid and zero point of the base, on disk, read back strip by strip."""

    def __init__(self, file: BinaryIO, members: Sequence[_Member], base: int) -> None:
        self.members, self.base, self.shape = members, base, members[base].shape
        self.headers: list[str] = []
        self.weight: list[float] = []
        #: Flags of any input, for pixels that none knows.
        self.seen: FlagImage = np.zeros(self.shape, np.uint16)
        self._file = file

    def add(self, item: CalibratedImage, *, match_radius_arcsec: float, min_stars_linear: int) -> None:
        """Register, warp and scale the next input and put it on disk."""
        target, member = self.members[self.base], self.members[len(self.headers)]
        header = member.wcs.header
        data = item.image.data - level_map(item.background)
        variance, flags = variance_map(item.image, item.background), item.image.flags
        if len(self.headers) != self.base:
            header = align(
                member.sources, header, target.sources, target.wcs.header,
                match_radius_arcsec=match_radius_arcsec, min_stars_linear=min_stars_linear,
            ).header  # fmt: skip
            grids = wcs_from_text(header), wcs_from_text(target.wcs.header)
            data, variance, flags = warp_image(data, variance, flags, *grids, self.shape)
        factor = np.float32(10 ** (0.4 * (target.zp - member.zp)))
        data *= factor
        variance *= factor**2
        variance[(flags != 0) | ~np.isfinite(data)] = np.inf
        self.seen |= flags
        sample = variance[::5, ::5]
        known = sample[np.isfinite(sample)]
        self.headers.append(header)
        self.weight.append(1 / float(np.median(known)) if known.size else 0.0)
        for plane in (data, variance):
            self._file.write(np.ascontiguousarray(plane, np.float32).tobytes())

    def strip(self, y0: int, y1: int) -> tuple[FloatImage, FloatImage]:
        """Data and variance of the rows from `y0` to `y1` of all inputs, shape (n, y1 - y0, nx)."""
        ny, nx = self.shape
        out = np.empty((2, len(self.headers), y1 - y0, nx), np.float32)
        for k in range(len(self.headers)):
            for plane in range(2):
                self._file.seek(4 * nx * (ny * (2 * k + plane) + y0))
                rows = self._file.read(out[plane, k].nbytes)
                out[plane, k] = np.frombuffer(rows, np.float32).reshape(-1, nx)
        return out[0], out[1]

    def strips(self, halo: int) -> list[tuple[int, int]]:
        """First and last row of strips that fit in memory with `halo` rows on both sides."""
        ny, nx = self.shape
        low, high = _STRIP_ROWS
        height = int(np.clip(_STRIP_BYTES / (8 * nx * len(self.headers)) - 2 * halo, low, high))
        n = max(1, -(-ny // height))
        return list(pairwise(ny * k // n for k in range(n + 1)))

    def psf_stamps(self) -> PsfStamps:
        """The PSFs of the inputs at a pixel of the common grid, on stamps of one size."""
        target = self.members[self.base]
        size = max(stamp_size(target.psf, member.psf) for member in self.members)
        pairs = [
            psf_pairs(target.psf, member.psf, target.wcs.header, header, size)
            for member, header in zip(self.members, self.headers, strict=True)
        ]
        return lambda x, y: [pair(x, y)[1] for pair in pairs]


def _combined(stack: _Stack, method: str, clip_sigma: float, clip_star_fraction: float) -> Coadd:
    """All strips, one after the other."""
    psfs = stack.psf_stamps()
    ny, nx = stack.shape
    data, variance = np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32)
    count = np.empty((ny, nx), np.uint16)
    center = psfs((nx - 1) / 2, (ny - 1) / 2)
    fwhm = np.array([member.fwhm_arcsec for member in stack.members])
    # Peaks depart from that of the median as the squares of the widths do.
    star_fraction = clip_star_fraction + np.abs(1 - (np.median(fwhm) / fwhm) ** 2)
    fwhm_px = float(np.median(fwhm)) / stack.members[stack.base].info.pixel_scale_arcsec
    clipping = {"fwhm_px": fwhm_px, "star_fraction": star_fraction.astype(np.float32), "clip_sigma": clip_sigma}
    weight = np.array(stack.weight, np.float32)
    margin = center[0].shape[0] // 2 if method == "proper" else 0
    halo = margin + clip_reach(fwhm_px)
    for y0, y1 in stack.strips(halo):
        low, high = max(y0 - halo, 0), min(y1 + halo, ny)
        planes, noise = stack.strip(low, high)
        clipped = clipped_mean(planes, noise, weight, **clipping)
        inner = slice(y0 - low, y1 - low)
        variance[y0:y1], count[y0:y1] = clipped.variance[inner], clipped.n_inputs[inner]
        data[y0:y1] = clipped.mean[inner]
        if method == "proper":
            cut = _filled(planes, clipped, (y0 - margin - low, y1 + margin - low))
            data[y0:y1] = proper_mean(cut, stack.weight, psfs, y0, margin)
    flags = np.where(count == 0, stack.seen | NO_DATA, np.uint16(0))
    if method == "proper":
        flags = grow_flags(flags, int(np.ceil(fwhm_px)))  # the filter carries what it found in holes this far
        data[flags != 0], variance[flags != 0] = 0.0, np.inf
        psf = proper_psf(center, stack.weight)
    else:
        psf = np.asarray(np.average(center, axis=0, weights=weight))
    zp, members = stack.members[stack.base].zp, tuple(member.info.exposure for member in stack.members)
    info = _coadd_info(stack.members, stack.base, float(np.median(count)))
    return Coadd(data, variance, flags, count, stack.base, zp, psf, info, members)


def _filled(planes: FloatImage, clipped: ClippedMean, rows: tuple[int, int]) -> FloatImage:
    """Some rows of the inputs, mirrored beyond the edge, with the mean of the others in place of what was left out."""
    mean = inpaint(clipped.mean, np.where(clipped.n_inputs == 0, NO_DATA, np.uint16(0)))
    np.copyto(planes, mean, where=clipped.left_out != 0)
    first, last = max(rows[0], 0), min(rows[1], planes.shape[1])
    pad = ((0, 0), (first - rows[0], rows[1] - last), (0, 0))
    return np.pad(planes[:, first:last], pad, mode="symmetric")


def _coadd_info(members: Sequence[_Member], base: int, depth: float) -> ImageInfo:
    """The sharpest input's, with the total exposure time and the gain and noise of a mean of `depth` images."""
    infos = [member.info for member in members]
    scale = [10 ** (0.4 * (members[base].zp - member.zp)) for member in members]
    depth = max(depth, 1.0)
    return replace(
        infos[base],
        mjd=min(info.mjd for info in infos),
        exptime_s=float(sum(info.exptime_s for info in infos)),
        airmass=float(np.mean([info.airmass for info in infos])),
        gain=float(np.mean([info.gain / s for info, s in zip(infos, scale, strict=True)])) * depth,
        read_noise=infos[base].read_noise * float(np.sqrt(depth)),
        saturation=min(info.saturation * s for info, s in zip(infos, scale, strict=True)),
        steps_done=(*infos[base].steps_done, "coadd"),
    )
