"""The PSFs of a new image and its reference side by side on the new image's pixels."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf, wcs_from_text
from seechange_assets.science.psf import (
    analytic_psf,
    effective_area,
    native_size,
    polynomial_terms,
    raw_stamps,
)
from seechange_assets.science.zogy import KernelsAt, PsfPair, response_stamp

if TYPE_CHECKING:
    from astropy.wcs import WCS

Stamp = NDArray[np.float64]


def stamp_size(new: Psf, reference: Psf) -> int:
    """Odd side [pixel] of stamps that hold both PSFs."""
    return max(native_size(new), native_size(reference))


def psf_pairs(new: Psf, reference: Psf, new_wcs: str, reference_wcs: str, size: int) -> PsfPair:
    """A function of the new image's pixel (x, y) that gives both PSF stamps there, of sum 1.

    The reference's is turned, mirrored and stretched as the local map between the two WCS says.
    """
    target, source = wcs_from_text(new_wcs), wcs_from_text(reference_wcs)

    def pair(x: float, y: float) -> tuple[Stamp, Stamp]:
        center, matrix = _local_map(source, target, x, y)
        return _unit(centered_stamp(new, x, y, size)), _unit(_mapped(reference, *center, matrix, size))

    return pair


def difference_psf_model(
    new: Psf, kernels: KernelsAt, sky_variance: tuple[float, float], shape: tuple[int, int], size: int
) -> Psf:
    """The PSF of the difference that `kernels` make, as a `Psf` varying like that of the new image.

    It is computed at 3 x 3 places and its polynomial is refitted; where the new image
    is undersampled, at sub-pixel phases, too.
    """
    degree = min(new.degree, 2)
    ny, nx = shape
    places = [(x, y) for y in (0.1 * ny, 0.5 * ny, 0.9 * ny) for x in (0.1 * nx, 0.5 * nx, 0.9 * nx)]
    places = places if degree > 0 else [places[4]]
    tables = np.stack([_difference_table(new, kernels, x, y, sky_variance, size) for x, y in places])
    terms = polynomial_terms([x for x, _ in places], [y for _, y in places], degree, shape)
    fitted = np.linalg.lstsq(terms, tables.reshape(len(places), -1), rcond=None)[0]
    oversampling = new.oversampling
    center = tables[len(places) // 2] / tables[len(places) // 2].sum()
    sharpness = effective_area(center) / oversampling**2 / effective_area(_center_stamp(new, size))
    base = analytic_psf(center, shape, new.fwhm_px * float(np.sqrt(sharpness)), oversampling, "pixels")
    coefficients = np.asarray(fitted.reshape(-1, *tables.shape[1:]), np.float64)
    return replace(base, coefficients=coefficients, degree=degree, n_stars=new.n_stars)


def _difference_table(
    new: Psf, kernels: KernelsAt, x: float, y: float, sky_variance: tuple[float, float], size: int
) -> Stamp:
    """P_D at one place, tabulated `oversampling` times per pixel: each sub-pixel phase is one filtered stamp."""
    n = new.oversampling
    side = 2 * (size // 2) * n + 1
    table = np.zeros((side, side))
    for j in range(n):
        for i in range(n):
            # Pixels whose centre lies (i/n, j/n) beside the source sample every n-th entry of the table.
            shifted = raw_stamps(new, x, y, size, center=(x + i / n, y + j / n))[0]
            filtered = response_stamp(kernels, x, y, sky_variance, shifted)
            part = table[j::n, i::n]
            part[:] = filtered[: part.shape[0], : part.shape[1]]
    return np.asarray(table * (n * n / table.sum()))


def centered_stamp(psf: Psf, x: float, y: float, size: int) -> Stamp:
    """The PSF of place (x, y) drawn on the central pixel of a stamp, not normalised."""
    return np.asarray(raw_stamps(psf, x, y, size, centered=True)[0])


def _center_stamp(psf: Psf, size: int) -> Stamp:
    ny, nx = psf.shape
    return _unit(centered_stamp(psf, (nx - 1) / 2, (ny - 1) / 2, size))


def _local_map(source: "WCS", target: "WCS", x: float, y: float) -> tuple[tuple[float, float], Stamp]:
    """Source pixel under a target pixel, and the 2x2 matrix d(source)/d(target) there."""
    px, py = np.array([x, x + 8, x - 8, x, x]), np.array([y, y, y, y + 8, y - 8])
    sx, sy = source.all_world2pix(*target.all_pix2world(px, py, 0), 0, quiet=True)
    matrix = np.array([[sx[1] - sx[2], sx[3] - sx[4]], [sy[1] - sy[2], sy[3] - sy[4]]]) / 16
    if not np.isfinite(matrix).all():
        return (0.0, 0.0), np.eye(2)
    return (float(sx[0]), float(sy[0])), matrix


def _mapped(psf: Psf, x: float, y: float, matrix: Stamp, size: int) -> Stamp:
    """The PSF at (x, y) of its own image, sampled through `matrix` onto a centred stamp."""
    from scipy.ndimage import map_coordinates

    offset = np.arange(size) - size // 2
    if np.abs(matrix - np.eye(2)).max() * (size // 2) < 0.02:
        return centered_stamp(psf, x, y, size)
    n_terms, n_grid, _ = psf.coefficients.shape
    terms = polynomial_terms(x, y, psf.degree, psf.shape)
    table = (terms @ psf.coefficients.reshape(n_terms, -1)).reshape(n_grid, n_grid)
    dx, dy = np.meshgrid(offset, offset)
    columns = (matrix[0, 0] * dx + matrix[0, 1] * dy) * psf.oversampling + n_grid // 2
    rows = (matrix[1, 0] * dx + matrix[1, 1] * dy) * psf.oversampling + n_grid // 2
    return np.asarray(map_coordinates(table, [rows, columns], order=3, mode="constant"))


def _unit(stamp: Stamp) -> Stamp:
    return np.asarray(stamp / stamp.sum())
