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
    master = build_flat(
        frames(detector, 40000.0, 5),
        bias,
        calibration="c1",
        **MasterFlatParameters().arguments_without("flat_types", "master_set"),
    )
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


@pytest.mark.parametrize("kind", ["bias", "flat"])
def test_noise_falls_as_the_root_of_the_number(detector: Detector, kind: str) -> None:
    good, noises = ~detector.bad, []
    counts = (4, 9, 16)
    for count in counts:
        if kind == "bias":
            residual = build_bias(frames(detector, 0.0, count, seed=count)).data - detector.bias
        else:
            flat = build_flat(
                frames(detector, 40000.0, count, seed=count), build_bias(frames(detector, 0.0, 25, seed=1))
            )
            residual = flat.data / detector.flat
        noises.append(1.4826 * np.median(np.abs(residual[good] - np.median(residual[good]))) * np.sqrt(count))
    # A flat carries the noise of the bias (4.2 ADU / 5 in 25,000) too: nothing.
    assert noises == pytest.approx([np.mean(noises)] * 3, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_a_cosmic_ray_in_one_of_seven_flats_leaves_no_trace(detector: Detector, seed: int) -> None:
    bias = build_bias(frames(detector, 0.0, 5))
    clean = frames(detector, 40000.0, 7, seed=seed)
    rng, hit = np.random.default_rng(seed), clean[seed].data.copy()
    y, x = rng.integers(5, 500, 200), rng.integers(5, 500, 200)
    # From just clipped to saturated; the noise of a pixel is 130 ADU.
    hit[y, x] += rng.uniform(800, 30000, 200).astype(np.float32)
    struck = [*clean[:seed], replace(clean[seed], data=hit), *clean[seed + 1 :]]
    one, other = build_flat(clean, bias), build_flat(struck, bias)
    change = (other.data - one.data)[y, x]
    # Six values instead of seven: a change like the noise, without a bias to one side.
    assert np.abs(change).max() < 5 * other.noise
    assert abs(change.mean()) < 4 * other.noise / np.sqrt(6 * 200)
    elsewhere = np.ones(one.data.shape, bool)
    elsewhere[y, x] = False
    assert np.abs(other.data - one.data)[elsewhere].max() < 1e-5


def test_broken_frames(detector: Detector) -> None:
    """Half of a frame without data, stripes of NaN, a frame never read out: left out, pixel by pixel or as a whole."""
    stack = frames(detector, 0.0, 6)
    half, stripes = stack[0].data.copy(), stack[1].data.copy()
    half[:256], stripes[::7] = np.nan, np.nan
    constant = replace(stack[2], data=np.full_like(half, 1000.0), info=replace(stack[2].info, exposure="constant"))
    master = build_bias([replace(stack[0], data=half), replace(stack[1], data=stripes), constant, *stack[3:]])
    assert "constant" not in master.members
    residual = (master.data - detector.bias)[~detector.bad]
    assert np.abs(residual).max() < 20
    hole = [replace(f, data=np.where(np.arange(f.data.shape[0])[:, None] == 100, np.nan, f.data)) for f in stack[:3]]
    master = build_bias(hole)
    assert (master.flags[100] & Flag.NO_DATA).all()
    assert np.isfinite(master.data).all()
    with pytest.raises(BadPixels, match="0 of 0"):
        build_bias([constant] * 3)
