"""The rolling window, on a real Dagster instance in Postgres: what leaves, what stays, what comes back."""

import time

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from io_managers import window as window_sql
from io_managers.recipes import register
from io_managers.staleness import Staleness, Work
from resources.services import dagster_ui
from resources.settings import Settings
from seechange_assets import partitions
from seechange_assets.errors import ProductNotFound
from seechange_assets.partitions import Partition
from sensors import window
from sensors.announce import announce
from sensors.backfill import submit
from sql.base import Base
from sql.models import PRODUCT_ROWS, ExposureRow
from tests.io_managers.test_tags import configured
from tests.sensors import rows

NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22")
BY_CCD = partitions.by_ccd(partitions.exposure, "exposure", ("01", "02"))
BROKEN = "demo_2026-11-20_0"
#: Assets of these tests and the columns of their tables that have no default.
COLUMNS = {
    "image": {
        "instrument": "demo", "field": "f1", "filter": "r", "project": "", "target": "", "mjd": 61366.2,
        "exptime_s": 45.0, "airmass": 1.1,
    },
    "background": {"level": 800.0, "rms": 20.0},
    "sources": {"n_sources": 9, "n_stars": 5, "fwhm_px": 3.1},
}  # fmt: skip


@pytest.fixture
def instance(postgres_url, tmp_path, monkeypatch):
    monkeypatch.setenv("SEECHANGE_POSTGRES_URL", postgres_url)
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_POSTGRES_URL": postgres_url})
    with dg.DagsterInstance.from_config(str(dagster_ui.prepare_home(settings))) as instance:
        yield instance
        for key in instance.get_dynamic_partitions("exposure"):
            instance.delete_dynamic_partition("exposure", key)
        window._mark(instance, "demo", NIGHTS, "")
        instance.wipe()


class Pipeline:
    """Three assets under some recipes that leave rows as the real ones do, on an instance."""

    def __init__(self, instance, database, recipes, store):
        self.instance, self.database, self.recipes, self.store = instance, database, recipes, store
        self.fails = {("background", f"02|{BROKEN}")}
        self.content = {}
        exposure = dg.AssetSpec("exposure", partitions_def=partitions.exposure, code_version=recipes["exposure"].id)
        image = self.asset("image", ["exposure"])
        background = self.asset("background", ["image"])
        sources = self.asset("sources", ["image", "background"])
        job = dg.define_asset_job("process_ccd", selection=[image, background, sources])
        self.defs = dg.Definitions([exposure, image, background, sources], jobs=[job], executor=dg.in_process_executor)

    def asset(self, name, deps):
        @dg.asset(
            name=name, deps=deps, partitions_def=BY_CCD, code_version=self.recipes[name].id,
            check_specs=[dg.AssetCheckSpec("sharp", asset=name)],
        )  # fmt: skip
        def compute(context):
            place = Partition.of(context)
            failed = (name, str(context.partition_key)) in self.fails
            self.store.report(name, place, outcome="failed" if failed else "computed", error=None)
            if failed:
                raise dg.Failure("no stars", allow_retries=False)
            content = self.content.get((name, str(context.partition_key)), name) * 6
            self.write(name, place, content)
            yield dg.MaterializeResult(
                metadata={"preview": "x" * 3000},
                data_version=dg.DataVersion(content),
                check_results=[dg.AssetCheckResult(passed=True, check_name="sharp")],
            )

        return compute

    def write(self, name, place, content):
        table = PRODUCT_ROWS[name]
        same = (table.partition == place.key, table.ccd == place.ccd, table.provenance_id == self.recipes[name].id)
        with self.database.session() as session:
            row = session.scalar(sa.select(table).where(*same))
            if row is None:
                common = rows._product(self.recipes, name, place.key, place.ccd) | {"summary": {"level": 1.5}}
                row = table(**common | COLUMNS[name], updated_at=sa.func.clock_timestamp())
                session.add(row)
            elif row.content_hash != content:
                row.updated_at = sa.func.clock_timestamp()
            row.content_hash = content
            row.materialized_at = sa.func.clock_timestamp()

    def run(self, key, ccd):
        partition = dg.MultiPartitionKey({"exposure": key, "ccd": ccd})
        job = self.defs.resolve_job_def("process_ccd")
        return job.execute_in_process(instance=self.instance, partition_key=partition, raise_on_error=False)

    def observe(self, night, index=0):
        key = f"demo_{night}_{index}"
        with self.database.session() as session:
            session.add(rows.exposure(self.recipes, key, night=night, mjd=rows.MJD + int(night[-2:]) + index / 10))
        with self.database.session() as session:
            announce(self.instance, [session.get(ExposureRow, key)], self.recipes)
        return key


