"""What failed in an outage or for want of room is requested again, once each time, with what its run had to make."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dagster as dg
import pytest

from resources.archive import Archive
from seechange_assets.errors import CatalogError, ServiceUnavailable, StorageFull, WorkerLost
from sensors import repeats
from sql.models import ExposureHoldRow
from tests.sensors import rows

KEY = "demo_20261122T040000"
AGO = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture
def tick(database, store, instance):
    """Write rows, evaluate a sensor; what it requests. Its cursor is carried on if `carry` is a dictionary."""

    def evaluate(sensor, *new, carry=None):
        with database.session() as session:
            for row in new:
                session.merge(row)
                session.flush()
        cursor = (carry or {}).get("cursor")
        result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources={"store": store}))
        if carry is not None:
            carry["cursor"] = result.cursor
        return result.run_requests or []

    return evaluate


def failed(recipes, partition, step, *, waits_for=None, **values):
    defaults = {"outcome": "failed", "error": StorageFull.__name__, "run_id": "run1", "updated_at": AGO}
    return rows.report(recipes, partition, step, waits_for, **defaults | values)


def add_run(instance, *assets, status=dg.DagsterRunStatus.FAILURE, tags=None, run_id="run1", job="process_ccd"):
    selection = frozenset(dg.AssetKey(name) for name in assets) or None
    instance.add_run(dg.DagsterRun(job, run_id=run_id, status=status, asset_selection=selection, tags=tags or {}))


@pytest.fixture
def wait(monkeypatch):
    """Let time pass for the sensors."""

    def later(pause):
        monkeypatch.setattr(repeats, "datetime", SimpleNamespace(now=lambda zone: datetime.now(zone) + pause))

    return later


def assets_of(request):
    return [key.path[-1] for key in request.asset_selection]


@pytest.mark.parametrize(
    ("sensor", "dimension", "partition", "steps", "expected"),
    [
        (repeats.repeat_exposures, "exposure", KEY, ("zp", "diff", "detections"), ["diff", "detections"]),
        (repeats.repeat_masters, "calibration", "2026-11-22", ("master_bias", "master_flat"), ["master_flat"]),
        (repeats.repeat_references, "field_filter", "f1.r", ("reference",), ["reference"]),
    ],
)
def test_each_kind_of_partition_has_its_job(tick, instance, recipes, sensor, dimension, partition, steps, expected):
    instance.add_dynamic_partitions(dimension, [partition])
    add_run(instance, *steps)
    (request,) = tick(sensor, rows.exposure(recipes, KEY), failed(recipes, partition, expected[0]))
    assert request.partition_key == dg.MultiPartitionKey({dimension: partition, "ccd": "01"})
    assert assets_of(request) == expected
    others = {repeats.repeat_exposures, repeats.repeat_masters, repeats.repeat_references} - {sensor}
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
    assert tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), failed(recipes, KEY, "diff", **values)) == []


def test_what_is_at_work_is_left_alone(tick, instance, recipes):
    instance.add_dynamic_partitions("exposure", [KEY])
    partition = str(dg.MultiPartitionKey({"exposure": KEY, "ccd": "01"}))
    add_run(instance, "diff", status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": partition})
    assert tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), failed(recipes, KEY, "diff")) == []


def test_what_was_made_but_not_queued_is_requested_under_the_same_key(tick, instance, recipes):
    """Dagster then queues the run that is there."""
    instance.add_dynamic_partitions("exposure", [KEY])
    partition = str(dg.MultiPartitionKey({"exposure": KEY, "ccd": "01"}))
    report = failed(recipes, KEY, "diff")
    (request,) = tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), report)
    instance.add_run(
        dg.DagsterRun("process_ccd", tags={"dagster/partition": partition, "dagster/run_key": request.run_key})
    )
    (again,) = tick(repeats.repeat_exposures)
    assert again.run_key == request.run_key


def test_no_more_is_requested_than_there_is_room_for(tick, instance, recipes, monkeypatch):
    instance.add_dynamic_partitions("exposure", [KEY])
    exposure = rows.exposure(recipes, KEY, n_bytes=2_000_000)  # of two CCDs
    both = [failed(recipes, KEY, "diff", ccd=ccd, updated_at=AGO - timedelta(seconds=int(ccd))) for ccd in ("01", "02")]
    monkeypatch.setattr(Archive, "free_bytes", lambda _: 1.5 * repeats.PRODUCTS_PER_RAW * 1_000_000)
    (request,) = tick(repeats.repeat_exposures, exposure, *both)
    assert request.partition_key.keys_by_dimension["ccd"] == "02"  # it has waited longer
    monkeypatch.setattr(Archive, "free_bytes", lambda _: 0)
    assert tick(repeats.repeat_exposures) == []


CHAIN_OF_DIFF = [
    "diff", "detections", "cutouts", "measurements", "scores", "associations", "forced_photometry", "alerts"
]  # fmt: skip


@pytest.mark.parametrize("is_forgotten", [False, True])
@pytest.mark.parametrize("error", ["StorageFull", "WorkerLost"])
def test_a_run_of_everything_is_gone_on_with_to_its_end(tick, instance, recipes, is_forgotten, error):
    """New exposures are requested without a selection; a run may also be deleted."""
    instance.add_dynamic_partitions("exposure", [KEY])
    if not is_forgotten:
        add_run(instance)
    (request,) = tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), failed(recipes, KEY, "diff", error=error))
    assert [name for name in assets_of(request) if not name.startswith("fake")] == CHAIN_OF_DIFF


def test_masters_and_references_of_a_run_of_everything(tick, instance, recipes):
    instance.add_dynamic_partitions("calibration", ["2026-11-22"])
    instance.add_dynamic_partitions("field_filter", ["f1.r"])
    broken = [failed(recipes, "2026-11-22", "master_bias", error="OSError"), failed(recipes, "f1.r", "reference")]
    (masters,) = tick(repeats.repeat_masters, rows.exposure(recipes, KEY), *broken)
    assert assets_of(masters) == ["master_bias", "master_dark", "master_flat", "master_fringe"]
    assert [assets_of(request) for request in tick(repeats.repeat_references)] == [["reference"]]


def test_failures_of_retired_partitions_block_nobody(tick, instance, recipes, monkeypatch):
    monkeypatch.setattr(repeats, "MAX_REQUESTS", 2)
    instance.add_dynamic_partitions("exposure", [KEY])
    retired = [
        failed(recipes, f"retired{n}", "diff", updated_at=AGO - timedelta(days=9), error=error)
        for n, error in enumerate(["StorageFull", "WorkerLost"] * 3)
    ]
    (request,) = tick(
        repeats.repeat_exposures,
        rows.exposure(recipes, KEY),
        *retired,
        failed(recipes, KEY, "diff", error="WorkerLost"),
    )
    assert request.partition_key.keys_by_dimension["exposure"] == KEY


@pytest.mark.parametrize("error", [WorkerLost, ServiceUnavailable, CatalogError, TimeoutError, ConnectionResetError])
def test_an_outage_is_waited_out(tick, instance, recipes, error):
    instance.add_dynamic_partitions("exposure", [KEY])
    assert len(tick(repeats.repeat_exposures, failed(recipes, KEY, "wcs", error=error.__name__))) == 1


def test_pauses_grow(tick, instance, recipes, wait):
    instance.add_dynamic_partitions("exposure", [KEY])
    add_run(instance, "wcs", "zp")
    broken = failed(recipes, KEY, "wcs", error="CatalogError")
    (request,) = tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), broken)
    assert assets_of(request) == ["wcs", "zp"]
    assert request.tags[repeats.ATTEMPT_TAG] == "1"
    assert request.tags["dagster/max_retries"] == "0"
    keys = {request.run_key}
    for attempt, pause in enumerate(repeats.PAUSES[1:], start=1):
        add_run(instance, "wcs", "zp", tags=request.tags, run_id=f"again{attempt}")
        broken = failed(recipes, KEY, "wcs", error="CatalogError", run_id=f"again{attempt}")
        broken.updated_at += timedelta(milliseconds=attempt)
        wait(pause - timedelta(seconds=5))
        assert tick(repeats.repeat_exposures, broken) == []
        wait(pause + timedelta(seconds=5))
        (request,) = tick(repeats.repeat_exposures)
        keys.add(request.run_key)
    assert len(keys) == len(repeats.PAUSES)  # Dagster submits a key once
    assert request.tags[repeats.ATTEMPT_TAG] == str(len(repeats.PAUSES) - 1)  # a day from now on


def test_a_full_disk_waits_for_room_alone(tick, instance, recipes):
    """Its attempts do not count: there may be none for days, and then work goes on at once."""
    instance.add_dynamic_partitions("exposure", [KEY])
    add_run(instance, "diff")
    (request,) = tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), failed(recipes, KEY, "diff"))
    assert repeats.ATTEMPT_TAG not in request.tags


def test_those_that_rest_hold_up_nobody(tick, instance, recipes, monkeypatch):
    monkeypatch.setattr(repeats, "MAX_REQUESTS", 2)
    instance.add_dynamic_partitions("exposure", [KEY, *(f"e{n}" for n in range(4))])
    for n in range(4):
        add_run(instance, "diff", tags={repeats.ATTEMPT_TAG: "28"}, run_id=f"run_e{n}")
    old = AGO - timedelta(hours=3)
    resting = [failed(recipes, f"e{n}", "diff", error="OSError", run_id=f"run_e{n}", updated_at=old) for n in range(4)]
    (request,) = tick(repeats.repeat_exposures, *resting, failed(recipes, KEY, "diff", error="OSError"))
    assert request.partition_key.keys_by_dimension["exposure"] == KEY


def test_a_few_at_a_time_are_repeated(tick, instance, recipes, monkeypatch):
    """An outage that goes on must not fill the queue."""
    monkeypatch.setattr(repeats, "MAX_REQUESTS", 3)
    keys = [f"e{n}" for n in range(4)]
    instance.add_dynamic_partitions("exposure", keys)
    add_run(instance, "diff", status=dg.DagsterRunStatus.STARTED, tags={repeats.ATTEMPT_TAG: "7"}, run_id="at_work")
    broken = [failed(recipes, key, "diff", error="OSError", run_id=None) for key in keys]
    assert len(tick(repeats.repeat_exposures, *broken)) == 2


def test_what_somebody_holds_back_is_left_alone(tick, instance, recipes):
    instance.add_dynamic_partitions("exposure", [KEY])
    held = ExposureHoldRow(exposure=KEY, reason="clouds")
    broken = failed(recipes, KEY, "diff", error="OSError")
    assert tick(repeats.repeat_exposures, rows.exposure(recipes, KEY), held, broken) == []


@pytest.mark.parametrize("error", ["TagConflict", "InWork", "ProductNotFound", "InputNotReady", "ArchiveError"])
def test_what_waiting_cannot_cure_is_left_alone(tick, instance, recipes, error):
    instance.add_dynamic_partitions("exposure", [KEY])
    assert tick(repeats.repeat_exposures, failed(recipes, KEY, "diff", error=error)) == []


def test_a_flat_that_came_before_its_bias_is_made_after_it(tick, instance, recipes):
    """Biases of another night, or of the run beside where filters change; a run without frames waits for nothing."""
    instance.add_dynamic_partitions("calibration", ["n1.r", "n2.r"])
    early = failed(recipes, "n1.r", "master_flat", error="MasterNotFound", waits_for="master_bias//01")
    empty = failed(recipes, "n2.r", "master_flat", error="MasterNotFound")
    (request,) = tick(repeats.repeat_masters, early, empty)
    assert request.partition_key.keys_by_dimension["calibration"] == "n1.r"


def test_canceled_repetitions_do_not_take_the_place_of_others(tick, instance, recipes, monkeypatch):
    """Somebody empties the queue: their rows stay as they are, and Dagster does not take their run keys again."""
    monkeypatch.setattr(repeats, "MAX_REQUESTS", 2)
    keys = [f"e{n}" for n in range(5)]
    instance.add_dynamic_partitions("exposure", keys)
    at = {key: AGO - timedelta(minutes=9 - n) for n, key in enumerate(keys)}
    broken = [failed(recipes, key, "diff", error="OSError", run_id=None, updated_at=at[key]) for key in keys]
    carry = {}
    requests = [*tick(repeats.repeat_exposures, *broken, carry=carry)]
    for _ in range(3):
        requests += tick(repeats.repeat_exposures, carry=carry)
    assert [request.partition_key.keys_by_dimension["exposure"] for request in requests] == keys
    failed_again = failed(recipes, "e0", "diff", error="OSError", run_id=None)
    assert len(tick(repeats.repeat_exposures, failed_again, carry=carry)) == 1
