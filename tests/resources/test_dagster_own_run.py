"""What Dagster is told from memory in a run is what its log says."""

from collections.abc import Iterator

import dagster as dg
import pytest
import sqlalchemy as sa

from tests.resources.test_dagster_storage import instance  # noqa: F401  (fixture)

DAYS = dg.StaticPartitionsDefinition(["a", "b"])
DATA_VERSION = "dagster/data_version"
POINTERS = {"dagster/input_event_pointer/raw", "dagster/input_data_version/raw"}


@dg.asset(partitions_def=DAYS, code_version="1")
def raw(context: dg.AssetExecutionContext) -> dg.MaterializeResult[int]:
    return dg.MaterializeResult(value=1, data_version=dg.DataVersion(f"raw of {context.partition_key}"))


def _positive(raw: int) -> bool:
    return raw > 0


@dg.asset(
    partitions_def=DAYS, code_version="1",
    check_specs=[dg.AssetCheckSpec("one", asset="made"), dg.AssetCheckSpec("two", asset="made")],
)  # fmt: skip
def made(raw: int) -> Iterator[dg.MaterializeResult]:
    results = [dg.AssetCheckResult(passed=_positive(raw), check_name=name) for name in ("one", "two")]
    yield dg.MaterializeResult(value=raw, check_results=results)


@dg.asset(partitions_def=DAYS, code_version="1")
def last(made: int) -> int:
    return made


def run(instance, partition, assets=(raw, made, last)):  # noqa: F811
    resources = {"io_manager": dg.mem_io_manager}
    done = dg.materialize(list(assets), instance=instance, partition_key=partition, resources=resources)
    assert done.success
    return done


def tags(instance, asset, partition):  # noqa: F811
    query = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    (record,) = instance.fetch_materializations(query, limit=1).records
    return record.storage_id, record.asset_materialization.tags


@pytest.fixture
def statements(instance):  # noqa: F811
    told = []

    def note(_connection, _cursor, statement, *_):
        told.append(statement)

    engine = instance._event_storage._engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield told
    sa.event.remove(engine, "before_cursor_execute", note)


def test_inputs_are_those_of_the_run_itself(instance):  # noqa: F811
    run(instance, "a")
    run(instance, "b")
    for partition in ("a", "b"):
        raw_id, raw_tags = tags(instance, "raw", partition)
        _, made_tags = tags(instance, "made", partition)
        assert raw_tags[DATA_VERSION] == f"raw of {partition}"
        assert made_tags["dagster/input_event_pointer/raw"] == str(raw_id)
        assert made_tags.keys() >= POINTERS


def test_the_data_version_is_the_one_that_the_log_gives(instance, statements):  # noqa: F811
    """A run of the second asset alone has to ask the log; both ways give the same tag."""
    run(instance, "a")
    _, from_memory = tags(instance, "made", "a")
    asked = [s for s in statements if "latest_event_ids_by_partition" in s]
    assert asked == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resources.dagster_own_run.OwnRun.remember", lambda *_: None)
        run(instance, "a")
    _, from_log = tags(instance, "made", "a")
    assert [s for s in statements if "latest_event_ids_by_partition" in s] != []
    assert from_memory["dagster/input_data_version/raw"] == from_log["dagster/input_data_version/raw"]


def test_nothing_is_remembered_after_a_run(instance):  # noqa: F811
    run(instance, "a")
    storage = instance._event_storage
    assert storage._made == {}
    assert storage._newest == {}
    (record,) = storage.get_asset_records([dg.AssetKey("raw")])
    assert record.asset_entry.last_materialization_record.partition_key == "a"
    run(instance, "b")
    (record,) = storage.get_asset_records([dg.AssetKey("raw")])
    assert record.asset_entry.last_materialization_record.partition_key == "b"


def test_a_wiped_asset_is_gone(instance):  # noqa: F811
    run(instance, "a")
    instance.wipe_assets([dg.AssetKey("last")])
    query = dg.AssetRecordsFilter(asset_key=dg.AssetKey("last"))
    assert instance.fetch_materializations(query, limit=5).records == []


def test_columns_of_tables_are_asked_for_once(instance, monkeypatch):  # noqa: F811
    storage = instance._run_storage
    assert storage.has_backfill_id_column()
    monkeypatch.setattr(sa, "inspect", lambda *_: pytest.fail("asked again"))
    assert storage.has_backfill_id_column()
