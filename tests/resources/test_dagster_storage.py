import os
import time
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
import yaml
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.events import DagsterEvent, StepSuccessData

from resources.dagster_events import NOISE
from resources.dagster_storage import DAGSTER_VERSION, pooled_engine
from resources.services import dagster_ui, postgres
from resources.settings import Settings


@pytest.fixture(scope="module")
def instance(postgres_url, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    settings = Settings.from_environment({"SEECHANGE_HOME": str(home), "SEECHANGE_MAX_RUNS": "3"})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SEECHANGE_POSTGRES_URL", postgres_url)
        with dg.DagsterInstance.from_config(str(dagster_ui.prepare_home(settings))) as instance:
            yield instance


@dg.asset
def number() -> int:
    return 1


@dg.asset
def double(number: int) -> int:
    return 2 * number


def engines(instance):
    storages = (instance._run_storage, instance._event_storage, instance._schedule_storage)
    return [storage._engine for storage in storages]


def test_the_private_names_are_those_of_the_pinned_version():
    assert dg.__version__.startswith(f"{DAGSTER_VERSION}.")


def test_the_pool_is_in_use(instance):
    """A run of two assets checks connections out many times and opens very few."""
    opened, used = [], []
    for engine in engines(instance):
        assert isinstance(engine.pool, sqlalchemy.QueuePool)
        sqlalchemy.event.listen(engine, "connect", lambda *_: opened.append(1))
        sqlalchemy.event.listen(engine, "checkout", lambda *_: used.append(1))
    assert dg.materialize([number, double], instance=instance, resources={"io_manager": dg.mem_io_manager}).success
    assert len(used) > 20
    assert len(opened) <= 6


def test_a_table_is_asked_for_once(instance):
    storage, queries = instance._event_storage, []
    assert storage.has_table("dynamic_partitions")
    sqlalchemy.event.listen(storage._engine, "before_cursor_execute", lambda *_: queries.append(1))
    assert storage.has_table("dynamic_partitions")
    assert queries == []
    assert not storage.has_table("no_such_table")


def stored(instance, run_id):
    return [record.event_log_entry.dagster_event_type for record in instance.get_records_for_run(run_id).records]


def test_a_step_is_one_transaction_and_its_noise_is_not_stored(instance):
    inserts = []

    def count(_connection, _cursor, statement, *_):
        inserts.extend([1] if statement.startswith("INSERT INTO event_logs") else [])

    sqlalchemy.event.listen(instance._event_storage._engine, "before_cursor_execute", count)
    result = dg.materialize([number, double], instance=instance, resources={"io_manager": dg.mem_io_manager})
    kinds = stored(instance, result.run_id)
    assert kinds.count(dg.DagsterEventType.ASSET_MATERIALIZATION) == 2
    assert kinds.count(dg.DagsterEventType.STEP_SUCCESS) == 2
    assert kinds[-1] is dg.DagsterEventType.RUN_SUCCESS
    assert not NOISE & set(kinds)
    # Starts and ends of the run and its engine, the start of each step with the end of the one before, and once more
    # where a step reads; the stock class needs one for each of 26 events.
    assert len(kinds) > 1.5 * len(inserts)
    assert len(inserts) <= 12
    assert instance.get_latest_materialization_event(dg.AssetKey("double")).run_id == result.run_id


def test_what_is_held_is_stored_before_anything_is_read(instance):
    run = instance.create_run_for_job(dg.Definitions(assets=[number]).resolve_implicit_global_asset_job_def())
    done = DagsterEvent("STEP_SUCCESS", run.job_name, step_key="number", event_specific_data=StepSuccessData(1.0))
    instance.report_dagster_event(done, run.run_id)
    assert instance._event_storage._held
    assert dg.DagsterEventType.STEP_SUCCESS in stored(instance, run.run_id)
    assert not instance._event_storage._held


def test_a_reported_materialization_is_stored_at_once(instance):
    instance.report_runless_asset_event(dg.AssetMaterialization("number"))
    assert not instance._event_storage._held


def failing(storage, monkeypatch, *errors):
    """Let the next insertions fail with these errors, inside their transaction and after all was written."""
    insert, left = storage._insert_within, list(errors)

    def fail(connection, events):
        ids = insert(connection, events)
        if left:
            raise left.pop(0)
        return ids

    monkeypatch.setattr(storage, "_insert_within", fail)


def a_run(instance, *assets):
    return instance.create_run_for_job(dg.Definitions(assets=list(assets)).resolve_implicit_global_asset_job_def())


def step_success(run):
    return DagsterEvent("STEP_SUCCESS", run.job_name, step_key="number", event_specific_data=StepSuccessData(1.0))


@pytest.mark.parametrize(
    "error",
    [
        sqlalchemy.exc.OperationalError("insert", {}, Exception("server closed the connection")),
        sqlalchemy.exc.InterfaceError("insert", {}, Exception("connection already closed")),
        sqlalchemy.exc.TimeoutError("QueuePool limit of size 3 overflow 20 reached"),
        sqlalchemy.exc.InternalError("insert", {}, Exception("current transaction is aborted")),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_held_events_outlive_a_server_that_is_away(instance, monkeypatch, error):
    storage = instance._event_storage
    run = a_run(instance, number)
    instance.report_dagster_event(step_success(run), run.run_id)
    failing(storage, monkeypatch, error)
    with pytest.raises(type(error)):
        stored(instance, run.run_id)
    assert stored(instance, run.run_id).count(dg.DagsterEventType.STEP_SUCCESS) == 1


def test_an_event_that_is_refused_takes_no_other_with_it(instance, monkeypatch):
    storage, insert = instance._event_storage, instance._event_storage._insert_within
    run = a_run(instance, number)

    def refuse(connection, events):
        if any(event.message == "bad" for event in events):
            raise sqlalchemy.exc.DataError("insert", {}, Exception("invalid byte sequence"))
        return insert(connection, events)

    monkeypatch.setattr(storage, "_insert_within", refuse)
    for message in ("good", "bad", "good"):
        instance.report_dagster_event(step_success(run)._replace(message=message), run.run_id)
    with pytest.raises(sqlalchemy.exc.DataError):
        stored(instance, run.run_id)
    assert stored(instance, run.run_id).count(dg.DagsterEventType.STEP_SUCCESS) == 2


def test_checks_are_written_with_their_events_or_not_at_all(instance, monkeypatch):
    """Two evaluations; the server goes away at the second. Both are there once it is back, once."""
    storage, run = instance._event_storage, a_run(instance, number)
    write, calls = storage.store_asset_check_event, []

    def fail_at_the_second(event, event_id):
        calls.append(event_id)
        if len(calls) == 2:
            raise sqlalchemy.exc.InterfaceError("insert", {}, Exception("connection already closed"))
        write(event, event_id)

    monkeypatch.setattr(storage, "store_asset_check_event", fail_at_the_second)
    for name in ("first", "second"):
        evaluation = AssetCheckEvaluation(
            asset_key=dg.AssetKey("number"),
            check_name=name,
            passed=True,
            metadata={},
            severity=dg.AssetCheckSeverity.WARN,
        )
        told = DagsterEvent("ASSET_CHECK_EVALUATION", run.job_name, step_key="number", event_specific_data=evaluation)
        instance.report_dagster_event(told, run.run_id)
    with pytest.raises(sqlalchemy.exc.InterfaceError):
        stored(instance, run.run_id)
    with storage.index_connection() as connection:
        kept = "select check_name from asset_check_executions where run_id = :run order by 1"
        rows = list(connection.scalars(sqlalchemy.text(kept), {"run": run.run_id}))
    assert rows == ["first", "second"]
    assert stored(instance, run.run_id).count(dg.DagsterEventType.ASSET_CHECK_EVALUATION) == 2


def test_a_deleted_partition_is_gone_at_once(instance):
    instance.add_dynamic_partitions("exposure", ["e1"])
    assert instance.has_dynamic_partition("exposure", "e1")
    instance.delete_dynamic_partition("exposure", "e1")
    assert not instance.has_dynamic_partition("exposure", "e1")


def test_a_connection_that_died_in_a_pause_is_replaced(postgres_url):
    engine = pooled_engine(postgres_url)
    with engine.connect() as connection:
        pid = connection.scalar(sqlalchemy.text("select pg_backend_pid()"))
    with pooled_engine(postgres_url).connect() as other:
        other.execute(sqlalchemy.text("select pg_terminate_backend(:pid)"), {"pid": pid})
    time.sleep(1.2)
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("select pg_backend_pid()")) != pid


def test_the_rendered_instance_is_the_template_with_our_numbers(instance):
    assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 3
    assert instance.run_coordinator.dequeue_interval_seconds == 1
    assert type(instance.run_launcher).__name__ == "DefaultRunLauncher"
    assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager"
    assert instance.run_monitoring_enabled
    assert instance.run_retries_enabled
    assert not instance.telemetry_enabled
    assert not instance.nux_enabled


def test_the_committed_template_is_loadable_yaml():
    from resources.settings import project_root

    template = yaml.safe_load((project_root() / "dagster_home" / "dagster.yaml").read_text())
    assert template["storage"]["custom"]["class"] == "SeeChangeDagsterStorage"


def test_an_orphaned_run_is_closed_and_others_are_not(instance, postgres_url, monkeypatch):
    from dagster._core.storage.tags import GRPC_INFO_TAG

    monkeypatch.setenv("SEECHANGE_POSTGRES_URL", postgres_url)
    job = dg.Definitions(assets=[number]).resolve_implicit_global_asset_job_def()
    launched, by_hand = (
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        for tags in ({GRPC_INFO_TAG: "{}"}, {})
    )
    home = str(Path(instance.root_directory).parent)
    closed = dagster_ui.close_orphaned_runs(Settings.from_environment({"SEECHANGE_HOME": home}))
    assert closed == [launched.run_id]
    assert instance.get_run_by_id(launched.run_id).status is dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(by_hand.run_id).status is dg.DagsterRunStatus.STARTED


def test_the_embedded_server_is_started_for_an_instance_that_needs_it(short_home):
    settings = Settings.from_environment({"SEECHANGE_HOME": str(short_home)})
    with dg.DagsterInstance.from_config(str(dagster_ui.prepare_home(settings))) as instance:
        assert instance.get_runs() == []
        assert postgres.find(short_home) is not None
        assert settings.dagster_url == instance._run_storage.postgres_url


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_gets_a_connection_of_its_own(postgres_url):
    engine = pooled_engine(postgres_url)
    backend = sqlalchemy.text("select pg_backend_pid()")
    with engine.connect() as connection:
        ours = connection.scalar(backend)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with engine.connect() as connection:
            os.write(writing, str(connection.scalar(backend)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 20)) != ours
    with engine.connect() as connection:
        assert connection.scalar(backend) == ours
    engine.dispose()
