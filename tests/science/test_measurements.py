"""Measurements against synthetic truth: photometry, positions, diagnostics, cuts."""

import dataclasses

import numpy as np
import pytest
from astropy.table import Table

from seechange_assets.errors import ParameterError
from seechange_assets.products import Cutouts, Detections, Flag, Reference, Sources, ZeroPoint
from seechange_assets.science.cutouts import cut_stamps, stamp_corners
from seechange_assets.science.detections import detect
from seechange_assets.science.measurements import COLUMNS, DELETION_THRESHOLDS, measure
from tests.science.synthetic import (
    PIXEL_SCALE_ARCSEC,
    ZERO_POINT,
    flux_unit,
    image_info,
    make_difference,
)

KEEP_ALL = dict.fromkeys(DELETION_THRESHOLDS)
SHAPE = (512, 512)


def cutouts_of(detections, difference, size=41, flags=None):
    corner = stamp_corners(np.asarray(detections.table["x"]), np.asarray(detections.table["y"]), size)
    sub, sub_flags = cut_stamps(difference.data, difference.flags, corner, size)
    image_flags = sub_flags if flags is None else cut_stamps(difference.data, flags, corner, size)[1]
    return Cutouts(sub, np.zeros_like(sub), sub, image_flags, sub_flags, sub_flags, corner, size)


def measured(difference, flags=None, reference=None, **options):
    detections = detect(difference)
    options = {"deletion_thresholds": KEEP_ALL} | options
    return measure(detections, cutouts_of(detections, difference, flags=flags), difference, reference, **options).table


def field(rng, snr, fwhm_px):
    """A jittered grid of point sources, 40 px apart."""
    grid = np.arange(40, SHAPE[0] - 30, 40.0)
    x, y = (g.ravel() + rng.uniform(-6, 6, g.size) for g in np.meshgrid(grid, grid))
    return make_difference(rng, SHAPE, fwhm_px, (x, y, np.full(x.size, snr))), x, y


def matched(table, x, y, fwhm_px):
    distance = np.hypot(np.asarray(table["x"])[:, None] - x, np.asarray(table["y"])[:, None] - y)
    near = distance.min(axis=1) < fwhm_px
    return table[near], distance.argmin(axis=1)[near]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("fwhm", [1.6, 2.5, 5.0])
def test_flux_and_position_are_unbiased_with_honest_errors(seed, fwhm):
    difference, x, y = field(np.random.default_rng(seed), 20.0, fwhm)
    table, row = matched(measured(difference), x, y, fwhm)
    assert len(table) == x.size
    pulls = [
        (table["flux_psf"] - 20.0 * flux_unit(difference.psf, 10.0)) / table["flux_psf_err"],
        (table["x"] - x[row]) / table["x_err"],
        (table["y"] - y[row]) / table["y_err"],
    ]
    for pull in pulls:
        assert abs(np.mean(pull)) < 4 / np.sqrt(x.size)  # 4 standard errors
        assert 0.8 < np.std(pull) < 1.2  # 144 sources: the width is known to 6 per cent
    assert abs(np.mean(table["chi2"]) - 1) < 0.05
    assert np.allclose(table["mag"], ZERO_POINT - 2.5 * np.log10(table["flux_psf"]))
    assert np.allclose(table["ra_err"] * 3600, table["x_err"] * PIXEL_SCALE_ARCSEC, rtol=1e-3)


@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_apertures_and_shapes_of_point_sources(fwhm):
    difference, x, y = field(np.random.default_rng(3), 100.0, fwhm)
    table, _ = matched(measured(difference), x, y, fwhm)
    ratio = np.mean(table["flux_aper"][:, :3] / np.asarray(table["flux_psf"])[:, None], axis=0)
    # Spreading each pixel's counts evenly over it widens a Gaussian by the variance of a pixel, 1/12.
    variance = (fwhm / 2.3548) ** 2 + 1 / 12
    assert np.allclose(ratio, 1 - np.exp(-((np.array([1, 2, 3]) * fwhm) ** 2) / 2 / variance), atol=0.005)
    assert np.allclose(np.median(table["fwhm_px"]), fwhm, rtol=0.02)
    assert np.median(table["elongation"]) < 1.1


