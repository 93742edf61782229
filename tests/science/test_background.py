import numpy as np
import pytest

from seechange_assets.errors import BadPixels
from seechange_assets.products import Flag
from seechange_assets.science.background import level_map, measure_background, rms_map
from seechange_assets.science.noise import variance_map
from tests.data import test_data
from tests.science.skies import GAIN, READ_NOISE, SKY, as_image, make_sky

NOISE = np.sqrt(SKY / GAIN + (READ_NOISE / GAIN) ** 2)


def gradient(shape):
    y, x = np.indices(shape)
    return 1000.0 * (1 + 0.02 * x / shape[1] - 0.03 * y / shape[0] + 0.01 * (x / shape[1]) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_smooth_sky_is_recovered(seed):
    truth = gradient((512, 640))
    image = as_image(truth + np.random.default_rng(seed).normal(0, 20.0, truth.shape))
    background = measure_background(image, box_size_px=128)
    # The mean of a box has the error 20/128 = 0.16; the mode about three times that, less after the filter.
    error = level_map(background) - truth
    assert abs(error.mean()) < 0.25
    assert np.abs(error).max() < 2.5
    np.testing.assert_allclose(rms_map(background), 20.0, rtol=0.02)
    assert level_map(background).dtype == rms_map(background).dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
def test_sources_hardly_move_the_level(seed):
    sky = make_sky(seed, shape=(512, 512), n_stars=250, n_galaxies=50)
    background = measure_background(sky.image, box_size_px=128)
    # One source per 870 pixels covers some 7 % of the sky over the noise; the mode keeps 0.1 sigma of it at most.
    assert abs(background.level - SKY) < 0.1 * NOISE
    assert background.rms == pytest.approx(NOISE, rel=0.03)


def test_flagged_and_non_finite_pixels_are_ignored():
    data = np.random.default_rng(1).normal(100.0, 5.0, (256, 256))
    flags = np.zeros(data.shape, np.uint16)
    data[:, :100], flags[:, :100] = 1e6, Flag.BAD
    data[200:, 200:] = np.nan
    background = measure_background(as_image(data, flags), box_size_px=64)
    assert background.level == pytest.approx(100.0, abs=0.2)
    assert np.isfinite(background.level_mesh).all()
    np.testing.assert_allclose(level_map(background), 100.0, atol=1.5)


def test_one_bright_object_is_filtered_out():
    data = np.random.default_rng(2).normal(100.0, 5.0, (320, 320))
    data[130:190, 130:190] += 500.0
    background = measure_background(as_image(data), box_size_px=64)
    assert np.abs(level_map(background) - 100.0).max() < 2.0


@pytest.mark.parametrize("box", [256, 100, 77])
def test_boxes_need_not_fit_the_image(box):
    truth = gradient((200, 230))
    image = as_image(truth + np.random.default_rng(3).normal(0, 2.0, truth.shape))
    background = measure_background(image, box_size_px=box)
    assert level_map(background).shape == truth.shape
    assert abs(np.median(level_map(background) - truth)) < (30.0 if box == 256 else 2.0)


def test_unusable_images_are_refused():
    data = np.random.default_rng(4).normal(100.0, 5.0, (64, 64))
    with pytest.raises(BadPixels, match="usable"):
        measure_background(as_image(data, np.full(data.shape, 1, np.uint16)))
    with pytest.raises(BadPixels, match="usable"):
        measure_background(as_image(np.full((64, 64), np.nan)))
    with pytest.raises(BadPixels, match="equal"):
        measure_background(as_image(np.full((64, 64), 7.0)))


def test_same_pixels_same_background():
    image = make_sky(5, shape=(256, 256), n_stars=50).image
    one, two = measure_background(image, box_size_px=64), measure_background(image, box_size_px=64)
    assert one.level_mesh.tobytes() == two.level_mesh.tobytes()
    assert level_map(one).tobytes() == level_map(two).tobytes()


def test_variance():
    sky = make_sky(6, shape=(256, 256), n_stars=40)
    sky.image.flags[10, 20] = Flag.BAD
    background = measure_background(sky.image, box_size_px=128)
    variance = variance_map(sky.image, background)
    signal = sky.image.data - level_map(background)
    rms = rms_map(background)
    bright = (sky.image.flags == 0) & (signal > 3 * rms)
    np.testing.assert_allclose(variance[bright], (rms**2 + signal / GAIN)[bright], rtol=1e-5)
    # A pixel that is bright by chance is no noisier: the variance follows the surroundings.
    blank = (sky.image.flags == 0) & (np.abs(signal) < 3 * rms)
    assert abs(np.corrcoef(signal[blank], (variance - rms**2)[blank])[0, 1]) < 0.5
    assert (np.isinf(variance) == (sky.image.flags != 0)).all()
    assert np.isinf(variance[10, 20])
    assert variance.dtype == np.float32


@pytest.mark.parametrize("seed", range(2))
def test_faint_light_has_photon_noise_too(seed):
    """Stars that no pixel shows by itself, so many that they add a tenth to the variance of the sky."""
    rng = np.random.default_rng(seed)
    light = np.zeros((300, 300))
    light[100:200, 100:200] = 1.5 * NOISE
    data = rng.poisson((SKY + light) * GAIN) / GAIN + rng.normal(0, READ_NOISE / GAIN, light.shape)
    background = measure_background(as_image(SKY + rng.normal(0, NOISE, light.shape)), box_size_px=100)
    variance = variance_map(as_image(data), background)
    truth = NOISE**2 + light / GAIN
    for inside in (np.s_[110:190, 110:190], np.s_[10:90, 10:290]):
        # The background's own rms is good to 1 %; a light that may not be negative adds 0.5 %.
        assert variance[inside].mean() == pytest.approx(truth[inside].mean(), rel=0.025)
    assert variance[110:190, 110:190].mean() - variance[10:90, 10:290].mean() == pytest.approx(
        1.5 * NOISE / GAIN, rel=0.15
    )


def test_real_decam_stamp():
    from astropy.io import fits

    data = fits.getdata(test_data("decam_atfield") / "DEC-OBS04a.mini.fits").astype(np.float32)
    background = measure_background(as_image(data))
    # The file is sky-subtracted.
    assert abs(background.level) < 0.5 * background.rms
    assert background.level_mesh.shape == (1, 1)


@pytest.mark.slow
def test_full_size_stays_within_its_budget():
    import time

    image = as_image(np.random.default_rng(7).normal(100.0, 5.0, (4096, 2048)).astype(np.float32))
    measure_background(image)
    start = time.process_time()
    level_map(measure_background(image))
    assert time.process_time() - start < 1.0
