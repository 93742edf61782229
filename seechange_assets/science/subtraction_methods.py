"""The ways to subtract, by name; all give the same maps and the same kind of PSF of the difference."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError
from seechange_assets.science.alard_lupton import fit_gaussian_kernel
from seechange_assets.science.matching_kernel import ImagePair, MatchingKernel, kernels_at, subtract_with_kernel
from seechange_assets.science.sfft import fit_sfft
from seechange_assets.science.zogy import METHODS as PSF_METHODS
from seechange_assets.science.zogy import KernelsAt, PsfPair, Subtraction, kernels_of, subtract_tiles

#: Fits a kernel: (pair, psfs, places of common sources, brightest first, name for errors).
KernelFit = Callable[[ImagePair, PsfPair, NDArray[np.float64], str], MatchingKernel]

KERNEL_METHODS: dict[str, KernelFit] = {"alard_lupton": fit_gaussian_kernel, "sfft": fit_sfft}
METHODS = (*PSF_METHODS, *KERNEL_METHODS)


def check_method(method: str) -> None:
    """Refuse a name that is none of `METHODS`.

    Raises
    ------
    ParameterError
    """
    if method not in METHODS:
        raise ParameterError(f"diff.method {method!r} is not known: expected one of {', '.join(sorted(METHODS))}")


def subtract_pair(
    method: str, pair: ImagePair, psfs: PsfPair, stars: NDArray[np.float64], margin: int, where: str
) -> tuple[Subtraction, KernelsAt]:
    """Subtract, and give the kernels that did it.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    pair : ImagePair
    psfs : callable
        PSF stamps of both at a place; see `science.zogy.subtract_tiles`.
    stars : ndarray of float, shape (n, 2)
        Places (x, y) [pixel] of common sources, the most significant first; for methods that fit a kernel.
    margin : int
        Pixels read around each tile.
    where : str
        Names the image in errors.

    Raises
    ------
    ReferenceUnusable
        No kernel can be fitted.
    """
    images = pair.new, pair.reference, pair.new_variance, pair.reference_variance
    if method in PSF_METHODS:
        return subtract_tiles(*images, psfs, margin, method), kernels_of(method, psfs)
    kernel = KERNEL_METHODS[method](pair, psfs, stars, where)
    return subtract_with_kernel(*images, kernel, psfs, margin), kernels_at(kernel, psfs)
