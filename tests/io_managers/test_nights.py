"""States and numbers of nights from rows: which word counts, and that a whole night is told in seconds."""

import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from io_managers import activity
from io_managers.claims import CLAIM_LASTS, Claims
from io_managers.night_numbers import NightBook
from io_managers.nights import MEMBER, exposure_states
from io_managers.store import ProductStore
from io_managers.tags import Tags
from resources.archive import Archive
from resources.database import Database
from resources.settings import Settings
from seechange_assets.assess.night_report import headline, render
from seechange_assets.definitions import build_recipes
from seechange_assets.nights import STATES, CcdState, ExposureState
from sql.models import AlertSetRow, ExposureRow, RejectedFileRow, ReportRow
from tests.io_managers import many_rows
from tests.sensors import rows


@pytest.fixture
def recipes(tmp_path):
    return build_recipes(Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"}))


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    database.upgrade()
    yield database
    database.engine.dispose()


def fill(database, recipes, n_exposures, n_ccds, per_night):
    Tags(database).create("current", recipes.values())
    with database.session() as session:
        session.execute(sa.text("alter table differences disable trigger all"))  # rows without their references
        many_rows.insert_exposures(session, recipes, n_exposures, per_night=per_night)
        filters = {f"{number:02d}": "r" for number in range(1, n_ccds + 1)}
        session.execute(sa.update(ExposureRow).values(filters=filters))
        many_rows.insert_products(session, recipes, n_exposures, n_ccds)
        for step in many_rows.CHAIN:
            columns = ["partition", "ccd", "step", "provenance_id", "outcome", "seconds"]
            made = sa.select(
                AlertSetRow.partition, AlertSetRow.ccd, sa.literal(step), sa.literal(recipes[step].id),
                sa.literal("computed"), sa.literal(0.3),
            )  # fmt: skip
            session.execute(sa.insert(ReportRow).from_select(columns, made))


def exposure(*states):
    ccds = tuple(CcdState(f"{number:02d}", state) for number, state in enumerate(states, start=1))
    return ExposureState("e", "2026-11-22", 61366.0, datetime(2026, 11, 22, tzinfo=UTC), None, ccds)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (["done", "done"], "done"),
        (["done", "failed"], "failed"),
        (["running", "failed"], "failed"),
        (["done", "running", "waiting"], "running"),
        (["done", "claimed"], "running"),
        (["claimed", "claimed"], "claimed"),
        (["done", "waiting"], "waiting"),
        (["held", "held"], "held"),
        (["ready"], "ready"),
    ],
)
def test_the_state_of_an_exposure_is_that_of_its_worst_ccd(states, state):
    assert exposure(*states).state == state
    assert set(states) <= set(STATES)


def test_the_newest_word_counts(database, recipes):
    fill(database, recipes, 2, 2, 10)
    with database.session() as session:
        states = {one.exposure: one for one in exposure_states(session, recipes, "demo")}
        assert {one.state for one in states.values()} == {"done"}
        key = ("demo_000001", "02", "psf")
        session.get(ReportRow, key).outcome = "failed"  # before the alerts: another attempt succeeded
        session.get(ReportRow, key).updated_at = datetime(2020, 1, 1, tzinfo=UTC)
        session.flush()
        assert exposure_states(session, recipes, "demo", keys=["demo_000001"])[0].state == "done"
        session.get(ReportRow, key).updated_at = datetime(2100, 1, 1, tzinfo=UTC)
        session.flush()
        (state,) = exposure_states(session, recipes, "demo", keys=["demo_000001"])
        assert [(ccd.state, ccd.step) for ccd in state.ccds] == [("done", None), ("failed", "psf")]
        session.get(ReportRow, key).provenance_id = "of_another_recipe"  # its alerts were made by ours
        session.flush()
        assert exposure_states(session, recipes, "demo", keys=["demo_000001"])[0].state == "done"
        session.execute(sa.delete(AlertSetRow).where(AlertSetRow.partition == "demo_000001", AlertSetRow.ccd == "02"))
        assert exposure_states(session, recipes, "demo", keys=["demo_000001"])[0].state == "failed"


