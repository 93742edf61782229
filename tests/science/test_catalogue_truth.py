"""Sources and PSF fluxes of isolated stars against the truth: completeness, pulls, bias, zones of the field."""

import numpy as np
import pytest

from seechange_assets.science.background import measure_background
from seechange_assets.science.psf import effective_area, moffat_psf, render
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.psf_photometry import fit_position_and_flux
from seechange_assets.science.sources import extract_sources
from tests.data import test_data
from tests.science.fields import show
from tests.science.skies import GAIN, READ_NOISE, SKY, as_image, grid_positions, make_sky, matched, robust_std
from tests.science.test_psf import planted

NOISE = np.sqrt(SKY / GAIN + (READ_NOISE / GAIN) ** 2)


def flux_at(snr, fwhm_px):
    """Flux of a star that an ideal fit measures with this S/N."""
    psf = moffat_psf(np.hypot(fwhm_px, 0.97), 3.0, (100, 100))
    sky = NOISE**2 * effective_area(render(psf, 50, 50)[0])
    return (snr**2 / GAIN + np.sqrt(snr**4 / GAIN**2 + 4 * snr**2 * sky)) / 2


def isolated(seed, snr, fwhm_px, shape=(900, 900), variation=0.0):
    """Stars of one S/N on a grid, a few bright ones among them to tell the PSF; rows found, and their truth."""
    positions = grid_positions(shape, 44, seed)
    n = positions[0].size
    flux = np.where(np.arange(n) % 5 == 0, flux_at(150.0, fwhm_px), flux_at(snr, fwhm_px))
    sky = make_sky(
        seed, shape, fwhm_px, positions=positions, n_stars=n, flux=flux, variation=variation, ellipticity=0
    )  # fmt: skip
    background = measure_background(sky.image)
    sources = extract_sources(sky.image, background)
    psf = build_psf(sky.image, background, sources)
    rows, truth = matched(sky, sources, 1.5)
    faint = truth % 5 != 0
    found = np.unique(truth[faint]).size / np.count_nonzero(np.arange(n) % 5)
    return sky, sources.table[rows[faint]], psf.photometry[rows[faint]], truth[faint], found


def figures(seeds, snr, fwhm_px):
    """Completeness, position, PSF flux and aperture pulls, bias of the PSF flux."""
    positions, fluxes, apertures, ratios, found = [], [], [], [], []
    for seed in seeds:
        sky, table, photometry, truth, share = isolated(seed, snr, fwhm_px)
        found.append(share)
        positions += [(table["x"] - sky.x[truth]) / table["x_err"], (table["y"] - sky.y[truth]) / table["y_err"]]
        fluxes.append((photometry["flux_psf"] - sky.flux[truth]) / photometry["flux_psf_err"])
        aperture = table["flux_aper"][:, 0]
        apertures.append((aperture - np.median(aperture)) / table["flux_aper_err"][:, 0])
        ratios.append(photometry["flux_psf"] / sky.flux[truth])
    pulls = [robust_std(np.concatenate(values)) for values in (positions, fluxes, apertures)]
    return float(np.mean(found)), *pulls, float(np.median(np.concatenate(ratios)) - 1)


@pytest.mark.parametrize("snr", [10.0, 30.0])
def test_isolated_stars(snr):
    found, position, flux, aperture, bias = figures((81, 82), snr, 2.5)
    assert found >= 0.95
    # 500 stars give a robust width to 5 % and the median flux at S/N 10 to 0.6 %; full size below.
    assert (position, flux, aperture) == pytest.approx((1.0, 1.0, 1.0), abs=0.15)
    assert abs(bias) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("fwhm_px", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("snr", [10.0, 30.0, 80.0])
def test_isolated_stars_over_seeds(snr, fwhm_px):
    found, position, flux, aperture, bias = figures(range(301, 311), snr, fwhm_px)
    show(f"S/N {snr} FWHM {fwhm_px}: {found:.3f}; pulls {position:.3f} {flux:.3f} {aperture:.3f}; bias {bias:+.4f}")
    assert found >= 0.95
    assert (position, flux) == pytest.approx((1.0, 1.0), abs=0.1)
    # Circles centred on a peak of the noise scatter less than their errors say: 0.90 at S/N 10 and 1.8 pixels.
    assert aperture == pytest.approx(1.0, abs=0.13)
    assert abs(bias) < 0.01


def zone_bias(seed, fwhm_px, shape=(1200, 1200)):
    """Median error of the PSF flux in 3x3 zones; the width of the PSF varies by 15 %."""
    positions = grid_positions(shape, 40, seed)
    n = positions[0].size
    flux = np.random.default_rng(seed).choice([2e4, 5e4, 1e5], n) * (fwhm_px / 3) ** 2
    sky = make_sky(seed, shape, fwhm_px, positions=positions, n_stars=n, flux=flux, variation=0.15)
    background = measure_background(sky.image)
    sources = extract_sources(sky.image, background)
    psf = build_psf(sky.image, background, sources)
    rows, truth = matched(sky, sources)
    ratio = np.asarray(psf.photometry["flux_psf"])[rows] / sky.flux[truth]
    zone = (sky.x[truth] * 3 / shape[1]).astype(int) + 3 * (sky.y[truth] * 3 / shape[0]).astype(int)
    return np.array([np.nanmedian(ratio[zone == z]) - 1 for z in range(9)])


def test_psf_fluxes_are_unbiased_anywhere():
    bias = zone_bias(83, 3.0)
    # 90 stars of S/N 100 to 200 per zone: each median is good to 0.1 %.
    assert np.abs(bias).max() < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("fwhm_px", [1.8, 2.4, 3.0])
def test_zones_over_seeds(fwhm_px):
    bias = np.array([zone_bias(seed, fwhm_px) for seed in range(101, 106)])
    zones, worst = np.round(100 * bias.mean(axis=0), 2), 100 * np.abs(bias).max()
    show(f"FWHM {fwhm_px}: mean over seeds {zones} %, worst {worst:.2f}")
    assert np.abs(bias.mean(axis=0)).max() < 0.005


@pytest.mark.parametrize("fwhm_px", [1.5, 3.5])
def test_faint_positions_settle(fwhm_px):
    settled = []
    for seed in range(4):
        data, variance, psf, x, y, _ = planted(seed, fwhm_px, 7.0)
        start = np.random.default_rng(seed).normal(0, 0.1 * fwhm_px, (2, x.size))
        fit = fit_position_and_flux(data, variance, psf, x + start[0], y + start[1], 2 * int(1.5 * fwhm_px) + 1)
        settled.append(np.isfinite(fit.x_err))
    # Steps of 0.0001 pixel were asked for once: 7 % of these sources never made one.
    assert np.mean(settled) > 0.95


@pytest.mark.parametrize(("name", "fwhm_px"), [("Stack-DEC-OBS18.fits", 3.65), ("Stack-DEC-OBS04.fits", 5.1)])
def test_the_seeing_is_that_of_few_stars_among_galaxies(name, fwhm_px):
    from astropy.io import fits

    image = as_image(fits.getdata(test_data("decam_atfield") / "expected" / name).astype(np.float32))
    sources = extract_sources(image, measure_background(image))
    # The stars of S/N over 100 have these widths; three galaxies of 7 pixels once outvoted them.
    assert sources.fwhm_px == pytest.approx(fwhm_px, rel=0.07)
