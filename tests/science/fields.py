"""Images with a known sky: the project's simulator, crowded fields and bright galaxies."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import fftconvolve

from seechange_assets.products import Flag, Image
from seechange_assets.simulation import simulate_ccd
from seechange_assets.simulation.ccd import READ_NOISE_E
from seechange_assets.simulation.scene import Conditions
from tests.science.skies import GAIN, READ_NOISE, as_image

NORMAL_DENSITY, CROWDED_DENSITY = 2500.0, 50000.0


@dataclass
class Field:
    """An image, its sky and the light of its sources [ADU], the noise of the sky; center and radius of a galaxy."""

    image: Image
    sky: np.ndarray
    light: np.ndarray
    noise: float
    galaxy: tuple[float, float, float] | None = None

    def error(self, level):
        """(level - truth) in units of the noise."""
        return (level - self.sky) / self.noise

    def away(self):
        """Pixels where sources give less than 0.3 sigma."""
        return self.light < 0.3 * self.noise

    def around_galaxy(self):
        """Pixels within three effective radii of the galaxy."""
        x, y, radius = self.galaxy
        row, column = np.indices(self.sky.shape)
        return np.hypot(column - x, row - y) < 3 * radius


def simulated_field(seed, shape=(1024, 1024), density=NORMAL_DENSITY, filter_name="r", seeing_px=1.8) -> Field:
    """The project's simulator with a gradient of the sky on top."""
    options = {"star_density_deg2": density, "filter_name": filter_name, "seeing_px": seeing_px}
    noisy = simulate_ccd(np.random.default_rng(seed), shape, **options)
    clean = simulate_ccd(np.random.default_rng(seed), shape, noise=False, **options)
    gain = noisy.image.info.gain
    sky = Conditions(61364.1, 45.0, seeing_px).sky_e(filter_name, 1.0) / gain
    y, x = np.indices(shape)
    slope = sky * (0.02 * (x / shape[1] - 0.5) - 0.03 * (y / shape[0] - 0.5))
    image = replace(noisy.image, data=(noisy.image.data + slope).astype(np.float32))
    return Field(image, sky + slope, clean.image.data - sky, np.sqrt(sky / gain + (READ_NOISE_E / gain) ** 2))


def moffat_field(seed, shape=(1024, 1024), stars_per_mpx=480.0, galaxy=None, fwhm_px=4.4, extra_sky=0.0) -> Field:
    """Moffat stars with steep counts (mag 16 to 24, zero point 30) and maybe one Sersic galaxy.

    ``galaxy`` is effective radius [pixel], surface brightness there [ADU], Sersic index.
    """
    rng = np.random.default_rng(seed)
    (ny, nx), fine_per_px = shape, 3
    n = int(stars_per_mpx * ny * nx / 1e6)
    fine = np.zeros((ny * fine_per_px, nx * fine_per_px))
    flux = 10 ** (-0.4 * (16 + 8 * rng.power(3.2, n) - 30))
    np.add.at(fine, (rng.integers(0, fine.shape[0], n), rng.integers(0, fine.shape[1], n)), flux)
    axis = np.arange(-45 * fine_per_px, 45 * fine_per_px + 1) / fine_per_px
    alpha2 = (fwhm_px / 2) ** 2 / (2 ** (1 / 3) - 1)
    star = (1 + (axis[:, None] ** 2 + axis[None] ** 2) / alpha2) ** -3.0
    light = fftconvolve(fine, star / star.sum(), mode="same")
    light = np.maximum(light.reshape(ny, fine_per_px, nx, fine_per_px).sum(axis=(1, 3)), 0)
    y, x = np.indices(shape)
    place = None
    if galaxy is not None:
        radius, brightness, index = galaxy
        place = (*(rng.uniform(0.35, 0.65, 2) * (nx, ny)), radius)
        distance = np.hypot(x - place[0], (y - place[1]) / 0.7) / radius
        light = light + brightness * np.exp(-(2 * index - 1 / 3) * ((distance + 0.02) ** (1 / index) - 1))
    sky = 900.0 * (1 + 0.03 * (x / nx - 0.5) - 0.02 * (y / ny - 0.5)) + extra_sky
    data = rng.poisson((sky + light) * GAIN) / GAIN + rng.normal(0, READ_NOISE / GAIN, shape)
    flags = np.where(data > 55000, np.uint16(Flag.SATURATED), np.uint16(0))
    return Field(as_image(data, flags), sky, light, float(np.sqrt(900 / GAIN + (READ_NOISE / GAIN) ** 2)), place)


def show(*figures):
    """Print what was measured: ``pytest -s`` shows it."""
    print(*figures)  # noqa: T201 (the figures are wanted in the log)
