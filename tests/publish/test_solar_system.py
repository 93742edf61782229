"""Known minor planets and moving stars on the frames of a small camera: labelled, and no objects."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.table import Table

from resources.galaxy_catalog import GalaxyCatalog
from resources.minor_planets import read_orbits
from seechange_assets.instruments.base import get_instrument
from seechange_assets.products import SkyCatalog
from seechange_assets.publish.associations import associate_measurements
from seechange_assets.publish.cross_match import all_rows, nearest_rows
from seechange_assets.publish.solar_system import footprint_circle, identify, predicted
from seechange_assets.science.minor_planets import integrate
from sql.object_records import IdentificationRow, insert_cross_matches, objects_without
from sql.objects import MeasurementRow, ObjectRow
from tests.publish.sky import MJD, PROVENANCES, ZP, difference, measurements, scores
from tests.publish.test_associations import objects, run
from tests.science.orbits import elements_of, state_at, write_orbits

INSTRUMENT = get_instrument("demo")
YEAR = 2000.0 + (MJD - 51544.5) / 365.25


class Stars:
    """A catalogue of the given stars."""

    def __init__(self, ra=(), dec=(), pm_ra=(), mag=()):
        n = len(ra)
        columns = {"ra": ra, "dec": dec, "pm_ra": pm_ra, "pm_dec": np.zeros(n), "mag_g": mag}
        bands = {name: np.full(n, 0.0) for name in ("mag_bp", "mag_rp")}
        self.catalog = SkyCatalog(
            Table({k: np.asarray(v, float) for k, v in (columns | bands).items()}), 2016.0, "test"
        )

    def cone(self, ra_deg, dec_deg, radius_deg, max_mag=None):
        return self.catalog


def reference_of(years_before):
    product = difference()
    return replace_info(product, mjd=product.info.mjd - 365.25 * years_before)


def replace_info(product, **info):
    return replace(product, info=replace(product.info, **info))


@pytest.fixture
def orbits(tmp_path):
    """Two hundred minor planets all over the sky, and six in the field at the time of the frames."""
    rng = np.random.default_rng(8)
    (ra0, dec0), _ = footprint_circle(difference())
    places = [(ra0 + x / 3600, dec0 + y / 3600) for x in (-50, 0, 50) for y in (-40, 40)]
    places += [(ra, dec) for ra in range(0, 360, 20) for dec in range(-25, 30, 5)]
    entries = []
    for k, (ra, dec) in enumerate(places):
        r, v = state_at(ra, dec, MJD, rng.uniform(1.2, 2.5), rng)
        (r,), (v,) = integrate(r[None], v[None], MJD, MJD - 0.25)  # epochs are whole days
        entries.append((f"2026 A{k}", elements_of(r, v, MJD - 0.25), 13.0))
    return read_orbits(write_orbits(tmp_path / "MPCORB.DAT", entries))


def injected(orbits, product):
    """The planets on a frame, with the noise of a detection of S/N 10."""
    centre, radius = footprint_circle(product)
    truth = predicted(orbits, product.info.mjd_mid, centre, radius, INSTRUMENT.site)
    rng = np.random.default_rng(int(product.info.mjd * 100))
    noise = rng.normal(0, 0.1 / 3600, (2, len(truth.ra)))
    return truth, truth.ra + noise[0], truth.dec + noise[1]


def associate(database, product, found, orbits, stars=None, years_before=0.5):
    known = identify(product, found, reference_of(years_before), INSTRUMENT, stars or Stars(), orbits)
    return associate_measurements(
        database, product.info, found, scores(len(found.table)), provenance_id=PROVENANCES["associations"],
        identifications=known,
    ).table  # fmt: skip


def labels(database):
    with database.session() as session:
        return list(session.scalars(sa.select(IdentificationRow).order_by(IdentificationRow.name)))


def test_asteroids_are_labelled_and_make_no_object(database, orbits):
    """Over four frames of a night; a transient among them keeps its object."""
    total = 0
    for number in range(4):
        product = difference(exposure=f"ls4_{number}", mjd=MJD + 0.02 * number)
        truth, ra, dec = injected(orbits, product)
        (ra0, dec0), _ = footprint_circle(product)
        total += len(truth.name)
        table = associate(database, product, measurements(np.append(ra, ra0 + 20 / 3600), np.append(dec, dec0)), orbits)
        assert list(table["measurement"]) == [len(ra)]
    assert total >= 12
    told = labels(database)
    assert len(told) == total
    assert {row.kind for row in told} == {"minor_planet"}
    assert max(row.separation_arcsec for row in told) < 0.6
    assert all(row.catalog.startswith("MPCORB.DAT ") and row.mag for row in told)
    assert [item.n_detections for item in objects(database)] == [4]


def test_without_orbits_every_asteroid_makes_objects(database, orbits):
    product = difference()
    _, ra, dec = injected(orbits, product)
    assert len(associate(database, product, measurements(ra, dec), None)) == len(ra) >= 4
    assert labels(database) == []


def test_a_planet_far_too_faint_explains_nothing(database, orbits):
    product = replace(difference(), limiting_magnitude=12.0)
    _, ra, dec = injected(orbits, product)
    assert len(associate(database, product, measurements(ra, dec), orbits)) == len(ra)


def test_a_rerun_keeps_labels_and_a_new_difference_loses_them(database, orbits):
    product = difference()
    _, ra, dec = injected(orbits, product)
    for _ in range(2):
        associate(database, product, measurements(ra, dec), orbits)
        assert len(labels(database)) == len(ra)
    associate(database, product, measurements([150.0], [-30.0]), orbits)
    assert labels(database) == []


def test_a_star_of_high_proper_motion_makes_no_alert_train(database):
    """Two arcseconds a year over five epochs: neither where it is nor where it was, while a slow variable star is."""
    (ra0, dec0), _ = footprint_circle(difference())
    mag = ZP - 2.5 * np.log10(20000.0)
    stars = Stars([ra0, ra0 + 0.01], [dec0, dec0], [2000.0, 2.0], [mag, mag])
    for number in range(5):
        product = difference(exposure=f"ls4_{number}", mjd=MJD + 60 * number)
        now, then = (
            ra0 + 2.0 / 3600 * (year - 2016.0) / np.cos(np.deg2rad(dec0))
            for year in (YEAR + 60 * number / 365.25, YEAR - 1.0)
        )
        found = measurements([now, then, ra0 + 0.01], [dec0] * 3, flux=[18000.0, -18000.0, 8000.0])
        table = associate(database, product, found, None, stars, years_before=1.0)
        assert list(table["measurement"]) == [2]
    assert [item.n_detections for item in objects(database)] == [5]
    assert {row.kind for row in labels(database)} == {"moving_star"}
    assert len(labels(database)) == 10


def test_a_flare_brighter_than_the_motion_explains_is_no_moving_star(database):
    (ra0, dec0), _ = footprint_circle(difference())
    stars = Stars([ra0], [dec0], [50.0], [ZP - 2.5 * np.log10(20000.0)])  # moved by 0.03 of the PSF's width
    assert len(associate(database, difference(), measurements([ra0], [dec0], flux=9000.0), None, stars)) == 1


def test_cross_matches_are_stored_once_and_nearest_first(database, tmp_path):
    run(database, measurements([10.0, 10.1], [5.0, 5.0]))
    ids = {item.name: item.id for item in objects(database)}
    places = {item.id: (item.ra, item.dec) for item in objects(database)}
    file = tmp_path / "galaxies.csv"
    lines = [f"{k},{10.0 + d / 3600},5.0,{18 + d},{0.9 if k else 0.1}" for k, d in enumerate((7.0, 2.0, 30.0))]
    file.write_text("lsid,ra,dec,white_mag,xgboost\n" + "\n".join(lines) + "\n")
    catalog = GalaxyCatalog(file)
    table = catalog.cone(10.05, 5.0, 0.2)
    rows = all_rows("galaxy", set(ids.values()), places, table, catalog.name, 10.0)
    near = [row for row in rows if row["object_id"] == ids["SC2025a"]]
    assert [(row["name"], row["rank"]) for row in near] == [("1", 0), ("0", 1)]
    assert near[0]["separation_arcsec"] == pytest.approx(2.0 * np.cos(np.deg2rad(5)), abs=1e-3)
    assert near[0]["star_score"] == 0.9
    with database.session() as session:
        insert_cross_matches(session, rows + nearest_rows("gaia", set(ids.values()), places, table, "g", 60.0))
        insert_cross_matches(session, rows)
        assert objects_without(session, sorted(ids.values()), "galaxy") == set()
        assert objects_without(session, sorted(ids.values()), "reference") == set(ids.values())
        session.execute(sa.delete(MeasurementRow))
        session.execute(sa.delete(ObjectRow))
