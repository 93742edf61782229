"""The simulated sky: stars, galaxies, transients and variable stars, and the catalogue of it.

Positions are drawn on the tangent plane of a nominal pointing, in the cell of one CCD, so the
sky of a CCD depends on the seed and the CCD alone, not on which others are simulated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from seechange_assets.instruments.base import Instrument
from seechange_assets.products import SkyCatalog
from seechange_assets.simulation.geometry import Geometry, plane_to_sky

if TYPE_CHECKING:
    from astropy.table import Table

CATALOG_EPOCH = 2016.0
#: Faintest G of stars that are drawn, and of stars that are in the catalogue.
STAR_LIMIT_G, CATALOG_LIMIT_G, BRIGHTEST_G = 23.0, 20.5, 11.5
#: Slope of the star counts, d log10 N / d mag, and of the galaxy counts.
STAR_SLOPE, GALAXY_SLOPE = 0.25, 0.40
#: Stars of G < 20.5 per square degree at high galactic latitude; and the fewest per CCD, for tiny CCDs.
STAR_DENSITY_DEG2, FEWEST_STARS = 2500.0, 130
#: Galaxies brighter than `GALAXY_LIMIT` per square degree, and their magnitude range.
GALAXY_DENSITY_DEG2, GALAXY_BRIGHTEST, GALAXY_LIMIT = 7000.0, 15.0, 22.0


@dataclass(frozen=True, slots=True)
class Stars:
    """Stars at `CATALOG_EPOCH`: positions [deg], proper motions [mas/yr, ra times cos dec], Gaia G, BP-RP.

    `scatter` [mag] is what the colour does not predict of the magnitude in other filters.
    """

    ra: NDArray
    dec: NDArray
    pm_ra: NDArray
    pm_dec: NDArray
    parallax: NDArray
    mag_g: NDArray
    color: NDArray
    scatter: NDArray

    def position(self, epoch_yr: float) -> tuple[NDArray, NDArray]:
        """Positions (ra, dec) at a Julian year; the parallax (below a few mas) is not applied."""
        years = epoch_yr - CATALOG_EPOCH
        ra = self.ra + years * self.pm_ra / 3.6e6 / np.cos(np.radians(self.dec))
        return ra % 360.0, self.dec + years * self.pm_dec / 3.6e6

    def magnitude(self, instrument: Instrument, filter_name: str) -> NDArray:
        """AB magnitudes in a filter, by the instrument's transformation from Gaia plus the scatter."""
        return instrument.gaia_magnitude(filter_name, self.mag_g, self.color) + self.scatter


@dataclass(frozen=True, slots=True)
class Galaxies:
    """Galaxies: exponential discs, each a cloud of points; ``point_galaxy`` says whose point it is."""

    ra: NDArray
    dec: NDArray
    mag: NDArray
    half_light_arcsec: NDArray
    axis_ratio: NDArray
    angle: NDArray
    point_ra: NDArray
    point_dec: NDArray
    point_fraction: NDArray
    point_galaxy: NDArray


@dataclass(frozen=True, slots=True)
class Transients:
    """What changes: ``kind`` is hostless, on_host or variable.

    Hostless and on_host sources have magnitude ``mag + slope (t - t0)``; a variable is star number
    ``star`` whose flux is multiplied by ``1 + amplitude cos(2 pi (t - t0) / period)``. All
    are absent (variables: at their mean) in reference epochs.
    """

    name: NDArray
    kind: NDArray
    ra: NDArray
    dec: NDArray
    mag: NDArray
    slope_per_day: NDArray
    star: NDArray
    amplitude: NDArray
    period_day: NDArray
    t0_mjd: float

    def flux(self, mjd: float, zero_point: float) -> NDArray[np.float64]:
        """Flux that the reference lacks, in the unit of the zero point; negative when a variable fades."""
        days = mjd - self.t0_mjd
        flux = 10 ** (-0.4 * (self.mag + self.slope_per_day * days - zero_point))
        wave = self.amplitude * np.cos(2 * np.pi * days / self.period_day)
        return np.where(self.kind == "variable", flux * wave, flux)


@dataclass(frozen=True, slots=True)
class Sky:
    """Everything on the sky of one CCD."""

    stars: Stars
    galaxies: Galaxies
    transients: Transients


def draw_stars(rng: Generator, cell: Geometry, density_deg2: float | None = None) -> Stars:
    """Stars with power-law counts in the cell of a CCD.

    `density_deg2` counts stars with G < 20.5; by default that of high galactic latitude, but at
    least `FEWEST_STARS` on a tiny CCD, so that it stays solvable.
    """
    area = np.prod(cell.shape) * (cell.scale_arcsec / 3600) ** 2
    if density_deg2 is None:
        density_deg2 = max(STAR_DENSITY_DEG2, FEWEST_STARS / area)
    n = rng.poisson(density_deg2 * area * 10 ** (STAR_SLOPE * (STAR_LIMIT_G - CATALOG_LIMIT_G)))
    ra, dec = _uniform_positions(rng, cell, n)
    mag_g = np.maximum(STAR_LIMIT_G + np.log10(1 - rng.random(n)) / STAR_SLOPE, BRIGHTEST_G)
    # Nearer stars move faster; most move by a few mas/yr.
    speed = 6.0 * rng.lognormal(0.0, 0.7, n)
    direction = rng.uniform(0, 2 * np.pi, n)
    return Stars(
        ra, dec, speed * np.cos(direction), speed * np.sin(direction), rng.lognormal(-0.5, 0.6, n), mag_g,
        np.clip(rng.normal(1.25, 0.45, n), 0.55, 2.8), rng.normal(0.0, 0.01, n),
    )  # fmt: skip


