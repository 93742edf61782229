"""What falls on a CCD during one exposure, in electrons without noise, and what it is worth.

Depth of a 1-m Schmidt telescope: `ZERO_POINT_E_S` is the magnitude that gives one electron per
second. It follows from 0.65 m^2 of open aperture and a total throughput near 0.45 in r
(5.5e6 photons/s/cm^2 times the relative band width, for AB = 0); the sky is that of a dark
to grey night. With 45 s and 1.8 arcsec seeing the 5 sigma depth is near r = 21.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seechange_assets.instruments.base import Instrument
from seechange_assets.products import FloatImage
from seechange_assets.simulation.geometry import Geometry
from seechange_assets.simulation.render import MoffatField, add_sources
from seechange_assets.simulation.sky import Sky

ZERO_POINT_E_S = {"g": 23.9, "r": 23.9, "i": 23.5, "z": 22.9}
SKY_MAG_ARCSEC2 = {"g": 21.6, "r": 20.8, "i": 19.9, "z": 18.9}
TYPICAL_SEEING_ARCSEC = 1.8
STAMP_RADIUS_PX = 9


@dataclass(frozen=True, slots=True)
class Conditions:
    """One exposure's weather and pointing.

    ``sky_factor`` multiplies the sky brightness, ``gradient`` is its relative change from one side of
    the CCD to the other in x and y; ``transparency`` multiplies all starlight.
    """

    mjd: float
    exptime_s: float
    seeing_arcsec: float
    sky_factor: float = 1.0
    gradient: tuple[float, float] = (0.0, 0.0)
    transparency: float = 1.0

    @property
    def mjd_mid(self) -> float:
        """Middle of the exposure."""
        return self.mjd + self.exptime_s / 2 / 86400

    @property
    def epoch_yr(self) -> float:
        """Julian year."""
        return 2000.0 + (self.mjd_mid - 51544.5) / 365.25

    def zero_point_e(self, filter_name: str) -> float:
        """Magnitude that gives one electron in this exposure."""
        return ZERO_POINT_E_S[filter_name] + 2.5 * np.log10(self.exptime_s * self.transparency)

    def sky_e(self, filter_name: str, scale_arcsec: float) -> float:
        """Sky level [e-/pixel]."""
        rate = 10 ** (-0.4 * (SKY_MAG_ARCSEC2[filter_name] - ZERO_POINT_E_S[filter_name]))
        return rate * scale_arcsec**2 * self.exptime_s * self.sky_factor


@dataclass(frozen=True, slots=True)
class Scene:
    """A noiseless CCD image [e-], and the truth of its transients: positions and flux [e-] (empty if absent)."""

    electrons: FloatImage
    x: NDArray
    y: NDArray
    flux_e: NDArray


def render_scene(
    sky: Sky,
    instrument: Instrument,
    filter_name: str,
    geometry: Geometry,
    psf: MoffatField,
    conditions: Conditions,
    *,
    with_transients: bool,
) -> Scene:
    """Sky, galaxies, stars and (if asked) transients through one exposure."""
    ny, nx = geometry.shape
    zero_point = conditions.zero_point_e(filter_name)
    level = conditions.sky_e(filter_name, geometry.scale_arcsec)
    slope_x, slope_y = (
        level * g * np.linspace(-0.5, 0.5, n) for g, n in zip(conditions.gradient, (nx, ny), strict=True)
    )
    electrons = (level + slope_x[None, :] + slope_y[:, None]).astype(np.float32)
    galaxies, transients = sky.galaxies, sky.transients
    x, y = geometry.sky_to_pixel(galaxies.point_ra, galaxies.point_dec)
    flux = 10 ** (-0.4 * (galaxies.mag - zero_point))
    add_sources(electrons, x, y, flux[galaxies.point_galaxy] * galaxies.point_fraction, psf, integrate=False)
    x, y = geometry.sky_to_pixel(*sky.stars.position(conditions.epoch_yr))
    flux = 10 ** (-0.4 * (sky.stars.magnitude(instrument, filter_name) - zero_point))
    if not with_transients:
        add_sources(electrons, x, y, flux, psf)
        empty = np.zeros(0)
        return Scene(electrons, empty, empty, empty)
    changed = transients.flux(conditions.mjd_mid, zero_point)
    is_star = transients.star >= 0
    flux[transients.star[is_star]] += changed[is_star]
    add_sources(electrons, x, y, flux, psf)
    new_x, new_y = geometry.sky_to_pixel(transients.ra, transients.dec)
    new_x[is_star], new_y[is_star] = x[transients.star[is_star]], y[transients.star[is_star]]
    add_sources(electrons, new_x[~is_star], new_y[~is_star], changed[~is_star], psf)
    return Scene(electrons, new_x, new_y, changed)


def expected_snr(
    scene: Scene, psf: MoffatField, flat: FloatImage, *, read_noise_e: float, n_reference: int
) -> NDArray[np.float64]:
    """Best possible S/N of each transient on the difference with a stack of `n_reference` like exposures.

    The S/N of a PSF fit with known PSF and position: ``F sqrt(sum P^2 / V)``. V is the variance of
    the scene in the new image, plus that of the same pixels without the transient, divided by
    `n_reference`: the seeing of the reference is taken as equal.
    """
    r = STAMP_RADIUS_PX
    padded = np.pad(scene.electrons * flat, r, mode="edge")
    response = np.pad(flat, r, mode="edge")
    snr = np.zeros(len(scene.x))
    for i, (x, y, flux) in enumerate(zip(scene.x, scene.y, scene.flux_e, strict=True)):
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        if not (0 <= ix < scene.electrons.shape[1] and 0 <= iy < scene.electrons.shape[0]):
            continue
        window = slice(iy, iy + 2 * r + 1), slice(ix, ix + 2 * r + 1)
        profile = psf.stamp(x, y, r) * response[window]
        new = padded[window] + read_noise_e**2
        reference = np.maximum(padded[window] - flux * profile, 0) + read_noise_e**2
        snr[i] = abs(flux) * np.sqrt(np.sum(profile**2 / (new + reference / n_reference)))
    return snr


def magnitude_at_snr(
    instrument: Instrument, filter_name: str, conditions: Conditions, *, read_noise_e: float, n_reference: int
) -> tuple[NDArray, NDArray]:
    """Signal-to-noise ratios (2 to 400) and the magnitudes that reach them on blank sky."""
    scale = instrument.pixel_scale_arcsec
    psf = MoffatField(conditions.seeing_arcsec / scale, instrument.ccd_shape)
    profile = psf.stamp(0.0, 0.0, STAMP_RADIUS_PX)
    background = conditions.sky_e(filter_name, scale) + read_noise_e**2
    variance = background * (1 + 1 / n_reference) / np.sum(profile**2)
    snr = np.geomspace(2, 400, 60)
    flux = (snr**2 + np.sqrt(snr**4 + 4 * snr**2 * variance)) / 2
    return snr, conditions.zero_point_e(filter_name) - 2.5 * np.log10(flux)