@pytest.mark.parametrize(
    ("snr", "fwhm", "most"), [(6.0, 1.6, 0.08), (6.0, 5.0, 0.08), (12.0, 1.6, 0.03), (12.0, 5.0, 0.02)]
)
def test_point_sources_are_rarely_called_bad(snr, fwhm, most):
    difference, x, y = field(np.random.default_rng(4), snr, fwhm)
    table, _ = matched(measured(difference), x, y, fwhm)
    assert np.mean(table["is_bad"]) <= most


def artefacts(paint, fwhm_px, n=60, seed=5):
    """A difference with one artefact in each of `n` cells, painted by ``paint(extra, x, y, rng)``."""
    rng = np.random.default_rng(seed)
    extra = np.zeros(SHAPE)
    for k in range(n):
        paint(extra, 48 + 60 * (k % 8), 48 + 60 * (k // 8), rng)
    return measured(make_difference(rng, SHAPE, fwhm_px, extra=extra))


@pytest.mark.parametrize("fwhm", [1.6, 3.0, 5.0])
def test_cosmic_rays_are_sharper_than_the_psf(fwhm):
    def paint(extra, x, y, rng):
        extra[y, x] += 10 * rng.uniform(15, 60) * (2 if fwhm > 4 else 1)
        extra[y, x + 1] += 10 * rng.uniform(0, 3 if fwhm < 2 else 15)

    table = artefacts(paint, fwhm)
    table = table[np.abs(table["score"]) > 8]
    assert np.mean([("cosmic_ray_score" in str(r)) for r in table["bad_reasons"]]) > 0.9


@pytest.mark.parametrize("fwhm", [1.8, 3.0, 5.0])
def test_dipoles_are_recognised(fwhm):
    sigma = fwhm / 2.3548
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]

    def paint(extra, x, y, rng):
        angle, shift = rng.uniform(0, 2 * np.pi), 0.2 * fwhm
        cut = np.s_[y - 25 : y + 26, x - 25 : x + 26]
        for sign in (1, -1):
            u = xx[cut] - x - sign * shift / 2 * np.cos(angle)
            v = yy[cut] - y - sign * shift / 2 * np.sin(angle)
            extra[cut] += sign * np.exp(-(u**2 + v**2) / 2 / sigma**2) * 700

    table = artefacts(paint, fwhm)
    assert len(table) >= 60
    strong = table[np.abs(table["score"]) > 10]
    assert np.mean(strong["dipole_score"] > 0.6) > 0.9
    assert np.mean(strong["is_bad"]) > 0.97


def test_trails_are_recognised():
    def paint(extra, x, y, rng):
        angle = rng.uniform(0, np.pi)
        yy, xx = np.mgrid[-25:26, -25:26]
        along = np.clip(xx * np.cos(angle) + yy * np.sin(angle), -12, 12)
        distance2 = (xx - along * np.cos(angle)) ** 2 + (yy - along * np.sin(angle)) ** 2
        extra[y - 25 : y + 26, x - 25 : x + 26] += 50 * np.exp(-distance2 / 2 / 1.27**2)

    table = artefacts(paint, 3.0)
    assert np.mean(table["trail_score"] > 0.4) > 0.9
    assert np.mean(table["elongation"] > 2.8) > 0.9


@pytest.mark.parametrize("snr", [8.0, 30.0])
def test_a_source_that_faded_is_kept_with_its_negative_flux(snr):
    difference = make_difference(np.random.default_rng(6), sources=([80, 150], [80, 150], [snr, -snr]))
    detections = detect(difference)
    cutouts = cutouts_of(detections, difference)
    # What the new image still shows is blank sky; the stamps of the helper show the whole difference there.
    shown = dataclasses.replace(cutouts, new=np.zeros_like(cutouts.sub))
    table = measure(detections, shown, difference).table
    faded = table[np.asarray(table["flux_psf"]) < 0]
    assert len(table) == 2
    assert len(faded) == 1
    assert not faded["is_bad"][0]
    assert np.isnan(faded["mag"][0])
    assert faded["flux_psf"][0] == pytest.approx(-snr * flux_unit(difference.psf, 10.0), rel=5 / snr)
    assert abs(faded["fwhm_px"][0] - 3.0) < (0.6 if snr > 10 else 2.0)  # shapes are measured with the sign taken out


def test_a_dark_hole_in_the_new_image_is_no_fading_source():
    difference = make_difference(np.random.default_rng(6), sources=([80, 150], [80, 150], [6, -6]))
    table = measured(difference)  # the new image is the difference itself: 6 sigma below its sky
    assert set(table["bad_reasons"][np.asarray(table["flux_psf"]) < 0]) == {"dark_sigma"}
    assert not table["is_bad"][np.asarray(table["flux_psf"]) > 0].any()


def test_flagged_pixels_near_a_source_count():
    rng = np.random.default_rng(7)
    flags = np.zeros((256, 256), np.uint16)
    flags[100, 104:106] = Flag.BAD  # within 2 FWHM = 6 px of the source
    flags[150, 158] = Flag.BAD  # beyond
    difference = make_difference(rng, sources=([100, 150], [100, 150], [40, 30]))
    table = measured(difference, flags=flags)
    assert list(table["n_bad_pixels"][:2]) == [2, 0]
    assert list(table["is_bad"][:2]) == [True, False]
    assert table["bad_reasons"][0] == "n_bad_pixels"


def test_nearest_reference_source():
    rng = np.random.default_rng(8)
    difference = make_difference(rng, sources=([100], [100], [40]))
    sources = Table({"x": [103.0, 200.0], "y": [104.0, 200.0], "flux_auto": [1000.0, 50.0], "star_score": [0.2, 0.9]})
    empty = np.zeros((256, 256), np.float32)
    reference = Reference(
        "set", image_info(), empty, empty, np.zeros((256, 256), np.uint16), Sources(sources, (), 3.0), difference.psf,
        difference.wcs, ZeroPoint(27.5, 0.01, 0.01, 0.0, 10, (), (), 22.0, Table()), (),
    )  # fmt: skip
    row = measured(difference, reference=reference)[0]
    assert row["ref_source_distance_arcsec"] == pytest.approx(5.0 * PIXEL_SCALE_ARCSEC, abs=0.3)
    assert row["ref_source_mag"] == pytest.approx(20.0)
    assert row["ref_source_star_score"] == pytest.approx(0.2)


def test_rows_point_at_their_detection_and_have_every_column():
    rng = np.random.default_rng(9)
    difference = make_difference(rng, sources=([60, 150, 200], [60, 150, 60], [30, -40, 20]))
    detections = detect(difference)
    table = measure(detections, cutouts_of(detections, difference), difference).table
    assert tuple(table.colnames) == COLUMNS
    for row in table:
        found = detections.table[row["detection"]]
        assert np.hypot(found["x"] - row["x"], found["y"] - row["y"]) < 0.5
        assert found["score"] == row["score"]


def test_no_detection_gives_an_empty_table():
    difference = make_difference(np.random.default_rng(10))
    detections = Detections(detect(difference, threshold=50.0).table, 50.0)
    table = measure(detections, cutouts_of(detections, difference), difference).table
    assert len(table) == 0
    assert tuple(table.colnames) == COLUMNS


def test_unknown_threshold_is_an_error():
    difference = make_difference(np.random.default_rng(11), sources=([60], [60], [30]))
    with pytest.raises(ParameterError, match="unknown threshold 'elongatoin'"):
        measured(difference, bad_thresholds={"elongatoin": 2.0})


def test_result_does_not_depend_on_the_company():
    rng = np.random.default_rng(12)
    difference = make_difference(rng, sources=([60, 150, 200], [60, 150, 60], [30, 40, 20]))
    detections = detect(difference)
    together = measure(detections, cutouts_of(detections, difference), difference).table
    alone = dataclasses.replace(detections, table=detections.table[1:2])
    single = measure(alone, cutouts_of(alone, difference), difference).table
    for name in ("flux_psf", "x", "elongation", "chi2"):
        assert single[name][0] == pytest.approx(together[name][1], rel=1e-9)