def test_a_member_of_its_own_reference_is_finished(database, recipes):
    """It waits for a reference without it; until one comes there is nothing to do."""
    fill(database, recipes, 2, 2, 10)
    told = {"step": "diff", "provenance_id": recipes["diff"].id, "outcome": "waiting", "waits_for": "reference/r/01"}
    with database.session() as session:
        session.execute(sa.delete(AlertSetRow).where(AlertSetRow.ccd == "01"))
        session.execute(sa.delete(ReportRow).where(ReportRow.step == "diff", ReportRow.ccd == "01"))
        for key in ("demo_000001", "demo_000002"):
            session.add(ReportRow(partition=key, ccd="01", message="no reference", **told))
        session.add(rows.reference(recipes, members=("demo_000001",)))
        session.add(rows.reference(recipes, members=("demo_000002",), bitflag=1))
        session.flush()
        states = {one.exposure: one for one in exposure_states(session, recipes, "demo")}
    assert states["demo_000001"].state == "done"
    (member, _) = states["demo_000001"].ccds
    assert (member.step, member.reason) == ("diff", MEMBER)
    assert states["demo_000002"].state == "waiting"


def test_what_waited_goes_on_after_its_exposure_was_settled(database, recipes):
    """Nobody looks at the claim any more, but a run of it reports; after half an hour without a word it is lost."""
    fill(database, recipes, 1, 2, 10)
    key = "demo_000001"
    claims = Claims(database, "demo")
    claims.claim([key], "t")
    claims.settle(key)
    with database.session() as session:
        session.execute(sa.delete(AlertSetRow).where(AlertSetRow.ccd == "01"))
        (state,) = exposure_states(session, recipes, "demo", keys=[key])
        assert [(ccd.state, ccd.reason) for ccd in state.ccds] == [("running", None), ("done", None)]
        session.execute(sa.update(ReportRow).values(updated_at=sa.func.now() - CLAIM_LASTS))
        (state,) = exposure_states(session, recipes, "demo", keys=[key])
        assert [ccd.state for ccd in state.ccds] == ["failed", "done"]
        assert f"`seechange process {key} --ccd 01`" in state.ccds[0].reason


def test_refused_files_of_a_day_and_the_newest_reason(database):
    with database.session() as session:
        assert activity.refused(session) == {"refused": 0, "newest": None}
        now, hour = sa.func.now(), timedelta(hours=1)
        for name, age in (("old.fits", 25 * hour), ("first.fits", 2 * hour), ("second.fits", hour)):
            row = RejectedFileRow(sha256=name, name=name, error="BadExposure", message=f"{name}: junk")
            row.created_at = now - age
            session.add(row)
        session.flush()
        told = activity.refused(session)
    newest = {"name": "second.fits", "error": "BadExposure", "message": "second.fits: junk", "age_s": 3600.0}
    assert told == {"refused": 2, "newest": newest}


@pytest.mark.slow
def test_a_night_of_ls4_is_told_in_seconds(database, recipes, tmp_path):
    """600 exposures x 32 CCDs among five nights, 1.3 million reports: a listing, a page, the status and a tick.

    Measured with the machine busy: states 1.2 s, page 5.0 s, status 1.2 s, the sensor's question 0.04 s; twice that
    and more is allowed for.
    """
    fill(database, recipes, 3000, 32, 600)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
        night = connection.scalar(sa.select(ExposureRow.night).where(ExposureRow.key == "demo_001500"))
    took = {}
    with database.session() as session:
        began = time.perf_counter()
        states = exposure_states(session, recipes, "demo", night=night)
        took["states"] = time.perf_counter() - began
        began = time.perf_counter()
        told = activity.activity(session, recipes, "demo")
        took["status"] = time.perf_counter() - began
    store = ProductStore(database, Archive(str(tmp_path / "archive")), recipes, "demo")
    began = time.perf_counter()
    numbers = NightBook(store, [f"{n:02d}" for n in range(1, 33)], (4, 8)).numbers(night)
    page = render(numbers)
    took["page"] = time.perf_counter() - began
    claims = Claims(database, "demo")
    claims.claim([f"demo_{number:06d}" for number in range(1, 3001)], "t")
    claims.confirm("t")
    began = time.perf_counter()
    assert claims.open(0, 5) == ([], 3000)
    took["tick"] = time.perf_counter() - began
    assert len(states) == 600
    assert {state.state for state in states} == {"done"}
    assert headline(numbers)["CCDs done"] == 600 * 32
    assert told["exposures"] == {"done": 600}
    assert len(page) < 2_000_000
    assert took["states"] < 3
    assert took["page"] < 10
    assert took["status"] < 3
    assert took["tick"] < 0.2
