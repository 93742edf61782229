"""Synthetic star fields for the calibration tests: a true distorted WCS, sources on it, a catalogue, a wrong header."""

from dataclasses import dataclass

import numpy as np
from astropy.io.fits import Header
from astropy.table import Table

from seechange_assets.products import ImageInfo, SkyCatalog, Sources, header_text, wcs_from_text
from seechange_assets.science.tangent_plane import TangentPlane, sky_position

EPOCH_YR = 2016.0
MJD = 60000.0


@dataclass
class StarField:
    """Sources of one image with their truth."""

    sources: Sources
    info: ImageInfo
    shape: tuple[int, int]
    catalog: SkyCatalog
    truth: Header


def linear_header(ra: float, dec: float, shape: tuple[int, int], scale: float, rotation_deg=0.0, parity=-1) -> Header:
    """TAN header with the reference pixel at the image centre; parity -1 has east to the left."""
    ny, nx = shape
    t = np.radians(rotation_deg)
    cd = scale / 3600.0 * np.array([[parity * np.cos(t), -np.sin(t)], [parity * np.sin(t), np.cos(t)]])
    header = Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"], header["CRPIX2"] = (nx + 1) / 2.0, (ny + 1) / 2.0
    header["CRVAL1"], header["CRVAL2"] = ra % 360.0, dec
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = cd.ravel()
    header["RADESYS"] = "ICRS"
    return header


def with_distortion(header: Header, shape: tuple[int, int], size_px: float, rng: np.random.Generator) -> Header:
    """A cubic SIP distortion that moves the corners by about `size_px`."""
    half = max(shape) / 2.0
    header = header.copy()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    for name in "AB":
        header[f"{name}_ORDER"] = 3
        for p in range(4):
            for q in range(4 - p):
                if p + q >= 2:
                    header[f"{name}_{p}_{q}"] = float(rng.normal(0, size_px / 2)) / half ** (p + q)
    return header


def guess_from(header: Header, rng, offset_arcsec=0.0, rotation_deg=0.0, scale_error=0.0, mirrored=False) -> Header:
    """The linear part of `header`, shifted along a great circle (so also right at a pole), turned, scaled, mirrored."""
    guess = header.copy()
    for keyword in [name for name in guess if name[:2] in ("A_", "B_")]:
        del guess[keyword]
    guess["CTYPE1"], guess["CTYPE2"] = "RA---TAN", "DEC--TAN"
    plane = TangentPlane(header["CRVAL1"], header["CRVAL2"])
    angle = rng.uniform(0, 2 * np.pi)
    moved = offset_arcsec * np.array([np.cos(angle), np.sin(angle)])
    ra, dec = sky_position(plane.deproject(moved))
    guess["CRVAL1"], guess["CRVAL2"] = float(ra), float(dec)
    # Near a pole north turns on the way: the axes of the old plane as seen in the new one.
    axes = TangentPlane(float(ra), float(dec)).project(plane.deproject(moved + np.eye(2)))
    t = np.radians(rotation_deg)
    turn = (1 + scale_error) * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    cd = turn @ axes.T @ np.array([[guess["CD1_1"], guess["CD1_2"]], [guess["CD2_1"], guess["CD2_2"]]])
    if mirrored:
        cd = cd @ np.diag([-1.0, 1.0])
    guess["CD1_1"], guess["CD1_2"], guess["CD2_1"], guess["CD2_2"] = (float(v) for v in cd.ravel())
    return guess


def make_info(guess: str, scale: float, **changes) -> ImageInfo:
    values = {
        "exposure": "test_20230225T000000",
        "ccd": "S1",
        "instrument": "test",
        "field": "f",
        "filter": "r",
        "mjd": MJD,
        "exptime_s": 60.0,
        "airmass": 1.1,
        "target": "",
        "project": "",
        "gain": 1.5,
        "read_noise": 5.0,
        "saturation": 6e4,
        "pixel_scale_arcsec": scale,
        "wcs_guess": guess,
    }
    return ImageInfo(**(values | changes))