@pytest.fixture
def pipeline(instance, database, recipes, store):
    return Pipeline(instance, database, recipes, store)


@pytest.fixture
def observed(pipeline):
    """Three nights of two exposures and two CCDs, all processed; one CCD of the first failed."""
    for night in NIGHTS:
        for index in range(2):
            key = pipeline.observe(night, index)
            for ccd in ("01", "02"):
                pipeline.run(key, ccd)
    return pipeline.instance


def status(instance, asset="sources"):
    """(materialized, failed) partitions, as the UI counts them."""
    return tuple(map(len, partition_sets(instance, asset)))


def partition_sets(instance, asset):
    key = dg.AssetKey(asset)
    cached = get_and_update_asset_status_cache_value(instance, key, BY_CCD, dynamic_partitions_loader=instance)
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        made = cached.deserialize_materialized_partition_subsets(BY_CCD)
        failed = cached.deserialize_failed_partition_subsets(BY_CCD)
        known = set(BY_CCD.get_partition_keys(dynamic_partitions_store=instance))
        return set(made.get_partition_keys()) & known, set(failed.get_partition_keys()) & known


def told(pipeline, without="event_pointer"):
    """All that Dagster says of the partitions: status, versions, and whether and why they are stale."""
    instance, graph = pipeline.instance, pipeline.defs.resolve_asset_graph()
    answer = {}
    with partition_loading_context(dynamic_partitions_store=instance):
        view = AssetGraphView.for_test(pipeline.defs, instance)
        resolver = CachingStaleStatusResolver(instance, graph, view)
        for asset in COLUMNS:
            key = dg.AssetKey(asset)
            answer[asset] = partition_sets(instance, asset)
            for partition in sorted(answer[asset][0]):
                entry = instance.get_latest_data_version_record(key, partition_key=partition).event_log_entry
                tags = entry.asset_materialization.tags
                causes = [cause.reason for cause in resolver.get_stale_causes(key, partition)]
                kept = {name: value for name, value in tags.items() if without not in name}
                answer[asset, partition] = (kept, resolver.get_status(key, partition), causes)
    return answer


def counts(database):
    with database.session() as session:
        return {t.name: session.scalar(sa.select(sa.func.count()).select_from(t)) for t in Base.metadata.sorted_tables}


def n_rows(instance, table="event_logs"):
    with instance.event_log_storage.index_connection() as connection:
        return connection.scalar(sa.text(f"select count(*) from {table}"))


def n_bytes(instance):
    """Bytes of the tables; those of the whole database are mostly Postgres' own here."""
    sizes = " + ".join(f"pg_total_relation_size('{table}')" for table in window_sql.TABLES)
    with instance.event_log_storage.index_connection() as connection:
        return connection.scalar(sa.text(f"select {sizes}"))


def assert_shrinks_below(instance, limit, timeout_s=20.0):
    """Postgres keeps deleted rows while a snapshot is open, its own autovacuum's too: then the next one helps."""
    deadline = time.monotonic() + timeout_s
    while n_bytes(instance) >= limit:
        assert time.monotonic() < deadline, f"still {n_bytes(instance)} bytes, not below {limit}"
        time.sleep(0.5)
        with instance.event_log_storage.index_connection() as connection:
            window_sql.vacuum(connection, full=True)


