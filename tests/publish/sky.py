"""Small products with a known truth for the tests of the publish phase."""

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS

from seechange_assets.products import Cutouts, Difference, ImageInfo, Measurements, Psf, Scores, Wcs, header_text
from seechange_assets.science.psf import gaussian_psf

PROVENANCES = {
    "diff": "d" * 20,
    "associations": "a" * 20,
    "forced_photometry": "f" * 20,
    "alerts": "b" * 20,
    "reference": "r" * 20,
}
ZP = 27.0
MJD = 61000.25


def image_info(exposure: str = "ls4_1", ccd: str = "S1", mjd: float = MJD) -> ImageInfo:
    return ImageInfo(
        exposure=exposure, ccd=ccd, instrument="ls4", field="f1", filter="r", mjd=mjd, exptime_s=60.0, airmass=1.2,
        target="t1", project="p1", gain=1.5, read_noise=5.0, saturation=6e4, pixel_scale_arcsec=1.0,
    )  # fmt: skip


def tan_wcs(shape, ra=150.0, dec=-30.0, scale_arcsec=1.0, angle_deg=20.0) -> WCS:
    ny, nx = shape
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [nx / 2 + 7.5, ny / 2 - 3.25]
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    wcs.wcs.cd = scale_arcsec / 3600.0 * np.array([[-c, s], [s, c]])
    wcs.array_shape = shape
    return wcs


def wcs_product(wcs: WCS) -> Wcs:
    header = wcs.to_header(relax=True)
    header["NAXIS1"], header["NAXIS2"] = wcs.array_shape[1], wcs.array_shape[0]
    nan = float("nan")
    return Wcs(header_text(header), 1, 0, 0, nan, nan, nan, nan, "none", Table())


def measurements(ra, dec, flux=1000.0, is_bad=False, x=50.0, y=50.0) -> Measurements:
    """Measurements at given positions; scalars are repeated."""
    ra, dec, flux, is_bad, x, y = np.broadcast_arrays(
        np.atleast_1d(np.asarray(ra, float)), dec, np.asarray(flux, float), is_bad, x, y
    )
    n = len(ra)
    err = np.full(n, 50.0)
    table = Table({
        "detection": np.arange(n), "x": x, "y": y, "x_err": np.full(n, 0.1), "y_err": np.full(n, 0.1),
        "xy_cov": np.zeros(n), "ra": ra, "dec": dec, "ra_err": np.full(n, 3e-5), "dec_err": np.full(n, 3e-5),
        "ra_dec_cov": np.zeros(n), "flux_psf": flux, "flux_psf_err": err,
        "flux_aper": np.outer(flux, [0.8, 1.0]), "flux_aper_err": np.outer(err, [1.0, 1.5]),
        "mag": np.full(n, np.nan), "mag_err": np.full(n, np.nan), "snr": flux / err, "chi2": np.ones(n),
        "score": flux / err, "fwhm_px": np.full(n, 2.5), "elongation": np.full(n, 1.1),
        "n_bad_pixels": np.zeros(n, int), "kind": np.full(n, "point"),
        "is_bad": is_bad, "bad_reasons": np.where(is_bad, "negative_fraction", ""),
    })  # fmt: skip
    return Measurements(table, (2.5, 5.0), ZP, 0.01)


def scores(n: int, value: float = 0.9) -> Scores:
    value = np.broadcast_to(np.asarray(value, np.float32), n)
    return Scores(Table({"score": value, "is_real": value >= 0.5}), "test-1", 0.5)


def cutouts(x, y, size: int = 41, seed: int = 1) -> Cutouts:
    rng = np.random.default_rng(seed)
    corner = np.column_stack([np.round(x), np.round(y)]).astype(np.int32) - size // 2
    pixels = [rng.normal(0, 10, (len(corner), size, size)).astype(np.float32) for _ in range(3)]
    flags = np.zeros(pixels[0].shape, np.uint16)
    return Cutouts(*pixels, flags, flags, flags, corner, size)


def difference(
    shape=(200, 160), stars=((60.3, 80.7, 5000.0),), noise=5.0, seed=0, psf: Psf | None = None, **info
) -> Difference:
    """Noise with point sources (x, y, flux)."""
    from seechange_assets.science.psf import render

    psf = psf or gaussian_psf(2.6, shape)
    rng = np.random.default_rng(seed)
    data = rng.normal(0, noise, shape)
    for x, y, flux in stars:
        stamp = render(psf, [x], [y], 21)[0]
        x0, y0 = int(np.floor(x + 0.5)) - 10, int(np.floor(y + 0.5)) - 10
        data[y0 : y0 + 21, x0 : x0 + 21] += flux * stamp
    empty = np.zeros(shape, np.float32)
    return Difference(
        info=image_info(**info), data=data.astype(np.float32), noise=np.full(shape, noise, np.float32), score=empty,
        flux=empty, flux_err=empty, flags=np.zeros(shape, np.uint16), psf=psf, wcs=wcs_product(tan_wcs(shape)), zp=ZP,
        zp_err=0.01, limiting_magnitude=20.5, method="test", flux_scale=1.0, reference_wcs="",
    )  # fmt: skip
