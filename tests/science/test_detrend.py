"""From raw numbers to calibrated pixels, against simulated detectors."""

from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.calibrate.image import ImageParameters
from seechange_assets.errors import BadPixels, MasterNotFound
from seechange_assets.instruments.base import RawCcd, get_instrument
from seechange_assets.products import Flag, ImageInfo, Master
from seechange_assets.science.detrend import detrend, overscan_level
from seechange_assets.science.masters import build_bias, build_flat
from tests.simulation.demo import demo_survey

NO_FLAGS = np.zeros((512, 512), np.uint16)


def read(which: str, index: int = 0, ccd: str = "01") -> RawCcd:
    return get_instrument("demo").read_ccd(getattr(demo_survey(), which)[index], ccd)


def masters(ccd: str = "01") -> tuple[Master, Master]:
    survey, camera = demo_survey(), get_instrument("demo")
    bias = build_bias([camera.read_ccd(path, ccd) for path in survey.biases], calibration="b1")
    return bias, build_flat([camera.read_ccd(path, ccd) for path in survey.flats], bias, calibration="f1")


def named(*masters: Master) -> dict[str, Master]:
    return {master.kind: master for master in masters}


@pytest.fixture(scope="module")
def bias_and_flat() -> tuple[Master, Master]:
    return masters()


def test_sky_is_flat_after_calibration(bias_and_flat: tuple[Master, Master]) -> None:
    raw = read("science")
    image = detrend(raw, named(*bias_and_flat), NO_FLAGS)
    good = image.flags == 0
    quarters = [np.median(image.data[:, i : i + 128][good[:, i : i + 128]]) for i in range(0, 512, 128)]
    # The simulated sky has a gradient of about 2 %; the amplifiers differ by 5 % in gain before equalisation.
    assert np.ptp(quarters) < 0.05 * np.median(quarters)
    left, right = np.median(image.data[:, 246:256]), np.median(image.data[:, 256:266])
    assert left == pytest.approx(right, rel=0.01)
    sky = np.median(image.data)
    expected = np.sqrt(sky / raw.info.gain + (raw.info.read_noise / raw.info.gain) ** 2)
    scatter = 1.4826 * np.median(np.abs(np.diff(image.data, axis=1))) / np.sqrt(2)
    # Pixel response (0.8 %) unremoved would add 4 ADU to 17.
    assert scatter == pytest.approx(expected, rel=0.04)
    assert image.info.steps_done == ("overscan", "bias", "linearity", "flat")
    assert image.masters == {"bias": "b1", "flat": "f1"}


def test_cosmic_rays_can_be_left() -> None:
    raw, (bias, flat) = read("science"), masters()
    image = detrend(raw, named(bias, flat), NO_FLAGS, cosmic_rays=False)
    assert not (image.flags & Flag.COSMIC_RAY).any()


def test_parameters_are_the_arguments(bias_and_flat: tuple[Master, Master]) -> None:
    one = detrend(read("science"), named(*bias_and_flat), NO_FLAGS)
    other = detrend(
        read("science"),
        named(*bias_and_flat),
        NO_FLAGS,
        **ImageParameters().arguments_without("master_set", "flat_type"),
    )
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(one.flags, other.flags)


def test_linearity_is_applied(bias_and_flat: tuple[Master, Master]) -> None:
    raw = read("flats")
    with_it = detrend(
        raw, named(bias_and_flat[0]), NO_FLAGS, steps=("overscan", "bias", "linearity"), cosmic_rays=False
    )
    without = detrend(raw, named(bias_and_flat[0]), NO_FLAGS, steps=("overscan", "bias"), cosmic_rays=False)
    measured = np.median(without.data[:, :256]) * raw.info.gain / raw.amplifiers[0].gain
    ratio = np.median(with_it.data[:, :256]) / np.median(without.data[:, :256])
    assert ratio - 1 == pytest.approx(raw.amplifiers[0].nonlinearity * measured, rel=0.01)
    # The simulator exposes flats to 38000 e-; its response has median 1 over the CCD.
    assert np.median(with_it.data) * raw.info.gain == pytest.approx(38000, rel=0.005)


def test_saturation_and_bleeding(bias_and_flat: tuple[Master, Master]) -> None:
    raw = read("science")
    data = raw.data.copy()
    data[100:130, 50] = 60000
    data[300:303, 400] = 60000
    image = detrend(replace(raw, data=data), named(*bias_and_flat), NO_FLAGS)
    assert (image.flags[100:130, 50] & Flag.SATURATED).all()
    assert (image.flags[97:134, 49:52] & Flag.BLEED).all()
    assert (image.flags[300:303, 400] & Flag.SATURATED).all()
    assert not (image.flags[295:308, 398:403] & Flag.BLEED).any()
    assert image.data[100:130, 50].min() >= image.info.saturation


def test_steps_already_done_are_skipped() -> None:
    raw = calibrated(np.random.default_rng(1).normal(100, 3, (64, 64)))
    image = detrend(raw, {}, np.zeros((64, 64), np.uint16))
    np.testing.assert_array_equal(image.data, raw.data)
    assert image.masters == {}


