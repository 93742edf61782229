"""The zero point against synthetic stars of known magnitude."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table

from seechange_assets.calibrate.zp import ZeroPointParameters
from seechange_assets.errors import TooFewStars
from seechange_assets.products import Background, Wcs
from seechange_assets.science.photometric_calibration import calibrate_photometry, limiting_flux
from seechange_assets.science.psf import effective_area, gaussian_psf, render
from tests.science.star_fields import make_info, make_sources

ZP = 27.3
SHAPE = (512, 512)
SKY_RMS = 10.0


def identity(_filter, mag_g, _color):
    return mag_g


def scene(seed, n=150, *, n_wrong=0, wrong_mag=None, scatter=0.015, color_term=0.0, color=None, area=20.0):
    """Sources with PSF and aperture fluxes, and the matches that a WCS would carry."""
    rng = np.random.default_rng(seed)
    mag = 15.0 + 5.0 * rng.power(2.0, n)
    color = rng.uniform(0.6, 2.2, n) if color is None else np.full(n, color)
    flux = np.sort(10 ** (-0.4 * (mag - ZP)))[::-1]
    mag = ZP - 2.5 * np.log10(flux)
    flux_err = np.sqrt(flux / 1.5 + SKY_RMS**2 * area)
    measured = flux + rng.normal(0, flux_err)
    mag_g = mag + rng.normal(0, scatter, n) + color_term * np.nan_to_num(color - 0.8)
    wrong = rng.choice(n, n_wrong, replace=False)
    mag_g[wrong] += rng.uniform(-4, 4, n_wrong) if wrong_mag is None else wrong_mag
    apertures = measured[:, None] * np.array([0.8, 0.95]) * (1 + rng.normal(0, 0.003, (n, 2)))
    sources = make_sources(
        np.arange(n) * 3.0,
        np.arange(n) * 3.0,
        np.full(n, 0.02),
        measured,
        measured / flux_err,
        flux_aper=apertures,
        flux_aper_err=np.repeat(flux_err[:, None], 2, axis=1),
    )
    order = np.argsort(-measured, kind="stable")
    photometry = Table({"flux_psf": measured[order], "flux_psf_err": flux_err[order], "chi2": np.ones(n)})
    matches = Table(
        {
            "source": np.arange(n),
            "mag_g": mag_g[order],
            "mag_bp": (mag_g + 0.4 * color)[order],
            "mag_rp": (mag_g - 0.6 * color)[order],
            "mag_g_err": np.full(n, 0.003),
            "mag_bp_err": np.full(n, 0.01),
            "mag_rp_err": np.full(n, 0.01),
            "d_ra_mas": np.zeros(n),
            "d_dec_mas": np.zeros(n),
            "used": np.ones(n, bool),
        }
    )
    psf = replace(gaussian_psf(3.0, SHAPE), photometry=photometry)
    background = Background(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), 256, SHAPE, 100.0, SKY_RMS)
    wcs = Wcs("", 0, n, n, 10.0, 10.0, 5.0, 5.0, "synthetic", matches)
    return make_info("", 0.25), sources, psf, background, wcs


def test_recovers_the_zero_point_within_its_error():
    results = [calibrate_photometry(*scene(seed), identity) for seed in range(60)]
    zp, err = np.array([r.zp for r in results]), np.array([r.zp_err for r in results])
    # 60 seeds give the scatter itself to 9 %; the stated error must agree within 30 %.
    assert abs(zp.mean() - ZP) < 4 * zp.std() / np.sqrt(len(zp))
    assert 0.7 < np.median(err) / zp.std() < 1.3


def test_stated_error_holds_with_few_stars():
    results = [calibrate_photometry(*scene(seed, n=20), identity) for seed in range(150)]
    pulls = np.array([(r.zp - ZP) / r.zp_err for r in results])
    assert 0.75 < pulls.std() < 1.3


@pytest.mark.parametrize("wrong_mag", [None, 2.0, -0.5])
def test_survives_a_tenth_of_wrong_catalogue_entries(wrong_mag):
    errors = [calibrate_photometry(*scene(s, n_wrong=15, wrong_mag=wrong_mag), identity).zp - ZP for s in range(20)]
    assert np.abs(errors).max() < 0.010


@pytest.mark.parametrize("crowded", [True, False])
def test_stars_with_unseen_neighbours_stay_out_where_stars_are_crowded(crowded):
    errors = []
    for seed in range(10):
        info, sources, psf, *rest = scene(seed, n=700)
        blended = np.random.default_rng(seed).random(700) < 0.4
        psf.photometry["flux_psf"][blended] *= 1.02
        psf.photometry["chi2"] = np.random.default_rng(seed).normal(1.0, 0.2, 700) + blended
        psf = psf if crowded else replace(psf, shape=(4 * SHAPE[0], 4 * SHAPE[1]))
        errors.append(calibrate_photometry(info, sources, psf, *rest, identity).zp - ZP)
    # Of 350 stars with 15 mmag each the error is 0.8 mmag; two per cent of excess in 40 % of all are 8 mmag.
    assert abs(np.mean(errors)) < 0.001 if crowded else np.mean(errors) > 0.004


def test_applies_the_transform_and_fits_what_it_misses():
    def wrong_by_a_color_term(_filter, mag_g, color):
        return mag_g + 0.1 * (color - 0.8)

    info, *products = scene(1)
    fitted = calibrate_photometry(info, *products, wrong_by_a_color_term, fit_color_term=True)
    plain = calibrate_photometry(info, *products, wrong_by_a_color_term)
    assert fitted.color_term == pytest.approx(0.1, abs=0.015)
    assert fitted.zp == pytest.approx(ZP, abs=0.01)
    assert abs(plain.zp - ZP) > 0.03
    assert plain.color_term == 0.0


def test_stars_without_colour_serve_an_identity_transform_only():
    def needs_color(_filter, mag_g, color):
        return mag_g - 0.1 * color

    products = scene(2, color=np.nan)
    assert calibrate_photometry(*products, identity).zp == pytest.approx(ZP, abs=0.01)
    with pytest.raises(TooFewStars, match="0 of them with a colour"):
        calibrate_photometry(*products, needs_color)


def test_aperture_corrections():
    result = calibrate_photometry(*scene(3), identity)
    # Medians of about 100 stars with 3 mmag of scatter.
    assert result.aperture_corrections == pytest.approx((2.5 * np.log10(0.8), 2.5 * np.log10(0.95)), abs=0.002)
    assert result.aperture_radii_px == (3.0, 6.0)


def test_limiting_magnitude_is_where_the_signal_to_noise_is_five():
    info, _, psf, background, _ = products = scene(4)
    result = calibrate_photometry(*products, identity)
    flux = 10 ** (-0.4 * (result.limiting_magnitude - result.zp))
    area = effective_area(render(psf, [255.5], [255.5])[0])
    assert flux / np.sqrt(area * SKY_RMS**2 + flux / info.gain) == pytest.approx(5.0, rel=1e-6)
    assert limiting_flux(replace(info, gain=np.nan), psf, background, 5.0) == pytest.approx(5 * SKY_RMS * area**0.5)


def test_too_few_stars():
    with pytest.raises(TooFewStars) as error:
        calibrate_photometry(*scene(5, n=6), identity)
    assert (error.value.n_found, error.value.n_required) == (6, 10)


def test_ignores_bad_and_faint_and_distant_stars():
    info, sources, psf, background, wcs = scene(6)
    sources.table["is_good"][:100] = False
    wcs.matches["d_ra_mas"][100:120] = 1500.0
    assert calibrate_photometry(info, sources, psf, background, wcs, identity).n_stars <= 30


def test_is_deterministic():
    first, second = (calibrate_photometry(*scene(7), identity) for _ in range(2))
    assert first.zp == second.zp
    assert np.array_equal(first.stars["residual"], second.stars["residual"])


def test_parameters_are_the_arguments():
    calibrate_photometry(*scene(8), identity, **ZeroPointParameters().arguments())
