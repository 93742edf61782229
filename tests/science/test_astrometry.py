"""Astrometric solutions of synthetic fields with wrong headers, and of a real visit."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from seechange_assets.calibrate.wcs import WcsParameters
from seechange_assets.errors import AstrometryError, CatalogError, TooFewStars
from seechange_assets.products import SkyCatalog, header_from_text, header_text, wcs_from_text
from seechange_assets.science.astrometry import catalog_cone, solve_wcs
from seechange_assets.science.pattern_match import match_pattern
from seechange_assets.science.sip import sip_header
from seechange_assets.science.tangent_plane import MAS_PER_RADIAN, TangentPlane, sky_position, unit_vectors
from tests.data import test_data
from tests.science.star_fields import (
    StarField,
    linear_header,
    make_field,
    make_info,
    make_sources,
    with_distortion,
)

WORST = {"offset_arcsec": 59.0, "rotation_deg": 0.5, "scale_error": 0.01}


def solve(field: StarField, **parameters):
    return solve_wcs(field.sources, field.info, field.shape, field.catalog, **parameters)


def error_mas(field: StarField, solution) -> np.ndarray:
    """Distance between the solution and the truth on a grid over the whole image."""
    ny, nx = field.shape
    y, x = (v.ravel() for v in np.mgrid[0 : ny - 1 : 9j, 0 : nx - 1 : 9j])
    found = unit_vectors(*solution.astropy().all_pix2world(x, y, 0))
    truth = unit_vectors(*wcs_from_text(header_text(field.truth)).all_pix2world(x, y, 0))
    return MAS_PER_RADIAN * np.linalg.norm(found - truth, axis=1)


@pytest.mark.parametrize("seed", range(6))
def test_recovers_a_distorted_field_from_a_bad_header(seed):
    field = make_field(seed, **WORST)
    solution = solve(field)
    # 400 stars of about 10 mas: 10 coefficients are known to 2 mas, the corners to a few times that.
    assert np.sqrt(np.mean(error_mas(field, solution) ** 2)) < 5.0
    assert error_mas(field, solution).max() < 20.0
    assert solution.n_matched > 380
    assert solution.residual_ra_bright_mas < 10.0


@pytest.mark.parametrize(
    "where",
    [
        {"ra": 0.02},
        {"ra": 359.99, "dec": -60.0},
        {"dec": 89.95},
        {"dec": -89.999},
        {"parity": 1},
        {"orientation_deg": 137.0},
        {"scale": 1.0},
    ],
)
def test_anywhere_on_the_sky_and_any_way_up(where):
    field = make_field(7, **WORST, **where)
    scale = field.info.pixel_scale_arcsec / 0.25
    assert np.sqrt(np.mean(error_mas(field, solve(field)) ** 2)) < 5.0 * scale


def test_few_stars_get_a_linear_solution():
    field = make_field(1, n_common=15, n_only_image=40, n_only_catalog=20, distortion_px=0.0, **WORST)
    solution = solve(field)
    assert solution.degree == 0
    assert "A_ORDER" not in header_from_text(solution.header)
    assert error_mas(field, solution).max() < 200.0


def test_keeps_the_distortion_the_header_knows():
    field = make_field(3, n_common=14, n_only_image=30, n_only_catalog=20, distortion_px=20.0)
    guess = field.truth.copy()
    guess["CRVAL2"] += 20.0 / 3600.0
    field.info = replace(field.info, wcs_guess=header_text(guess))
    assert error_mas(field, solve(field)).max() < 200.0  # the distortion itself is 5 arcsec


def test_matches_hold_what_photometry_needs():
    field = make_field(2)
    solution = solve(field)
    matches = solution.matches[np.asarray(solution.matches["used"])]
    x, y = (np.asarray(field.sources.table[name])[matches["source"]] for name in "xy")
    ra, dec = solution.astropy().all_pix2world(x, y, 0)
    d_ra = (ra - matches["ra"]) * np.cos(np.radians(dec)) * 3.6e6
    np.testing.assert_allclose(d_ra, matches["d_ra_mas"], atol=0.01)
    np.testing.assert_allclose((dec - matches["dec"]) * 3.6e6, matches["d_dec_mas"], atol=0.01)
    assert solution.catalog == field.catalog.name
    assert {"mag_g", "mag_bp", "mag_rp", "mag_g_err"} <= set(matches.colnames)


def test_residuals_without_proper_motions_would_be_large():
    field = make_field(4, proper_motion_mas=10.0)
    table = field.catalog.table.copy()
    table["pm_ra"], table["pm_dec"] = np.nan, np.nan
    frozen = solve_wcs(field.sources, field.info, field.shape, SkyCatalog(table, 2016.0, "frozen"))
    assert solve(field).residual_ra_mas < 20.0 < 50.0 < frozen.residual_ra_mas


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [(700, 900), (60, 60), (150, 2000)])
def test_another_field_is_an_error(seed, counts):
    field = make_field(seed, n_common=0, n_only_image=counts[0], n_only_catalog=counts[1])
    with pytest.raises(AstrometryError, match="do not match"):
        solve(field)


def test_a_catalogue_of_another_place_is_an_error():
    field, elsewhere = make_field(0), make_field(1, ra=200.0)
    with pytest.raises(AstrometryError, match="points elsewhere"):
        solve_wcs(field.sources, field.info, field.shape, elsewhere.catalog)


@pytest.mark.parametrize("seed", range(3))
def test_a_mirrored_header_is_named(seed):
    with pytest.raises(AstrometryError, match="mirrored in x"):
        solve(make_field(seed, mirrored=True))


def test_a_header_upside_down_is_named():
    field = make_field(0)
    guess = header_from_text(field.info.wcs_guess)
    for keyword in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        guess[keyword] = -guess[keyword]
    field.info = replace(field.info, wcs_guess=header_text(guess))
    with pytest.raises(AstrometryError, match="rotated by 180 degrees"):
        solve(field)


def test_too_few_sources():
    field = make_field(0, n_common=5, n_only_image=0)
    with pytest.raises(TooFewStars) as error:
        solve(field)
    assert (error.value.n_found, error.value.n_required) == (5, 10)


def test_too_small_a_catalogue():
    field = make_field(0)
    with pytest.raises(CatalogError, match="4 stars"):
        solve_wcs(field.sources, field.info, field.shape, SkyCatalog(field.catalog.table[:4], 2016.0, "tiny"))


@pytest.mark.parametrize("guess", ["", "NAXIS   =                    2"])
def test_no_header_wcs(guess):
    field = make_field(0)
    field.info = replace(field.info, wcs_guess=guess)
    with pytest.raises(AstrometryError, match="header"):
        solve(field)


@pytest.mark.parametrize("where", [{}, {"dec": 89.99}, {"ra": 0.0}])
def test_the_catalogue_cone_covers_the_image_wherever_it_may_point(where):
    field = make_field(0, **WORST, **where)
    ra, dec, radius = catalog_cone(field.info, field.shape, 60.0)
    x, y = np.array([0.0, 2047.0, 0.0, 2047.0]), np.array([0.0, 0.0, 4095.0, 4095.0])
    corners = unit_vectors(*wcs_from_text(header_text(field.truth)).all_pix2world(x, y, 0))
    distance = np.degrees(np.arccos(corners @ unit_vectors(ra, dec)))
    assert distance.max() < radius < 0.2


def test_limits_on_residual_and_matched_fraction():
    field = make_field(0)
    with pytest.raises(AstrometryError, match=r"residual .* exceeds 0\.001 arcsec"):
        solve(field, max_residual_arcsec=0.001)
    with pytest.raises(AstrometryError, match="stars agree"):
        solve(field, min_fraction_matched=0.99)


def test_is_deterministic_and_takes_the_parameters():
    first = solve(make_field(5))
    second = solve(make_field(5), **WcsParameters().arguments())
    assert first.header == second.header
    assert np.array_equal(first.matches.as_array(), second.matches.as_array())


@settings(max_examples=30, deadline=None)
@given(
    ra=st.floats(0, 360, exclude_max=True),
    dec=st.floats(-90, 90),
    d_x=st.floats(-5000, 5000),
    d_y=st.floats(-5000, 5000),
)
def test_tangent_plane_round_trip(ra, dec, d_x, d_y):
    plane = TangentPlane(ra, dec)
    vectors = plane.deproject(np.array([[d_x, d_y]]))
    np.testing.assert_allclose(plane.project(vectors), [[d_x, d_y]], atol=1e-7)
    np.testing.assert_allclose(unit_vectors(*sky_position(vectors)), vectors, atol=1e-14)


@pytest.mark.parametrize("dec", [10.0, 89.9])
def test_sip_header_follows_a_mapping_and_inverts(dec):
    shape, rng = (4096, 2048), np.random.default_rng(1)
    truth = wcs_from_text(header_text(with_distortion(linear_header(30.0, dec, shape, 0.25), shape, 10.0, rng)))
    header, degree = sip_header(lambda x, y: unit_vectors(*truth.all_pix2world(x, y, 0)), shape)
    wcs = wcs_from_text(header_text(header))
    x, y = rng.uniform(0, 2047, 100), rng.uniform(0, 4095, 100)
    miss = unit_vectors(*wcs.all_pix2world(x, y, 0)) - unit_vectors(*truth.all_pix2world(x, y, 0))
    assert degree == 3
    assert MAS_PER_RADIAN * np.abs(miss).max() < 1.0
    # AP and BP, which astropy itself only uses in sip_foc2pix, invert to a hundredth of a pixel.
    focal = wcs.sip_pix2foc(np.column_stack([x, y]) + 1, 1)
    back = wcs.sip_foc2pix(focal, 1)
    assert np.abs(back - np.column_stack([x, y]) - 1).max() < 0.01


def test_pattern_match_finds_the_transform_and_its_significance():
    rng = np.random.default_rng(2)
    points = rng.uniform(-500, 500, (60, 2))
    angle = 0.006
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    limits = {"max_offset": 60.0, "max_rotation": 0.01, "max_scale_error": 0.01, "bin_size": 2.0}
    match = match_pattern(points, 1.004 * points @ turn.T + [30.0, -45.0], **limits)
    assert match.rotation == pytest.approx(angle, abs=0.003)
    assert match.scale == pytest.approx(1.004, abs=0.003)
    assert match.offset == pytest.approx((30.0, -45.0), abs=1.5)
    assert match.log10_chance < -20
    assert match_pattern(points, rng.uniform(-560, 560, (60, 2)), **limits).log10_chance > -4
    assert match_pattern(points, points + 5000.0, **limits) is None


def gaia_of_the_visit(path) -> SkyCatalog:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the real catalogue is Parquet: needs pyarrow")
    data = {name: np.asarray(column, float) for name, column in parquet.read_table(path).to_pydict().items()}
    mas = np.degrees(1.0) * 3.6e6

    def magnitude(name):
        return 31.4 - 2.5 * np.log10(data[f"phot_{name}_mean_flux"])

    columns = {"ra": np.degrees(data["coord_ra"]), "dec": np.degrees(data["coord_dec"])}
    columns |= {"ra_err": data["coord_raErr"] * mas, "dec_err": data["coord_decErr"] * mas}
    columns |= {"pm_ra": data["pm_ra"] * mas, "pm_dec": data["pm_dec"] * mas, "parallax": data["parallax"] * mas}
    columns |= {f"mag_{name}": magnitude(name) for name in ("g", "bp", "rp")}
    columns |= {f"mag_{name}_err": np.full(len(data["coord_ra"]), 0.01) for name in ("g", "bp", "rp")}
    return SkyCatalog(Table(columns), 2016.0, "hsc")


def test_real_visit_of_hyper_suprime_cam():
    folder = test_data("hsc_cosmos_gaia")
    catalog = gaia_of_the_visit(folder / "gaia_refCat.parquet")
    solutions, paths = [], sorted(folder.glob("1180_*.fits"))
    for path in paths:
        with fits.open(path) as hdus:
            header, stars = hdus[0].header, hdus[1].data
            wcs_keywords = [f"{name}{i}" for name in ("CTYPE", "CRPIX", "CRVAL", "CUNIT") for i in (1, 2)]
            guess = fits.Header([(k, header[k]) for k in [*wcs_keywords, "CD1_1", "CD1_2", "CD2_1", "CD2_2"]])
            x, y, error = (stars["x"].astype(float), stars["y"].astype(float), np.hypot(stars["xErr"], stars["yErr"]))
            info = make_info(header_text(guess), 0.168, mjd=header["MJD-STR"], exptime_s=270.0, ccd=path.stem)
        sources = make_sources(x, y, error / 1.41, 1.0 / error.astype(float), 2.0 / error.astype(float))
        try:
            solutions.append(solve_wcs(sources, info, (4176, 2048), catalog))
        except AstrometryError:
            continue
    # The CCDs share only 11 to 30 stars with Gaia; one has 9.
    assert len(solutions) >= 0.95 * len(paths)
    assert np.median([s.residual_ra_mas for s in solutions]) < 35.0
    assert np.median([s.residual_dec_mas for s in solutions]) < 25.0
