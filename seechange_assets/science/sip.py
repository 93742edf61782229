"""Write a smooth mapping from pixels to the sky as a FITS header (TAN or TAN-SIP).

Convention: Shupe et al. 2005, ASPC 347, 491. With u, v the pixel offsets from CRPIX, the
plane coordinates are ``CD @ (u + A(u, v), v + B(u, v))``; ``AP, BP`` approximate the inverse.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.science.tangent_plane import FloatArray, TangentPlane, sky_position

if TYPE_CHECKING:
    from astropy.io.fits import Header

MAX_ORDER = 5
# A tenth of what the best ground-based astrometry of one star reaches.
TOLERANCE_ARCSEC = 5e-4
_GRID_STEPS = 15


def sip_header(to_sky: Callable[[FloatArray, FloatArray], FloatArray], shape: tuple[int, int]) -> tuple["Header", int]:
    """Header of the lowest order that follows `to_sky` to 0.5 mas over the image.

    Parameters
    ----------
    to_sky : callable
        Maps pixel x, y (0-based, shape ``(n,)``) to unit vectors ``(n, 3)``.
    shape : tuple of int
        ``(ny, nx)``. CRPIX is the image centre.

    Returns
    -------
    astropy.io.fits.Header
    int
        Order of the SIP polynomials, 0 for a plain TAN header.
    """
    ny, nx = shape
    centre = np.array([(nx - 1) / 2.0, (ny - 1) / 2.0])
    ra, dec = sky_position(to_sky(centre[:1], centre[1:])[0])
    plane = TangentPlane(float(ra), float(dec))
    x, y = _grid(shape)
    target = plane.project(to_sky(x, y))
    pixels = np.stack([x, y], axis=-1) - centre
    for order in range(1, MAX_ORDER + 1):
        coefficients, worst = _fit(pixels, target, order)
        if worst <= TOLERANCE_ARCSEC:
            break
    return _header(plane, centre, coefficients, order, pixels), 0 if order == 1 else order


def powers(order: int, lowest: int = 0) -> list[tuple[int, int]]:
    """Exponents (p, q) with ``lowest <= p + q <= order``, by total, then falling p."""
    return [(total - q, q) for total in range(lowest, order + 1) for q in range(total + 1)]


def monomials(points: FloatArray, order: int, lowest: int = 0) -> NDArray[np.float64]:
    """``u^p v^q`` for `powers`, shape ``(n, n_terms)``."""
    u, v = points[..., 0], points[..., 1]
    return np.stack([u**p * v**q for p, q in powers(order, lowest)], axis=-1)


def _grid(shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    ny, nx = shape
    y, x = np.meshgrid(
        np.linspace(-0.5, ny - 0.5, _GRID_STEPS), np.linspace(-0.5, nx - 0.5, _GRID_STEPS), indexing="ij"
    )
    return x.ravel(), y.ravel()


def _fit(points: FloatArray, target: FloatArray, order: int) -> tuple[FloatArray, float]:
    """Least squares without a constant term; coefficients ``(n_terms, 2)`` and the worst miss."""
    size = np.abs(points).max()
    basis = monomials(points / size, order, lowest=1)
    solution = np.linalg.lstsq(basis, target, rcond=None)[0]
    worst = float(np.hypot(*(basis @ solution - target).T).max())
    scale = np.array([size ** -(p + q) for p, q in powers(order, lowest=1)])
    return solution * scale[:, None], worst


def _header(
    plane: TangentPlane, centre: FloatArray, coefficients: FloatArray, order: int, pixels: FloatArray
) -> "Header":
    from astropy.io.fits import Header

    header = Header()
    suffix = "-SIP" if order > 1 else ""
    cd = coefficients[:2].T
    header["WCSAXES"] = 2
    header["CTYPE1"], header["CTYPE2"] = f"RA---TAN{suffix}", f"DEC--TAN{suffix}"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRPIX1"], header["CRPIX2"] = centre[0] + 1.0, centre[1] + 1.0
    header["CRVAL1"], header["CRVAL2"] = plane.ra_deg, plane.dec_deg
    for row in (0, 1):
        for column in (0, 1):
            header[f"CD{row + 1}_{column + 1}"] = cd[row, column] / 3600.0
    header["LONPOLE"] = 180.0
    header["RADESYS"] = "ICRS"
    if order > 1:
        distortion = coefficients[2:] @ np.linalg.inv(cd).T
        _write_polynomials(header, ("A", "B"), distortion, order, lowest=2)
        bent = pixels + monomials(pixels, order, lowest=2) @ distortion
        inverse, _ = _fit(bent, pixels - bent, order + 1)
        _write_polynomials(header, ("AP", "BP"), inverse, order + 1, lowest=1)
    return header


def _write_polynomials(
    header: "Header", names: tuple[str, str], coefficients: FloatArray, order: int, lowest: int
) -> None:
    for name, column in zip(names, coefficients.T, strict=True):
        header[f"{name}_ORDER"] = order
        for (p, q), value in zip(powers(order, lowest), column, strict=True):
            header[f"{name}_{p}_{q}"] = float(value)
