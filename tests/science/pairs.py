"""A small synthetic sky seen twice: what the tests of registration and subtraction share."""

from dataclasses import dataclass, replace

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from seechange_assets.products import Background, Image, ImageInfo, Psf, Reference, Sources, Wcs, ZeroPoint, header_text
from seechange_assets.science.psf import gaussian_psf

SCALE_ARCSEC = 1.0


def rotated_wcs(
    shape: tuple[int, int],
    *,
    rotation_deg: float = 0.0,
    shift_px: tuple[float, float] = (0.0, 0.0),
    scale_arcsec: float = SCALE_ARCSEC,
    sip: float = 0.0,
) -> WCS:
    """A TAN (or, with `sip`, TAN-SIP) WCS around one point of the sky."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.2]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5 + shift_px[0], shape[0] / 2 + 0.5 + shift_px[1]]
    angle, step = np.deg2rad(rotation_deg), scale_arcsec / 3600
    wcs.wcs.cd = step * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if sip:
        from astropy.wcs import Sip

        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[0, 2] = sip, -sip
        wcs.sip = Sip(a, b, np.zeros((3, 3)), np.zeros((3, 3)), wcs.wcs.crpix)
    return wcs


def wcs_text(wcs: WCS) -> str:
    return header_text(wcs.to_header(relax=True))


def gaussian_star(shape: tuple[int, int], x: float, y: float, flux: float, sigma_px: float) -> NDArray[np.float32]:
    """A sampled round Gaussian."""
    yy, xx = np.indices(shape)
    profile = np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / sigma_px**2) / (2 * np.pi * sigma_px**2)
    return (flux * profile).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """Positions on the sky and fluxes (at zero point 25) of stars."""

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    flux: NDArray[np.float64]


def star_field(
    rng: np.random.Generator, shape: tuple[int, int], n: int, flux_range: tuple[float, float] = (500, 5e4)
) -> Scene:
    """Stars all over the frame of `rotated_wcs(shape)` and a little beyond."""
    ny, nx = shape
    x, y = rng.uniform(-20, nx + 20, n), rng.uniform(-20, ny + 20, n)
    ra, dec = rotated_wcs(shape).all_pix2world(x, y, 0)
    return Scene(ra, dec, 10 ** rng.uniform(*np.log10(flux_range), n))


@dataclass(frozen=True)
class Observation:
    """One synthetic calibrated exposure: everything `subtract` wants."""

    image: Image
    background: Background
    sources: Sources
    psf: Psf
    wcs: Wcs
    zp: ZeroPoint

    def arguments(self) -> tuple:
        return self.image, self.background, self.psf, self.wcs, self.zp, self.sources


def observe(
    rng: np.random.Generator,
    scene: Scene,
    wcs: WCS,
    shape: tuple[int, int],
    *,
    fwhm_px: float = 3.5,
    sky_rms: float = 20.0,
    gain: float = 2.0,
    zp: float = 25.0,
    extra: Scene | None = None,
    exposure: str = "sim_20260101T000000",
) -> Observation:
    """Image of a scene (and of an `extra` one, not in the source list) with noise and the true calibration."""
    ny, nx = shape
    sigma = fwhm_px / np.sqrt(8 * np.log(2))
    data, stars = np.zeros(shape), None
    for part in (scene, extra):
        if part is None:
            continue
        x, y = wcs.all_world2pix(part.ra, part.dec, 0)
        flux = part.flux * 10 ** (0.4 * (zp - 25))
        _add_stars(data, x, y, flux, sigma)
        stars = (x, y, flux) if stars is None else stars
    sky = sky_rms**2
    noisy = data + rng.normal(size=shape) * np.sqrt(sky + data / gain) + 1000.0
    info = ImageInfo(
        exposure, "00", "demo", "field", "r", 61041.0, 60.0, 1.1, "", "", gain, 5.0, 6e4, SCALE_ARCSEC, "", ("all",)
    )
    image = Image(info, noisy.astype(np.float32), np.zeros(shape, np.uint16))
    mesh = np.ones((1, 1), np.float32)
    background = Background(1000 * mesh, sky_rms * mesh, max(shape), shape, 1000.0, sky_rms)
    inside = (stars[0] > 3) & (stars[0] < nx - 4) & (stars[1] > 3) & (stars[1] < ny - 4)
    x, y, flux = (values[inside] for values in stars)
    area = 4 * np.pi * sigma**2
    flux_err = np.sqrt(area * sky + flux / gain)
    error = sigma * np.sqrt(2) * flux_err / flux
    sources = _sources(rng, x, y, flux, flux_err, error, fwhm_px)
    photometry = Table({
        "flux_psf": flux + rng.normal(size=flux.size) * flux_err, "flux_psf_err": flux_err,
        "chi2": np.ones_like(flux), "used": np.ones(flux.size, bool), "reserved": np.zeros(flux.size, bool),
    })  # fmt: skip
    psf = replace(gaussian_psf(fwhm_px, shape), photometry=photometry)
    nan = float("nan")
    solution = Wcs(wcs_text(wcs), 1, 0, 0, nan, nan, nan, nan, "truth", Table())
    calibration = ZeroPoint(zp, 0.01, 0.01, 0.0, 0, (), (), nan, Table())
    return Observation(image, background, sources, psf, solution, calibration)


def as_reference(observation: Observation) -> Reference:
    o = observation
    data = o.image.data - np.float32(o.background.level)
    variance = o.background.rms**2 + np.maximum(data, 0) / o.image.info.gain
    return Reference(
        "test", o.image.info, data, variance.astype(np.float32), o.image.flags, o.sources, o.psf, o.wcs, o.zp, ()
    )


def _add_stars(data: NDArray, x: NDArray, y: NDArray, flux: NDArray, sigma: float) -> None:
    ny, nx = data.shape
    reach = int(np.ceil(6 * sigma))
    for xs, ys, f in zip(x, y, flux, strict=True):
        x0, y0 = int(np.rint(xs)) - reach, int(np.rint(ys)) - reach
        xa, ya, xb, yb = max(x0, 0), max(y0, 0), min(x0 + 2 * reach + 1, nx), min(y0 + 2 * reach + 1, ny)
        if xa < xb and ya < yb:
            gx = np.exp(-0.5 * ((np.arange(xa, xb) - xs) / sigma) ** 2)
            gy = np.exp(-0.5 * ((np.arange(ya, yb) - ys) / sigma) ** 2)
            data[ya:yb, xa:xb] += f / (2 * np.pi * sigma**2) * gy[:, None] * gx[None, :]


def _sources(
    rng: np.random.Generator, x: NDArray, y: NDArray, flux: NDArray, flux_err: NDArray, error: NDArray, fwhm_px: float
) -> Sources:
    """A source table with measured positions; not sorted by flux, which nothing here needs."""
    n = x.size
    table = Table({
        "x": x + rng.normal(size=n) * error, "y": y + rng.normal(size=n) * error, "x_err": error, "y_err": error,
        "flux_auto": flux, "flux_auto_err": flux_err, "snr": flux / flux_err, "fwhm_px": np.full(n, fwhm_px),
        "is_good": np.ones(n, bool), "is_star": np.ones(n, bool), "star_score": np.ones(n),
        "image_flags": np.zeros(n, np.uint16),
    })  # fmt: skip
    return Sources(table, (), fwhm_px)
