"""Exposures of one state are found however many newer ones are in another, and that in seconds."""

import time

import pytest
import sqlalchemy as sa

from io_managers.claims import Claims
from io_managers.exposure_search import exposures_in_state
from io_managers.nights import exposure_states
from io_managers.tags import Tags
from resources.database import Database
from seechange_assets.nights import STATES
from sql.models import AlertSetRow, ExposureClaimRow, ReportRow
from tests.io_managers import many_rows
from tests.io_managers.test_nights import fill
from tests.io_managers.test_tags import configured
from tests.sensors import rows

N_EXPOSURES = 80


@pytest.fixture
def recipes(tmp_path):
    return configured(tmp_path)


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    database.upgrade()
    yield database
    database.engine.dispose()


def keys(found):
    return [one.exposure for one in found]


def few(database, recipes):
    """Exposures of which each state is that of one of the oldest; the newer ones are done."""
    Tags(database).create("current", recipes.values())
    with database.session() as session:
        many_rows.insert_exposures(session, recipes, N_EXPOSURES)
        many_rows.insert_products(session, recipes, N_EXPOSURES, 2, ["alerts"], first=8)
        session.add_all(
            [
                rows.report(recipes, "demo_000001", "psf", None, outcome="failed"),
                rows.report(recipes, "demo_000002", "diff", "reference/r/01"),
                rows.report(recipes, "demo_000002", "diff", "reference/g/02", "02"),
                rows.report(recipes, "demo_000003", "image", None, outcome="computed"),
            ]
        )
    claims = Claims(database, "demo")
    claims.hold(["demo_000004"], "clouds")
    claims.claim(["demo_000005", "demo_000007"], "tick")
    with database.session() as session:
        lost = sa.update(ExposureClaimRow).where(ExposureClaimRow.exposure == "demo_000007")
        session.execute(lost.values(expires_at=None))


def test_each_state_is_found_behind_many_newer_exposures(database, recipes):
    few(database, recipes)
    expected = {
        "failed": ["demo_000007", "demo_000001"], "waiting": ["demo_000002"], "running": ["demo_000003"],
        "held": ["demo_000004"], "claimed": ["demo_000005"], "ready": ["demo_000006"],
    }  # fmt: skip
    with database.session() as session:
        every = exposure_states(session, recipes, "demo")
        for state in STATES:
            found = exposures_in_state(session, recipes, "demo", state, limit=50)
            assert found == [one for one in every if one.state == state][:50]
            assert keys(found) == expected.get(state, keys(found))
        assert len(exposures_in_state(session, recipes, "demo", "done", limit=50)) == 50
        assert keys(exposures_in_state(session, recipes, "demo", "failed", limit=1)) == ["demo_000007"]
        assert exposures_in_state(session, recipes, "demo", "failed", night="2020-01-01") == []


@pytest.mark.slow
def test_the_failed_of_a_window_are_found_in_a_second(database, recipes):
    """3000 exposures x 32 CCDs with a report of every step; the oldest failed and one is running."""
    fill(database, recipes, 3000, 32, 600)
    with database.session() as session:
        old = ReportRow.partition == "demo_000001"
        session.execute(sa.update(ReportRow).where(old, ReportRow.step == "psf").values(outcome="failed"))
        for partition in ("demo_000001", "demo_000002"):
            session.execute(sa.delete(AlertSetRow).where(AlertSetRow.partition == partition))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
    took = {}
    for state, expected in {"failed": ["demo_000001"], "running": ["demo_000002"], "waiting": []}.items():
        began = time.perf_counter()
        with database.session() as session:
            assert keys(exposures_in_state(session, recipes, "demo", state, limit=50)) == expected
        took[state] = time.perf_counter() - began
    assert max(took.values()) < 1.0, took
