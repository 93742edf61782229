"""Stacks of biases and flats."""

from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.acquire.masters import MasterBiasParameters, MasterFlatParameters
from seechange_assets.errors import BadPixels
from seechange_assets.instruments.base import RawCcd, get_instrument
from seechange_assets.instruments.demo import Demo
from seechange_assets.products import Flag, ImageInfo
from seechange_assets.science.masters import build_bias, build_flat
from seechange_assets.simulation.detector import Detector, expose, make_detector

CAMERA = Demo()
GAIN = float(np.mean(CAMERA.gains))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector(np.random.default_rng(1), CAMERA.amplifiers(), CAMERA.raw_shape, CAMERA.ccd_shape)


def frames(detector: Detector, level_e: float, count: int, seed: int = 2) -> list[RawCcd]:
    rng = np.random.default_rng(seed)
    scene = np.full(CAMERA.ccd_shape, level_e, np.float32)
    read_noise = float(np.sqrt(np.mean(np.square(CAMERA.read_noises))))
    return [
        RawCcd(
            ImageInfo(
                exposure=f"e{i}", ccd="01", instrument="demo", field="", filter="r",
                mjd=61000.0 + i / 1000, exptime_s=45.0,
                airmass=1.0, target="", project="", gain=GAIN, read_noise=read_noise, saturation=56000.0,
                pixel_scale_arcsec=1.0,
            ),
            expose(rng, scene.copy(), detector, exptime_s=450.0).astype(np.float32),
            CAMERA.amplifiers(),
        )
        for i in range(count)
    ]  # fmt: skip


def test_bias_recovers_the_structure_despite_cosmic_rays(detector: Detector) -> None:
    master = build_bias(frames(detector, 0.0, 5), calibration="c1", **MasterBiasParameters().arguments())
    good = ~detector.bad
    residual = (master.data - detector.bias)[good]
    # Five frames of 4.2 ADU noise: 1.9 ADU, with no tail of cosmic rays (20 tracks per frame were there).
    assert residual.std() == pytest.approx(4.2 / np.sqrt(5), rel=0.1)
    assert np.abs(residual).max() < 7 * residual.std()
    assert abs(np.median(residual)) < 0.3
    assert master.noise == pytest.approx(4.2 / np.sqrt(5), rel=0.05)
    assert (master.valid_from, master.members) == (pytest.approx(60970), ("e0", "e1", "e2", "e3", "e4"))


def test_hot_columns_are_flagged(detector: Detector) -> None:
    master = build_bias(frames(detector, 0.0, 3))
    hot = detector.bad & (detector.bias > 150)
    assert (master.flags[hot] & Flag.BAD).mean() > 0.99
    assert master.flags[~detector.bad].astype(bool).mean() < 1e-4


def test_flat_recovers_the_response(detector: Detector) -> None:
    bias = build_bias(frames(detector, 0.0, 5))
    master = build_flat(frames(detector, 40000.0, 5), bias, calibration="c1", **MasterFlatParameters().arguments())
    good = ~detector.bad
    ratio = (master.data / detector.flat)[good]
    assert np.median(ratio) == pytest.approx(1, abs=1e-3)
    # Shot noise of five frames of 40000 electrons: 0.22 %.
    assert ratio.std() == pytest.approx(1 / np.sqrt(5 * 40000), rel=0.15)
    assert np.abs(ratio - 1).max() < 0.02
    assert np.median(master.data) == pytest.approx(1, abs=1e-6)
    dead = detector.bad & (detector.flat < 0.1)
    assert (master.flags[dead] & Flag.BAD).all()


def test_amplifiers_meet(detector: Detector) -> None:
    """Gain differences are equalised before the flat, so that it shows none."""
    master = build_flat(frames(detector, 40000.0, 3), build_bias(frames(detector, 0.0, 3)))
    left, right = (
        master.data[:, 206:256] / detector.flat[:, 206:256],
        master.data[:, 256:306] / detector.flat[:, 256:306],
    )
    assert np.median(left) == pytest.approx(np.median(right), rel=1e-3)


def test_order_does_not_matter(detector: Detector) -> None:
    stack = frames(detector, 0.0, 5)
    np.testing.assert_allclose(build_bias(stack).data, build_bias(stack[::-1]).data, rtol=0, atol=1e-4)


def test_frames_that_do_not_belong_are_left_out(detector: Detector) -> None:
    lit = frames(detector, 500.0, 1)
    master = build_bias([*frames(detector, 0.0, 4), replace(lit[0], info=replace(lit[0].info, exposure="lit"))])
    assert "lit" not in master.members
    flats = [*frames(detector, 40000.0, 3), *frames(detector, 500.0, 1), *frames(detector, 150000.0, 1)]
    assert len(build_flat(flats, build_bias(frames(detector, 0.0, 3))).members) == 3


def test_too_few(detector: Detector) -> None:
    with pytest.raises(BadPixels, match="master bias of CCD 01: 2 of 2 frames are usable, 3 required"):
        build_bias(frames(detector, 0.0, 2))
    with pytest.raises(BadPixels, match="0 of 0"):
        build_bias([])
    with pytest.raises(BadPixels, match="master flat of CCD 01: 0 of 3"):
        build_flat(frames(detector, 100.0, 3), build_bias(frames(detector, 0.0, 3)))


def test_demo_is_registered() -> None:
    assert isinstance(get_instrument("demo"), Demo)
