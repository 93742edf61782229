"""What failed for want of room is requested again once, when there is room, with what its run had still to make."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from resources.archive import Archive
from seechange_assets.errors import StorageFull
from sensors import room
from tests.sensors import rows

KEY = "demo_20261122T040000"
AGO = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture
def tick(database, store, instance):
    """Write rows, evaluate a sensor; what it requests."""

    def evaluate(sensor, *new):
        with database.session() as session:
            for row in new:
                session.merge(row)
                session.flush()
        return sensor(dg.build_sensor_context(instance=instance, resources={"store": store})).run_requests or []

    return evaluate


def failed(recipes, partition, step, **values):
    defaults = {"outcome": "failed", "error": StorageFull.__name__, "run_id": "run1", "updated_at": AGO}
    return rows.report(recipes, partition, step, None, **defaults | values)


def add_run(instance, *assets, status=dg.DagsterRunStatus.FAILURE, tags=None):
    selection = frozenset(dg.AssetKey(name) for name in assets)
    instance.add_run(dg.DagsterRun("job", run_id="run1", status=status, asset_selection=selection, tags=tags or {}))


def assets_of(request):
    return [key.path[-1] for key in request.asset_selection]


@pytest.mark.parametrize(
    ("sensor", "dimension", "partition", "steps", "expected"),
    [
        (room.out_of_room, "exposure", KEY, ("zp", "diff", "detections"), ["diff", "detections"]),
        (room.masters_out_of_room, "calibration", "2026-11-22", ("master_bias", "master_flat"), ["master_flat"]),
        (room.references_out_of_room, "field_filter", "f1.r", ("reference",), ["reference"]),
    ],
)
def test_each_kind_of_partition_has_its_job(tick, instance, recipes, sensor, dimension, partition, steps, expected):
    instance.add_dynamic_partitions(dimension, [partition])
    add_run(instance, *steps)
    (request,) = tick(sensor, rows.exposure(recipes, KEY), failed(recipes, partition, expected[0]))
    assert request.partition_key == dg.MultiPartitionKey({dimension: partition, "ccd": "01"})
    assert assets_of(request) == expected
    others = {room.out_of_room, room.masters_out_of_room, room.references_out_of_room} - {sensor}
    assert [tick(other) for other in others] == [[], []]
    assert tick(sensor)[0].run_key == request.run_key  # Dagster submits a key once
    (later,) = tick(sensor, failed(recipes, partition, expected[0], updated_at=AGO + timedelta(seconds=20)))
    assert later.run_key != request.run_key


@pytest.mark.parametrize(
    "values",
    [
        {"error": "TooFewStars"},
        {"outcome": "computed", "error": None},
        {"updated_at": datetime.now(UTC) + timedelta(hours=1)},
    ],
)
def test_what_failed_otherwise_or_just_now_is_left_alone(tick, instance, recipes, values):
    instance.add_dynamic_partitions("exposure", [KEY])
    assert tick(room.out_of_room, rows.exposure(recipes, KEY), failed(recipes, KEY, "diff", **values)) == []


def test_what_is_at_work_is_left_alone(tick, instance, recipes):
    instance.add_dynamic_partitions("exposure", [KEY])
    partition = str(dg.MultiPartitionKey({"exposure": KEY, "ccd": "01"}))
    add_run(instance, "diff", status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": partition})
    assert tick(room.out_of_room, rows.exposure(recipes, KEY), failed(recipes, KEY, "diff")) == []


def test_no_more_is_requested_than_there_is_room_for(tick, instance, recipes, monkeypatch):
    instance.add_dynamic_partitions("exposure", [KEY])
    exposure = rows.exposure(recipes, KEY, n_bytes=2_000_000)  # of two CCDs
    both = [failed(recipes, KEY, "diff", ccd=ccd, updated_at=AGO - timedelta(seconds=int(ccd))) for ccd in ("01", "02")]
    monkeypatch.setattr(Archive, "free_bytes", lambda _: 1.5 * room.PRODUCTS_PER_RAW * 1_000_000)
    (request,) = tick(room.out_of_room, exposure, *both)
    assert request.partition_key.keys_by_dimension["ccd"] == "02"  # it has waited longer
    monkeypatch.setattr(Archive, "free_bytes", lambda _: 0)
    assert tick(room.out_of_room) == []
