"""Matching kernel of free pixels, solved in Fourier space (Hu et al. 2022, ApJ 936, 157; "SFFT").

The kernel is a sum of shifted delta functions whose amplitudes are polynomials of the place. Its least
squares over a whole image need only cross-correlations of the image with itself, multiplied by the terms
of the polynomials, at lags of up to twice the kernel's reach (their appendix A). Those are sums over the
image, so they are added up block by block (`science.sfft_sums`): memory does not grow with the image.
What must not drive the solution is zero in both images (their "image masking"): all but the surroundings
of given sources. Beyond the original, every source counts by its own noise, the mask fades out instead of
cutting, and one more step takes out what the mask does to the light that the kernel carries across its border.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import FlagImage, FloatImage
from seechange_assets.science.matching_kernel import ImagePair, MatchingKernel, n_terms, sharper_side, widths_px
from seechange_assets.science.psf import polynomial_terms
from seechange_assets.science.sfft_sums import Correlations, Scene, correlate, correlate_residual
from seechange_assets.science.zogy import PsfPair

FloatArray = NDArray[np.float64]
Pixels = NDArray[np.intp]
Mask = NDArray[np.bool_]

MIN_SOURCES = 3
_SOURCES_PER_TERM = 25  # of the polynomial: with fewer, so many free pixels follow each source's noise and neighbours
_RIDGE = 1e-10  # of the mean of the diagonal: far below any noise, it keeps images without noise solvable
_LEAST_ERROR = 0.005  # relative error that no pixel of a source is better than; keeps one bright star from deciding
_CLIP_SIGMA = 5.0
_FWHM = 2.3548
_INNER_FWHM = 2.0  # radius around a source that counts in full
_REACH_FWHM = 1.5
_MIN_HALF_PX, _MAX_HALF_PX = 3, 15


def default_device() -> str:
    """``cuda`` where torch finds a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fit_sfft(
    pair: ImagePair,
    psfs: PsfPair,
    stars: FloatArray,
    where: str = "difference",
    *,
    half_width_px: int | None = None,
    degree: int = 2,
    sky_degree: int = 0,
    device: str | None = None,
) -> MatchingKernel:
    """The kernel that brings the sharper image to the PSF of the other.

    Parameters
    ----------
    pair : ImagePair
    psfs : callable
        PSF stamps of both at a place; only their widths are used.
    stars : ndarray of float, shape (n, 2)
        Places (x, y) [pixel] of sources, stars or galaxies, seen in both images. Those with a flagged pixel near
        their centre, and those whose light does not repeat, are left out.
    where : str
        Names the image in errors.
    half_width_px : int, optional
        Reach w of the kernel, which has (2w+1)^2 pixels; `default_half_width` if not given.
    degree, sky_degree : int
        Of the polynomials; that of the kernel is lowered where the sources are few. The flux scale does not vary.
    device : str, optional
        ``cpu`` or ``cuda``; `default_device` if not given. Both give the same kernel.

    Returns
    -------
    MatchingKernel

    Raises
    ------
    ReferenceUnusable
        Fewer than `MIN_SOURCES` usable sources.
    """
    side = sharper_side(psfs, pair.new.shape)
    image, target = (pair.reference, pair.new) if side == "reference" else (pair.new, pair.reference)
    fwhm_px = _FWHM * max(widths_px(psfs, image.shape))
    half = default_half_width(fwhm_px) if half_width_px is None else half_width_px
    variance = pair.new_variance + pair.reference_variance
    inner = int(np.ceil(_INNER_FWHM * fwhm_px))
    sources = _usable(stars, pair.flags, inner, inner + half, where)
    keep = _same_flux(image, target, variance, sources, inner)
    device = default_device() if device is None else device
    for stiffer in (1, 0):  # what changed is sought with a stiffer kernel, because a free one bends towards it
        allowed = max(_allowed_degree(degree, int(keep.sum())) - stiffer, 0)
        weight = source_weight(target, variance, pair.flags, sources, keep, inner, inner + half)
        scene = Scene(image, target, weight, half, allowed, sky_degree, device)
        equations = _Equations.of(correlate(scene))
        amplitudes, sky = equations.solution
        target_sums, sky_sums, residual = correlate_residual(scene, amplitudes, sky)
        if stiffer:
            keep = _repeating(residual, target, variance, sources, keep, _fading(inner, inner + half))
    more, more_sky = equations.solve(target_sums, sky_sums)
    basis = np.eye((2 * half + 1) ** 2).reshape(-1, *amplitudes.shape[1:])
    coefficients = _at_output(amplitudes + more, allowed, image.shape)
    return MatchingKernel(side, basis, coefficients, allowed, image.shape, sky + more_sky, sky_degree)


def default_half_width(fwhm_px: float) -> int:
    """Reach of the kernel for the wider PSF's FWHM [pixel]: wings of the PSFs differ as far out as that."""
    return int(np.clip(np.ceil(_REACH_FWHM * fwhm_px), _MIN_HALF_PX, _MAX_HALF_PX))


