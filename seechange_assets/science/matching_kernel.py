"""A kernel that brings one image to the PSF of another, and the subtraction made with it.

How the kernel is found is the business of `science.alard_lupton` and its like; what follows is the same
for all of them. The difference ``N - K R - sky`` (or ``K N + sky - R``) has correlated noise, so it is whitened
(Reiss & Lupton 2016, DMTN-021; Zackay & Ofek 2017), and the flux is that of the matched filter for this noise.
With the true kernel this is as sensitive as proper subtraction.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FlagImage, FloatImage
from seechange_assets.science.psf import effective_area, polynomial_terms
from seechange_assets.science.zogy import (
    Kernels,
    KernelsAt,
    PsfPair,
    Spectrum,
    Subtraction,
    filter_tiles,
    mean_of_half,
    reflected,
    squared_kernel,
    stamp_transform,
    tiles,
)

Stamp = NDArray[np.float64]
FloatArray = NDArray[np.float64]
Side = Literal["reference", "new"]


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Both images, background-subtracted, on the new one's grid and flux scale, arrays of shape (ny, nx).

    Images and variances [ADU, ADU^2] are finite everywhere: filled where ``flags`` (of either image) is not zero.
    """

    new: FloatImage
    reference: FloatImage
    new_variance: FloatImage
    reference_variance: FloatImage
    flags: FlagImage


@dataclass(frozen=True, slots=True)
class MatchingKernel:
    """A kernel that varies over the field, and a sky level: one image convolved with it, plus the sky, is the other.

    Parameters
    ----------
    convolves : str
        The image that is convolved: ``reference`` (N = K R + sky) or ``new`` (R = K N + sky).
    basis : ndarray of float64, shape (n_basis, size, size)
        Kernels of odd size, centred.
    coefficients : ndarray of float64, shape (n_basis, n_terms)
        Factor of each: a polynomial of the place, in the terms of `science.psf.polynomial_terms`.
    degree : int
        Of that polynomial.
    shape : tuple of int
        ``(ny, nx)`` of the images.
    sky : ndarray of float64, shape (n_sky_terms,)
        Polynomial of the sky [ADU], added after the convolution.
    sky_degree : int
        Of that polynomial.
    """

    convolves: Side
    basis: FloatArray
    coefficients: FloatArray
    degree: int
    shape: tuple[int, int]
    sky: FloatArray
    sky_degree: int

    @property
    def size(self) -> int:
        """Odd side of the kernel [pixel]."""
        return int(self.basis.shape[-1])

    def term_kernels(self) -> FloatArray:
        """The kernel as a polynomial of the place: one kernel per term, shape (n_terms, size, size)."""
        return np.asarray(np.tensordot(self.coefficients.T, self.basis, axes=1))

    def at(self, x: float, y: float) -> Stamp:
        """The kernel at a pixel, shape (size, size)."""
        terms = polynomial_terms(x, y, self.degree, self.shape)[0]
        return np.asarray(np.tensordot(self.coefficients @ terms, self.basis, axes=1))

    def flux_scale(self, x: float, y: float) -> float:
        """Factor on fluxes at a pixel: the sum of the kernel."""
        return float(self.at(x, y).sum())


def n_terms(degree: int) -> int:
    """Terms of a polynomial of two coordinates."""
    return (degree + 1) * (degree + 2) // 2


def widths_px(psfs: PsfPair, shape: tuple[int, int]) -> tuple[float, float]:
    """Width of both PSFs (new, reference) as the sigma of the Gaussian of the same noise area, mean over the field."""
    ny, nx = shape
    places = [(x, y) for y in (0.1 * ny, 0.5 * ny, 0.9 * ny) for x in (0.1 * nx, 0.5 * nx, 0.9 * nx)]
    areas = np.array([[effective_area(stamp) for stamp in psfs(x, y)] for x, y in places])
    new, reference = np.sqrt(areas / (4 * np.pi)).mean(axis=0)
    return float(new), float(reference)


def sharper_side(psfs: PsfPair, shape: tuple[int, int]) -> Side:
    """The image to convolve; where both are alike, the reference, which usually has less noise."""
    new, reference = widths_px(psfs, shape)
    return "reference" if reference <= new else "new"


