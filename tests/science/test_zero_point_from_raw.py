"""The zero point and the depth of simulated raw frames against the truth."""

from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.instruments.base import get_instrument
from seechange_assets.science.joint_photometry import joint_photometry, sky_free_frame
from seechange_assets.science.photometric_calibration import calibrate_photometry
from seechange_assets.simulation import simulate_survey
from seechange_assets.simulation.ccd import GAIN, simulate_ccd
from seechange_assets.simulation.render import MoffatField, add_sources
from seechange_assets.simulation.scene import Conditions
from tests.science.raw_frames import calibrate_frame, calibrated, true_zero_point
from tests.simulation.demo import SEED, demo_survey


@pytest.mark.parametrize("ccd", ["01", "02"])
def test_zero_point_of_a_small_raw_frame(ccd):
    survey = demo_survey()
    for path in survey.science:
        zp = calibrated(survey, path, ccd).zp
        # A CCD of 512 x 512 pixels holds few stars; the error is a few mmag.
        assert abs(zp.zp - true_zero_point(survey, SEED, path, ccd)) < 3.5 * zp.zp_err < 0.025


@pytest.mark.slow
def test_zero_points_of_ls4_frames(tmp_path):
    offsets, errors = [], []
    for seed in range(5):
        survey = simulate_survey(
            tmp_path / str(seed), seed=seed, exposures=2, ccds=("01", "18"), reference_epochs=0, biases=3, flats=3
        )
        for path in survey.science:
            for ccd in survey.ccds:
                zp = calibrated(survey, path, ccd).zp
                offsets.append(zp.zp - true_zero_point(survey, seed, path, ccd))
                errors.append(zp.zp_err)
    assert np.abs(offsets).max() < 0.005
    # Twenty frames give the scatter to 16 %; the stated error must agree with it within 30 %.
    assert 0.7 / 1.16 < np.median(errors) / np.sqrt(np.mean(np.square(offsets))) < 1.3 * 1.16


def frame_of_stars(seed, density_deg2, size=1024):
    """A calibrated frame and the error of its zero point [mag]."""
    simulated = simulate_ccd(
        np.random.default_rng(seed), (size, size), star_density_deg2=density_deg2, with_transients=False
    )
    result = calibrate_frame(simulated.image, simulated.catalog, get_instrument("ls4"))
    truth = float(np.median(simulated.stars["mag"] + 2.5 * np.log10(simulated.stars["flux"])))
    return result, result.zp.zp - truth


CROWDED = 20 * 2500.0


def test_zero_point_where_stars_are_crowded():
    """Twenty times the usual density: neighbours that detection loses must not brighten the stars."""
    assert abs(frame_of_stars(40, CROWDED)[1]) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("times", [10, 20])
def test_zero_points_of_crowded_frames(times):
    errors = np.array([frame_of_stars(seed, times * 2500.0)[1] for seed in range(50, 55)])
    assert np.abs(errors).max() < 0.005


def with_wrong_entries(result, rng, shift):
    """The zero point with a tenth of the matched stars wrong by `shift` [mag], or by up to four."""
    matches = result.wcs.matches.copy()
    rows = rng.choice(len(matches), len(matches) // 10, replace=False)
    wrong = rng.uniform(-4, 4, len(rows)) if shift is None else np.full(len(rows), shift)
    for name in ("mag_g", "mag_bp", "mag_rp"):
        matches[name][rows] += wrong.astype(np.float32)
    return calibrate_photometry(
        result.image.info, result.sources, result.psf, result.background, replace(result.wcs, matches=matches),
        get_instrument("ls4").gaia_magnitude,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60, 63))
def test_wrong_catalogue_entries_do_not_move_the_zero_point(seed):
    check_wrong_entries(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(70, 80))
def test_wrong_catalogue_entries_over_many_seeds(seed):
    check_wrong_entries(seed)


def check_wrong_entries(seed):
    """Both ways, and one-sided from absurd to hardly to be told from scatter."""
    result, error = frame_of_stars(seed, 2500.0)
    for shift in (None, 2.0, 0.5, 0.2, 0.1, -0.1, -0.5):
        wrong = with_wrong_entries(result, np.random.default_rng(seed), shift)
        assert abs(wrong.zp - result.zp.zp + error) < 0.010, shift


