"""Images that hold almost nothing, or too much: a typed error or a valid product, never a surprise."""

import time
from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.errors import BadPixels, TooFewStars
from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.products import Flag, header_text
from seechange_assets.science.background import measure_background
from seechange_assets.science.detrend import detrend
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources
from seechange_assets.simulation.sky import measure_catalog
from tests.science.fields import moffat_field, show
from tests.science.raw_frames import calibrate_frame
from tests.science.raw_scenes import CENTER_DEG, RawScene, SmallLs4, raw_scene
from tests.science.skies import as_image, make_sky
from tests.science.star_fields import linear_header

SHAPE = (512, 512)


def chain(image, box_size_px=128):
    background = measure_background(image, box_size_px=box_size_px)
    sources = extract_sources(image, background)
    return background, sources, build_psf(image, background, sources)


def valid(image):
    background, sources, psf = chain(image)
    assert np.isfinite(background.level_mesh).all()
    assert (background.rms_mesh > 0).all()
    assert np.isfinite(psf.coefficients).all()
    assert len(psf.photometry) == len(sources.table)
    return sources, psf


@pytest.fixture(scope="module")
def field():
    return moffat_field(71, SHAPE).image


def test_no_stars():
    image = as_image(np.random.default_rng(1).normal(900, 24, SHAPE))
    with pytest.raises(TooFewStars, match="psf"):
        chain(image)


def test_one_star():
    sky = make_sky(2, SHAPE, positions=(np.array([200.3]), np.array([301.7])), n_stars=1, flux=5e4)
    sources, psf = valid(sky.image)
    assert psf.form in ("moffat", "gaussian")
    assert psf.n_stars == 0
    assert psf.photometry["flux_psf"][0] == pytest.approx(5e4, rel=0.03)
    assert sources.fwhm_px == pytest.approx(3.15, rel=0.1)


def test_a_constant_image():
    for value in (0.0, 900.0, np.nan):
        with pytest.raises(BadPixels):
            chain(as_image(np.full(SHAPE, value)))


