"""Two processes associate two exposures of the same sky at the same moment, 200 times: each transient is one object."""

import multiprocessing
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from resources.database import Database
from seechange_assets.publish.associations import associate_measurements
from seechange_assets.science.association import leaders
from sql.objects import MeasurementRow, ObjectRow
from tests.publish.sky import MJD, PROVENANCES, image_info, measurements, scores

ARCSEC = 1 / 3600
N_SOURCES, N_TIMES, PATIENCE_S = 40, 200, 60.0
#: Each exposure's own errors [arcsec]: far below the radius of association, so both see the same objects.
ERROR = 0.1


def associate_again_and_again(url: str, ccd: str, barrier: Any) -> None:
    """One process: `N_TIMES` batches, each begun when the other process begins its own."""
    database = Database(url)
    errors = np.random.default_rng(ord(ccd[-1]))
    for number in range(N_TIMES):
        sky = np.random.default_rng(number)
        ra, dec = 40 + number + sky.uniform(0, 0.5, N_SOURCES), sky.uniform(-1, 1, N_SOURCES)
        order = errors.permutation(N_SOURCES)
        jitter = errors.normal(0, ERROR * ARCSEC, (2, N_SOURCES))
        found = measurements(ra[order] + jitter[0], dec[order] + jitter[1])
        barrier.wait(PATIENCE_S)
        associate_measurements(
            database, image_info(f"ls4_{number}_{ccd}", ccd, MJD), found, scores(N_SOURCES),
            provenance_id=PROVENANCES["associations"],
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.faults
def test_two_processes_never_make_two_objects_of_one(database):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    url = database.engine.url.render_as_string(hide_password=False)
    processes = [context.Process(target=associate_again_and_again, args=(url, ccd, barrier)) for ccd in ("S1", "S2")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    with database.session() as session:
        objects = list(session.scalars(sa.select(ObjectRow)))
        linked = session.scalar(sa.select(sa.func.count()).where(MeasurementRow.object_id.is_not(None)))
        made_by = session.execute(sa.select(ObjectRow.ccd, sa.func.count()).group_by(ObjectRow.ccd)).all()
    ra, dec = np.array([item.ra for item in objects]), np.array([item.dec for item in objects])
    assert len(objects) == len(leaders(ra, dec, 2.0)) == N_TIMES * N_SOURCES
    assert linked == 2 * N_TIMES * N_SOURCES
    assert len({item.name for item in objects}) == len(objects)
    assert len(made_by) == 2  # now one was first, now the other: they did meet