def draw_galaxies(rng: Generator, cell: Geometry, density_deg2: float = GALAXY_DENSITY_DEG2) -> Galaxies:
    """Exponential discs with power-law counts in the cell of a CCD."""
    area = np.prod(cell.shape) * (cell.scale_arcsec / 3600) ** 2
    n = rng.poisson(density_deg2 * area)
    ra, dec = _uniform_positions(rng, cell, n)
    mag = np.maximum(GALAXY_LIMIT + np.log10(1 - rng.random(n)) / GALAXY_SLOPE, GALAXY_BRIGHTEST)
    half_light = np.clip(0.8 * 10 ** (-0.12 * (mag - 21)) * rng.lognormal(0, 0.35, n), 0.2, 12.0)
    axis_ratio, angle = rng.uniform(0.25, 1.0, n), rng.uniform(0, np.pi, n)
    # One point per (0.35 arcsec)^2 or so keeps neighbours closer than any seeing.
    n_points = np.clip((half_light / 0.3) ** 2, 8, 400).astype(int)
    galaxy = np.repeat(np.arange(n), n_points)
    rank = np.arange(n_points.sum()) - np.repeat(np.cumsum(n_points) - n_points, n_points)
    radius = _disc_radius((rank + 0.5) / n_points[galaxy]) * half_light[galaxy]
    phase = rank * np.pi * (3 - np.sqrt(5)) + angle[galaxy]
    major, minor = radius * np.cos(phase), radius * np.sin(phase) * axis_ratio[galaxy]
    east = major * np.cos(angle[galaxy]) - minor * np.sin(angle[galaxy])
    north = major * np.sin(angle[galaxy]) + minor * np.cos(angle[galaxy])
    point_ra = (ra[galaxy] + east / 3600 / np.cos(np.radians(dec[galaxy]))) % 360.0
    return Galaxies(
        ra,
        dec,
        mag,
        half_light,
        axis_ratio,
        angle,
        point_ra,
        dec[galaxy] + north / 3600,
        1.0 / n_points[galaxy],
        galaxy,
    )


