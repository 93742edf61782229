"""Dark current and fringes: built from frames, taken out of images."""

from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.acquire.masters import MasterDarkParameters, MasterFringeParameters
from seechange_assets.errors import BadPixels, MasterNotFound, ParameterError
from seechange_assets.products import Flag, Image
from seechange_assets.science.detrend import detrend, plan_steps
from seechange_assets.science.fringe import fit_amplitude
from seechange_assets.science.fringe_master import build_fringe
from seechange_assets.science.masters import build_bias, build_dark
from seechange_assets.simulation.detector import add_dark_and_fringes, make_detector
from tests.science.raw_scenes import GAIN, SmallLs4, frames, info, raw_scene

SHAPE = (512, 512)
NO_FLAGS = np.zeros(SmallLs4.ccd_shape, np.uint16)


def pattern(seed: int, rms: float = 0.02) -> np.ndarray:
    rng, camera = np.random.default_rng(seed), SmallLs4()
    detector = make_detector(rng, camera.amplifiers(), camera.raw_shape, camera.ccd_shape)
    fringe = add_dark_and_fringes(rng, detector, fringe_fraction=rms).fringe
    assert fringe is not None
    return fringe[: SHAPE[0], : SHAPE[1]]


@pytest.mark.parametrize("seed", range(5))
def test_amplitude_despite_stars_and_a_sloping_sky(seed: int) -> None:
    rng, fringe = np.random.default_rng(seed), pattern(seed)
    data = 1000 + 0.2 * np.arange(SHAPE[1]) + 1200 * fringe + rng.normal(0, 30, SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for _ in range(150):
        cx, cy, peak = rng.uniform(0, 512), rng.uniform(0, 512), 50 * 10 ** rng.uniform(0, 3)
        data += peak * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 2 / 1.2**2)
    flags = np.zeros(SHAPE, np.uint16)
    # A pattern of 24 ADU under noise of 30 in 260,000 pixels is known to 0.3 %; undetected stars add to it.
    assert fit_amplitude(data.astype(np.float32), flags, fringe) == pytest.approx(1200, rel=0.02)
    flags[:, :200] = Flag.BAD
    data[:, :200] = 1e6
    assert fit_amplitude(data.astype(np.float32), flags, fringe) == pytest.approx(1200, rel=0.03)


def test_no_fringes_no_amplitude() -> None:
    data = np.random.default_rng(1).normal(1000, 30, SHAPE).astype(np.float32)
    flags = np.zeros(SHAPE, np.uint16)
    assert abs(fit_amplitude(data, flags, pattern(1))) < 20
    assert fit_amplitude(data, flags, np.zeros(SHAPE, np.float32)) == 0
    assert fit_amplitude(data, np.full(SHAPE, Flag.BAD, np.uint16), pattern(1)) == 0
    assert fit_amplitude(np.full(SHAPE, 5.0, np.float32), flags, pattern(1)) == 0


def sky_images(seed: int, count: int) -> tuple[list[Image], np.ndarray]:
    """Dithered skies in z with their fringes, calibrated through the flat, and the true pattern."""
    images = []
    for i in range(count):
        scene = raw_scene(seed, SmallLs4(), filter_name="z", fringe_fraction=0.02)
        # The same CCD; another sky and noise each time.
        rng = np.random.default_rng([seed, i])
        raw = frames(rng, scene.detector, "sky", 1, scene.sky_e * rng.uniform(0.8, 1.5), 45.0, sky_e=scene.sky_e)[0]
        raw = replace(raw, info=replace(info("sky", i, 45.0), filter="z"))
        images.append(detrend(raw, scene.masters, NO_FLAGS, cosmic_rays=False, trails=False))
    return images, scene.detector.fringe


def test_fringe_master_and_step() -> None:
    images, true = sky_images(3, 6)
    arguments = MasterFringeParameters().arguments_without("max_frames", "master_set", "steps")
    master = build_fringe(images, calibration="c", **arguments)
    inside = np.s_[64:-64, 64:-64]
    good = (master.flags == 0)[inside]
    assert np.corrcoef(master.data[inside][good], true[inside][good])[0, 1] > 0.9
    scene = raw_scene(3, SmallLs4(), filter_name="z", fringe_fraction=0.02)
    wanted = ("overscan", "bias", "linearity", "flat", "fringe")
    masters = scene.masters | {"fringe": master}
    with_step = detrend(scene.raw, masters, NO_FLAGS, steps=wanted)
    without = detrend(scene.raw, masters, NO_FLAGS)
    slope = [fit_amplitude(image.data, image.flags, true) for image in (without, with_step)]
    sky = scene.sky_e / GAIN
    assert slope[0] == pytest.approx(sky, rel=0.1)
    assert abs(slope[1]) < 0.1 * sky
    assert with_step.steps["fringe"] == "applied"
    assert with_step.fringe_amplitude > 0
    assert np.isnan(without.fringe_amplitude)
    with pytest.raises(BadPixels, match="0 of 0"):
        build_fringe([])