def test_nights_leave_and_come_back_with_their_status(observed, pipeline, database, recipes):
    before, rows_before, bytes_before = told(pipeline), counts(database), n_bytes(observed)
    assert (status(observed, "image"), status(observed)) == ((12, 0), (11, 1))

    done = window.retire(observed, database, "demo", before=NIGHTS[2], compact=True)
    assert (done.n_exposures, done.nights, done.n_left, done.n_runs) == (4, NIGHTS[:2], 0, 8)
    assert status(observed) == (4, 0)
    assert len(observed.get_dynamic_partitions("exposure")) == 2
    assert_shrinks_below(observed, bytes_before)
    assert counts(database) == rows_before
    for table in window_sql.TABLES:
        column = "event" if table == "event_logs" else "evaluation_event" if "check" in table else "t.*::text"
        with observed.event_log_storage.index_connection() as connection:
            left = sa.text(f"select count(*) from {table} t where {column} like '%2026-11-20%'")
            assert connection.scalar(left) == 0, table
    again = window.retire(observed, database, "demo", before=NIGHTS[2])
    assert (again.n_exposures, again.n_runs, again.n_events) == (0, 0, 0)

    assert window.activate(observed, database, recipes, "demo", NIGHTS[:2]) == 4
    assert told(pipeline) == before
    assert counts(database) == rows_before
    record = observed.get_latest_data_version_record(dg.AssetKey("sources"), partition_key="01|demo_2026-11-20_1")
    metadata = record.event_log_entry.asset_materialization.metadata
    assert metadata["numbers"].value == {"level": 1.5}
    with database.session() as session:
        assert Staleness(session, recipes, "demo").groups() == []
        assert Staleness(session, recipes, "demo").count_recognisable() == 0
    n_events = n_rows(observed)
    assert window.activate(observed, database, recipes, "demo", NIGHTS[:2]) == 0
    assert n_rows(observed) == n_events
    window.retire(observed, database, "demo", before=NIGHTS[2])
    assert not window_told(observed, "demo_2026-11-20_1")
    assert not window_told(observed, BROKEN)
    window.activate(observed, database, recipes, "demo", NIGHTS[:2])
    assert told(pipeline) == before
    pipeline.fails.clear()
    pipeline.run(BROKEN, "02")  # what is back can be made again
    assert status(observed) == (12, 0)


def test_versions_and_reasons_come_back(instance, database, recipes, store, tmp_path):
    """Partitions of an old recipe, of an old and a new one, and one of which a parent changed after its children."""
    old_recipes = configured(tmp_path, "background: {box_size_px: 48}")
    assert old_recipes["background"].id != recipes["background"].id
    with database.session() as session:
        register(session, old_recipes.values())
    old, new = (Pipeline(instance, database, r, store) for r in (old_recipes, recipes))
    first, second = old.observe(NIGHTS[0]), old.observe(NIGHTS[1])
    for key in (first, second):
        for ccd in ("01", "02"):
            old.run(key, ccd)
    old.fails.clear()
    old.run(BROKEN, "02")
    new.run(second, "01")
    new.run(second, "02")
    new.content["image", f"02|{second}"] = "other"
    new.fails.add(("background", f"02|{second}"))
    new.run(second, "02")  # a new image, but what is made of it failed
    before = told(new, without="input")
    reasons = {key[1]: answer[2] for key, answer in before.items() if key[0] == "background"}
    assert reasons[f"01|{first}"] == ["has a new code version"]
    assert reasons[f"01|{second}"] == []
    assert reasons[f"02|{second}"] == ["has a new dependency data version"]
    assert before["sources"][1] == {f"02|{second}"}
    with database.session() as session:
        stale = Staleness(session, recipes, "demo").groups()
    assert window.retire(instance, database, "demo", before="2027-01-01").n_exposures == 2
    window.activate(instance, database, recipes, "demo", NIGHTS[:2])
    assert told(new, without="input") == before
    with database.session() as session:
        assert Staleness(session, recipes, "demo").groups() == stale != []


