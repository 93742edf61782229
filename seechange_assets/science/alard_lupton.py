"""Matching kernel of Gaussians times polynomials (Alard & Lupton 1998, ApJ 503, 325; Alard 2000, A&AS 144, 363).

The kernel is fitted to stamps around bright sources that both images show. Each stamp enters by its own small
normal equations, in which the kernel is constant; the polynomial of the place multiplies them afterwards, so the
fit costs no more for a kernel that varies. Widths follow from the seeing of both images.

Two departures from the papers. Noise in the image that is convolved makes a plain least squares fit too small
a kernel ("regression dilution"), so the noise it adds to the normal equations is taken out of them. And the
complexity (degrees of the basis and of its variation over the field) is chosen by cross-validation over the
stamps, so that few or faint stars give a stiff kernel instead of a noisy one.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.science.gaussian_basis import BASIS_DEGREES, Basis, gaussian_basis
from seechange_assets.science.kernel_stamps import StampSums, stamp_sums
from seechange_assets.science.matching_kernel import ImagePair, MatchingKernel, n_terms, sharper_side, widths_px
from seechange_assets.science.psf import polynomial_terms
from seechange_assets.science.zogy import PsfPair

FloatArray = NDArray[np.float64]
Columns = NDArray[np.intp]

MIN_STARS = 3
STARS_PER_TERM = 6
_FOLDS = 6
_CLIP_SIGMA = 4.0
_CLIP_ROUNDS = 4
_LEAST_FRACTION = 0.01  # of the light of a bright star that may be left
_RIDGE = 1e-9
_LEAST_SIGNAL = 0.8  # share of a direction that is not noise, below which no more is taken out: it is hardly known


@dataclass(frozen=True, slots=True)
class Model:
    """Which kernels vary how: ``components`` (n_basis_used,), degree of their variation and of the sky's."""

    components: NDArray[np.intp]
    degree: int
    sky_degree: int


@dataclass(frozen=True, slots=True)
class Equations:
    """Normal equations of all kernels and the sky times all terms of the highest degree.

    Unknowns are ordered by component, within it by term, so that each `Model` is a choice of them. ``noise`` is the
    part of ``matrix`` (n, n) that the noise of the convolved image makes; ``square`` belongs to the target.
    """

    matrix: FloatArray
    noise: FloatArray
    vector: FloatArray
    square: float

    def __sub__(self, other: "Equations") -> "Equations":
        return Equations(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))


def fit_gaussian_kernel(
    pair: ImagePair, psfs: PsfPair, stars: FloatArray, where: str = "difference", *, degree: int = 2
) -> MatchingKernel:
    """The kernel that brings the sharper image to the PSF of the other.

    Parameters
    ----------
    pair : ImagePair
    psfs : callable
        PSF stamps of both at a place; only their widths are used.
    stars : ndarray of float, shape (n, 2)
        Places (x, y) [pixel] of sources seen in both images, the most significant first.
    where : str
        Names the image in errors.
    degree : int
        Highest degree of the kernel's variation over the field. The flux scale does not vary.

    Returns
    -------
    MatchingKernel

    Raises
    ------
    ReferenceUnusable
        Fewer than `MIN_STARS` sources are unflagged in both images, or they leave the kernel undetermined.
    """
    shape = pair.new.shape
    widths, side = widths_px(psfs, shape), sharper_side(psfs, shape)
    basis = gaussian_basis(min(widths), max(widths))
    sums = stamp_sums(pair, side, basis, stars, max(widths))
    if sums.x.size < MIN_STARS:
        raise ReferenceUnusable(
            f"{where}: {sums.x.size} sources are unflagged in image and reference, {MIN_STARS} are needed to fit a "
            "matching kernel; use diff.method zogy or a deeper reference"
        )
    sums = _clipped(sums, Model(basis.subset(BASIS_DEGREES[1]), 0, 0), basis, shape)
    model = _best_model(sums, basis, degree, shape)
    sums = _clipped(sums, model, basis, shape)
    factors = _fitted(sums, model, basis, shape)
    scale = float(factors[0, 0])
    if not (np.isfinite(factors).all() and 0.5 < scale < 2.0):
        raise ReferenceUnusable(
            f"{where}: the matching kernel has a sum of {scale:.3g} where 1 is expected; the images do not show the "
            "same sources, check flux scale and alignment or use diff.method zogy"
        )
    return MatchingKernel(
        convolves=side,
        basis=basis.kernels()[model.components],
        coefficients=factors[model.components],
        degree=model.degree,
        shape=shape,
        sky=factors[-1, : n_terms(model.sky_degree)],
        sky_degree=model.sky_degree,
    )


def _equations(sums: StampSums, basis: Basis, degree: int, shape: tuple[int, int]) -> Equations:
    """Add up the stamps, each with the terms of its place."""
    terms = polynomial_terms(sums.x, sums.y, degree, shape)
    n_stars, n_components = sums.vector.shape
    n_unknowns = n_components * terms.shape[1]
    pairs = (terms[:, :, None] * terms[:, None, :]).reshape(n_stars, -1)
    blocks = pairs.T @ sums.matrix.reshape(n_stars, -1)
    blocks = blocks.reshape(terms.shape[1], terms.shape[1], n_components, n_components)
    return Equations(
        blocks.transpose(2, 0, 3, 1).reshape(n_unknowns, n_unknowns),
        np.asarray(np.kron(_overlap(basis), (terms.T * sums.dilution) @ terms), np.float64),
        (sums.vector.T @ terms).ravel(),
        float(sums.square.sum()),
    )


