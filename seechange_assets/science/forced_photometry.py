"""PSF flux on a difference at places that are known beforehand.

With the position fixed the flux is linear: for PSF values p, pixels d and variances v the
least-squares estimate is ``sum(p d / v) / sum(p²/v)`` with variance ``1 / sum(p²/v)``
(e.g. Horne 1986, PASP 98, 609, eq. 8 with a two-dimensional profile).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import NJY_ZERO_POINT, Difference, FlagImage, ForcedPhotometry

if TYPE_CHECKING:
    from astropy.table import Table

FloatArray = NDArray[np.float64]


def force_photometry(
    difference: Difference, objects: "Table", *, stamp_fwhms: float = 2.5, max_masked_fraction: float = 0.3
) -> ForcedPhotometry:
    """Flux of the difference at the position of each object on it.

    Parameters
    ----------
    difference : Difference
    objects : Table
        Columns ``object_id``, ``object_name``, ``ra``, ``dec`` [deg]; those whose centre is off the
        image are left out.
    stamp_fwhms : float
        Half side of the fitted stamp in units of the FWHM.
    max_masked_fraction : float
        NaN flux where a larger part of the PSF's flux falls on flagged pixels or beyond the border.

    Returns
    -------
    ForcedPhotometry
        In the order of `objects`; nJy with the zero point of the difference.
    """
    from astropy.table import Table

    ny, nx = difference.data.shape
    ra, dec = np.asarray(objects["ra"], float), np.asarray(objects["dec"], float)
    x, y = _pixels(difference, ra, dec)
    inside = np.flatnonzero((x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5))
    x, y = x[inside], y[inside]
    flux, flux_err = _fit(difference, x, y, stamp_fwhms, max_masked_fraction)
    to_njy = 10.0 ** (-0.4 * (difference.zp - NJY_ZERO_POINT))
    return ForcedPhotometry(Table({
        "object_id": np.asarray(objects["object_id"], "U36")[inside],
        "object_name": np.asarray(objects["object_name"], "U80")[inside],
        "ra": ra[inside], "dec": dec[inside], "x": x, "y": y,
        "flux_psf": flux, "flux_psf_err": flux_err,
        "flux_njy": flux * to_njy, "flux_njy_err": flux_err * to_njy,
        "image_flags": flags_around(difference.flags, x, y, int(np.ceil(difference.psf.fwhm_px / 2))),
    }))  # fmt: skip


def flags_around(flags: FlagImage, x: FloatArray, y: FloatArray, half: int) -> NDArray[np.uint16]:
    """OR of the flags in the box of ``2 half + 1`` pixels around each position."""
    rows, columns, inside = _stamp_indices(flags.shape, x, y, 2 * half + 1)
    stamps = np.where(inside, flags[rows, columns], np.uint16(0))
    combined: NDArray[np.uint16] = np.bitwise_or.reduce(stamps, axis=(1, 2)).astype(np.uint16)
    return combined


def _pixels(difference: Difference, ra: FloatArray, dec: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixel positions; far outside the image, where a distortion does not invert, NaN."""
    if len(ra) == 0:
        return np.empty(0), np.empty(0)
    wcs = difference.wcs.astropy()
    x, y = wcs.wcs_world2pix(ra, dec, 0)
    ny, nx = difference.data.shape
    near = (np.abs(x - nx / 2) < nx) & (np.abs(y - ny / 2) < ny)
    x[~near], y[~near] = np.nan, np.nan
    if near.any():
        x[near], y[near] = wcs.all_world2pix(ra[near], dec[near], 0, quiet=True)
    return x, y


def _fit(
    difference: Difference, x: FloatArray, y: FloatArray, stamp_fwhms: float, max_masked_fraction: float
) -> tuple[FloatArray, FloatArray]:
    """Flux and error [ADU], NaN where too much of the PSF is masked.

    Looks at the pixels of the stamps alone, so that the arrays may stay in their file.
    """
    from seechange_assets.science.psf_photometry import central_pixels, chunks, fit_stamps, unit_stamps

    size = 2 * int(np.ceil(stamp_fwhms * difference.psf.fwhm_px)) + 1
    out = np.full((2, len(x)), np.nan)
    for part in chunks(len(x)):
        stamps = unit_stamps(difference.psf, x[part], y[part], size, central_pixels(x[part], y[part]))
        pixels, weights = _pixels_and_weights(difference, x[part], y[part], size)
        flux, flux_err, _ = fit_stamps(stamps, pixels, weights)
        seen = np.where(weights > 0, stamps, 0.0).sum(axis=(1, 2)) / stamps.sum(axis=(1, 2))
        out[:, part] = np.where(seen >= 1.0 - max_masked_fraction, [flux, flux_err], np.nan)
    return out[0], out[1]


def _pixels_and_weights(
    difference: Difference, x: FloatArray, y: FloatArray, size: int
) -> tuple[FloatArray, FloatArray]:
    """Stamps ``(n, size, size)`` of the pixels and their inverse variance, zero where flagged, unknown or outside."""
    rows, columns, inside = _stamp_indices(difference.data.shape, x, y, size)
    pixels, noise = difference.data[rows, columns], difference.noise[rows, columns]
    usable = inside & (difference.flags[rows, columns] == 0) & (noise > 0) & np.isfinite(noise) & np.isfinite(pixels)
    variance = np.square(noise).astype(float)
    return np.where(usable, pixels, 0.0).astype(float), np.divide(
        1.0, variance, out=np.zeros_like(variance), where=usable
    )


def _stamp_indices(
    shape: tuple[int, ...], x: FloatArray, y: FloatArray, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Row and column of each pixel of each stamp (clipped to the image), and which lie inside it."""
    offset = np.arange(size) - size // 2
    rows = np.floor(y + 0.5).astype(np.intp)[:, None, None] + offset[None, :, None]
    columns = np.floor(x + 0.5).astype(np.intp)[:, None, None] + offset[None, None, :]
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    return np.clip(rows, 0, shape[0] - 1), np.clip(columns, 0, shape[1] - 1), inside