def convolve(image: FloatImage, kernel: MatchingKernel) -> FloatImage:
    """The image convolved with the kernel of each place, plus the sky.

    A kernel that is a polynomial of the place makes as many plain convolutions as the polynomial has
    terms, each then multiplied by its term (Alard 2000, A&AS 144, 363), so nothing jumps between tiles.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Finite everywhere; mirrored at its edges.
    kernel : MatchingKernel

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    from scipy import fft

    half = kernel.size // 2
    out = np.empty_like(image)
    spectra: dict[tuple[int, int], list[Spectrum]] = {}
    term_kernels = kernel.term_kernels()
    for tile in tiles(image.shape, half):
        cut = reflected(image, tile.outer)
        shape = (fft.next_fast_len(cut.shape[0], real=True), fft.next_fast_len(cut.shape[1], real=True))
        if shape not in spectra:
            spectra[shape] = [stamp_transform(term, shape) for term in term_kernels]
        cut_ft = fft.rfft2(cut, s=shape, workers=1)
        parts = [fft.irfft2(cut_ft * term, s=shape, workers=1) for term in spectra[shape]]
        inside = (slice(half, cut.shape[0] - half), slice(half, cut.shape[1] - half))
        sky_maps = _term_maps(tile.inner, kernel.shape, kernel.sky_degree)
        total = np.tensordot(kernel.sky.astype(np.float32), sky_maps, axes=1)
        for part, term in zip(parts, _term_maps(tile.inner, kernel.shape, kernel.degree), strict=True):
            total += term * part[inside]
        out[tile.inner] = total
    return out


def matching_kernels(
    kernel: MatchingKernel,
    psfs: PsfPair,
    x: float,
    y: float,
    variance_n: float,
    variance_r: float,
    shape: tuple[int, int],
) -> Kernels:
    """Filters for the pair of a convolved image and the other one, at a place; see `science.zogy.Kernels`.

    With V = sigma_n^2 + sigma_r^2 |K|^2 (or its mirror image) the power spectrum of the noise, the difference is
    whitened by sqrt(V(0) / V), and the flux is conj(P) D / V over the mean of |P|^2 / V, P the PSF of the difference.
    """
    stamp = kernel.at(x, y)
    k = stamp_transform(stamp, shape)
    p = stamp_transform(psfs(x, y)[0], shape)
    if kernel.convolves == "reference":
        scale, noise = np.float32(1), variance_n + variance_r * np.abs(k) ** 2
    else:
        scale = np.float32(1 / stamp.sum())
        k *= scale
        p *= k
        noise = variance_n * np.abs(k) ** 2 + variance_r * scale**2
    noise = np.asarray(noise, np.float32)
    flux = np.conj(p) / noise
    flux /= np.float32(mean_of_half(np.abs(p) ** 2 / noise, shape))
    white = np.sqrt(noise[0, 0] / noise)
    plain, convolved = squared_kernel(flux * scale, shape), squared_kernel(flux * k, shape)
    if kernel.convolves == "reference":
        return Kernels(white, white, flux, flux, plain, convolved, white)
    return Kernels(white * scale, white * scale, flux * scale, flux * scale, convolved, plain, white * k)


def subtract_with_kernel(
    new: FloatImage,
    reference: FloatImage,
    new_variance: FloatImage,
    reference_variance: FloatImage,
    kernel: MatchingKernel,
    psfs: PsfPair,
    margin: int,
) -> Subtraction:
    """Subtraction with a matching kernel; arguments and result as in `science.zogy.subtract_tiles`.

    Fluxes are those of the new image. ``difference`` is whitened, so that its pixels are independent.
    """
    if kernel.convolves == "reference":
        reference = convolve(reference, kernel)
    else:
        new = convolve(new, kernel)
    return filter_tiles(new, reference, new_variance, reference_variance, kernels_at(kernel, psfs), margin)


def kernels_at(kernel: MatchingKernel, psfs: PsfPair) -> KernelsAt:
    """The filters of `matching_kernels` wherever they are wanted."""

    def kernels(x: float, y: float, variance_n: float, variance_r: float, shape: tuple[int, int]) -> Kernels:
        return matching_kernels(kernel, psfs, x, y, variance_n, variance_r, shape)

    return kernels


def _term_maps(inner: tuple[slice, slice], shape: tuple[int, int], degree: int) -> FloatImage:
    """The polynomials of the place on the pixels of a tile, shape (n_terms, height, width)."""
    rows, columns = (np.arange(part.start, part.stop, dtype=float) for part in inner)
    ny, nx = shape
    # Terms are products of a power of x and one of y, so two short tables make the maps.
    u = polynomial_terms(columns, (ny - 1) / 2, 1, shape)[:, 1].astype(np.float32)
    v = polynomial_terms((nx - 1) / 2, rows, 1, shape)[:, 2].astype(np.float32)
    powers = [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]
    return np.stack([v[:, None] ** j * u[None, :] ** i for i, j in powers])
