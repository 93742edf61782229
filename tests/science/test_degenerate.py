"""Images that hold almost nothing, or too much: a typed error or a valid product, never a surprise."""

from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.errors import BadPixels, TooFewStars
from seechange_assets.products import Flag
from seechange_assets.science.background import measure_background
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources
from tests.science.fields import moffat_field, show
from tests.science.skies import as_image, make_sky

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
    import time

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
    usual, (seconds, outcome) = seconds_of_chain(normal)[0], seconds_of_chain(crowd)
    show(f"FWHM {fwhm_px}: normal {usual:.2f} s, 100,000 stars {seconds:.2f} s")
    assert outcome == "product"
    # Twice the 2.5 s of image to zero point leave 2.5 s more for these three steps, which do nearly all the extra work.
    assert seconds < usual + 2.5