def _overlap(basis: Basis) -> FloatArray:
    """Sums of products of the kernels; a last row and column of zeros stand for the sky."""
    flat = basis.kernels().reshape(len(basis.pairs), -1)
    return np.pad(flat @ flat.T, (0, 1))


def _columns(model: Model, n_components: int, degree: int) -> Columns:
    """The unknowns of a model; the first kernel, which carries the flux, does not vary."""
    used, used_sky = n_terms(model.degree), n_terms(model.sky_degree)
    stride = n_terms(degree)
    varying = model.components[1:, None] * stride + np.arange(used)
    sky = (n_components - 1) * stride + np.arange(used_sky)
    return np.concatenate([[0], varying.ravel(), sky])


def _solve(equations: Equations, columns: Columns) -> FloatArray:
    """Least squares with the noise of the convolved image taken out of the matrix; NaN where that is singular.

    In the directions in which both matrices are diagonal, the noise is a share nu of the sum: the plain solution
    is divided by 1 - nu.
    """
    from scipy.linalg import LinAlgError, eigh

    chosen = np.ix_(columns, columns)
    scale = 1 / np.sqrt(np.maximum(np.diag(equations.matrix)[columns], np.finfo(float).tiny))
    both = np.outer(scale, scale)
    matrix = equations.matrix[chosen] * both + _RIDGE * np.eye(len(scale))
    try:
        share, directions = eigh(equations.noise[chosen] * both, matrix)
    except LinAlgError:
        return np.full(len(scale), np.nan)
    amplitude = (directions.T @ (scale * equations.vector[columns])) / np.maximum(1 - share, _LEAST_SIGNAL)
    return np.asarray(scale * (directions @ amplitude))


def _residual(equations: Equations, columns: Columns, solution: FloatArray) -> float:
    """Sum of the squared, weighted residuals, less what the noise of the convolved image adds to them.

    A kernel that smooths would otherwise look better than the right one, because it leaves less of that noise.
    """
    chosen = np.ix_(columns, columns)
    quadratic = solution @ (equations.matrix[chosen] - equations.noise[chosen]) @ solution
    return float(equations.square - 2 * solution @ equations.vector[columns] + quadratic)


def _fitted(sums: StampSums, model: Model, basis: Basis, shape: tuple[int, int]) -> FloatArray:
    """Factors of all kernels and, last, the sky, on the terms of the model's degree; shape (n_basis+1, n_terms)."""
    n_components = sums.vector.shape[1]
    columns = _columns(model, n_components, model.degree)
    factors = np.zeros(n_components * n_terms(model.degree))
    factors[columns] = _solve(_equations(sums, basis, model.degree, shape), columns)
    return factors.reshape(n_components, -1)


def _mean_square(sums: StampSums, factors: FloatArray, degree: int, shape: tuple[int, int]) -> FloatArray:
    """Mean of the squared, weighted residuals of each stamp."""
    local = polynomial_terms(sums.x, sums.y, degree, shape) @ factors.T
    fitted = (local[:, None, :] @ sums.matrix @ local[:, :, None])[:, 0, 0]
    return np.asarray((sums.square - 2 * (local * sums.vector).sum(axis=1) + fitted) / sums.n_pixels)


def _clipped(sums: StampSums, model: Model, basis: Basis, shape: tuple[int, int]) -> StampSums:
    """Without the stamps whose residual stands out: variable stars, blends with something masked, cosmic rays.

    A kernel that is still too stiff leaves a fraction of the light of every bright star, which is no reason to drop
    the stars that say most about it: a stamp goes only if it leaves more than the others, of its light as well.
    """
    for _ in range(_CLIP_ROUNDS):
        residual = _mean_square(sums, _fitted(sums, model, basis, shape), model.degree, shape)
        light = sums.square / sums.n_pixels
        center = float(np.median(residual))
        # Chance alone scatters the mean of n squares by sqrt(2 / n).
        chance = center * np.sqrt(2 / np.median(sums.n_pixels))
        spread = max(1.4826 * float(np.median(np.abs(residual - center))), chance)
        bright = light >= np.median(light)
        fraction = max(float(np.median((residual - center)[bright] / light[bright])), _LEAST_FRACTION**2)
        keep = residual <= center + _CLIP_SIGMA * spread + _CLIP_SIGMA**2 * fraction * light
        if keep.all() or keep.sum() < max(MIN_STARS, sums.x.size // 2):
            break
        sums = sums[keep]
    return sums


def _best_model(sums: StampSums, basis: Basis, degree: int, shape: tuple[int, int]) -> Model:
    """The model that predicts best the stamps it was not fitted to.

    A freer one has to be better by more than the standard error of its gain (Breiman et al. 1984).
    """
    n_stars, n_components = sums.vector.shape
    fold = np.arange(n_stars) % min(_FOLDS, n_stars)
    held_out = [_equations(sums[fold == k], basis, degree, shape) for k in range(fold.max() + 1)]
    total = _equations(sums, basis, degree, shape)

    def errors(model: Model) -> FloatArray:
        columns = _columns(model, n_components, degree)
        return np.array([_residual(part, columns, _solve(total - part, columns)) for part in held_out])

    candidates = [
        Model(basis.subset(degrees), varies, min(varies, 1))
        for varies, degrees in product(range(degree + 1), BASIS_DEGREES)
        if varies == 0 or n_stars >= STARS_PER_TERM * n_terms(varies)
    ]
    candidates.sort(key=lambda model: _columns(model, n_components, degree).size)
    best, lowest = candidates[0], errors(candidates[0])
    for model in candidates[1:]:
        found = errors(model)
        gain = lowest - found
        if gain.sum() > np.sqrt(gain.size) * gain.std(ddof=1):
            best, lowest = model, found
    return best