def source_weight(
    target: FloatImage, variance: FloatImage, flags: FlagImage, sources: Pixels, keep: Mask, inner: int, outer: int
) -> FloatImage:
    """Square root of the weights: 1/sigma of each source around it, fading to 0 between `inner` and `outer` [pixel].

    Around the sources that are not kept it is zero, also where they lie beside one that is.

    Sigma is the noise of a pixel, averaged over the source as its flux feels it. Where sources overlap
    the weights are blended, because a step in them would not convolve to the same step in the other image.
    """
    profile = _fading(inner, outer)
    total, cover = np.zeros(target.shape, np.float32), np.zeros(target.shape, np.float32)
    missing = np.ones(target.shape, np.float32)
    core = _radius(inner) <= inner / 2
    for source in sources[keep]:
        near, cut = _around(source, inner), _around(source, outer)
        light = np.square(target[near][core], dtype=float)
        noise = (light * (variance[near][core] + _LEAST_ERROR**2 * light)).sum() / light.sum()
        total[cut] += profile / np.float32(np.sqrt(noise))
        cover[cut] += profile
        missing[cut] *= 1 - profile
    total *= 1 - missing
    total /= np.maximum(cover, np.float32(1e-6))
    for source in sources[~keep]:
        total[_around(source, outer)] *= 1 - profile
    total[flags != 0] = 0
    return total


def _usable(stars: FloatArray, flags: FlagImage, inner: int, outer: int, where: str) -> Pixels:
    """Central pixels (n, 2: y, x) of the sources that lie inside the image and have no flag near."""
    ny, nx = flags.shape
    pixels = np.rint(stars[:, ::-1]).astype(np.intp)
    inside = (pixels >= outer).all(axis=1) & (pixels < (ny - outer, nx - outer)).all(axis=1)
    disk = _radius(inner) <= inner
    clean = [source for source in pixels[inside] if not flags[_around(source, inner)][disk].any()]
    if len(clean) < MIN_SOURCES:
        raise ReferenceUnusable(
            f"{where}: {len(clean)} sources are unflagged in image and reference, {MIN_SOURCES} are needed to fit a "
            "matching kernel; use diff.method zogy or a deeper reference"
        )
    return np.array(clean)


def _allowed_degree(degree: int, n_sources: int) -> int:
    while degree > 0 and n_sources < _SOURCES_PER_TERM * n_terms(degree):
        degree -= 1
    return degree


