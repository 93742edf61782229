from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.errors import BadPixels
from seechange_assets.products import Flag
from seechange_assets.science.background import measure_background
from seechange_assets.science.sources import extract_sources, to_region_file
from tests.data import test_data
from tests.science.skies import as_image, grid_positions, make_sky, matched, robust_std

COLUMNS = [
    "x", "y", "x_err", "y_err", "flux_auto", "flux_auto_err", "flux_aper", "flux_aper_err", "a", "b", "theta",
    "fwhm_px", "peak", "snr", "extraction_flags", "image_flags", "star_score", "is_good", "is_star",
]  # fmt: skip


def extracted(sky, **options):
    return extract_sources(sky.image, measure_background(sky.image, box_size_px=128), **options)


@pytest.fixture(scope="module")
def field():
    sky = make_sky(1, shape=(700, 700), n_stars=250, n_galaxies=60)
    return sky, extracted(sky)


def test_the_table_has_the_agreed_columns(field):
    _, sources = field
    assert sorted(sources.table.colnames) == sorted(COLUMNS)
    assert sources.table["flux_aper"].shape == (len(sources.table), 4)
    assert sources.aperture_radii_px == pytest.approx([k * sources.fwhm_px for k in (1, 2, 3, 5)])
    assert np.all(np.diff(sources.table["flux_auto"]) <= 0)


@pytest.mark.parametrize("seed", range(3))
def test_bright_sources_are_found_and_the_sky_is_empty(seed):
    positions = grid_positions((600, 600), 40, seed)
    sky = make_sky(seed, fwhm_px=3.0, positions=positions, n_stars=positions[0].size, flux=1500.0, variation=0)
    sources = extracted(sky)
    rows, truth = matched(sky, sources)
    # S/N 18: all must be there; a threshold of 4 sigma lets few noise peaks through.
    assert np.unique(truth).size == sky.x.size
    assert len(sources.table) - rows.size < 8


@pytest.mark.parametrize("fwhm_px", [1.3, 2.0, 4.0])
def test_positions_and_their_errors(fwhm_px):
    pulls, offsets = [], []
    for seed in range(3):
        positions = grid_positions((600, 600), 40, seed)
        sky = make_sky(seed, fwhm_px=fwhm_px, positions=positions, n_stars=positions[0].size, flux=20000.0, variation=0)
        sources = extracted(sky)
        rows, truth = matched(sky, sources)
        table = sources.table[rows]
        offsets += [table["x"] - sky.x[truth], table["y"] - sky.y[truth]]
        pulls += [offsets[-2] / table["x_err"], offsets[-1] / table["y_err"]]
    # Also at 1.3 pixels, where the pixel grid alone would shift positions by up to 0.04 pixel.
    assert robust_std(np.concatenate(pulls)) == pytest.approx(1.0, abs=0.15)
    assert abs(np.mean(np.concatenate(offsets))) < 0.003


def test_large_apertures_hold_the_flux():
    positions = grid_positions((600, 600), 60, 4)
    sky = make_sky(4, fwhm_px=3.0, positions=positions, n_stars=positions[0].size, flux=50000.0, variation=0)
    sources = extracted(sky)
    rows, truth = matched(sky, sources)
    ratio = sources.table["flux_aper"][rows] / sky.flux[truth][:, None]
    # A Moffat profile with beta 3 keeps 99.9 % within five FWHM; the local sky of 0.1 sigma adds the rest.
    assert np.nanmedian(ratio[:, 3]) == pytest.approx(1.0, abs=0.02)
    assert np.all(np.diff(np.nanmedian(ratio, axis=0)) > 0)
    error = sources.table["flux_aper_err"][rows][:, 1]
    assert robust_std(sources.table["flux_aper"][rows][:, 1] / np.median(error)) == pytest.approx(1.0, abs=0.25)


def test_seeing_and_stars(field):
    sky, sources = field
    rows, truth = matched(sky, sources)
    table = sources.table[rows]
    bright = (table["snr"] > 30) & table["is_good"] & (table["extraction_flags"] == 0)
    star = sky.is_star[truth]
    # The seeing is 3.0 above the pixels, 3.15 in them, and varies by 10 %.
    assert sources.fwhm_px == pytest.approx(3.15, rel=0.05)
    assert np.mean(table["is_star"][bright & star]) > 0.85
    assert np.mean(table["is_star"][bright & ~star]) < 0.05
    faint = table["snr"] < 8
    assert 0.2 < np.median(table["star_score"][faint]) < 0.8


@pytest.mark.parametrize("fwhm_px", [1.2, 2.0, 6.0, 9.0])
def test_any_seeing_is_measured(fwhm_px):
    sky = make_sky(5, shape=(800, 800), fwhm_px=fwhm_px, n_stars=150, variation=0, ellipticity=0)
    in_pixels = np.hypot(fwhm_px, 0.97)  # a pixel adds as a Gaussian of 0.97 would, or a bit less
    assert extracted(sky).fwhm_px == pytest.approx(in_pixels, rel=0.06)


