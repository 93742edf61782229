"""Proper image subtraction (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27; "ZOGY").

`subtract_tile` works on one tile with one PSF per image; `subtract_tiles` runs it over
overlapping tiles so that the PSFs may vary and memory stays bounded. The flux ratio is
taken out beforehand: both images are on the scale of the new one, F_n = F_r = 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

#: A fast length; the interior of a tile is what the margins leave of it. The kernels hold for its centre: where the
#: stars widen by 15 % over the field and the reference is the blurred one, tiles twice as large cost 1 % of a flux.
FFT_SIZE = 320
#: Core added to both PSFs (relative), so that where both transforms vanish below it the difference
#: tends to the plain one instead of 0/0. It costs a residual of 1e-4 (P_n - P_r) at a star.
CORE = 1e-4

Stamp = NDArray[np.float64]
Spectrum = NDArray[Any]  # complex64, the half that `rfft2` keeps
PsfPair = Callable[[float, float], tuple[Stamp, Stamp]]


@dataclass(frozen=True, slots=True)
class Subtraction:
    """What ZOGY gives before any calibration on the data, arrays of shape (ny, nx) in ADU of the new image.

    ``difference`` is D / F_D: a source keeps its counts, its PSF is P_D. ``flux`` is S / F_S, the best PSF
    flux of a point source at each pixel; ``flux_new`` its part S_N / F_S from the new image (eq. 25);
    ``flux_variance`` [ADU^2] is (V(S_N) + V(S_R)) / F_S^2 (eqs 26-28).
    """

    difference: FloatImage
    flux: FloatImage
    flux_new: FloatImage
    flux_variance: FloatImage


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile: the rows and columns it fills, and those it reads (which may reach over the edge)."""

    inner: tuple[slice, slice]
    outer: tuple[slice, slice]
    center: tuple[float, float]


def tiles(shape: tuple[int, int], margin: int) -> Iterator[Tile]:
    """Tiles that cover an image, each with its PSF margin, sized for `FFT_SIZE`."""
    ny, nx = shape
    step = max(FFT_SIZE - 2 * margin, 2 * margin)  # no more margin than interior, however wide the PSF
    edges = [_edges(n, step) for n in (ny, nx)]
    for y0, y1 in edges[0]:
        for x0, x1 in edges[1]:
            yield Tile(
                (slice(y0, y1), slice(x0, x1)),
                (slice(y0 - margin, y1 + margin), slice(x0 - margin, x1 + margin)),
                ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2),
            )


def subtract_tiles(
    new: FloatImage,
    reference: FloatImage,
    new_variance: FloatImage,
    reference_variance: FloatImage,
    psfs: PsfPair,
    margin: int,
    method: str = "zogy",
) -> Subtraction:
    """ZOGY over a whole image.

    Parameters
    ----------
    new, reference : ndarray of float32, shape (ny, nx)
        Background-subtracted images on one grid and flux scale, finite everywhere.
    new_variance, reference_variance : ndarray of float32, shape (ny, nx)
        Their variances [ADU^2], finite and positive.
    psfs : callable
        ``psfs(x, y)`` gives the PSF stamps of both at a pixel, odd, of sum 1.
    margin : int
        Pixels read around each tile: at least the half-width of the PSF stamps.
    method : str
        One of `METHODS`.

    Returns
    -------
    Subtraction
    """
    return filter_tiles(new, reference, new_variance, reference_variance, kernels_of(method, psfs), margin)


def kernels_of(method: str, psfs: PsfPair) -> "KernelsAt":
    """The kernels of one of `METHODS` wherever they are wanted."""

    def kernels(x: float, y: float, variance_n: float, variance_r: float, shape: tuple[int, int]) -> Kernels:
        return METHODS[method](*psfs(x, y), variance_n, variance_r, shape)

    return kernels


