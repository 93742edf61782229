"""Putting point sources with a spatially varying Moffat profile on an image."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from seechange_assets.products import FloatImage

#: Stamps end where the profile falls below this surface brightness [e-/pixel].
FAINTEST_E = 0.01
MIN_RADIUS_PX, MAX_RADIUS_PX = 5.0, 300.0
#: Inside this distance the profile is integrated over the pixel with 3 x 3 Gauss-Legendre points; farther out it is
#: straight enough for its value at the centre.
CORE_RADIUS_FWHM = 2.5


@dataclass(frozen=True, slots=True)
class MoffatField:
    """A Moffat profile (Moffat 1969) whose width and ellipticity vary over the CCD.

    With field coordinates ``u = 2x/(nx-1) - 1`` and ``v = 2y/(ny-1) - 1``: the FWHM is
    ``fwhm_px (1 + curvature (u^2 + v^2))``, the ellipticity components are ``e1 = e1_0 + tilt v`` and
    ``e2 = e2_0 + tilt u v``, where the axis ratio is (1-e)/(1+e).
    """

    fwhm_px: float
    shape: tuple[int, int]
    beta: float = 3.2
    curvature: float = 0.03
    e1_0: float = 0.01
    e2_0: float = -0.01
    tilt: float = 0.03

    def quadratic_form(self, x: NDArray, y: NDArray) -> NDArray[np.float64]:
        """Coefficients (xx, xy, yy, norm) of ``norm (1 + xx dx^2 + 2 xy dx dy + yy dy^2)^-beta``, shape (n, 4)."""
        u = 2 * np.asarray(x, float) / (self.shape[1] - 1) - 1
        v = 2 * np.asarray(y, float) / (self.shape[0] - 1) - 1
        alpha = self.fwhm_px * (1 + self.curvature * (u**2 + v**2)) / 2 / np.sqrt(2 ** (1 / self.beta) - 1)
        e1, e2 = self.e1_0 + self.tilt * v, self.e2_0 + self.tilt * u * v
        # Area-preserving shear: the inverse of the second-moment matrix has determinant 1/alpha^4.
        unit = 1 / (1 - e1**2 - e2**2) / alpha**2
        size = 1 + e1**2 + e2**2
        norm = (self.beta - 1) / np.pi / alpha**2
        return np.stack([unit * (size - 2 * e1), -2 * unit * e2, unit * (size + 2 * e1), norm], axis=-1)

    def stamp(self, x: float, y: float, radius: int) -> NDArray[np.float64]:
        """The pixel-integrated profile of a source of flux 1 at (x, y), centred on its pixel."""
        size = 2 * radius + 1
        image = np.zeros((size, size), np.float32)
        form = self.quadratic_form(np.array([x]), np.array([y]))
        centre = np.array([[x - np.floor(x + 0.5) + radius, y - np.floor(y + 0.5) + radius]])
        _add_moffats(image, centre, np.array([1.0]), form, self.beta, np.array([float(size)]), np.inf)
        return image.astype(np.float64)


def add_sources(
    image: FloatImage, x: NDArray, y: NDArray, flux_e: NDArray, psf: MoffatField, *, integrate: bool = True
) -> None:
    """Add point sources of `flux_e` electrons at pixel positions (x, y) to an image of electrons, in place.

    `integrate` averages the profile over each pixel near the core. Clouds of points that stand
    for galaxies do without: the pixel response cancels in every ratio of two images.
    """
    form = psf.quadratic_form(x, y)
    reach = np.abs(flux_e) * form[:, 3] / FAINTEST_E
    alpha = np.sqrt((psf.beta - 1) / np.pi / form[:, 3])
    radius = np.clip(alpha * np.maximum(reach, 1.0) ** (0.5 / psf.beta), MIN_RADIUS_PX, MAX_RADIUS_PX)
    ny, nx = image.shape
    seen = (x > -radius) & (x < nx + radius) & (y > -radius) & (y < ny + radius)
    position = np.stack([x[seen], y[seen]], axis=-1).astype(np.float64)
    core = CORE_RADIUS_FWHM * psf.fwhm_px if integrate else -1.0
    _add_moffats(image, position, flux_e[seen].astype(np.float64), form[seen], psf.beta, radius[seen], core)


@njit(cache=True)
def _add_moffats(image, position, flux, form, beta, radius, core):
    ny, nx = image.shape
    node, outer, inner = np.sqrt(0.15), 5.0 / 18.0, 8.0 / 18.0
    offsets, weights = (-node, 0.0, node), (outer, inner, outer)
    for i in range(len(flux)):
        x, y, r = position[i, 0], position[i, 1], radius[i]
        xx, xy, yy = form[i, 0], form[i, 1], form[i, 2]
        scale = flux[i] * form[i, 3]
        for iy in range(max(0, int(np.ceil(y - r))), min(ny, int(np.floor(y + r)) + 1)):
            for ix in range(max(0, int(np.ceil(x - r))), min(nx, int(np.floor(x + r)) + 1)):
                dx, dy = ix - x, iy - y
                if dx * dx + dy * dy > r * r:
                    continue
                if abs(dx) > core or abs(dy) > core:
                    value = np.exp(-beta * np.log1p(xx * dx * dx + 2 * xy * dx * dy + yy * dy * dy))
                else:
                    value = 0.0
                    for j in range(3):
                        for k in range(3):
                            sx, sy = dx + offsets[k], dy + offsets[j]
                            q = xx * sx * sx + 2 * xy * sx * sy + yy * sy * sy
                            value += weights[j] * weights[k] * np.exp(-beta * np.log1p(q))
                image[iy, ix] += scale * value