def test_flags_reach_the_sources_they_touch():
    positions = grid_positions((300, 300), 50, 6)
    sky = make_sky(6, shape=(300, 300), positions=positions, n_stars=positions[0].size, flux=30000.0)
    x, y = int(sky.x[7] + 0.5), int(sky.y[7] + 0.5)
    sky.image.flags[y, x] = Flag.COSMIC_RAY
    sky.image.flags[y + 20, x + 20] = Flag.BAD
    sources = extracted(sky)
    rows, truth = matched(sky, sources, 3.0)
    hit = rows[truth == 7]
    assert sources.table["image_flags"][hit].tolist() == [int(Flag.COSMIC_RAY)]
    assert not sources.table["is_good"][hit].any()
    assert (sources.table["image_flags"][rows[truth != 7]] == 0).all()


def test_a_saturated_star_stays_one_source():
    positions = (np.array([150.2, 60.0]), np.array([149.7, 60.0]))
    sky = make_sky(7, shape=(300, 300), positions=positions, n_stars=2, flux=np.array([2e6, 3e4]))
    assert (sky.image.flags == Flag.SATURATED).sum() > 3
    sources = extracted(sky)
    near = np.hypot(sources.table["x"] - 150, sources.table["y"] - 150) < 8
    assert near.sum() == 1
    assert sources.table["image_flags"][near][0] & Flag.SATURATED
    assert not sources.table["is_good"][near][0]


def test_an_empty_sky_gives_an_empty_table():
    image = as_image(np.random.default_rng(9).normal(100, 5, (128, 128)))
    sources = extract_sources(image, measure_background(image), threshold=20.0)
    assert len(sources.table) == 0
    assert sorted(sources.table.colnames) == sorted(COLUMNS)
    assert np.isnan(sources.fwhm_px)


def test_light_all_over_the_image_is_no_sky():
    image = make_sky(1, shape=(128, 128), n_stars=10).image
    background = measure_background(image)
    with pytest.raises(BadPixels, match="nearly all pixels"):
        extract_sources(image, replace(background, level_mesh=background.level_mesh - np.float32(5000)))


def test_same_image_same_catalogue(field):
    sky, sources = field
    again = extracted(sky)
    for name in sources.table.colnames:
        assert np.asarray(sources.table[name]).tobytes() == np.asarray(again.table[name]).tobytes()


def test_region_file(field):
    _, sources = field
    lines = to_region_file(sources).splitlines()
    assert lines[1] == "image"
    assert len(lines) == len(sources.table) + 2
    x = float(lines[2].split("(")[1].split(",")[0])
    assert x == pytest.approx(sources.table["x"][0] + 1, abs=1e-3)


def test_region_file_on_the_sky(field):
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [-1 / 3600, 1 / 3600]
    lines = to_region_file(field[1], wcs).splitlines()
    assert lines[1] == "icrs"
    assert lines[2].startswith("circle(")
    assert lines[2].split(")")[0].endswith('"')


def test_real_decam_stamp():
    from astropy.io import fits

    data = fits.getdata(test_data("decam_atfield") / "DEC-OBS18a.mini.fits").astype(np.float32)
    image = as_image(data)
    image = replace(image, info=replace(image.info, gain=4.0))
    sources = extract_sources(image, measure_background(image))
    assert len(sources.table) > 20
    # The header of the file says 3.85, from another estimator.
    assert sources.fwhm_px == pytest.approx(3.85, rel=0.1)


def test_the_seeing_is_unknown_without_a_bright_source():
    image = as_image(np.random.default_rng(11).normal(100, 5, (300, 300)))
    sources = extract_sources(image, measure_background(image), threshold=3.0)
    assert len(sources.table) > 0
    assert np.isnan(sources.fwhm_px)


def test_where_too_many_are_detected_the_brightest_are_measured(field):
    sky, sources = field
    some = extracted(sky, max_sources=100)
    assert len(some.table) == 100
    assert some.n_detected == sources.n_detected == len(sources.table)
    assert some.is_limited
    assert not sources.is_limited
    # The seeing is that of the bright stars, so nothing that is measured changes for those that stay.
    assert some.fwhm_px == pytest.approx(sources.fwhm_px, rel=0.005)
    kept = np.isin(sources.table["x"].round(2), some.table["x"].round(2))
    # Detected light and Kron flux differ where sources are extended, so the order of the two agrees but for a few.
    assert kept[:70].all()
    assert not kept[150:].any()
    # Neighbours that were left out still count as such: stars stay blended.
    blended = dict(zip(sources.table["x"].round(2), sources.table["extraction_flags"], strict=True))
    assert all(
        blended[x] == flag for x, flag in zip(some.table["x"].round(2), some.table["extraction_flags"], strict=True)
    )