def filter_tiles(
    new: FloatImage,
    reference: FloatImage,
    new_variance: FloatImage,
    reference_variance: FloatImage,
    kernels: "KernelsAt",
    margin: int,
) -> Subtraction:
    """Apply kernels that vary over the field, tile by tile; arguments as in `subtract_tiles`."""
    result = Subtraction(*(np.empty(new.shape, np.float32) for _ in range(4)))
    for tile in tiles(new.shape, margin):

        def here(*arguments: Any, center: tuple[float, float] = tile.center) -> Kernels:
            return kernels(*center, *arguments)

        parts = _filtered(
            reflected(new, tile.outer),
            reflected(reference, tile.outer),
            reflected(new_variance, tile.outer),
            reflected(reference_variance, tile.outer),
            here,
        )
        inside = (slice(margin, -margin), slice(margin, -margin))
        for name in Subtraction.__slots__:
            getattr(result, name)[tile.inner] = getattr(parts, name)[inside]
    return result


def subtract_tile(
    new: FloatImage,
    reference: FloatImage,
    new_variance: FloatImage,
    reference_variance: FloatImage,
    new_psf: Stamp,
    reference_psf: Stamp,
    method: str = "zogy",
) -> Subtraction:
    """ZOGY of one tile, periodic at its edges; arguments as in `subtract_tiles`.

    The sky noises sigma_n, sigma_r of the equations are medians of the variances.
    """

    def kernels(variance_n: float, variance_r: float, shape: tuple[int, int]) -> Kernels:
        return METHODS[method](new_psf, reference_psf, variance_n, variance_r, shape)

    return _filtered(new, reference, new_variance, reference_variance, kernels)


def _filtered(
    new: FloatImage,
    reference: FloatImage,
    new_variance: FloatImage,
    reference_variance: FloatImage,
    kernels_for: "Callable[[float, float, tuple[int, int]], Kernels]",
) -> Subtraction:
    """One tile through the kernels for its sky noises."""
    from scipy import fft

    shape = tuple(fft.next_fast_len(n, real=True) for n in new.shape)
    sky = (float(np.median(new_variance[::5, ::5])), float(np.median(reference_variance[::5, ::5])))
    kernels = kernels_for(*sky, shape)

    def forward(image: FloatImage) -> Spectrum:
        return np.asarray(fft.rfft2(image, s=shape, workers=1))

    def back(spectrum: Spectrum) -> FloatImage:
        return np.asarray(fft.irfft2(spectrum, s=shape, workers=1)[: new.shape[0], : new.shape[1]])

    new_ft, reference_ft = forward(new), forward(reference)
    difference = back(kernels.difference_new * new_ft - kernels.difference_reference * reference_ft)
    new_ft *= kernels.flux_new
    flux_new = back(new_ft)
    reference_ft *= kernels.flux_reference
    new_ft -= reference_ft
    flux = back(new_ft)
    variance = forward(new_variance)
    variance *= kernels.variance_new
    reference_ft = forward(reference_variance)
    reference_ft *= kernels.variance_reference
    variance += reference_ft
    return Subtraction(difference, flux, flux_new, back(variance))


@dataclass(frozen=True, slots=True)
class Kernels:
    """Transforms (complex64) of the kernels that act on the new and the reference tile.

    ``difference_*`` give D / F_D (eq. 13), ``flux_*`` the two parts of S / F_S (eqs 17, 42),
    ``variance_*`` are the transforms of the squared ``flux_*`` kernels (eqs 26-28). ``response`` turns the PSF of
    the new image as it was taken into that of the difference.
    """

    difference_new: Spectrum
    difference_reference: Spectrum
    flux_new: Spectrum
    flux_reference: Spectrum
    variance_new: Spectrum
    variance_reference: Spectrum
    response: Spectrum


#: Kernels from a place (x, y), both sky variances [ADU^2] and the shape of the tile.
KernelsAt = Callable[[float, float, float, float, tuple[int, int]], Kernels]


def proper_kernels(
    new_psf: Stamp, reference_psf: Stamp, variance_n: float, variance_r: float, shape: tuple[int, int]
) -> Kernels:
    """ZOGY kernels of two PSF stamps and two sky variances [ADU^2], on tiles of `shape`."""
    p_n, p_r = _transform(new_psf, shape), _transform(reference_psf, shape)
    power_n, power_r = np.abs(p_n) ** 2, np.abs(p_r) ** 2
    denominator = np.float32(variance_n) * power_r + np.float32(variance_r) * power_n
    np.maximum(denominator, np.finfo(np.float32).tiny, out=denominator)
    response = np.float32(mean_of_half(power_n * power_r / denominator, shape))
    root = np.sqrt(np.float32(variance_n + variance_r) / denominator)
    denominator *= response
    flux_n, flux_r = np.conj(p_n) * (power_r / denominator), np.conj(p_r) * (power_n / denominator)
    variance_kernels = squared_kernel(flux_n, shape), squared_kernel(flux_r, shape)
    root_r = p_r * root
    return Kernels(root_r, p_n * root, flux_n, flux_r, *variance_kernels, root_r)