def test_half_the_ccd_masked(field):
    flags = field.flags.copy()
    flags[:, : SHAPE[1] // 2] = Flag.BAD
    sources, psf = valid(replace(field, flags=flags))
    whole = extract_sources(field, measure_background(field, box_size_px=128))
    assert 0.35 < len(sources.table) / len(whole.table) < 0.65
    # A source cut by the border of the mask may have its centre in it, and says so.
    good = np.asarray(sources.table["is_good"])
    assert np.asarray(sources.table["x"])[good].min() > SHAPE[1] // 2 - 1
    assert psf.form == "pixels"


def test_nan_stripes(field):
    data = field.data.copy()
    data[:, ::64] = np.nan
    data[100:120] = np.nan
    sources, psf = valid(replace(field, data=data))
    whole = extract_sources(field, measure_background(field, box_size_px=128))
    assert len(sources.table) > 0.85 * len(whole.table)
    assert np.isfinite(psf.photometry["flux_psf"]).mean() > 0.9


def test_stars_everywhere():
    # As dense as 100,000 stars on 2048 x 4096 pixels.
    image = moffat_field(72, SHAPE, stars_per_mpx=12000.0).image
    sources, psf = valid(image)
    assert len(sources.table) > 200
    assert sources.fwhm_px == pytest.approx(4.48, rel=0.05)
    assert psf.form == "pixels"


def degenerate_images(normal):
    """The inputs of the same size that a survey meets on a bad night."""
    shape, rng = normal.data.shape, np.random.default_rng(1)
    flags, striped, half, one = normal.flags.copy(), normal.data.copy(), normal.data.copy(), rng.normal(900, 24, shape)
    flags[:, : shape[1] // 2] = Flag.BAD
    striped[:, ::64] = np.nan
    half[:, : shape[1] // 2] = 900.0
    blank = as_image(one)
    one = one + 2e4 * np.exp(-0.5 * ((np.indices(shape).T - [900.2, 700.7]) ** 2).sum(axis=2).T / 1.8**2)
    return {
        "half masked": replace(normal, flags=flags), "striped": replace(normal, data=striped), "blank": blank,
        "half constant": replace(normal, data=half), "one star": as_image(one),
        "constant": as_image(np.full(shape, 900.0)),
    }  # fmt: skip


def seconds_of_chain(image):
    """CPU seconds of background, sources and PSF, and how they end."""
    start, outcome = time.process_time(), "product"
    try:
        chain(image, 256)
    except (TooFewStars, BadPixels) as error:
        outcome = type(error).__name__
    return time.process_time() - start, outcome


@pytest.mark.slow
def test_times_at_full_size():
    normal = moffat_field(73, (4096, 2048)).image
    chain(normal, 256)
    usual = seconds_of_chain(normal)[0]
    show(f"normal: {usual:.2f} s")
    for name, image in degenerate_images(normal).items():
        seconds, outcome = seconds_of_chain(image)
        show(f"{name}: {seconds:.2f} s, {outcome}")
        assert outcome == {"blank": "TooFewStars", "constant": "BadPixels"}.get(name, "product")
        assert seconds < 2 * usual


@pytest.mark.slow
@pytest.mark.parametrize("fwhm_px", [2.0, 4.4])
def test_time_of_100000_stars(fwhm_px):
    normal = moffat_field(74, (4096, 2048), fwhm_px=fwhm_px).image
    crowd = moffat_field(75, (4096, 2048), stars_per_mpx=11921.0, fwhm_px=fwhm_px).image
    chain(normal, 256)
    # Compiles what only a crowd calls.
    chain(moffat_field(76, SHAPE, stars_per_mpx=11921.0, fwhm_px=fwhm_px).image)
    usual = min(seconds_of_chain(normal)[0] for _ in range(2))
    seconds, outcome = min(seconds_of_chain(crowd) for _ in range(2))
    show(f"FWHM {fwhm_px}: normal {usual:.2f} s, 100,000 stars {seconds:.2f} s")
    assert outcome == "product"
    # The budget of 2.5 s from image to zero point, doubled, leaves 2.5 s more for these three steps. Twice the time
    # that is really taken holds in the seeing of the survey (below); where stars are 4.4 pixels wide it is three times.
    assert seconds < usual + 2.5


def seconds_to_zero_point(scene: RawScene, camera: Ls4):
    """CPU seconds from the raw frame to the zero point, the least of three runs, and what comes of it."""
    catalog = measure_catalog(np.random.default_rng(1), [scene.stars])
    guess = header_text(linear_header(CENTER_DEG[0] + 0.002, CENTER_DEG[1] - 0.001, camera.ccd_shape, 1.0))
    raw = replace(scene.raw, info=replace(scene.raw.info, wcs_guess=guess))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        image = detrend(raw, scene.masters, camera.bad_pixels("01"))
        result = calibrate_frame(image, catalog, camera)
        seconds.append(time.process_time() - start)
    return min(seconds), result


# Stars of G < 20.5 per square degree: a CCD of 0.65 square degrees then holds 100,000 stars, or 100,000 that are in the
# catalogue and 320,000 fainter ones. The goal is for the first; the second is to stay within what it took when written.
@pytest.mark.slow
@pytest.mark.parametrize(("density_deg2", "times"), [(36800.0, 2.0), (154000.0, 2.75)])
def test_time_of_a_raw_frame_of_100000_stars(density_deg2, times):
    for density in (None, density_deg2):
        # Compiles all that only the one or the other calls.
        seconds_to_zero_point(raw_scene(77, SmallLs4(), density_deg2=density), SmallLs4())
    usual, _ = seconds_to_zero_point(raw_scene(78, Ls4()), Ls4())
    seconds, result = seconds_to_zero_point(raw_scene(79, Ls4(), density_deg2=density_deg2), Ls4())
    detected = result.sources.n_detected
    show(
        f"normal {usual:.2f} s, crowd {seconds:.2f} s: {seconds / usual:.2f}; {detected} sources, ZP {result.zp.zp:.3f}"
    )
    assert detected > 30000
    assert result.zp.zp_err < 0.01
    assert seconds <= times * usual