@dataclass(frozen=True, slots=True)
class _Equations:
    """The normal equations, factored, of a kernel whose sum is the same everywhere.

    Unknowns are the pixels of each term's kernel, term by term, then the sky. The central pixel of a
    term other than the first is minus the sum of the others of that term: such a term only moves light about, and
    its delta functions become differences from the central one.
    """

    factor: Any
    scale: FloatArray
    right: FloatArray
    free: Mask
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, sums: Correlations) -> "_Equations":
        from scipy.linalg import cho_factor

        shape = sums.target.shape
        matrix = _normal_matrix(sums)
        free = np.ones(len(matrix), bool)
        for block, center in _varying(shape):
            matrix[block] -= matrix[center].copy()
            matrix[:, block] -= matrix[:, center].copy()[:, None]
            free[center] = False
        matrix = matrix[np.ix_(free, free)]
        scale = 1 / np.sqrt(np.diag(matrix))
        matrix *= scale * scale[:, None]
        matrix[np.diag_indices_from(matrix)] += _RIDGE
        right = np.concatenate([sums.target.ravel(), sums.sky_target])
        return cls(cho_factor(matrix, lower=True, overwrite_a=True), scale, right, free, shape)

    @property
    def solution(self) -> tuple[FloatArray, FloatArray]:
        """Kernels of the terms (n_terms, size, size) and sky."""
        n = int(np.prod(self.shape))
        return self.solve(self.right[:n].reshape(self.shape), self.right[n:])

    def solve(self, target: FloatArray, sky_target: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The same with another right side."""
        from scipy.linalg import cho_solve

        right = np.concatenate([target.ravel(), sky_target])
        for block, center in _varying(self.shape):
            right[block] -= right[center]
        unknown = np.zeros(right.size)
        unknown[self.free] = self.scale * cho_solve(self.factor, self.scale * right[self.free])
        for block, center in _varying(self.shape):
            unknown[center] = -unknown[block].sum()
        n = target.size
        return unknown[:n].reshape(self.shape), unknown[n:]


def _varying(shape: tuple[int, int, int]) -> list[tuple[slice, int]]:
    """Unknowns of each term but the first, and which of them is the central pixel."""
    count, size = shape[0], shape[1] * shape[2]
    return [(slice(term * size, (term + 1) * size), term * size + size // 2) for term in range(1, count)]


def _normal_matrix(sums: Correlations) -> FloatArray:
    count, n_sky, size, _ = sums.sky.shape
    n = size**2
    rows, columns = (index.ravel() for index in np.indices((size, size)))
    # Pixels k and l of a kernel meet at lag k - l.
    lag = (rows[:, None] - rows + size - 1, columns[:, None] - columns + size - 1)
    matrix = np.empty((count * n + n_sky,) * 2)
    for a, b in np.ndindex(count, count):
        matrix[a * n : (a + 1) * n, b * n : (b + 1) * n] = sums.images[a, b][lag]
    cross = sums.sky.transpose(0, 2, 3, 1).reshape(count * n, n_sky)
    matrix[: count * n, count * n :] = cross
    matrix[count * n :, : count * n] = cross.T
    matrix[count * n :, count * n :] = sums.sky_sky
    return matrix


def _at_output(amplitudes: FloatArray, degree: int, shape: tuple[int, int]) -> FloatArray:
    """From polynomials of the place where light comes from to those of where it goes; (n_pixels, n_terms).

    Light that pixel k of the kernel brings to x comes from x - k: p(x - k) is another polynomial of the
    same degree in x, found here from its values at enough places.
    """
    count, size, _ = amplitudes.shape
    half, steps = size // 2, np.linspace(0.25, 0.75, degree + 2)
    y, x = (grid.ravel() for grid in np.meshgrid(steps * shape[0], steps * shape[1], indexing="ij"))
    inverse = np.linalg.pinv(polynomial_terms(x, y, degree, shape))
    result = np.empty((size**2, count))
    for pixel, (j, i) in enumerate(np.ndindex(size, size)):
        shifted = polynomial_terms(x - (i - half), y - (j - half), degree, shape)
        result[pixel] = inverse @ (shifted @ amplitudes[:, j, i])
    return result


def _same_flux(image: FloatImage, target: FloatImage, variance: FloatImage, sources: Pixels, radius: int) -> Mask:
    """Sources whose light within `radius` is the same in both images, within the scatter of most of them.

    This needs no kernel, so that bright sources that changed cannot bend the first one towards them.
    """
    disk = _radius(radius) <= radius
    sums = np.array([[plane[_around(s, radius)][disk].sum() for plane in (image, target, variance)] for s in sources])
    first, second, error2 = sums.T
    scale = np.median(second / first)
    change = second - scale * first
    error = np.sqrt(error2 + np.square(_LEAST_ERROR * second))
    center, spread = np.median(change / error), max(1.4826 * np.median(np.abs(change / error)), 1.0)
    return _enough(np.abs(change / error - center) <= _CLIP_SIGMA * spread)


def _repeating(
    residual: FloatImage, target: FloatImage, variance: FloatImage, sources: Pixels, keep: Mask, profile: FloatImage
) -> Mask:
    """Those of the kept sources that the kernel brings to the other image within the scatter of most of them.

    Variables, transients on hosts and blends with them stand out in the mean square of the residual. A kernel leaves a
    part of the light of every source, most significantly of the brightest, which say most about it: a source goes
    only if it leaves more than the others of its light as well.
    """
    left, light = np.empty(len(sources)), np.empty(len(sources))
    weight = np.square(profile)
    for k, source in enumerate(sources):
        here = _around(source, len(profile) // 2)
        left[k] = np.sum(weight * np.square(residual[here]) / variance[here])
        light[k] = np.sum(weight * np.square(target[here], dtype=float) / variance[here])
    center = np.median(left[keep])
    spread = max(1.4826 * np.median(np.abs(left[keep] - center)), center * np.sqrt(2 / weight.sum()))
    bright = keep & (light >= np.median(light[keep]))
    fraction = max(float(np.median((left[bright] - center) / light[bright])), _LEAST_ERROR**2)
    return _enough(keep & (left <= center + _CLIP_SIGMA * spread + _CLIP_SIGMA**2 * fraction * light))


def _enough(keep: Mask) -> Mask:
    """What to keep, or everything where that is too little."""
    return keep if keep.sum() >= MIN_SOURCES else np.ones_like(keep)


def _fading(inner: int, outer: int) -> FloatImage:
    """1 within the inner radius, 0 from the outer one on; shape (2 outer + 1, 2 outer + 1)."""
    part = np.clip((outer - _radius(outer)) / (outer - inner), 0, 1)
    return np.asarray(np.sin(np.pi / 2 * part) ** 2, np.float32)


def _radius(half: int) -> FloatArray:
    """Distance from the centre on a stamp of side 2 half + 1."""
    offset = np.arange(-half, half + 1)
    return np.asarray(np.hypot(offset[:, None], offset))


def _around(pixel: Pixels, half: int) -> tuple[slice, slice]:
    row, column = int(pixel[0]), int(pixel[1])
    return slice(row - half, row + half + 1), slice(column - half, column + half + 1)