def test_steps_are_skipped_by_filter_and_recorded() -> None:
    scene = raw_scene(4, SmallLs4(), filter_name="g")
    wanted = ("overscan", "bias", "linearity", "flat", "fringe")
    image = detrend(scene.raw, scene.masters, NO_FLAGS, steps=wanted, skip_by_filter={"g": ("fringe",)})
    assert image.steps["fringe"] == "skipped"
    assert "fringe" not in image.info.steps_done
    with pytest.raises(MasterNotFound, match="fringe"):
        detrend(scene.raw, scene.masters, NO_FLAGS, steps=wanted, skip_by_filter={"z": ("fringe",)})
    done = replace(scene.raw.info, steps_done=("overscan", "bias", "fringe"))
    assert plan_steps(done, wanted)["fringe"] == "upstream"
    with pytest.raises(ParameterError, match="unknown step"):
        plan_steps(done, ("ghosts",))


@pytest.mark.parametrize("seed", [1, 2])
def test_dark_master_and_step(seed: int) -> None:
    rng, camera = np.random.default_rng(seed), SmallLs4()
    scene = raw_scene(seed, camera, dark_e_s=2.0)
    darks = frames(rng, scene.detector, "dark", 4, 0.0, 120.0) + frames(rng, scene.detector, "dark", 1, 0.0, 300.0)
    master = build_dark(
        darks, scene.masters["bias"], calibration="d", **MasterDarkParameters().arguments_without("master_set")
    )
    true = scene.detector.dark / GAIN
    good = (master.flags == 0) & ~scene.detector.bad
    residual = (master.data - true)[good]
    assert abs(np.median(residual)) < 0.01
    assert 1.4826 * np.median(np.abs(residual)) == pytest.approx(master.noise, rel=0.15)
    wanted = ("overscan", "bias", "linearity", "dark", "flat")
    image = detrend(scene.raw, scene.masters | {"dark": master}, NO_FLAGS, steps=wanted)
    without = detrend(scene.raw, scene.masters, NO_FLAGS)
    assert np.median(without.data - image.data) == pytest.approx(np.median(45 * true), rel=0.03)
    assert np.median(image.data) == pytest.approx(np.median(scene.electrons) / GAIN, rel=0.01)
    with pytest.raises(BadPixels, match="master dark"):
        build_dark([replace(f, info=replace(f.info, exptime_s=1.0)) for f in darks], scene.masters["bias"])


def test_illumination_is_divided_out() -> None:
    scene = raw_scene(6, SmallLs4())
    slope = np.broadcast_to(np.linspace(0.9, 1.1, 1024, dtype=np.float32), (1024, 1024))
    master = replace(scene.masters["flat"], kind="illumination", data=slope, flags=NO_FLAGS)
    wanted = ("overscan", "bias", "linearity", "flat", "illumination")
    image = detrend(scene.raw, scene.masters | {"illumination": master}, NO_FLAGS, steps=wanted)
    plain = detrend(scene.raw, scene.masters, NO_FLAGS)
    ratio = np.median(plain.data[:, 900:1000] / image.data[:, 900:1000])
    assert ratio == pytest.approx(slope[0, 900:1000].mean(), rel=1e-3)


def test_bias_is_unaffected_by_dark_current() -> None:
    """Bias frames have no exposure time."""
    rng, camera = np.random.default_rng(1), SmallLs4()
    plain = make_detector(rng, camera.amplifiers(), camera.raw_shape, camera.ccd_shape)
    dark = add_dark_and_fringes(np.random.default_rng(2), plain, dark_e_s=5.0)
    one, other = (build_bias(frames(np.random.default_rng(3), d, "bias", 3, 0.0, 0.0)) for d in (plain, dark))
    np.testing.assert_array_equal(one.data, other.data)