@pytest.mark.slow
def test_stated_error_is_the_scatter_over_seeds():
    results = [frame_of_stars(seed, 2500.0, 512) for seed in range(100, 140)]
    errors = np.array([error for _, error in results])
    stated = np.median([result.zp.zp_err for result, _ in results])
    # Forty frames give the scatter to 11 %.
    assert 0.7 / 1.11 < stated / errors.std() < 1.3 * 1.11


@pytest.mark.parametrize("seeing_px", [1.7, 3.0])
def test_limiting_magnitude_by_injection(seeing_px):
    rng = np.random.default_rng(3)
    simulated = simulate_ccd(rng, (1024, 1024), seeing_px=seeing_px)
    result = calibrate_frame(simulated.image, simulated.catalog, get_instrument("ls4"))
    zp, shape = result.zp, simulated.image.data.shape
    truth = Conditions(result.image.info.mjd, result.image.info.exptime_s, 1.0).zero_point_e("r")
    x, y = _blank_places(rng, result, shape)
    flux_e = np.full(len(x), 10 ** (-0.4 * (zp.limiting_magnitude - truth)))
    light = np.zeros(shape, np.float32)
    add_sources(light, x, y, flux_e, MoffatField(seeing_px, shape))
    data = simulated.image.data + rng.poisson(light).astype(np.float32) / np.float32(GAIN)
    flux = _joint_fluxes(replace(result.image, data=data), result, x, y)
    at_five_sigma = zp.limiting_magnitude + 2.5 * np.log10(flux_e[0] / GAIN / clipped_scatter(flux) / 5.0)
    # 400 places give the scatter to 3.5 %, 0.04 mag.
    assert zp.limiting_magnitude == pytest.approx(at_five_sigma, abs=0.1)
    assert np.median(flux) == pytest.approx(flux_e[0] / GAIN, rel=0.04)


def _joint_fluxes(image, result, x, y):
    """PSF fluxes at the places, fitted together with those of all known sources."""
    known = [np.asarray(result.sources.table[name], float) for name in ("x", "y")]
    frame = sky_free_frame(image, result.background)
    fit = joint_photometry(result.psf, frame, np.r_[known[0], x], np.r_[known[1], y], refine_sky=True)
    return fit.flux[-len(x) :]


def clipped_scatter(values):
    """Standard deviation without what lies beyond four of them: the few places with an unseen source."""
    for _ in range(10):
        values = values[np.abs(values - np.median(values)) < 4 * values.std()]
    return values.std()


def _blank_places(rng, result, shape, n=400):
    """Random places at least four FWHM from every source."""
    from scipy.spatial import cKDTree

    x, y = rng.uniform(20, shape[1] - 20, 20 * n), rng.uniform(20, shape[0] - 20, 20 * n)
    table = result.sources.table
    distance, _ = cKDTree(np.stack([table["x"], table["y"]], axis=1)).query(np.stack([x, y], axis=1))
    blank = np.flatnonzero(distance > 4 * result.psf.fwhm_px)[:n]
    assert len(blank) > n // 2
    return x[blank], y[blank]


def test_residual_map_shows_a_bad_flat():
    rng = np.random.default_rng(8)
    simulated = simulate_ccd(rng, (1024, 512), star_density_deg2=8000.0)
    image = simulated.image
    data, sky = image.data.copy(), np.median(image.data)
    data[512:] += np.float32(0.05) * (data[512:] - sky)  # a flat that is right for the sky and wrong for stars
    result = calibrate_frame(replace(image, data=data), simulated.catalog, get_instrument("ls4"))
    assert result.zp.residual_map.shape == (2, 1)
    step = float(result.zp.residual_map[1, 0] - result.zp.residual_map[0, 0])
    error = float(np.hypot(*result.zp.residual_map_err[:, 0]))
    # Five per cent more counts make the instrumental magnitude brighter, so catalogue - image is larger.
    assert step == pytest.approx(2.5 * np.log10(1.05), abs=4 * error)
    assert 0.0 < error < 0.015
