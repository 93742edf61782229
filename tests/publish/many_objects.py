"""A sky full of objects, made by Postgres, and CCDs whose detections fall on it."""

import time
from typing import NamedTuple

import numpy as np
import psutil
import sqlalchemy as sa

from seechange_assets.publish.associations import associate_measurements
from sql.objects import ObjectRow
from sql.sky import healpix_of
from tests.publish.sky import MJD, PROVENANCES, image_info, measurements, scores

#: A CCD of half by one degree with 5,000 detections, 900 of them new: more than 1,000 new ones are refused.
FIELD, N_MEASUREMENTS, N_NEW = (45.0, 41.0), 5000, 900
#: Objects are spread over one HEALPix base cell (3,437 square degrees) that holds the field.
BASE_CELL_SIZE = 1 << 58

_MAKE = """
INSERT INTO objects (id, name, ra, dec, healpix, mean_ra, mean_dec, n_detections, first_mjd, last_mjd, is_test, is_fake,
                     is_bad, exposure, ccd, provenance_id)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'N' || lpad(i::text, 9, '0'), 0, 0,
       :low + (random() * :size)::bigint, 0, 0, 1, :mjd, :mjd, false, false, false, 'other', 'S1', :provenance
FROM generate_series(CAST(:first AS bigint), :last) i
"""


class Cost(NamedTuple):
    """Seconds on the clock, and core-seconds of this process and of its server processes in Postgres."""

    wall: float
    here: float
    postgres: float

    @property
    def total(self) -> float:
        return self.here + self.postgres


def count(database):
    with database.session() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(ObjectRow))


def fill(database, n_objects):
    """Objects at random places all over a base cell, until there are so many; the index is made behind them."""
    low = int(healpix_of(*FIELD)) // BASE_CELL_SIZE * BASE_CELL_SIZE
    told = {"low": low, "size": BASE_CELL_SIZE - 1, "mjd": MJD, "provenance": PROVENANCES["associations"]}
    first = count(database) + 1
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("DROP INDEX IF EXISTS ix_objects_healpix"))
        connection.execute(sa.text(_MAKE), told | {"first": first, "last": n_objects})
        connection.execute(sa.text("CREATE INDEX ix_objects_healpix ON objects (healpix)"))
        connection.execute(sa.text("VACUUM ANALYZE objects"))
        connection.execute(sa.text("CHECKPOINT"))  # what is measured does not wait for what was filled in


def places(seed, field):
    """5,000 places of the CCD number `field`, no two within the radius of each other: a jittered grid."""
    rng = np.random.default_rng(seed)
    k = rng.permutation(100 * 50)[:N_MEASUREMENTS]
    ra = FIELD[0] + field + (k % 50) * 0.012 + rng.uniform(0, 0.002, N_MEASUREMENTS)
    return ra, FIELD[1] + (k // 50) * 0.010 + rng.uniform(0, 0.002, N_MEASUREMENTS)


def detected(database, ra, dec, exposure, mjd=MJD):
    """The table of associations of one CCD, and what it cost to write it."""
    found = measurements(ra, dec, flux=np.linspace(300, 3000, len(ra)))
    servers = [psutil.Process(key) for key in _server_processes(database)]
    before = _times(servers)
    table = associate_measurements(
        database, image_info(exposure, mjd=mjd), found, scores(len(ra)), provenance_id=PROVENANCES["associations"],
        max_new_objects=10_000,
    ).table  # fmt: skip
    return table, Cost(*(b - a for a, b in zip(before, _times(servers), strict=True)))


def _server_processes(database):
    """Of all connections to this database."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL"
    with database.session() as session:
        return session.scalars(sa.text(query)).all()


def _times(servers):
    return time.perf_counter(), time.process_time(), sum(sum(server.cpu_times()[:2]) for server in servers)


def epochs(database, seed, field):
    """Costs of four epochs of a CCD: 4,100 objects are there, 900 come with the first, none with the others."""
    ra, dec = places(seed, field)
    detected(database, ra[N_NEW:], dec[N_NEW:], f"ls4_{field}_0")
    rng = np.random.default_rng(seed)
    costs = []
    for number in range(1, 5):
        shift = rng.uniform(-0.2, 0.2, N_MEASUREMENTS) / 3600
        table, cost = detected(database, ra + shift, dec, f"ls4_{field}_{number}", MJD + number)
        assert len(table) == N_MEASUREMENTS
        assert table["is_new"].sum() == (N_NEW if number == 1 else 0)
        costs.append(cost)
    return costs
