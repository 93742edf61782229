"""Association of 5,000 measurements with many objects in the database."""

import time

import numpy as np
import pytest
import sqlalchemy as sa

from seechange_assets.publish.associations import associate_measurements
from sql.objects import ObjectRow
from sql.sky import healpix_of
from tests.publish.sky import MJD, PROVENANCES, image_info, measurements, scores

#: A CCD of half by one degree with 5,000 detections, 900 of them new: more than 1,000 new ones are refused.
FIELD, N_MEASUREMENTS, N_NEW = (45.0, 41.0), 5000, 900
#: Objects are spread over one HEALPix base cell (3,437 square degrees) that holds the field.
BASE_CELL_SIZE = 1 << 58

MAKE = """
insert into objects (id, name, ra, dec, healpix, mean_ra, mean_dec, n_detections, first_mjd, last_mjd, is_test, is_fake,
                     is_bad, exposure, ccd, provenance_id)
select gen_random_uuid(), 'N' || i, 0, 0, :low + (random() * :size)::bigint, 0, 0, 1, :mjd, :mjd, false, false, false,
       'other', 'S1', :provenance
from generate_series(1, :n) i
"""


def positions(seed):
    """5,000 places of a field, no two within the radius of each other: a jittered grid."""
    rng = np.random.default_rng(seed)
    k = rng.permutation(100 * 50)[:N_MEASUREMENTS]
    ra = FIELD[0] + (k % 50) * 0.012 + rng.uniform(0, 0.002, N_MEASUREMENTS)
    return ra, FIELD[1] + (k // 50) * 0.010 + rng.uniform(0, 0.002, N_MEASUREMENTS)


def fill(database, n_objects, ra, dec):
    """Objects all over a base cell, made by Postgres, and 4,100 in the field."""
    low = int(healpix_of(*FIELD)) // BASE_CELL_SIZE * BASE_CELL_SIZE
    common = {"low": low, "size": BASE_CELL_SIZE - 1, "mjd": MJD, "provenance": PROVENANCES["associations"]}
    run_measurements(database, ra, dec, "ls4_0")
    with database.session() as session:
        session.execute(sa.text(MAKE), common | {"n": n_objects - len(ra)})
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("analyze objects"))


def run_measurements(database, ra, dec, exposure, mjd=MJD):
    found = measurements(ra, dec, flux=np.linspace(300, 3000, len(ra)))
    return associate_measurements(
        database, image_info(exposure, mjd=mjd), found, scores(len(ra)), provenance_id=PROVENANCES["associations"],
        max_new_objects=10_000,
    ).table  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("n_objects", [10_000, 100_000, 1_000_000, 10_000_000])
def test_association_takes_two_seconds(database, record_property, n_objects):
    """The budget is 2 s on 2 cores of its own; a machine that others use too is slower, so the limit here is 4 s."""
    ra, dec = positions(1)
    known = slice(N_NEW, None)
    fill(database, n_objects, ra[known], dec[known])
    wall, cpu = time.perf_counter(), time.process_time()
    table = run_measurements(database, ra + 0.1 / 3600, dec, "ls4_1", MJD + 1)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    record_property("seconds", f"{n_objects}: {wall:.2f} s, {cpu:.2f} core-seconds of Python")
    assert len(table) == N_MEASUREMENTS
    assert table["is_new"].sum() == N_NEW
    with database.session() as session:
        total = session.scalar(sa.select(sa.func.count()).select_from(ObjectRow))
    assert total == n_objects + N_NEW
    assert wall < 4, f"{wall:.2f} s, {cpu:.2f} core-seconds of Python"
