"""The rolling window, on a real Dagster instance in Postgres: what leaves, what stays, what comes back."""

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from resources.services import dagster_ui
from resources.settings import Settings
from seechange_assets import partitions
from seechange_assets.errors import ParameterError, ProductNotFound
from sensors import window
from sensors.announce import announce
from sql.base import Base
from sql.models import ExposureRow
from tests.sensors import rows

NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22")
BY_CCD = partitions.by_ccd(partitions.exposure, "exposure", ("01", "02"))
BROKEN = "demo_2026-11-20_0"


@dg.asset(partitions_def=BY_CCD, code_version="1")
def image(context) -> dg.MaterializeResult:
    if context.partition_key == f"02|{BROKEN}":
        raise dg.Failure("no stars")
    return dg.MaterializeResult(metadata={"preview": "x" * 3000}, data_version=dg.DataVersion("a"))


@dg.asset(partitions_def=BY_CCD, deps=[image], code_version="1")
def alerts() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"preview": "x" * 3000}, data_version=dg.DataVersion("b"))


JOB = dg.define_asset_job("process_ccd", selection=[image, alerts])
DEFS = dg.Definitions(assets=[image, alerts], jobs=[JOB], executor=dg.in_process_executor)


@pytest.fixture
def instance(postgres_url, tmp_path, monkeypatch):
    monkeypatch.setenv("SEECHANGE_POSTGRES_URL", postgres_url)
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_POSTGRES_URL": postgres_url})
    with dg.DagsterInstance.from_config(str(dagster_ui.prepare_home(settings))) as instance:
        yield instance
        for key in instance.get_dynamic_partitions("exposure"):
            instance.delete_dynamic_partition("exposure", key)
        instance.wipe()


@pytest.fixture
def observed(instance, database, recipes, store):
    """Three nights of two exposures and two CCDs, all processed; one CCD of the first failed."""
    for number, night in enumerate(NIGHTS):
        for index in range(2):
            key = f"demo_{night}_{index}"
            with database.session() as session:
                session.add(rows.exposure(recipes, key, night=night, mjd=rows.MJD + number + index / 10))
            with database.session() as session:
                announce(instance, [session.get(ExposureRow, key)], recipes)
            for ccd in ("01", "02"):
                run(instance, key, ccd)
    return instance


def run(instance, key, ccd):
    partition = dg.MultiPartitionKey({"exposure": key, "ccd": ccd})
    DEFS.resolve_job_def("process_ccd").execute_in_process(
        instance=instance, partition_key=partition, raise_on_error=False
    )


def status(instance, asset=alerts):
    """(materialized, failed) partitions, as the UI counts them."""
    cached = get_and_update_asset_status_cache_value(instance, asset.key, BY_CCD, dynamic_partitions_loader=instance)
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        made = cached.deserialize_materialized_partition_subsets(BY_CCD)
        failed = cached.deserialize_failed_partition_subsets(BY_CCD)
        known = set(BY_CCD.get_partition_keys(dynamic_partitions_store=instance))
        return len(set(made.get_partition_keys()) & known), len(set(failed.get_partition_keys()) & known)


def counts(database):
    with database.session() as session:
        return {t.name: session.scalar(sa.select(sa.func.count()).select_from(t)) for t in Base.metadata.sorted_tables}


def test_nights_leave_and_come_back_with_their_status(observed, database, recipes):
    before, log_before = counts(database), log(observed)
    assert (status(observed, image), status(observed)) == ((11, 1), (11, 1))

    done = window.retire(observed, database, "demo", before=NIGHTS[2], compact=True)
    assert (done.n_exposures, done.nights, done.n_left, done.n_runs) == (4, NIGHTS[:2], 0, 7)
    assert status(observed) == (4, 0)
    assert len(observed.get_dynamic_partitions("exposure")) == 2
    assert log(observed) < 0.6 * log_before  # materializations and the failed run stay
    assert done.bytes_after < done.bytes_before
    assert counts(database) == before
    again = window.retire(observed, database, "demo", before=NIGHTS[2])
    assert (again.n_exposures, again.n_runs, again.n_events) == (0, 0, 0)

    assert window.activate(observed, database, recipes, "demo", NIGHTS[:2]) == 4
    assert (status(observed, image), status(observed)) == ((11, 1), (11, 1))
    record = observed.get_latest_materialization_event(dg.AssetKey("alerts"))
    assert record.asset_materialization.metadata["preview"].value == "x" * 3000
    assert window.activate(observed, database, recipes, "demo", NIGHTS[:2]) == 0
    run(observed, "demo_2026-11-21_0", "01")  # what is back can be made again
    assert status(observed) == (11, 1)
    assert counts(database) == before


def log(instance):
    with instance.event_log_storage.index_connection() as connection:
        return connection.scalar(sa.text("select count(*) from event_logs"))


def test_what_has_open_runs_stays(observed, database):
    key = dg.MultiPartitionKey({"exposure": BROKEN, "ccd": "01"})
    tags = {"dagster/partition": str(key), "dagster/partition/exposure": BROKEN}
    open_run = dg.DagsterRun("process_ccd", status=dg.DagsterRunStatus.STARTED, tags=tags)
    observed.add_run(open_run)
    done = window.retire(observed, database, "demo", before=NIGHTS[1], compact=True)
    assert (done.n_exposures, done.n_left) == (1, 1)
    assert BROKEN in observed.get_dynamic_partitions("exposure")


def test_an_interrupted_retirement_is_completed_by_the_next(observed, database):
    for key in ("demo_2026-11-20_0", "demo_2026-11-20_1"):
        observed.delete_dynamic_partition("exposure", key)
    done = window.retire(observed, database, "demo", before=NIGHTS[0])
    assert (done.n_exposures, done.n_runs) == (0, 3)


def test_the_job_keeps_the_newest_nights(observed, database, instrument, monkeypatch):
    monkeypatch.setattr(window, "KEEP_NIGHTS", 1)
    result = window.retire_window.execute_in_process(
        instance=observed, resources={"database": database, "instrument": instrument}
    )
    assert result.success
    assert sorted(observed.get_dynamic_partitions("exposure")) == ["demo_2026-11-22_0", "demo_2026-11-22_1"]


def test_which_nights_are_old(observed, database):
    assert window.first_night_kept(database, "demo", 2) == NIGHTS[1]
    assert window.first_night_kept(database, "demo", 9) == NIGHTS[0]
    assert window.first_night_kept(database, "ls4", 2) == ""
    with pytest.raises(ParameterError, match="YYYY-MM-DD"):
        window.checked_night("yesterday")


def test_an_unknown_night_is_said(observed, database, recipes):
    with pytest.raises(ProductNotFound, match="2027-01-01"):
        window.activate(observed, database, recipes, "demo", ["2027-01-01"])
