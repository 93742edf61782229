"""Detections against synthetic truth."""

import numpy as np
import pytest

from seechange_assets.errors import TooManyDetections
from seechange_assets.products import Flag
from seechange_assets.science.detections import detect
from tests.science.synthetic import flux_unit, make_difference

SEEDS = [1, 2, 3]


def grid(shape, step, rng, snr):
    y, x = np.mgrid[step : shape[0] - step + 1 : step, step : shape[1] - step + 1 : step].reshape(2, -1).astype(float)
    return x + rng.uniform(-8, 8, x.size), y + rng.uniform(-8, 8, x.size), np.full(x.size, snr)


def offsets(table, x, y):
    return np.hypot(np.asarray(table["x"])[None] - x[:, None], np.asarray(table["y"])[None] - y[:, None])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fwhm", [1.8, 3.0, 5.0])
def test_finds_bright_sources_of_both_signs_once(seed, fwhm):
    rng = np.random.default_rng(seed)
    x, y, snr = grid((256, 256), 32, rng, 12.0)
    snr[::2] *= -1
    table = detect(make_difference(rng, fwhm_px=fwhm, sources=(x, y, snr))).table
    nearest = offsets(table, x, y)
    assert len(table) <= x.size + 1  # a chance 5-sigma peak of noise happens in one of 50 such images
    assert (nearest.min(axis=1) < fwhm / 2).all()
    assert (np.sign(table["score"][nearest.argmin(axis=1)]) == np.sign(snr)).all()
    # The position error of a matched filter is about fwhm / (1.7 snr) per axis.
    assert np.sqrt(np.mean(nearest.min(axis=1) ** 2)) < 1.25 * np.sqrt(2) * fwhm / (1.7 * 12) + 0.02


def test_is_sorted_and_complete_in_its_columns():
    rng = np.random.default_rng(4)
    difference = make_difference(rng, sources=([50, 100], [60, 150], [10, -30]))
    table = detect(difference).table
    assert list(np.sign(table["score"])) == [-1, 1]
    assert table.colnames == ["x", "y", "ra", "dec", "score", "flux", "flux_err", "n_pixels", "image_flags", "kind"]
    assert np.allclose(table["flux"] / table["flux_err"], table["score"], rtol=1e-4)
    sky = difference.wcs.astropy().all_world2pix(table["ra"], table["dec"], 0)
    assert np.allclose(sky[0], table["x"], atol=1e-6)


def test_one_dipole_is_one_detection_of_the_stronger_sign():
    rng = np.random.default_rng(6)
    table = detect(make_difference(rng, sources=([100, 104], [100, 100], [-30, 20]))).table
    assert len(table) == 1
    assert table["score"][0] < 0


def test_flagged_pixels_and_borders_make_no_detection():
    rng = np.random.default_rng(7)
    flags = np.zeros((256, 256), np.uint16)
    flags[95:106, 95:106] = Flag.BAD
    flags[:, 200:] = Flag.OUT_OF_BOUNDS
    table = detect(make_difference(rng, sources=([100, 3, 197], [100, 128, 60], [10, 40, 40]), flags=flags)).table
    assert len(table) == 0


def test_flagged_cosmic_ray_leaves_no_shoulder():
    rng = np.random.default_rng(8)
    difference = make_difference(rng, sources=([100], [100], [60]))
    flags = difference.flags.copy()
    flags[99:102, 99:102] = Flag.COSMIC_RAY
    masked = type(difference)(**{name: getattr(difference, name) for name in difference.__slots__} | {"flags": flags})
    assert len(detect(masked).table) == 0


@pytest.mark.parametrize("signal", [3.0, 30.0])
def test_a_streak_is_one_detection(signal):
    rng = np.random.default_rng(9)
    t = np.linspace(0, 1, 2000)
    extra = np.zeros((256, 256))
    np.add.at(extra, (np.round(40 + 150 * t).astype(int), np.round(30 + 180 * t).astype(int)), 1.0)
    from scipy.ndimage import gaussian_filter

    extra = gaussian_filter(extra, 3.0 / 2.355)
    table = detect(make_difference(rng, extra=signal * 10 * extra / extra.max())).table
    assert list(table["kind"]) == ["streak"]


def test_faint_broken_streak_is_one_detection():
    rng = np.random.default_rng(10)
    t = np.linspace(0, 1, 24)
    table = detect(make_difference(rng, sources=(30 + 180 * t, 40 + 150 * t, np.full(24, 8.0)))).table
    assert list(table["kind"]) == ["streak"]


def test_random_sources_are_no_streak():
    rng = np.random.default_rng(11)
    x, y = rng.uniform(15, 1009, (2, 200))
    table = detect(make_difference(rng, shape=(1024, 1024), sources=(x, y, np.full(200, 12.0)))).table
    assert (table["kind"] == "point").all()


def test_residuals_of_bright_stars_are_recognised():
    rng = np.random.default_rng(12)
    difference = make_difference(rng, sources=([100, 60], [100, 60], [30, 30]))
    noise = difference.noise.copy()
    peak = 30 * flux_unit(difference.psf, 10.0) * 0.1 / 0.005  # the transient is half a percent of the star
    y, x = np.mgrid[:256, :256]
    star = peak * np.exp(-((x - 100) ** 2 + (y - 100) ** 2) / 2 / 1.27**2)
    noise = np.sqrt(noise**2 + star / difference.info.gain).astype(np.float32)
    values = {name: getattr(difference, name) for name in difference.__slots__} | {"noise": noise}
    kinds = {(round(r["x"]), round(r["y"])): str(r["kind"]) for r in detect(type(difference)(**values)).table}
    assert kinds == {(100, 100): "star_residual", (60, 60): "point"}


def test_too_many_detections_is_an_error():
    rng = np.random.default_rng(13)
    x, y, snr = grid((256, 256), 16, rng, 20.0)
    with pytest.raises(TooManyDetections, match="peaks in the score image"):
        detect(make_difference(rng, sources=(x, y, snr)), max_detections=10)


def test_empty_difference_gives_an_empty_table():
    rng = np.random.default_rng(14)
    assert len(detect(make_difference(rng), threshold=8.0).table) == 0


def test_noise_alone_gives_the_expected_rate():
    # 8 images of 256^2 with FWHM 3: Bardeen et al. (1986) peaks at 4 sigma, both signs, a few per image.
    counts = [len(detect(make_difference(np.random.default_rng(s)), threshold=4.0).table) for s in range(8)]
    assert np.mean(counts) < 3.0