def make_sources(x, y, error, flux, snr, **columns) -> Sources:
    """A `Sources` of good stars with the columns that calibration reads, sorted by flux."""
    n = len(x)
    order = np.argsort(-flux, kind="stable")
    table = Table(
        {
            "x": x,
            "y": y,
            "x_err": error,
            "y_err": error,
            "flux_auto": flux,
            "flux_auto_err": flux / snr,
            "snr": snr,
            "fwhm_px": np.full(n, 3.0),
            "image_flags": np.zeros(n, np.uint16),
            "extraction_flags": np.zeros(n, np.int16),
            "star_score": np.ones(n, np.float32),
            "is_good": np.ones(n, bool),
            "is_star": np.ones(n, bool),
            **columns,
        }
    )
    return Sources(table[order], (3.0, 6.0), 3.0)


def make_field(
    seed: int,
    *,
    n_common=400,
    n_only_image=300,
    n_only_catalog=200,
    ra=150.0,
    dec=2.0,
    shape=(4096, 2048),
    scale=0.25,
    distortion_px=3.0,
    offset_arcsec=40.0,
    rotation_deg=0.3,
    scale_error=0.005,
    parity=-1,
    mirrored=False,
    orientation_deg=10.0,
    proper_motion_mas=10.0,
) -> StarField:
    """A field whose sources have centroid errors by magnitude, and a catalogue at another epoch with proper motions."""
    rng = np.random.default_rng(seed)
    truth = with_distortion(linear_header(ra, dec, shape, scale, orientation_deg, parity), shape, distortion_px, rng)
    wcs = wcs_from_text(header_text(truth))
    ny, nx = shape
    margin = 100.0 / scale
    n = n_common + n_only_image
    x, y = rng.uniform(0, nx, n), rng.uniform(0, ny, n)
    mag = 14.0 + 7.0 * rng.power(2.5, n)
    flux = 10 ** (-0.4 * (mag - 27.0))
    snr = flux / np.sqrt(flux / 1.5 + 50.0**2)
    error = np.hypot(1.3 / snr, 0.005)
    sources = make_sources(x + rng.normal(0, error), y + rng.normal(0, error), error, flux, snr)
    xc = np.r_[x[:n_common], rng.uniform(-margin, nx + margin, n_only_catalog)]
    yc = np.r_[y[:n_common], rng.uniform(-margin, ny + margin, n_only_catalog)]
    mag_c = np.r_[mag[:n_common], 12.0 + 9.0 * rng.power(2.5, n_only_catalog)]
    sky = np.stack(wcs.all_pix2world(xc, yc, 0), axis=-1)
    catalog = make_catalog(sky, mag_c, rng, proper_motion_mas)
    guess = guess_from(
        truth, rng, offset_arcsec, rotation_deg * rng.choice([-1, 1]), scale_error * rng.choice([-1, 1]), mirrored
    )
    return StarField(sources, make_info(header_text(guess), scale), shape, catalog, truth)


def make_catalog(sky, mag, rng, proper_motion_mas=10.0, color=None) -> SkyCatalog:
    """Gaia-like catalogue of stars that stand at `sky` at the epoch of the image."""
    n = len(sky)
    pm = rng.normal(0, proper_motion_mas, (n, 2))
    years = 2000.0 + (MJD + 30 / 86400 - 51544.5) / 365.25 - EPOCH_YR
    dec = sky[:, 1] - pm[:, 1] * years / 3.6e6
    ra = sky[:, 0] - pm[:, 0] * years / 3.6e6 / np.cos(np.radians(sky[:, 1]))
    color = rng.uniform(0.6, 2.0, n) if color is None else color
    table = Table(
        {
            "ra": ra % 360.0,
            "dec": dec,
            "ra_err": np.full(n, 0.1),
            "dec_err": np.full(n, 0.1),
            "pm_ra": pm[:, 0],
            "pm_dec": pm[:, 1],
            "parallax": np.full(n, np.nan),
            "mag_g": mag,
            "mag_bp": mag + 0.4 * color,
            "mag_rp": mag - 0.6 * color,
            "mag_g_err": np.full(n, 0.003),
            "mag_bp_err": np.full(n, 0.01),
            "mag_rp_err": np.full(n, 0.01),
        }
    )
    return SkyCatalog(table, EPOCH_YR, "synthetic-0123456789")
