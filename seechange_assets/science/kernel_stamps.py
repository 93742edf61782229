"""Stamps around the sources of two images, and the normal equations of a matching kernel on each of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage
from seechange_assets.science.gaussian_basis import Basis
from seechange_assets.science.inpaint import grow_flags
from seechange_assets.science.matching_kernel import ImagePair, Side

FloatArray = NDArray[np.float64]

MAX_STARS = 250
#: No pixel counts as better known than this fraction of its light: PSFs vary by more within a stamp.
LEAST_ERROR = 0.01
_STAMP_FWHM = 2.5  # radius of the fit
_FWHM = 2.3548
_MIN_KNOWN = 0.7  # part of a stamp's pixels


@dataclass(frozen=True, slots=True)
class StampSums:
    """Normal equations of each stamp; the unknowns are the kernels' factors and, last, a sky level.

    ``matrix`` (n, n_basis+1, n_basis+1), ``vector`` (n, n_basis+1), ``square`` (n,) the weighted square of the target,
    ``dilution`` (n,) the weighted noise variance of the convolved image, ``n_pixels`` (n,), ``x``, ``y`` (n,).
    """

    matrix: FloatArray
    vector: FloatArray
    square: FloatArray
    dilution: FloatArray
    n_pixels: FloatArray
    x: FloatArray
    y: FloatArray

    def __getitem__(self, rows: Any) -> "StampSums":
        return StampSums(*(getattr(self, name)[rows] for name in self.__slots__))


def stamp_sums(pair: ImagePair, side: Side, basis: Basis, stars: FloatArray, blurred_px: float) -> StampSums:
    """Normal equations of the stamps around those of the stars that enough known pixels surround."""
    half = basis.factors.shape[1] // 2
    radius = int(np.ceil(_STAMP_FWHM * _FWHM * blurred_px))
    sharp, blurred, sharp_variance, blurred_variance = _sides(pair, side)
    known = _known(pair, int(np.ceil(_FWHM * blurred_px)))
    chosen, mask = _usable(known, stars, radius, blurred_px)
    place = chosen[:MAX_STARS]
    columns = _convolved(_stamps(sharp, place, radius + half), basis)
    # The variance follows the light of the same noisy pixels: smoothed, it does not favour those that came out low.
    noise = _smoothed(_stamps(blurred_variance, place, radius + half), basis)
    noise += _smoothed(_stamps(sharp_variance, place, radius + half), basis) * (basis.kernels()[0] ** 2).sum()
    weight = mask[:MAX_STARS] / (noise + (LEAST_ERROR * columns[..., 0]) ** 2)
    target = _stamps(blurred, place, radius).reshape(weight.shape)
    weighted = columns * weight[..., None]
    mean_variance = np.median(_stamps(sharp_variance, place, radius).reshape(weight.shape), axis=1)
    return StampSums(
        np.swapaxes(columns, 1, 2) @ weighted,
        (np.swapaxes(weighted, 1, 2) @ target[..., None])[..., 0],
        (weight * target**2).sum(axis=1),
        weight.sum(axis=1) * mean_variance,
        (weight > 0).sum(axis=1).astype(float),
        place[:, 0].astype(float),
        place[:, 1].astype(float),
    )


def _sides(pair: ImagePair, side: Side) -> tuple[FloatImage, FloatImage, FloatImage, FloatImage]:
    """Image to convolve, the other, and their variances."""
    if side == "reference":
        return pair.reference, pair.new, pair.reference_variance, pair.new_variance
    return pair.new, pair.reference, pair.new_variance, pair.reference_variance


def _known(pair: ImagePair, reach: int) -> NDArray[np.bool_]:
    """Pixels away from flags and border by more than the core of the kernel."""
    known = grow_flags((pair.flags != 0).astype(np.uint16), reach) == 0
    border = np.zeros_like(known)
    border[reach:-reach, reach:-reach] = True
    return np.asarray(known & border)


def _usable(
    known: NDArray[np.bool_], stars: FloatArray, radius: int, blurred_px: float
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Central pixels of the usable stars, and which pixels of their round stamps count."""
    place = np.rint(stars).astype(np.intp).reshape(-1, 2)
    ny, nx = known.shape
    place = place[(place[:, 0] >= 0) & (place[:, 0] < nx) & (place[:, 1] >= 0) & (place[:, 1] < ny)]
    axis = np.arange(-radius, radius + 1)
    distance = np.hypot(axis[:, None], axis[None, :]).ravel()
    mask = _stamps(known, place, radius).reshape(len(place), distance.size) & (distance <= radius)
    core = distance <= _FWHM * blurred_px / 2
    good = mask[:, core].all(axis=1) & (mask.sum(axis=1) >= _MIN_KNOWN * (distance <= radius).sum())
    return place[good], mask[good]


def _stamps(image: NDArray[Any], place: NDArray[np.intp], half: int) -> NDArray[Any]:
    """Square cuts around some pixels, the border repeated beyond it; shape (n, 2 half + 1, 2 half + 1)."""
    axis = np.arange(-half, half + 1)
    rows = np.clip(place[:, 1, None] + axis, 0, image.shape[0] - 1)
    columns = np.clip(place[:, 0, None] + axis, 0, image.shape[1] - 1)
    cut = image[rows[:, :, None], columns[:, None, :]]
    return np.asarray(cut if cut.dtype == bool else cut.astype(np.float64))


def _convolved(stamps: FloatArray, basis: Basis) -> FloatArray:
    """Stamps convolved with each kernel where it fits inside, and a column of ones; (n, n_pixels, n_basis+1)."""
    toeplitz = _toeplitz(basis.factors, stamps.shape[-1])
    along_x = np.einsum("syx,fox->sfyo", stamps, toeplitz, optimize=True)
    n, side = len(stamps), toeplitz.shape[1]
    raw = np.empty((n, len(basis.pairs), side * side))
    for k, (i, j) in enumerate(basis.pairs):
        raw[:, k] = (toeplitz[j] @ along_x[:, i]).reshape(n, side * side)
    mixed = np.ones((n, side * side, len(basis.pairs) + 1))
    mixed[..., :-1] = np.swapaxes(basis.mix @ raw, 1, 2)
    return mixed


def _smoothed(stamps: FloatArray, basis: Basis) -> FloatArray:
    """Stamps smoothed with the narrow Gaussian, shape (n, n_pixels)."""
    profile = basis.factors[:1] / basis.factors[0].sum()
    matrix = _toeplitz(profile, stamps.shape[-1])[0]
    return np.asarray((matrix @ stamps @ matrix.T).reshape(len(stamps), len(matrix) ** 2))


def _toeplitz(factors: FloatArray, length: int) -> FloatArray:
    """Matrices (n_factors, length - size + 1, length) that convolve a row of pixels with each profile."""
    size = factors.shape[1]
    matrix = np.zeros((len(factors), length - size + 1, length))
    for k in range(matrix.shape[1]):
        matrix[:, k, k : k + size] = factors[:, ::-1]
    return matrix