def direct_kernels(
    new_psf: Stamp, _reference_psf: Stamp, _variance_n: float, _variance_r: float, shape: tuple[int, int]
) -> Kernels:
    """Plain difference, filtered with the new image's PSF; for comparison, it leaves rings where the seeing differs."""
    p_n = _transform(new_psf, shape)
    one = np.ones_like(p_n)
    flux = np.conj(p_n) / np.float32(mean_of_half(np.abs(p_n) ** 2, shape))
    squared = squared_kernel(flux, shape)
    return Kernels(one, one, flux, flux, squared, squared, one)


METHODS = {"zogy": proper_kernels, "direct": direct_kernels}


def response_stamp(kernels: KernelsAt, x: float, y: float, sky_variance: tuple[float, float], stamp: Stamp) -> Stamp:
    """What a stamp of the new image becomes in the difference at a place; its PSF becomes that of D / F_D (eq. 14)."""
    from scipy import fft

    size = stamp.shape[0]
    shape = (fft.next_fast_len(2 * size, real=True),) * 2
    frame = np.zeros(shape, np.float32)
    frame[:size, :size] = stamp
    spectrum = kernels(x, y, *sky_variance, shape).response * fft.rfft2(frame)
    return np.asarray(fft.irfft2(spectrum, s=shape)[:size, :size], float)


def _transform(stamp: Stamp, shape: tuple[int, int]) -> Spectrum:
    """Transform of a stamp of sum 1 with its centre on pixel (0, 0), a core of `CORE` added."""
    ny, nx = stamp.shape
    unit = stamp / stamp.sum()
    unit[ny // 2, nx // 2] += CORE
    return stamp_transform(unit / (1 + CORE), shape)


def stamp_transform(stamp: Stamp, shape: tuple[int, int]) -> Spectrum:
    """Transform of an odd stamp with its centre on pixel (0, 0) of a frame."""
    from scipy import fft

    frame = np.zeros(shape, np.float32)
    ny, nx = stamp.shape
    frame[:ny, :nx] = stamp
    return np.asarray(fft.rfft2(np.roll(frame, (-(ny // 2), -(nx // 2)), axis=(0, 1)), workers=1))


def squared_kernel(spectrum: Spectrum, shape: tuple[int, int]) -> Spectrum:
    """Transform of the square of a kernel given by its transform."""
    from scipy import fft

    return np.asarray(fft.rfft2(fft.irfft2(spectrum, s=shape, workers=1) ** 2, workers=1))


def mean_of_half(values: NDArray[Any], shape: tuple[int, int]) -> float:
    """Mean over all frequencies of a real, symmetric spectrum of which `rfft2` keeps half."""
    twice = values[:, 1:-1] if shape[1] % 2 == 0 else values[:, 1:]
    return float((values.sum(dtype=np.float64) + twice.sum(dtype=np.float64)) / (shape[0] * shape[1]))


def _edges(length: int, step: int) -> list[tuple[int, int]]:
    """Equal parts of a length, none longer than `step`."""
    n = max(1, -(-length // step))
    return list(pairwise(length * k // n for k in range(n + 1)))


def reflected(image: FloatImage, outer: tuple[slice, slice]) -> FloatImage:
    """A cut that reaches over the edge, where the image is mirrored.

    Mirroring both images keeps a star that the edge cuts a star in both, so it still subtracts.
    """
    (ny, nx), (rows, columns) = image.shape, outer
    pad = [(max(0, -rows.start), max(0, rows.stop - ny)), (max(0, -columns.start), max(0, columns.stop - nx))]
    cut = image[max(rows.start, 0) : rows.stop, max(columns.start, 0) : columns.stop]
    return np.pad(cut, pad, mode="symmetric") if np.any(pad) else cut
