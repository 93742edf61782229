"""Synthetic products with known truth: a difference image with white noise and a Gaussian PSF."""

import numpy as np
from scipy.signal import fftconvolve

from seechange_assets.products import Background, Difference, Image, ImageInfo, Wcs
from seechange_assets.science.psf import gaussian_psf, render

PIXEL_SCALE_ARCSEC = 1.0
ZERO_POINT = 25.0


def image_info(**changes) -> ImageInfo:
    """Header of a synthetic CCD image."""
    values = {
        "exposure": "test_20261122T031502",
        "ccd": "S1",
        "instrument": "test",
        "field": "f1",
        "filter": "r",
        "mjd": 60000.0,
        "exptime_s": 60.0,
        "airmass": 1.1,
        "target": "",
        "project": "",
        "gain": 1.5,
        "read_noise": 5.0,
        "saturation": 60000.0,
        "pixel_scale_arcsec": PIXEL_SCALE_ARCSEC,
    }
    return ImageInfo(**(values | changes))


def tan_wcs(shape: tuple[int, int], *, ra: float = 150.0, dec: float = 2.0, shift=(0.0, 0.0)) -> Wcs:
    """A TAN solution centred on an image, north up and east left; `shift` moves the reference pixel."""
    from astropy.table import Table

    ny, nx = shape
    scale = PIXEL_SCALE_ARCSEC / 3600
    cards = {
        "CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--TAN'", "CUNIT1": "'deg'", "CUNIT2": "'deg'",
        "CRVAL1": ra, "CRVAL2": dec, "CRPIX1": (nx + 1) / 2 + shift[0], "CRPIX2": (ny + 1) / 2 + shift[1],
        "CD1_1": -scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale,
    }  # fmt: skip
    header = "\n".join(f"{key:8s}= {value}" for key, value in cards.items())
    return Wcs(header, 1, 0, 0, 10.0, 10.0, 10.0, 10.0, "none", Table())


def add_sources(data: np.ndarray, psf, x, y, flux, size: int | None = None) -> None:
    """Add point sources to `data`, in place; the parts outside are cut off."""
    x, y, flux = np.atleast_1d(x), np.atleast_1d(y), np.atleast_1d(flux)
    stamps = render(psf, x, y, size)
    half = stamps.shape[-1] // 2
    padded = np.pad(np.zeros(data.shape), half)
    for stamp, column, row, f in zip(stamps, np.floor(x + 0.5), np.floor(y + 0.5), flux, strict=True):
        corner = (slice(int(row), int(row) + 2 * half + 1), slice(int(column), int(column) + 2 * half + 1))
        padded[corner] += f * stamp
    data += padded[half:-half, half:-half].astype(data.dtype)


def make_difference(
    rng: np.random.Generator,
    shape: tuple[int, int] = (256, 256),
    fwhm_px: float = 3.0,
    sources=None,
    noise: float = 10.0,
    flags: np.ndarray | None = None,
    extra: np.ndarray | None = None,
) -> Difference:
    """A difference of white `noise` with point `sources` (x, y, snr) and `extra` counts added.

    Fluxes follow from the wanted S/N: ``flux = snr * noise / sqrt(sum(psf^2))``.
    """
    psf = gaussian_psf(fwhm_px, shape)
    data = rng.normal(0.0, noise, shape).astype(np.float32)
    if sources is not None:
        x, y, snr = (np.asarray(column, float) for column in sources)
        add_sources(data, psf, x, y, snr * flux_unit(psf, noise))
    if extra is not None:
        data += extra.astype(np.float32)
    flags = np.zeros(shape, np.uint16) if flags is None else flags
    return difference_of(data, np.full(shape, noise, np.float32), flags, psf)


def flux_unit(psf, noise: float) -> float:
    """Error of the flux of a point source on white noise."""
    stamp = render(psf, [0.0], [0.0])[0]
    return float(noise / np.sqrt((stamp**2).sum()))


def difference_of(data, noise, flags, psf, *, info: ImageInfo | None = None) -> Difference:
    """Difference product of given pixels, with its matched-filter score."""
    stamp = render(psf, [0.0], [0.0])[0]
    weight = np.where(flags == 0, 1 / np.square(noise, dtype=np.float64), 0.0)
    top = fftconvolve(data * weight, stamp[::-1, ::-1], mode="same")
    bottom = np.maximum(fftconvolve(weight, stamp[::-1, ::-1] ** 2, mode="same"), 1e-12)
    wcs = tan_wcs(data.shape)
    return Difference(
        info=info or image_info(),
        data=data,
        noise=noise,
        score=(top / np.sqrt(bottom)).astype(np.float32),
        flux=(top / bottom).astype(np.float32),
        flux_err=(1 / np.sqrt(bottom)).astype(np.float32),
        flags=flags,
        psf=psf,
        wcs=wcs,
        zp=ZERO_POINT,
        zp_err=0.01,
        limiting_magnitude=21.0,
        method="synthetic",
        flux_scale=1.0,
        reference_wcs=wcs.header,
    )


def flat_background(shape: tuple[int, int], level: float = 100.0, rms: float = 10.0) -> Background:
    """A constant sky."""
    mesh = np.full((-(-shape[0] // 64), -(-shape[1] // 64)), 1.0, np.float32)
    return Background((mesh * level).astype(np.float32), (mesh * rms).astype(np.float32), 64, shape, level, rms)


def plain_image(data: np.ndarray, flags: np.ndarray | None = None) -> Image:
    """An image product around pixels."""
    return Image(image_info(), data.astype(np.float32), np.zeros(data.shape, np.uint16) if flags is None else flags)
