"""The kernels of Alard & Lupton (1998, ApJ 503, 325): Gaussians times polynomials, separable in x and y."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Powers of x and y that go with the narrow, middle and wide Gaussian and with the single pixel, from stiff to free;
#: -1 leaves one out.
BASIS_DEGREES = ((0, 0, 0, -1), (0, 0, 0, 0), (2, 0, 0, 0), (2, 2, 0, 0), (4, 2, 2, 0))
_NARROWEST_PX = 0.7  # a Gaussian below that is not sampled
_SINGLE_PIXEL_PX = 0.1  # a Gaussian that narrow is zero on the neighbours
_MAX_HALF_PX = 30


@dataclass(frozen=True, slots=True)
class Basis:
    """Gaussians times x^i y^j, separable: ``factors`` (n_factors, size) holds the profiles along one axis.

    ``pairs`` (n_basis, 2) names the profiles along x and y of each kernel, ``group`` (n_basis,) its Gaussian and
    ``power`` (n_basis,) i + j. ``mix`` (n_basis, n_basis) makes of these products kernels of which the first has sum
    1 and all others sum 0, so that one coefficient alone is the flux scale.
    """

    factors: FloatArray
    pairs: NDArray[np.intp]
    group: NDArray[np.intp]
    power: NDArray[np.intp]
    mix: FloatArray

    def kernels(self) -> FloatArray:
        """The kernels, shape (n_basis, size, size)."""
        raw = self.factors[self.pairs[:, 1]][:, :, None] * self.factors[self.pairs[:, 0]][:, None, :]
        return np.asarray(np.tensordot(self.mix, raw, axes=1))

    def subset(self, degrees: tuple[int, ...]) -> NDArray[np.intp]:
        """Rows of the kernels with powers up to the degree of each Gaussian."""
        return np.flatnonzero(self.power <= np.asarray(degrees)[self.group])


def gaussian_basis(sharp_px: float, blurred_px: float) -> Basis:
    """Basis for two PSFs of these Gaussian widths [pixel].

    The kernel's own width is about w = sqrt(blurred^2 - sharp^2); the Gaussians have w / 2, w and 2 w (Israel,
    Hessman & Schuh 2007), but not less than what the pixels or the sharper PSF can tell apart. A single pixel
    comes in addition: where the seeing is alike, no Gaussian is as narrow as the kernel.
    """
    matched = np.sqrt(max(blurred_px**2 - sharp_px**2, 0.0))
    narrow = max(matched / 2, _NARROWEST_PX, 0.35 * sharp_px)
    sigmas = narrow * np.array([1.0, 2.0, 4.0])
    half = min(int(np.ceil(3 * sigmas[-1])), _MAX_HALF_PX)
    u = np.arange(-half, half + 1.0)
    factors: list[FloatArray] = []
    pairs, group, power = [], [], []
    for k, (sigma, highest) in enumerate(zip((*sigmas, _SINGLE_PIXEL_PX), BASIS_DEGREES[-1], strict=True)):
        start = len(factors)
        gauss = np.exp(-0.5 * (u / sigma) ** 2)
        factors += [gauss * (u / sigma) ** i for i in range(highest + 1)]
        for i, j in product(range(highest + 1), repeat=2):
            if i + j <= highest:
                pairs.append((start + i, start + j))
                group.append(k)
                power.append(i + j)
    table, index = np.array(factors), np.array(pairs, np.intp)
    return Basis(table, index, np.array(group), np.array(power), _mixing(table, index))


def _mixing(factors: FloatArray, pairs: NDArray[np.intp]) -> FloatArray:
    """Combinations of which the first has sum 1, the others sum 0, all of similar size."""
    sums = factors.sum(axis=1)
    totals = sums[pairs[:, 0]] * sums[pairs[:, 1]]
    totals[np.abs(totals) < 1e-9 * totals[0]] = 0.0  # odd powers, up to rounding
    squares = (factors**2).sum(axis=1)
    norms = np.sqrt(squares[pairs[:, 0]] * squares[pairs[:, 1]])
    mix = np.diag(1 / norms)
    mix[:, 0] -= totals / norms / totals[0]
    mix[0] = 0.0
    mix[0, 0] = 1 / totals[0]
    return np.asarray(mix)