def test_an_activation_that_is_interrupted_is_completed_by_the_next(observed, pipeline, database, recipes, monkeypatch):
    before = told(pipeline)
    window.retire(observed, database, "demo", before=NIGHTS[2])
    monkeypatch.setattr("sensors.tell_again._CHUNK", 1)
    add, calls = observed.add_dynamic_partitions, []

    def stop_at_the_third(name, keys):
        calls.append(keys)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(name, keys)

    with monkeypatch.context() as patched:
        patched.setattr(observed, "add_dynamic_partitions", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            window.activate(observed, database, recipes, "demo", NIGHTS[:2])
    assert len(observed.get_dynamic_partitions("exposure")) == 4
    assert window.activate(observed, database, recipes, "demo", NIGHTS[:2]) == 2
    assert told(pipeline) == before


def test_what_came_back_alone_is_completed(observed, pipeline, database, recipes):
    """`process` and `ingest` announce their exposure, be it retired: Dagster then knows nothing of its products."""
    before = told(pipeline)
    window.retire(observed, database, "demo", before=NIGHTS[2])
    with database.session() as session:
        announce(observed, [session.get(ExposureRow, "demo_2026-11-21_0")], recipes)
    assert status(observed, "image") == (4, 0)
    assert window.activate(observed, database, recipes, "demo", NIGHTS) == 4
    assert told(pipeline) == before
    assert window.activate(observed, database, recipes, "demo", NIGHTS) == 0


def test_what_was_told_but_is_not_in_the_window_is_forgotten_by_the_next(observed, database, recipes, monkeypatch):
    """An interrupted retirement, or an activation that nobody completed."""
    for key in ("demo_2026-11-20_0", "demo_2026-11-20_1"):
        observed.delete_dynamic_partition("exposure", key)
    with observed.event_log_storage.index_connection() as connection:
        connection.execute(sa.text("delete from runs"))
        connection.execute(sa.text("delete from run_tags"))
    window.retire(observed, database, "demo", before=NIGHTS[0])
    assert window_told(observed, BROKEN)  # so young that it may be on its way into the window
    monkeypatch.setattr(window_sql, "_ON_ITS_WAY_S", 0.0)
    done = window.retire(observed, database, "demo", before=NIGHTS[0])
    assert (done.n_exposures, done.n_runs) == (0, 0)
    assert not window_told(observed, BROKEN)
    assert window_told(observed, "demo_2026-11-21_0")


def window_told(instance, key):
    with instance.event_log_storage.index_connection() as connection:
        assets = [asset.to_string() for asset in instance.all_asset_keys()]
        return window_sql.told(connection, assets, [key]) | window_sql.told_exposures(connection, [key])


def test_what_has_open_runs_stays(observed, database):
    key = dg.MultiPartitionKey({"exposure": BROKEN, "ccd": "01"})
    tags = {"dagster/partition": str(key), "dagster/partition/exposure": BROKEN}
    open_run = dg.DagsterRun("process_ccd", status=dg.DagsterRunStatus.STARTED, tags=tags)
    observed.add_run(open_run)
    done = window.retire(observed, database, "demo", before=NIGHTS[1], compact=True)
    assert (done.n_exposures, done.n_left) == (1, 1)
    assert BROKEN in observed.get_dynamic_partitions("exposure")


@pytest.mark.parametrize("state", ["REQUESTED", "CANCELING", "FAILING"])
def test_what_a_backfill_is_going_to_make_stays(observed, pipeline, database, state):
    work = [Work(Partition(BROKEN, "02"), None, ("background", "sources"))]
    backfill_id = submit(observed, pipeline.defs.resolve_asset_graph(), work, tag="current", title="test")
    backfill = observed.get_backfill(backfill_id)
    observed.update_backfill(backfill.with_status(BulkActionStatus[state]))
    done = window.retire(observed, database, "demo", before=NIGHTS[1])
    assert (done.n_exposures, done.n_left) == (1, 1)
    assert BROKEN in observed.get_dynamic_partitions("exposure")
    observed.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    assert window.retire(observed, database, "demo", before=NIGHTS[1]).n_exposures == 1


def test_an_interrupted_retirement_is_completed_by_the_next(observed, database):
    for key in ("demo_2026-11-20_0", "demo_2026-11-20_1"):
        observed.delete_dynamic_partition("exposure", key)
    done = window.retire(observed, database, "demo", before=NIGHTS[0])
    assert (done.n_exposures, done.n_runs) == (0, 4)


def test_the_job_keeps_the_newest_nights_and_those_somebody_activated(
    observed, database, recipes, instrument, monkeypatch
):
    monkeypatch.setattr(window, "KEEP_NIGHTS", 1)

    def nightly():
        given = {"database": database, "instrument": instrument}
        assert window.retire_window.execute_in_process(instance=observed, resources=given).success
        return sorted({key.split("_")[1] for key in observed.get_dynamic_partitions("exposure")})

    assert nightly() == list(NIGHTS)  # they came a moment ago
    monkeypatch.setattr(window_sql, "_ON_ITS_WAY_S", 0.0)
    assert nightly() == [NIGHTS[2]]
    window.activate(observed, database, recipes, "demo", [NIGHTS[0]])
    assert nightly() == [NIGHTS[0], NIGHTS[2]]
    assert nightly() == [NIGHTS[0], NIGHTS[2]]
    window.retire(observed, database, "demo", before=NIGHTS[2])  # by name
    assert window.activated(observed, "demo", NIGHTS) == set()
    assert nightly() == [NIGHTS[2]]


def test_the_window_moves_by_itself():
    assert window.nightly_retire.default_status == dg.DefaultScheduleStatus.RUNNING


def test_runs_of_no_exposure_are_forgotten_by_age(observed, monkeypatch):
    """Of two runs that made a master the newer materialization stays, whenever it was; so does a young run."""
    calibration = dg.StaticPartitionsDefinition(["n1", "n2"])

    @dg.asset(partitions_def=calibration, check_specs=[dg.AssetCheckSpec("flat", asset="master_bias")])
    def master_bias():
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True, check_name="flat")])

    @dg.asset
    def summary():
        return None

    runs = [dg.materialize([master_bias], instance=observed, partition_key=key).run_id for key in ("n1", "n1", "n2")]
    runs += [dg.materialize([summary], instance=observed).run_id for _ in range(2)]
    n_of_exposures = len(observed.get_run_ids(dg.RunsFilter(job_name="process_ccd")))
    with observed.event_log_storage.index_connection() as connection:
        assert window_sql.prune_old(connection).n_runs == 0
        month = (
            "update runs set end_time = end_time - 31 * 86400, update_timestamp = update_timestamp - interval '31 days'"
        )
        connection.execute(sa.text(month))
        done = window_sql.prune_old(connection)
        assert done.n_runs == 5
        kept = connection.execute(
            sa.text("select run_id, dagster_event_type from event_logs where run_id = any(:r)"), {"r": runs}
        )
        assert sorted(kept) == sorted((run, "ASSET_MATERIALIZATION") for run in (runs[1], runs[2], runs[4]))
    assert observed.get_materialized_partitions(dg.AssetKey("master_bias")) == {"n1", "n2"}
    assert len(observed.get_run_ids(dg.RunsFilter(job_name="process_ccd"))) == n_of_exposures


def test_which_nights_are_old(observed, database):
    assert window.first_night_kept(database, "demo", 2) == NIGHTS[1]
    assert window.first_night_kept(database, "demo", 9) == NIGHTS[0]
    assert window.first_night_kept(database, "ls4", 2) == ""


def test_an_unknown_night_is_said(observed, database, recipes):
    with pytest.raises(ProductNotFound, match="2027-01-01"):
        window.activate(observed, database, recipes, "demo", ["2027-01-01"])
