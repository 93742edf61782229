"""Association of measurements with objects."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from seechange_assets.errors import InvalidName, ParameterError, TooManyDetections
from seechange_assets.publish.associations import (
    AssociationParameters,
    associate_measurements,
)
from seechange_assets.publish.object_names import date_of, object_name
from seechange_assets.science.association import leaders, letters, match_nearest
from sql.objects import MeasurementRow, ObjectRow, index_ranges, neighbourhood, objects_in_cone
from sql.sky import healpix_of, separation_deg
from tests.publish.sky import MJD, PROVENANCES, image_info, measurements, scores

ARCSEC = 1 / 3600


def run(database, found, exposure="ls4_1", ccd="S1", mjd=MJD, score=0.9, **parameters):
    return associate_measurements(
        database, image_info(exposure, ccd, mjd), found, scores(len(found.table), score),
        provenance_id=PROVENANCES["associations"], **parameters,
    ).table  # fmt: skip


def objects(database):
    with database.session() as session:
        return list(session.scalars(sa.select(ObjectRow).order_by(ObjectRow.name)))


def count(database, table):
    with database.session() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(table))


@pytest.mark.parametrize(("number", "text"), [(1, "a"), (26, "z"), (27, "aa"), (28, "ab"), (702, "zz"), (703, "aaa")])
def test_letters_count_like_transients(number, text):
    assert letters(number) == text


def test_letters_are_unique_and_start_at_one():
    assert len({letters(n) for n in range(1, 20000)}) == 19999
    with pytest.raises(ValueError, match="from 1"):
        letters(0)


def test_name_and_year():
    assert object_name("SC{year}{letters}", 61041.0, 28, 0.0, 0.0) == "SC2026ab"
    assert [date_of(mjd).year for mjd in (0.0, 61041.0 - 0.001, 61041.0)] == [1858, 2025, 2026]


def test_names_have_all_codes():
    """Date, place with sign, letters, number, a drawn letter and a percent sign is no name."""
    name = object_name("obj%Y%m%d_%y%a%A_%n_%R_%D", 61041.0, 28, 5.25, -3.5)
    assert name == "obj20260101_26abAB_28_005.2500_-03.5000"
    assert object_name("%Y%D%n", 61041.0, 1, 0.0, 7.0) == "2026+07.00001"
    drawn = object_name("%Y%n%l%l", 61041.0, 1, 1.0, 2.0)
    assert drawn == object_name("%Y%n%l%l", 61041.0, 1, 1.0, 2.0)
    assert drawn.startswith("20261")
    assert drawn[5:].isalpha()
    with pytest.raises(ValueError, match="unknown code %q"):
        object_name("%Y%n%q", 61041.0, 1, 0.0, 0.0)


@pytest.mark.parametrize("name_format", ["SC{letters}", "SC{year}", "SC{year}{letters}{night}", "S C{year}{letters}"])
def test_a_name_format_that_repeats_or_breaks_the_allow_list_is_refused(name_format):
    with pytest.raises((ParameterError, InvalidName), match=r"name_format|not allowed"):
        AssociationParameters.from_overrides({"name_format": name_format})


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), max_size=30))
def test_leaders_are_apart_and_cover_everything(positions):
    xy = np.array(positions, float).reshape(-1, 2) * ARCSEC
    ra, dec = 10 + xy[:, 0], xy[:, 1]
    first = leaders(ra, dec, 2.0)
    for i in first:
        others = first[first != i]
        assert (separation_deg(ra[i], dec[i], ra[others], dec[others]) > 2 * ARCSEC * (1 - 1e-6)).all()
    index, separation = match_nearest(ra, dec, ra[first], dec[first], 2.0)
    assert (index >= 0).all()
    assert (separation <= 2.0).all()


@settings(deadline=None)
@given(st.floats(0, 360), st.floats(-90, 90), st.floats(0, 360), st.floats(0.01, 30))
def test_a_neighbourhood_contains_its_radius(ra, dec, angle, radius):
    """Everywhere, poles and the corners of the HEALPix base cells included."""
    d = np.deg2rad(radius * ARCSEC * 0.999)
    a, delta = np.deg2rad(angle), np.deg2rad(dec)
    dec2 = np.arcsin(np.sin(delta) * np.cos(d) + np.cos(delta) * np.sin(d) * np.cos(a))
    ra2 = ra + np.rad2deg(np.arctan2(np.sin(a) * np.sin(d) * np.cos(delta), np.cos(d) - np.sin(delta) * np.sin(dec2)))
    cells, order = neighbourhood(np.array([ra]), np.array([dec]), radius * ARCSEC)
    index = healpix_of(ra2, np.rad2deg(dec2))
    low, high = index_ranges(cells, order)
    assert any(a <= index <= b for a, b in zip(low, high, strict=True))


def test_new_detections_become_named_objects_and_rows(database):
    table = run(database, measurements([10.0, 10.1], [5.0, 5.0], flux=[1000, 3000]))
    assert list(table["object_name"]) == ["SC2025b", "SC2025a"]  # the brighter is named first
    assert table["is_new"].all()
    assert (table["separation_arcsec"] < 1e-6).all()
    assert [o.n_detections for o in objects(database)] == [1, 1]
    with database.session() as session:
        row = session.scalars(sa.select(MeasurementRow).order_by(MeasurementRow.detection)).first()
    assert row.flux_njy == pytest.approx(1000 * 10 ** (0.4 * 4.4))
    assert row.flux_aper_njy == pytest.approx(800 * 10 ** (0.4 * 4.4))
    assert row.diagnostics["fwhm_px"] == 2.5
    assert row.diagnostics["mag"] is None


def test_the_second_epoch_is_linked_and_moves_the_mean(database):
    run(database, measurements([10.0], [5.0]))
    table = run(database, measurements([10.0 + ARCSEC], [5.0]), exposure="ls4_2", mjd=MJD + 1)
    assert not table["is_new"][0]
    assert table["separation_arcsec"][0] == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-3)
    (item,) = objects(database)
    assert (item.ra, item.n_detections) == (10.0, 2)
    assert item.mean_ra == pytest.approx(10.0 + 0.5 * ARCSEC, abs=1e-9)
    assert item.last_mjd - item.first_mjd == pytest.approx(1)
    assert item.mean_ra_err == pytest.approx(3e-5 / np.sqrt(2))


def test_a_rerun_adds_nothing_and_gives_the_same_table(database):
    found = measurements([10.0, 20.0, 30.0], [5.0, 5.0, 5.0], is_bad=[False, True, False])
    first = run(database, found)
    again = run(database, found)
    assert all((first[name] == again[name]).all() for name in first.colnames)
    assert (count(database, ObjectRow), count(database, MeasurementRow)) == (2, 3)


def test_a_difference_made_again_leaves_no_ghost(database):
    """What it does not show any more is gone; what is seen by others, too, stays with what is left."""
    first = run(database, measurements([10.0, 20.0], [5.0, 5.0]))
    run(database, measurements([20.0], [5.0 + ARCSEC]), exposure="ls4_2", mjd=MJD + 1)
    table = run(database, measurements([10.01], [5.0]))
    assert table["is_new"][0]
    assert table["measurement_id"][0] not in set(first["measurement_id"])
    assert count(database, MeasurementRow) == 2
    kept, made = objects(database)
    assert (kept.name, kept.n_detections, kept.ra) == (first["object_name"][1], 1, 20.0)
    assert kept.mean_dec == pytest.approx(5.0 + ARCSEC, abs=1e-9)
    assert kept.first_mjd == kept.last_mjd == pytest.approx(MJD + 1 + 30 / 86400)
    assert (made.name, made.ra) == (table["object_name"][0], 10.01)


def test_a_changed_measurement_is_another_one_of_the_same_object(database):
    first = run(database, measurements([10.0], [5.0]))
    again = run(database, measurements([10.0], [5.0], flux=1100.0))
    assert first["measurement_id"][0] != again["measurement_id"][0]
    assert first["object_name"][0] == again["object_name"][0]
    assert [item.n_detections for item in objects(database)] == [1]


def test_a_difference_made_again_without_detections_clears_what_was_there(database):
    run(database, measurements([10.0, 20.0], [5.0, 5.0], is_bad=[False, True]))
    assert len(run(database, measurements([], []))) == 0
    assert (count(database, ObjectRow), count(database, MeasurementRow)) == (0, 0)


def test_the_nearest_object_wins_not_the_first(database):
    run(database, measurements([10.0, 10.0], [5.0, 5.0 + 3 * ARCSEC], flux=[3000, 1000]))
    table = run(database, measurements([10.0], [5.0 + 1.8 * ARCSEC]), exposure="ls4_2")
    assert table["object_name"][0] == "SC2025b"
    assert table["separation_arcsec"][0] == pytest.approx(1.2, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.0, 10.0), (360 - 0.5 * ARCSEC, 10.0)),
        ((359.99999, -45.0), (0.0, -45.0)),
        ((120.0, 90 - 0.5 * ARCSEC), (300.0, 90 - 0.5 * ARCSEC)),
        ((0.0, -90.0), (77.0, -90 + ARCSEC)),
    ],
)
def test_right_ascension_wraps_and_poles_match(database, first, second):
    run(database, measurements(*first))
    table = run(database, measurements(*second), exposure="ls4_2")
    assert not table["is_new"][0]
    (item,) = objects(database)
    assert 0 <= item.mean_ra < 360
    assert abs(item.mean_dec) <= 90


def test_detections_of_one_batch_within_the_radius_are_one_object(database):
    table = run(
        database, measurements([10.0, 10.0, 10.0], [5.0, 5.0 + ARCSEC, 5.0 + 2.5 * ARCSEC], flux=[1e3, 9e3, 1e3])
    )
    assert set(table["object_name"]) == {"SC2025a"}
    assert list(table["is_new"]) == [False, True, False]
    assert objects(database)[0].n_detections == 1


def test_bad_low_scored_and_unplaced_measurements_are_stored_but_not_linked(database):
    found = measurements([10.0, 20.0, np.nan, 40.0], 5.0, is_bad=[True, False, False, False])
    table = run(database, found, score=[0.9, 0.2, 0.9, 0.9])
    assert list(table["measurement"]) == [3]
    assert (count(database, ObjectRow), count(database, MeasurementRow)) == (1, 4)


def test_negative_detections_link_but_never_create(database):
    assert len(run(database, measurements([10.0], [5.0], flux=-1000), exposure="ls4_0")) == 0
    run(database, measurements([10.0], [5.0]))
    assert len(run(database, measurements([10.0], [5.0], flux=-1000), exposure="ls4_2")) == 1
    assert len(run(database, measurements([10.0], [5.0], flux=-1000), exposure="ls4_3", link_negative=False)) == 0
    assert count(database, ObjectRow) == 1


def test_test_objects_stay_apart(database):
    run(database, measurements([10.0], [5.0]), is_test=True)
    assert run(database, measurements([10.0], [5.0]), exposure="ls4_2")["is_new"][0]


def test_too_many_new_objects_write_nothing(database):
    found = measurements(10 + np.arange(11) * 0.01, 5.0)
    with pytest.raises(TooManyDetections, match="11 new objects, at most 10"):
        run(database, found, max_new_objects=10)
    assert (count(database, ObjectRow), count(database, MeasurementRow)) == (0, 0)
    assert len(run(database, found, max_new_objects=11)) == 11


def test_an_empty_batch(database):
    assert len(run(database, measurements([], []))) == 0


def test_overlapping_ccds_at_once_never_make_two_objects(database):
    """Two batches see the same 40 transients, each with its own 0.3 arcsec of error, 20 times."""

    def work(rng, barrier, number, ccd, ra, dec):
        jitter = rng.normal(0, 0.3 * ARCSEC / 3, (2, len(ra)))
        barrier.wait()
        run(database, measurements(ra + jitter[0], dec + jitter[1]), f"ls4_{number}", ccd)

    rng = np.random.default_rng(5)
    for number in range(20):
        ra, dec = 40 + number + rng.uniform(0, 0.5, 40), rng.uniform(-1, 1, 40)
        barrier = threading.Barrier(2)
        batches = {"S1": np.arange(40), "S2": np.arange(40)[::-1]}
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(work, np.random.default_rng(k), barrier, number, ccd, ra[order], dec[order])
                for k, (ccd, order) in enumerate(batches.items())
            ]
        for future in futures:
            future.result()
    made = objects(database)
    assert len(made) == 800
    assert {o.n_detections for o in made} == {1}
    assert len({o.name for o in made}) == 800
    ra, dec = np.array([o.ra for o in made]), np.array([o.dec for o in made])
    assert len(leaders(ra, dec, 2.0)) == 800


def test_a_cone_finds_objects_nearest_first(database):
    run(database, measurements([0.0, 0.0, 0.0], [5.0, 5.0 + 4 * ARCSEC, 5.0 + 60 * ARCSEC], flux=[1e3, 2e3, 3e3]))
    with database.session() as session:
        found = objects_in_cone(session, 360 - ARCSEC, 5.0, 10.0)
        nothing = objects_in_cone(session, 180.0, 5.0, 10.0)
    assert list(found["name"]) == ["SC2025c", "SC2025b"]
    assert found["separation_arcsec"][0] == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-3)
    assert len(nothing) == 0
    assert nothing.colnames == found.colnames