def draw_transients(
    rng: Generator,
    cell: Geometry,
    stars: Stars,
    star_mag: NDArray,
    galaxies: Galaxies,
    *,
    count: int,
    t0_mjd: float,
    mag_at_snr: tuple[NDArray, NDArray],
    snr_range: tuple[float, float] = (4.0, 100.0),
    margin_px: float = 40.0,
    label: str = "T",
) -> Transients:
    """Transients (40 % hostless, 40 % on hosts) and variable stars (the rest), log-uniform in S/N.

    Parameters
    ----------
    star_mag : ndarray
        Magnitudes of the stars in the filter of the CCD.
    mag_at_snr : tuple of ndarray
        S/N (ascending) and the magnitude that has it under typical conditions.
    margin_px : float
        Distance from the edges of the cell, so that dithers do not lose a source.
    """
    n_variable = count // 5
    n_host = min(2 * count // 5, len(galaxies.ra))
    n_hostless = count - n_variable - n_host
    snr = np.exp(rng.uniform(math.log(snr_range[0]), math.log(snr_range[1]), count))
    # Stars bring their own shot noise: variables need more to show.
    snr[count - n_variable :] = np.maximum(snr[count - n_variable :], 15.0)
    mag = np.interp(np.log(snr), np.log(mag_at_snr[0]), mag_at_snr[1])
    inside = _inside(cell, galaxies.ra, galaxies.dec, margin_px)
    hosts = _choose(rng, np.flatnonzero(inside & (galaxies.mag < 21.5)), np.flatnonzero(inside), n_host)
    n_hostless += n_host - len(hosts)
    at = rng.uniform(0, 2 * np.pi, len(hosts))
    offset = rng.uniform(0.1, 1.3, len(hosts)) * galaxies.half_light_arcsec[hosts] / 3600
    host_ra = galaxies.ra[hosts] + offset * np.cos(at) / np.cos(np.radians(galaxies.dec[hosts]))
    host_dec = galaxies.dec[hosts] + offset * np.sin(at)
    free_ra, free_dec = _uniform_positions(rng, cell, n_hostless, margin_px)
    # A variable must outshine its own variation, but not saturate.
    inside = _inside(cell, stars.ra, stars.dec, margin_px)
    bright = np.flatnonzero(inside & (star_mag > 16.0) & (star_mag < 19.5))
    variables = _choose(rng, bright, np.flatnonzero(inside & (star_mag > 15.0)), n_variable)
    kind = np.repeat(["hostless", "on_host", "variable"], [n_hostless, len(hosts), len(variables)])
    n = len(kind)
    is_variable, mag, star = kind == "variable", mag[:n], np.full(n, -1)
    star[is_variable] = variables
    amplitude = np.zeros(n)
    strength = 10 ** (-0.4 * (mag[is_variable] - star_mag[variables]))
    amplitude[is_variable] = np.minimum(strength, 0.8) * rng.choice([-1.0, 1.0], len(variables))
    mag[is_variable] = star_mag[variables]
    return Transients(
        np.array([f"{label}{i:03d}" for i in range(n)]), kind,
        np.concatenate([free_ra, host_ra, stars.ra[variables]]) % 360.0,
        np.concatenate([free_dec, host_dec, stars.dec[variables]]),
        mag, rng.uniform(-0.02, 0.04, n), star, amplitude, rng.uniform(30.0, 90.0, n), t0_mjd,
    )  # fmt: skip


def measure_catalog(rng: Generator, stars: Sequence[Stars]) -> SkyCatalog:
    """What Gaia would list: stars brighter than G 20.5, with its typical errors (Gaia DR3, Lindegren et al. 2021)."""
    from astropy.table import Table, vstack

    table = vstack([_observed(rng, part) for part in stars], metadata_conflicts="silent") if stars else Table()
    table.sort("dec")
    return SkyCatalog(table, CATALOG_EPOCH, f"simulated-{_digest(table)}")


def _observed(rng: Generator, stars: Stars) -> "Table":
    from astropy.table import Table

    listed = stars.mag_g < CATALOG_LIMIT_G
    n, g, color = int(listed.sum()), stars.mag_g[listed], stars.color[listed]
    position_err = 0.02 + 0.5 * 10 ** (0.2 * (np.maximum(g, 15.0) - 20.0) * 1.5)
    motion_err, mag_err = 1.1 * position_err, 0.002 + 0.004 * 10 ** (0.3 * (g - 20.0))
    noise = rng.standard_normal((8, n))
    ra = stars.ra[listed] + noise[0] * position_err / 3.6e6 / np.cos(np.radians(stars.dec[listed]))
    return Table(
        {
            "ra": ra % 360.0, "dec": stars.dec[listed] + noise[1] * position_err / 3.6e6,
            "ra_err": position_err, "dec_err": position_err,
            "pm_ra": stars.pm_ra[listed] + noise[2] * motion_err,
            "pm_dec": stars.pm_dec[listed] + noise[3] * motion_err,
            "parallax": stars.parallax[listed] + noise[4] * position_err,
            "mag_g": g + noise[5] * mag_err, "mag_bp": g + 0.55 * color + noise[6] * 5 * mag_err,
            "mag_rp": g - 0.45 * color + noise[7] * 5 * mag_err,
            "mag_g_err": mag_err, "mag_bp_err": 5 * mag_err, "mag_rp_err": 5 * mag_err,
        }
    )  # fmt: skip


def _digest(table: "Table") -> str:
    import hashlib

    content = b"".join(np.ascontiguousarray(table[name], dtype="<f8").tobytes() for name in table.colnames)
    return hashlib.sha256(content).hexdigest()[:10]


def _uniform_positions(rng: Generator, cell: Geometry, n: int, margin_px: float = 0.0) -> tuple[NDArray, NDArray]:
    """Positions uniform over the cell, without distortion, so that neighbouring cells tile the plane."""
    ny, nx = cell.shape
    x = rng.uniform(-0.5 + margin_px, nx - 0.5 - margin_px, n)
    y = rng.uniform(-0.5 + margin_px, ny - 0.5 - margin_px, n)
    scale = cell.scale_arcsec / 3600
    east, north = cell.east_deg - (x - (nx - 1) / 2) * scale, cell.north_deg + (y - (ny - 1) / 2) * scale
    return plane_to_sky(east, north, cell.ra_deg, cell.dec_deg)


def _inside(cell: Geometry, ra: NDArray, dec: NDArray, margin_px: float) -> NDArray[np.bool_]:
    x, y = cell.sky_to_pixel(ra, dec)
    ny, nx = cell.shape
    return (x > margin_px) & (x < nx - margin_px) & (y > margin_px) & (y < ny - margin_px)


def _choose(rng: Generator, preferred: NDArray, others: NDArray, n: int) -> NDArray:
    """`n` different elements, from `preferred` while it lasts."""
    if len(preferred) >= n:
        return rng.choice(preferred, n, replace=False)
    rest = np.setdiff1d(others, preferred)
    return np.concatenate([preferred, rng.choice(rest, min(n - len(preferred), len(rest)), replace=False)]).astype(int)


def _disc_radius(enclosed: NDArray) -> NDArray:
    """Radius, in half-light radii, that encloses a fraction of the light of an exponential disc."""
    r = np.linspace(0, 12, 2000)
    fraction = 1 - (1 + r) * np.exp(-r)
    return np.interp(enclosed, fraction, r) / 1.6783469900166605
