from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.errors import BadPixels, TooFewStars
from seechange_assets.products import Flag
from seechange_assets.science.background import measure_background
from seechange_assets.science.psf import (
    centered_image,
    constant_psf,
    effective_area,
    gaussian_psf,
    moffat_psf,
    native_size,
    polynomial_terms,
    render,
)
from seechange_assets.science.psf_fit import build_psf, model_fwhm
from seechange_assets.science.psf_photometry import fit_flux, fit_position_and_flux
from seechange_assets.science.sources import extract_sources
from tests.data import test_data
from tests.science.skies import as_image, grid_positions, make_sky, matched, moffat_stamps, robust_std

SHAPE = (400, 500)


def calibrated(sky, **options):
    background = measure_background(sky.image, box_size_px=128)
    sources = extract_sources(sky.image, background)
    return sources, build_psf(sky.image, background, sources, **options)


# --- rendering ---------------------------------------------------------------


def test_polynomial_terms_are_products_in_the_documented_order():
    terms = polynomial_terms([0.0, 499.0, 249.5], [0.0, 399.0, 199.5], 2, SHAPE)
    np.testing.assert_allclose(terms[0], [1, -1, -1, 1, 1, 1])
    np.testing.assert_allclose(terms[1], 1)
    np.testing.assert_allclose(terms[2], [1, 0, 0, 0, 0, 0], atol=1e-12)
    # No extrapolation beyond the image.
    np.testing.assert_allclose(polynomial_terms([9999], [399], 2, SHAPE), terms[1:2])


@pytest.mark.parametrize("fwhm_px", [1.2, 2.0, 3.3, 6.0])
def test_stamps_have_unit_sum_and_sit_at_their_sub_pixel_place(fwhm_px):
    psf = gaussian_psf(fwhm_px, SHAPE)
    x, y = np.array([50.0, 60.3, 70.49, 80.5]), np.array([20.0, 30.7, 40.51, 50.25])
    stamps = render(psf, x, y)
    half = stamps.shape[1] // 2
    np.testing.assert_allclose(stamps.sum(axis=(1, 2)), 1.0)
    row, column = np.indices(stamps.shape[1:]) - half
    sigma = fwhm_px / 2.3548
    for stamp, dx, dy in zip(stamps, x - np.floor(x + 0.5), y - np.floor(y + 0.5), strict=True):
        truth = np.exp(-0.5 * ((column - dx) ** 2 + (row - dy) ** 2) / sigma**2)
        # The Lanczos-4 kernel is good to some parts in a thousand of the peak.
        np.testing.assert_allclose(stamp / stamp.max(), truth / truth.max(), atol=0.006)


def test_stamp_size_and_input_are_checked():
    psf = gaussian_psf(3.0, SHAPE, 21)
    assert render(psf, 5.0, 5.0, 31).shape == (1, 31, 31)
    assert native_size(psf) == 21
    with pytest.raises(ValueError, match="odd"):
        render(psf, 5.0, 5.0, 20)
    with pytest.raises(ValueError, match="square"):
        constant_psf(np.ones((4, 4)), SHAPE, 2.0)
    with pytest.raises(BadPixels, match="positive sum"):
        constant_psf(np.zeros((5, 5)), SHAPE, 2.0)
    with pytest.raises(ValueError, match="FWHM"):
        gaussian_psf(-1.0, SHAPE)


def test_a_constant_psf_gives_its_stamp_back():
    stamp = render(moffat_psf(4.0, 3.0, SHAPE), 10.0, 10.0)[0]
    psf = constant_psf(stamp * 7, SHAPE, 4.0)
    np.testing.assert_allclose(render(psf, 33.0, 44.0)[0], stamp, atol=1e-12)