def test_nan_is_flagged_and_filled() -> None:
    data = np.random.default_rng(2).normal(100, 3, (64, 64))
    data[5, 6] = data[20:30, 20:30] = np.nan
    image = detrend(calibrated(data), {}, np.zeros((64, 64), np.uint16))
    assert (image.flags[20:30, 20:30] & Flag.NO_DATA).all()
    assert (image.flags & Flag.NO_DATA).astype(bool).sum() == 101
    assert np.isfinite(image.data).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.full((64, 64), np.nan), "no finite pixel"),
        (np.zeros((64, 64)), "every pixel is 0"),
        (np.full((64, 64), 7.0), "every pixel is 7"),
        (np.where(np.arange(4096).reshape(64, 64) % 3 > 0, 60000.0, 100.0), "saturated"),
    ],
)
def test_hopeless_pixels(data: np.ndarray, said: str) -> None:
    with pytest.raises(BadPixels, match=said) as caught:
        detrend(calibrated(data), {}, np.zeros((64, 64), np.uint16))
    assert "e1 CCD 01" in str(caught.value)


def test_missing_master() -> None:
    with pytest.raises(MasterNotFound, match="no master bias"):
        detrend(read("science"), {}, NO_FLAGS)


def test_master_of_another_shape(bias_and_flat: tuple[Master, Master]) -> None:
    bias = replace(bias_and_flat[0], data=np.zeros((10, 10), np.float32))
    with pytest.raises(BadPixels, match="shape"):
        detrend(read("science"), named(bias, bias_and_flat[1]), NO_FLAGS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_overscan_averages_noise(seed: int) -> None:
    """Without row structure, the level is nearly as good as the mean of 31 rows."""
    rng = np.random.default_rng(seed)
    strip = np.rint(rng.normal(1000, 4, (2000, 20))).astype(np.float32)
    # A plain row mean would scatter by 4/sqrt(20) = 0.89.
    assert (overscan_level(strip) - 1000).std() < 0.35


def test_overscan_follows_real_structure() -> None:
    rng = np.random.default_rng(4)
    level = 1000 + rng.normal(0, 8, 2000)
    level[700] += 300
    strip = np.rint(level[:, None] + rng.normal(0, 4, (2000, 20))).astype(np.float32)
    strip[100, 3] = 20000
    error = overscan_level(strip) - level
    assert error.std() < 1.1
    assert abs(error[700]) < 5
    assert abs(error[100]) < 5


def test_nan_stripes_in_a_raw_frame(bias_and_flat: tuple[Master, Master]) -> None:
    """Stripes through data and overscan, and half a CCD without data: flagged, the rest as it was."""
    raw = read("science")
    data, half = raw.data.copy(), raw.data.copy()
    data[::50] = np.nan
    half[:256] = np.nan
    whole = detrend(raw, named(*bias_and_flat), NO_FLAGS)
    for broken, missing in ((data, np.s_[::50]), (half, np.s_[:256])):
        image = detrend(replace(raw, data=broken), named(*bias_and_flat), NO_FLAGS)
        assert (image.flags[missing] & Flag.NO_DATA).all()
        assert np.isfinite(image.data).all()
        there = (image.flags == 0) & (whole.flags == 0)
        assert there.mean() > 0.4
        assert np.abs(image.data - whole.data)[there].max() < 2.0


@pytest.mark.slow
def test_full_size_is_fast() -> None:
    """One LS4 CCD in well under the budget of 1.2 core-seconds (a factor of two for a busy machine)."""
    import time

    from seechange_assets.instruments.ls4 import Ls4

    camera, rng = Ls4(), np.random.default_rng(5)
    data = rng.normal(1300, 15, camera.raw_shape).astype(np.float32)
    info = replace(calibrated(np.zeros((1, 1))).info, gain=1.64, read_noise=6.9, steps_done=())
    shape = camera.ccd_shape
    bias = Master("bias", "b", "01", "ls4", "", 0, 1e5, np.zeros(shape, np.float32), np.zeros(shape, np.uint16), ())
    flat = replace(bias, kind="flat", data=np.ones(shape, np.float32))
    raw = RawCcd(info, data, camera.amplifiers())
    detrend(raw, named(bias, flat), camera.bad_pixels("01"))
    start = time.process_time()
    detrend(raw, named(bias, flat), camera.bad_pixels("01"))
    assert time.process_time() - start < 2.4


def calibrated(data: np.ndarray) -> RawCcd:
    info = ImageInfo(
        exposure="e1", ccd="01", instrument="generic", field="f", filter="r", mjd=61000.0, exptime_s=45.0, airmass=1.0,
        target="", project="", gain=1.5, read_noise=5.0, saturation=50000.0, pixel_scale_arcsec=1.0,
        steps_done=("overscan", "bias", "linearity", "flat"),
    )  # fmt: skip
    return RawCcd(info, data.astype(np.float32))
