"""One simulated CCD in memory, already calibrated: for unit tests and notebooks."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.random import Generator

from seechange_assets.instruments.base import get_instrument
from seechange_assets.products import Flag, Image, ImageInfo, SkyCatalog, header_text
from seechange_assets.simulation.detector import draw_cosmic_rays
from seechange_assets.simulation.geometry import Geometry
from seechange_assets.simulation.render import MoffatField
from seechange_assets.simulation.scene import Conditions, expected_snr, magnitude_at_snr, render_scene
from seechange_assets.simulation.sky import (
    Sky,
    draw_galaxies,
    draw_stars,
    draw_transients,
    measure_catalog,
)

if TYPE_CHECKING:
    from astropy.table import Table

FIELD_DEG = (150.1, -27.5)
MJD = 61364.1
GAIN, READ_NOISE_E, SATURATION_ADU = 1.6, 6.5, 55000.0


class SimulatedCcd(NamedTuple):
    """A calibrated image and everything that is true of it.

    ``stars``: x, y, mag, mag_g, color, flux [ADU]; ``galaxies``: x, y, mag, half_light_arcsec;
    ``transients``: id, kind, ra, dec, x, y, mag, flux [ADU], snr; ``wcs_text``: the header the telescope would have
    written, off by the pointing error; ``true_wcs_text``: the exact one; ``sky``: give it to the next call.
    """

    image: Image
    stars: "Table"
    galaxies: "Table"
    transients: "Table"
    catalog: SkyCatalog
    wcs_text: str
    true_wcs_text: str
    sky: Sky


def simulate_ccd(
    rng: Generator,
    shape: tuple[int, int] = (512, 512),
    *,
    filter_name: str = "r",
    seeing_px: float = 1.8,
    exptime_s: float = 45.0,
    mjd: float = MJD,
    pixel_scale_arcsec: float = 1.0,
    star_density_deg2: float | None = None,
    transients: int = 10,
    with_transients: bool = True,
    sky: Sky | None = None,
    dither_px: tuple[float, float] = (0.0, 0.0),
    rotation_deg: float = 0.0,
    pointing_error_arcsec: tuple[float, float] = (2.0, -1.5),
    cosmic_rays: int = 0,
    noise: bool = True,
) -> SimulatedCcd:
    """Simulate one calibrated CCD image.

    A pair for subtraction: ``new = simulate_ccd(rng, ...)``, then ``reference = simulate_ccd(rng, ..., sky=new.sky,
    with_transients=False, dither_px=(3.3, -1.2), seeing_px=1.5)``.

    Parameters
    ----------
    rng : Generator
        Source of all randomness.
    shape : tuple of int
        (ny, nx).
    star_density_deg2 : float, optional
        Stars of G < 20.5; default as on the sky, but enough for a small CCD.
    transients : int
        How many are drawn when `sky` is not given.
    with_transients : bool
        Whether they shine.
    sky : Sky, optional
        The sky of an earlier call, to observe it again.
    dither_px, rotation_deg : float
        Offset and rotation of the pointing.
    pointing_error_arcsec : tuple of float
        Error (east, north) of the WCS that the telescope reports.
    cosmic_rays : int
        Tracks; they are not flagged.
    noise : bool
        Shot and read noise.
    """
    instrument = get_instrument("ls4")
    conditions = Conditions(mjd, exptime_s, seeing_px * pixel_scale_arcsec)
    if sky is None:
        sky = _draw_sky(rng, instrument, filter_name, shape, pixel_scale_arcsec, star_density_deg2, transients)
    scale = pixel_scale_arcsec / 3600
    # West is up in x: a boresight farther east shifts stars to larger x.
    ra = FIELD_DEG[0] + dither_px[0] * scale / np.cos(np.radians(FIELD_DEG[1]))
    geometry = Geometry(ra, FIELD_DEG[1] - dither_px[1] * scale, shape, pixel_scale_arcsec, rotation_deg=rotation_deg)
    psf = MoffatField(seeing_px, shape)
    scene = render_scene(sky, instrument, filter_name, geometry, psf, conditions, with_transients=with_transients)
    electrons = scene.electrons.copy()
    if noise:
        spread = np.sqrt(electrons + READ_NOISE_E**2, dtype=np.float32)
        electrons += spread * rng.standard_normal(shape, dtype=np.float32)
    electrons += draw_cosmic_rays(rng, shape, cosmic_rays)
    data = electrons / np.float32(GAIN)
    flags = np.where(data >= SATURATION_ADU, np.uint16(Flag.SATURATED), np.uint16(0))
    np.minimum(data, np.float32(SATURATION_ADU * 1.02), out=data)
    error_ra, error_dec = (value / 3600 for value in pointing_error_arcsec)
    guess = _header(geometry, error_ra / np.cos(np.radians(FIELD_DEG[1])), error_dec, rotation_deg=0.0)
    info = ImageInfo(
        exposure="simulated", ccd="01", instrument=instrument.name, field="sim", filter=filter_name, mjd=mjd,
        exptime_s=exptime_s, airmass=1.1, target="sim", project="test", gain=GAIN, read_noise=READ_NOISE_E,
        saturation=SATURATION_ADU, pixel_scale_arcsec=pixel_scale_arcsec, wcs_guess=guess,
        steps_done=("overscan", "bias", "linearity", "flat"),
    )  # fmt: skip
    stars, galaxies = _source_tables(sky, instrument, filter_name, geometry, conditions)
    snr = expected_snr(scene, psf, np.ones(shape, np.float32), read_noise_e=READ_NOISE_E, n_reference=3)
    shown = _transient_table(sky, scene, snr, conditions.zero_point_e(filter_name))
    return SimulatedCcd(
        Image(info, data, flags), stars, galaxies, shown,
        measure_catalog(rng, [sky.stars]), guess, _header(geometry, 0.0, 0.0, rotation_deg), sky,
    )  # fmt: skip


def _draw_sky(rng, instrument, filter_name, shape, pixel_scale_arcsec, density, transients) -> Sky:
    margin = 30
    cell = Geometry(*FIELD_DEG, (shape[0] + 2 * margin, shape[1] + 2 * margin), pixel_scale_arcsec)
    stars, galaxies = draw_stars(rng, cell, density), draw_galaxies(rng, cell)
    typical = Conditions(MJD, 45.0, 1.8 * pixel_scale_arcsec)
    return Sky(
        stars, galaxies,
        draw_transients(
            rng, cell, stars, stars.magnitude(instrument, filter_name), galaxies, count=transients, t0_mjd=MJD,
            mag_at_snr=magnitude_at_snr(instrument, filter_name, typical, read_noise_e=READ_NOISE_E, n_reference=3),
            margin_px=margin + 35.0,
        ),
    )  # fmt: skip


def _header(geometry: Geometry, error_ra_deg: float, error_dec_deg: float, rotation_deg: float) -> str:
    """The TAN WCS of a geometry (without distortion) as header text."""
    from astropy.io.fits import Header

    scale = geometry.scale_arcsec / 3600
    cos, sin = np.cos(np.radians(rotation_deg)), np.sin(np.radians(rotation_deg))
    return header_text(
        Header(
            {
                "WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
                "CRVAL1": geometry.ra_deg + error_ra_deg, "CRVAL2": geometry.dec_deg + error_dec_deg,
                "CRPIX1": (geometry.shape[1] + 1) / 2, "CRPIX2": (geometry.shape[0] + 1) / 2,
                "CD1_1": -scale * cos, "CD1_2": scale * sin, "CD2_1": scale * sin, "CD2_2": scale * cos,
                "RADESYS": "ICRS",
            }
        )
    )  # fmt: skip


def _source_tables(sky, instrument, filter_name, geometry, conditions) -> tuple["Table", "Table"]:
    from astropy.table import Table

    zero_point = conditions.zero_point_e(filter_name)
    ra, dec = sky.stars.position(conditions.epoch_yr)
    x, y = geometry.sky_to_pixel(ra, dec)
    mag = sky.stars.magnitude(instrument, filter_name)
    stars = Table(
        {
            "x": x, "y": y, "ra": ra, "dec": dec, "mag": mag, "mag_g": sky.stars.mag_g, "color": sky.stars.color,
            "flux": 10 ** (-0.4 * (mag - zero_point)) / GAIN,
        }
    )  # fmt: skip
    x, y = geometry.sky_to_pixel(sky.galaxies.ra, sky.galaxies.dec)
    galaxies = Table({"x": x, "y": y, "mag": sky.galaxies.mag, "half_light_arcsec": sky.galaxies.half_light_arcsec})
    return stars, galaxies


def _transient_table(sky, scene, snr, zero_point) -> "Table":
    from astropy.table import Table

    shown = sky.transients if len(scene.x) else None
    n = len(scene.x)
    return Table(
        {
            "id": shown.name if shown else np.zeros(0, "U4"), "kind": shown.kind if shown else np.zeros(0, "U8"),
            "ra": shown.ra if shown else np.zeros(n), "dec": shown.dec if shown else np.zeros(n), "x": scene.x,
            "y": scene.y, "mag": zero_point - 2.5 * np.log10(np.abs(scene.flux_e)), "flux": scene.flux_e / GAIN,
            "snr": snr,
        }
    )  # fmt: skip