def test_centered_image_moves_nothing():
    psf = gaussian_psf(3.0, SHAPE)
    frame = centered_image(psf, 100.3, 50.2, (64, 81))
    assert frame.sum() == pytest.approx(1.0)
    assert np.unravel_index(frame.argmax(), frame.shape) == (0, 0)
    np.testing.assert_allclose(np.fft.fft2(frame).imag, 0, atol=1e-10)
    data = np.random.default_rng(0).normal(size=(64, 81))
    smooth = np.fft.ifft2(np.fft.fft2(data) * np.fft.fft2(frame)).real
    size = native_size(psf)
    stamp = np.roll(frame, (size // 2, size // 2), (0, 1))[:size, :size]
    assert smooth[32, 40] == pytest.approx((data[32 - size // 2 :, 40 - size // 2 :][:size, :size] * stamp).sum())
    assert centered_image(psf, 5, 5, (8, 9)).sum() == pytest.approx(1.0)


def test_effective_area_of_a_gaussian():
    # 1 / integral of g² = 4 pi sigma².
    stamp = render(gaussian_psf(5.0, SHAPE), 10.0, 10.0)[0]
    assert effective_area(stamp) == pytest.approx(4 * np.pi * (5.0 / 2.3548) ** 2, rel=1e-3)


# --- the fit -----------------------------------------------------------------


@pytest.mark.parametrize("fwhm_px", [1.3, 2.2, 4.0])
def test_fluxes_are_unbiased_at_any_seeing(fwhm_px):
    ratios, pulls, chi2 = [], [], []
    for seed in range(2):
        positions = grid_positions((800, 800), 40, seed)
        flux = np.random.default_rng(seed).choice([5e3, 1e4, 1e5], positions[0].size, p=[0.4, 0.4, 0.2])
        sky = make_sky(seed, (800, 800), fwhm_px, positions=positions, n_stars=positions[0].size, flux=flux)
        sources, psf = calibrated(sky)
        assert (psf.form, psf.degree) == ("pixels", 2)
        rows, truth = matched(sky, sources)
        table = psf.photometry[rows]
        ratios.append(table["flux_psf"] / sky.flux[truth])
        scale = np.median(ratios[-1][sky.flux[truth] > 5e4])
        pulls.append((table["flux_psf"] - scale * sky.flux[truth]) / table["flux_psf_err"])
        chi2.append(psf.chi2)
        for level in (5e3, 1e4):
            # 160 stars of S/N over 30 give the median to 0.3 %; the wings of the bright ones raise the sky by
            # some hundredths of sigma, which costs the faint ones at 4 pixels 0.4 %.
            assert np.median(ratios[-1][sky.flux[truth] == level]) / scale == pytest.approx(1.0, abs=0.01)
    # What lies beyond three FWHM (1 % of a Moffat profile) is not in the model.
    assert np.median(np.concatenate(ratios)) == pytest.approx(0.995, abs=0.01)
    assert robust_std(np.concatenate(pulls)) == pytest.approx(1.0, abs=0.15)
    assert np.mean(chi2) == pytest.approx(1.0, abs=0.15)


def test_the_model_follows_the_variation():
    positions = grid_positions((900, 900), 40, 3)
    sky = make_sky(3, (900, 900), 3.0, positions=positions, n_stars=positions[0].size, flux=5e4, variation=0.15)
    _, psf = calibrated(sky)
    x, y = np.array([60.0, 450.0, 840.0, 60.0, 840.0]), np.array([60.0, 450.0, 840.0, 840.0, 60.0])
    u, v = 2 * x / 900 - 1, 2 * y / 900 - 1
    half = native_size(psf) // 2
    truth = moffat_stamps(x, y, 3.0 * (1 + 0.15 * (u**2 + v) / 2), 0.05 * u, half)
    truth /= truth.sum(axis=(1, 2), keepdims=True)
    error = np.abs(render(psf, x, y) - truth).max(axis=(1, 2)) / truth.max(axis=(1, 2))
    # The peak varies by 30 % over the image, so a constant model would be wrong by 15 %.
    assert error.max() < 0.035
    assert psf.fwhm_px == pytest.approx(3.2, rel=0.03)


def test_reserved_stars_take_no_part():
    sky = make_sky(4, (600, 600), 2.5, n_stars=250)
    sources, psf = calibrated(sky, reserved_fraction=0.2)
    table = psf.photometry
    assert len(table) == len(sources.table)
    assert not np.any(table["used"] & table["reserved"])
    assert table["used"].sum() == psf.n_stars
    assert table["reserved"].sum() == pytest.approx(0.25 * psf.n_stars, rel=0.35)


@pytest.mark.parametrize(("n_stars", "degree", "form"), [(40, 1, "pixels"), (14, 0, "pixels"), (4, 0, "moffat")])
def test_few_stars_make_simpler_models(n_stars, degree, form):
    positions = grid_positions((500, 500), 60, 5)
    positions = (positions[0][:n_stars], positions[1][:n_stars])
    sky = make_sky(5, (500, 500), 3.0, positions=positions, n_stars=n_stars, flux=3e4, variation=0)
    sources, psf = calibrated(sky)
    assert (psf.form, psf.degree) == (form, degree)
    assert psf.fwhm_px == pytest.approx(3.15, rel=0.05)
    rows, truth = matched(sky, sources)
    assert np.median(psf.photometry["flux_psf"][rows] / sky.flux[truth]) == pytest.approx(1.0, abs=0.03)


def test_a_field_of_galaxies_falls_back_and_an_empty_one_is_an_error():
    sky = make_sky(6, (400, 400), 3.0, n_stars=0, n_galaxies=3, flux=3e4)
    background = measure_background(sky.image, box_size_px=128)
    sources = extract_sources(sky.image, background)
    sources.table["is_star"] = False
    assert build_psf(sky.image, background, sources).form == "gaussian"
    empty = replace(sources, table=sources.table[:0], fwhm_px=float("nan"))
    with pytest.raises(TooFewStars):
        build_psf(sky.image, background, empty)


def test_neighbours_are_taken_out():
    x, y = grid_positions((700, 700), 50, 7)
    n = x.size
    # Every third star has a companion of 30 % of its flux at 2.5 FWHM.
    close = np.arange(0, n, 3)
    positions = (np.concatenate([x, x[close] + 7.0]), np.concatenate([y, y[close] + 2.5]))
    flux = np.concatenate([np.full(n, 3e4), np.full(close.size, 9e3)])
    sky = make_sky(7, (700, 700), 3.0, positions=positions, n_stars=flux.size, flux=flux)
    sources, psf = calibrated(sky)
    rows, truth = matched(sky, sources)
    ratio = psf.photometry["flux_psf"][rows] / sky.flux[truth]
    alone = ratio[(truth < n) & (truth % 3 != 0)]
    crowded = ratio[(truth < n) & (truth % 3 == 0)]
    assert np.median(crowded) / np.median(alone) == pytest.approx(1.0, abs=0.005)
    assert np.median(ratio[truth >= n]) / np.median(alone) == pytest.approx(1.0, abs=0.02)


def test_lost_cores_are_not_measured():
    positions = grid_positions((400, 400), 50, 8)
    sky = make_sky(8, (400, 400), 3.0, positions=positions, n_stars=positions[0].size, flux=3e4)
    x, y = int(sky.x[5]), int(sky.y[5])
    sky.image.flags[y - 4 : y + 5, x - 4 : x + 5] = Flag.SATURATED
    sources, psf = calibrated(sky)
    rows, truth = matched(sky, sources)
    assert np.isnan(psf.photometry["flux_psf"][rows[truth == 5]]).all()
    assert np.isfinite(psf.photometry["flux_psf"][rows[truth != 5]]).all()


def test_same_image_same_psf():
    sky = make_sky(9, (400, 400), 2.5, n_stars=100)
    one, two = calibrated(sky)[1], calibrated(sky)[1]
    assert one.coefficients.tobytes() == two.coefficients.tobytes()
    assert np.asarray(one.photometry["flux_psf"]).tobytes() == np.asarray(two.photometry["flux_psf"]).tobytes()


def test_real_decam_stamp():
    from astropy.io import fits

    data = fits.getdata(test_data("decam_atfield") / "DEC-OBS18a.mini.fits").astype(np.float32)
    flags = np.where(data > 45000, int(Flag.SATURATED), 0).astype(np.uint16)
    _, psf = calibrated(type("Real", (), {"image": as_image(data, flags)}))
    assert psf.n_stars >= 5
    assert psf.form == "pixels"
    assert model_fwhm(psf) == pytest.approx(3.8, rel=0.12)


# --- photometry at given places ------------------------------------------------


def planted(seed, fwhm_px, snr, shape=(420, 420), noise=10.0):
    """Difference-like image: positive and negative sources of one S/N on white noise, drawn with the PSF itself."""
    rng = np.random.default_rng(seed)
    psf = moffat_psf(fwhm_px, 3.0, shape)
    x, y = grid_positions(shape, 40, seed)
    stamps = render(psf, x, y)
    flux = np.where(np.arange(x.size) % 2, 1, -1) * snr * noise * np.sqrt(effective_area(stamps[0]))
    data = rng.normal(0, noise, shape)
    half = stamps.shape[1] // 2
    for stamp, f, row, column in zip(stamps, flux, np.floor(y + 0.5), np.floor(x + 0.5), strict=True):
        corner = (slice(int(row) - half, int(row) + half + 1), slice(int(column) - half, int(column) + half + 1))
        data[corner] += f * stamp
    return data.astype(np.float32), np.full(shape, noise**2, np.float32), psf, x, y, flux


@pytest.mark.parametrize("fwhm_px", [1.5, 3.5])
def test_forced_fluxes(fwhm_px):
    pulls, chi2 = [], []
    for seed in range(4):
        data, variance, psf, x, y, flux = planted(seed, fwhm_px, 30.0)
        fit = fit_flux(data, variance, psf, x, y, 2 * int(1.5 * fwhm_px) + 1)
        pulls.append((fit.flux - flux) / fit.flux_err)
        chi2.append(fit.chi2)
    # 400 sources: mean to 0.05, width to 0.035.
    assert abs(np.mean(pulls)) < 0.15
    assert np.std(pulls) == pytest.approx(1.0, abs=0.1)
    assert np.mean(chi2) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("fwhm_px", [1.5, 3.5])
@pytest.mark.parametrize("snr", [10.0, 100.0])
def test_positions_and_fluxes_together(fwhm_px, snr):
    pulls = []
    for seed in range(4):
        data, variance, psf, x, y, flux = planted(seed, fwhm_px, snr)
        start = np.random.default_rng(seed).normal(0, 0.1 * fwhm_px, (2, x.size))
        fit = fit_position_and_flux(data, variance, psf, x + start[0], y + start[1], 2 * int(1.5 * fwhm_px) + 1)
        ok = np.isfinite(fit.x_err)
        assert ok.mean() > 0.95
        pull = np.stack([(fit.x - x) / fit.x_err, (fit.y - y) / fit.y_err, (fit.flux - flux) / fit.flux_err])
        pulls.append(pull[:, ok])
        assert np.all(np.abs(fit.xy_cov[ok]) < fit.x_err[ok] * fit.y_err[ok])
    width = [robust_std(row) for row in np.concatenate(pulls, axis=1)]
    np.testing.assert_allclose(width, 1.0, atol=0.17)


def test_masked_pixels_take_no_part():
    data, variance, psf, x, y, flux = planted(1, 3.5, 50.0)
    whole = fit_flux(data, variance, psf, x, y, 11)
    masked = variance.copy()
    for column, row in zip(np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int), strict=True):
        masked[row - 20 : row + 20, column + 1 : column + 20] = np.inf
    spoiled = np.where(np.isinf(masked), np.nan, data)
    part = fit_flux(spoiled, masked, psf, x, y, 11)
    assert np.std((part.flux - flux) / part.flux_err) == pytest.approx(1.0, abs=0.2)
    assert np.all(part.flux_err > whole.flux_err)
    masked[:] = np.inf
    lost = fit_position_and_flux(data, masked, psf, x, y, 11)
    assert all(np.isnan(values).all() for values in (lost.flux, lost.flux_err, lost.x_err, lost.chi2))


def test_places_outside_and_at_the_border():
    data, variance, psf, *_ = planted(2, 3.5, 50.0)
    fit = fit_flux(data, variance, psf, [-50.0, 5000.0, 0.0], [10.0, 10.0, 200.0], 11)
    assert np.isnan(fit.flux[:2]).all()
    assert np.isfinite(fit.flux[2])
    none = fit_position_and_flux(data, variance, psf, [], [], 11)
    assert none.flux.shape == (0,)


def test_a_wandering_position_is_given_up():
    data, variance, psf, *_ = planted(3, 2.0, 1.0)
    data[:] = np.random.default_rng(3).normal(0, 10, data.shape)
    x, y = np.random.default_rng(4).uniform(20, 400, (2, 200))
    fit = fit_position_and_flux(data, variance, psf, x, y, 7)
    given_up = np.isnan(fit.x_err)
    assert given_up.any()
    np.testing.assert_array_equal(fit.x[given_up], x[given_up])
    assert np.isfinite(fit.flux).all()
