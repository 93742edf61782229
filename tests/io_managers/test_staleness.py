"""Stale is what exists, but not under the recipes in force; old -> new is told; a whole survey is compared at once."""

import time

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from io_managers.staleness import Staleness
from io_managers.tags import Tags
from resources.database import Database
from seechange_assets.errors import ParameterError
from seechange_assets.partitions import Partition
from sql.models import PRODUCT_ROWS, WcsRow
from tests.io_managers import many_rows
from tests.io_managers.test_tags import configured

N_EXPOSURES, N_CCDS = 6, 2
AFTER_WCS = ["wcs", "zp", "diff", "detections", "cutouts", "measurements", "scores", "associations",
             "forced_photometry", "alerts"]  # fmt: skip
#: A critical parameter of each process, and another value.
CHANGES = {
    "image": "cosmic_rays: false", "background": "box_size_px: 128", "sources": "threshold: 4.5", "psf": "degree: 1",
    "wcs": "max_stars: 1500", "zp": "min_stars: 8", "diff": "grow_fwhm: 1.5", "detections": "threshold: 6",
    "cutouts": "size: 43", "measurements": "fit_size_fwhm: 2.5", "scores": "cut: 0.6",
    "associations": "radius_arcsec: 1.5", "forced_photometry": "stamp_fwhms: 3", "alerts": "history_days: 30",
}  # fmt: skip


@pytest.fixture(scope="module")
def module_url(postgres_url: str):
    server = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg2://"),
                              isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)  # fmt: skip
    with server.connect() as connection:
        connection.execute(sa.text("create database staleness"))
    yield server.url.set(database="staleness").render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(sa.text("drop database staleness with (force)"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return configured(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def database(module_url: str, recipes):
    """Six exposures of two CCDs under the first recipes; the last two never came past `zp`."""
    database = Database(module_url)
    database.upgrade()
    fill(database, recipes, N_EXPOSURES, N_CCDS)
    with database.session() as session:
        for asset in AFTER_WCS[2:]:
            table = PRODUCT_ROWS[asset]
            session.execute(sa.delete(table).where(table.partition > "demo_000004"))
    yield database
    database.engine.dispose()


def fill(database, recipes, n_exposures, n_ccds):
    Tags(database).create("current", recipes.values())
    with database.session() as session:
        session.execute(sa.text("alter table differences disable trigger all"))  # rows without their references
        many_rows.insert_exposures(session, recipes, n_exposures, per_night=2)
        many_rows.insert_products(session, recipes, n_exposures, n_ccds)


def groups(database, recipes, **arguments):
    with database.session() as session:
        return Staleness(session, recipes, "demo").groups(**arguments)


def work(database, recipes, **arguments):
    with database.session() as session:
        return Staleness(session, recipes, "demo").work(**arguments)


def test_nothing_is_stale_under_the_recipes_that_made_it(database, recipes, tmp_path):
    assert groups(database, recipes) == []
    assert work(database, recipes) == []
    assert groups(database, configured(tmp_path, "alerts: {resend: true, enabled: false}")) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4))
def test_stale_are_the_changed_and_their_descendants(database, recipes, tmp_path, changed):
    other = configured(tmp_path, "\n".join(f"{process}: {{{CHANGES[process]}}}" for process in changed))
    expected = {name for process in changed for name in (process, *other.descendants(process))}
    found = groups(database, other)
    assert {group.asset for group in found} == (expected & set(many_rows.CHAIN))
    for group in found:
        whole = many_rows.CHAIN.index(group.asset) < many_rows.CHAIN.index("diff")
        assert group.n_partitions == (N_EXPOSURES if whole else 4) * N_CCDS
        own = {change.process for change in group.changes if not change.process.startswith("reference/")}
        upstream = {process for process in changed if group.asset in (process, *other.descendants(process))}
        assert own == upstream


def test_the_reason_names_the_parameter(database, tmp_path):
    found = groups(database, configured(tmp_path, "wcs: {max_stars: 1500}"))
    assert [group.asset for group in found] == AFTER_WCS
    assert found[0].reason == "wcs.max_stars 2000 -> 1500"
    assert "wcs.max_stars 2000 -> 1500" in found[-1].reason


def test_work_is_the_newest_exposure_first_and_may_be_narrowed(database, tmp_path):
    other = configured(tmp_path, "wcs: {max_stars: 1500}")
    everything = work(database, other)
    assert len(everything) == N_EXPOSURES * N_CCDS
    assert everything[0].partition == Partition("demo_000006", "01")
    assert everything[0].assets == ("wcs", "zp")
    assert everything[-1].assets == tuple(AFTER_WCS)
    assert work(database, other, limit=3) == everything[:3]
    assert {item.assets for item in work(database, other, assets=["zp"])} == {("zp",)}
    night = everything[0].night
    assert {item.night for item in work(database, other, night=night)} == {night}
    with pytest.raises(ParameterError, match="did you mean 'wcs'"):
        work(database, other, assets=["wsc"])


def test_rows_of_another_camera_are_none_of_ours(database, tmp_path):
    with database.session() as session:
        assert Staleness(session, configured(tmp_path, "wcs: {max_stars: 1500}"), "ls4").groups() == []


def test_what_was_made_before_is_recognised_and_what_is_done_is_not_stale(database, recipes, tmp_path):
    other = configured(tmp_path, "alerts: {history_days: 77}")
    Tags(database).create("other", other.values())
    try:
        with database.session() as session:
            many_rows.insert_products(session, other, 2, N_CCDS, ["alerts"])
        assert {group.n_partitions for group in groups(database, other)} == {4}
        assert groups(database, recipes) == []
        with database.session() as session:
            compared = Staleness(session, recipes, "demo")
            assert compared.count_recognisable() == 4
            assert {known.partition for known in compared.recognisable()["alerts"]} == {
                Partition(f"demo_00000{n}", f"0{ccd}") for n in (1, 2) for ccd in (1, 2)
            }
    finally:
        table = PRODUCT_ROWS["alerts"]
        with database.session() as session:
            session.execute(sa.delete(table).where(table.provenance_id == other["alerts"].id))
        Tags(database).delete("other")


@pytest.mark.slow
def test_a_whole_window_is_compared_in_seconds(database_url, recipes, tmp_path):
    """96,000 partitions x 14 assets: `stale` within 3 s, `backfill --dry-run` within 5 s, a tag moved within 1 s.

    Half of the time is left to the start of the command; other work on the machine is not counted.
    """
    database = Database(database_url)
    database.upgrade()
    fill(database, recipes, 3000, 32)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
    other = configured(tmp_path, "wcs: {max_stars: 1500}")
    began = time.perf_counter()
    found = groups(database, other)
    assert time.perf_counter() - began < 1.5
    assert sum(group.n_partitions for group in found) == 960_000
    began = time.perf_counter()
    assert len(work(database, other)) == 96_000
    assert time.perf_counter() - began < 3.5
    began = time.perf_counter()
    Tags(database).move("current", other.values())
    assert time.perf_counter() - began < 1.0
    with database.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(WcsRow)) == 96_000
    database.engine.dispose()
