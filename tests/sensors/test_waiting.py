"""What waits is requested again exactly when what it waits for can serve it."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from sensors import waiting
from sensors.waiting import COMMIT_MARGIN_S, descendants, waiting_partitions
from sql.models import ExposureRow, ProvenanceRow, ReportRow
from tests.io_managers import many_rows
from tests.sensors import rows

KEY, OTHER = "demo_20261122T040000", "demo_20261122T050000"
FOR_FLAT, FOR_REFERENCE = "master_flat//01", "reference/r/01"
NOW = datetime.now(UTC)


@pytest.fixture
def tick(database, store, instance, instrument):
    """Write rows, evaluate the sensor; what it requests. The cursor is carried on."""
    cursor = None

    def evaluate(*new):
        nonlocal cursor
        with database.session() as session:
            for group in new:
                session.merge(group)
                session.flush()
        resources = {"database": database, "recipes": store.recipes, "instrument": instrument}
        context = dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources)
        result = waiting_partitions(context)
        cursor = result.cursor
        return result.run_requests or []

    instance.add_dynamic_partitions("exposure", [KEY, OTHER])
    return evaluate


def waiting_for_flat(recipes, **values):
    return rows.exposure(recipes, KEY), rows.report(recipes, KEY, "image", FOR_FLAT, **values)


def waiting_for_reference(recipes, **values):
    return (
        rows.exposure(recipes, KEY),
        rows.wcs(recipes, KEY),
        rows.report(recipes, KEY, "diff", FOR_REFERENCE, **values),
    )


def test_a_master_frees_the_image_and_all_that_follows(tick, recipes):
    assert tick(*waiting_for_flat(recipes)) == []
    (request,) = tick(rows.master(recipes, "flat"))
    assert request.partition_key == dg.MultiPartitionKey({"exposure": KEY, "ccd": "01"})
    selected = {key.path[-1] for key in request.asset_selection}
    assert selected == {"image", *descendants("image", recipes)}
    assert {"psf", "diff", "alerts"} <= selected
    assert "reference" not in selected
    assert tick() == []  # requested once, although the report still waits


@pytest.mark.parametrize(
    "values",
    [
        {"filter": "g"},
        {"ccd": "02"},
        {"valid_to": rows.MJD - 1},
        {"instrument": "ls4"},
        {"bitflag": 1},
        {"provenance_id": "another"},
        {"updated_at": NOW - timedelta(hours=1)},
    ],
)
def test_a_master_that_cannot_serve_frees_nothing(tick, recipes, values):
    assert tick(another_recipe(), *waiting_for_flat(recipes), rows.master(recipes, "flat", **values)) == []


def test_a_master_from_elsewhere_frees_too(tick, recipes):
    foreign = rows.master(recipes, "flat", provenance_id="another", calibration_set="external")
    assert len(tick(another_recipe(), *waiting_for_flat(recipes), foreign)) == 1


def another_recipe():
    return ProvenanceRow(id="another", process="master_flat", algorithm_version="0", parameters={})


def test_a_bias_frame_serves_every_filter(tick, recipes):
    report = rows.report(recipes, KEY, "image", "master_bias//01")
    assert len(tick(rows.exposure(recipes, KEY), report, rows.master(recipes, "bias", filter="g"))) == 1


def test_a_product_committed_between_look_up_and_report_counts(tick, recipes):
    """The step began 90 s before its report; the master came 60 s before it."""
    waiting = waiting_for_flat(recipes, seconds=90.0, updated_at=NOW)
    assert len(tick(*waiting, rows.master(recipes, "flat", updated_at=NOW - timedelta(seconds=60)))) == 1


def test_a_commit_that_was_slow_counts(tick, recipes):
    waiting = waiting_for_flat(recipes, seconds=None, updated_at=NOW)
    late = NOW - timedelta(seconds=COMMIT_MARGIN_S / 2)
    assert len(tick(*waiting, rows.master(recipes, "flat", updated_at=late))) == 1


def test_a_rebuilt_master_frees_again(tick, recipes):
    master = rows.master(recipes, "flat")
    assert len(tick(*waiting_for_flat(recipes), master)) == 1
    master.content_hash = "f" * 64
    assert len(tick(master)) == 1


def test_reports_of_other_recipes_and_instruments_stay(tick, recipes):
    stale = rows.report(recipes, KEY, "image", FOR_FLAT, provenance_id="old")
    foreign = rows.report(recipes, OTHER, "image", FOR_FLAT)
    exposures = rows.exposure(recipes, KEY), rows.exposure(recipes, OTHER, instrument="ls4")
    assert tick(*exposures, stale, foreign, rows.master(recipes, "flat")) == []


def test_a_reference_frees_what_it_covers(tick, recipes):
    assert tick(*waiting_for_reference(recipes), rows.reference(recipes, where={"ra_deg": 151.0})) == []
    assert tick(rows.reference(recipes, filter="g")) == []
    assert tick(rows.reference(recipes, members=(KEY,))) == []
    assert tick(rows.reference(recipes, where={"dec_deg": 2.1})) == []  # half of the image
    (request,) = tick(rows.reference(recipes, ccd="02"))  # the sky decides, not the number of the CCD
    assert dg.AssetKey("diff") in request.asset_selection
    assert dg.AssetKey("image") not in request.asset_selection


def test_lost_runs_do_not_take_the_place_of_others(tick, recipes, monkeypatch):
    monkeypatch.setattr("sensors.waiting.MAX_REQUESTS", 1)
    both = [
        row
        for key in (KEY, OTHER)
        for row in (rows.exposure(recipes, key), rows.report(recipes, key, "image", FOR_FLAT))
    ]
    requests = [*tick(*both, rows.master(recipes, "flat")), *tick(), *tick()]
    assert [r.partition_key.keys_by_dimension["exposure"] for r in requests] == [KEY, OTHER]


def test_what_waits_in_retired_nights_is_not_read(tick, database, recipes):
    """20,000 CCDs that a new master frees and Dagster does not hold; one that it holds goes on."""
    tick(*waiting_for_flat(recipes))
    with database.session() as session:
        many_rows.insert_exposures(session, recipes, 20_000, per_night=2000)
        told = {"ccd": "01", "step": "image", "provenance_id": recipes["image"].id, "outcome": "waiting"}
        values = [sa.literal(value) for value in (*told.values(), FOR_FLAT)]
        of_all = sa.select(ExposureRow.key, *values).where(ExposureRow.key.startswith("demo_0"))
        session.execute(sa.insert(ReportRow).from_select(["partition", *told, "waits_for"], of_all))
        assert session.scalar(sa.select(sa.func.count()).select_from(ReportRow)) == 20_001
    read = []
    sa.event.listen(ReportRow, "load", count := lambda row, _: read.append(row))
    try:
        (request,) = tick(rows.master(recipes, "flat"))
    finally:
        sa.event.remove(ReportRow, "load", count)
    assert request.partition_key.keys_by_dimension["exposure"] == KEY
    assert [row.partition for row in read] == [KEY]


def test_a_tick_ends_with_its_requests(tick, recipes, monkeypatch):
    """Thousands may be freed at once; those requested stay in the cursor although the tick did not come to them."""
    monkeypatch.setattr("sensors.waiting.MAX_REQUESTS", 1)
    asked = []
    real = waiting.overlap_fraction
    monkeypatch.setattr(waiting, "overlap_fraction", lambda *corners: asked.append(1) or real(*corners))
    of_other = (
        rows.exposure(recipes, OTHER),
        rows.wcs(recipes, OTHER),
        rows.report(recipes, OTHER, "diff", FOR_REFERENCE),
    )
    assert len(tick(*waiting_for_reference(recipes), *of_other, rows.reference(recipes))) == 1
    assert len(asked) == 1
    assert len(tick()) == 1
    assert tick() == tick() == []
    assert len(asked) == 2


def test_neighbours_are_told_by_their_distance(tick, recipes, monkeypatch):
    """Of the 32 references of a field most are near an image and do not cover it."""
    asked = []
    real = waiting.overlap_fraction
    monkeypatch.setattr(waiting, "overlap_fraction", lambda *corners: asked.append(1) or real(*corners))
    around = [rows.reference(recipes, where={"ra_deg": 150.0 + 0.2 * n}) for n in range(-4, 5) if n]
    assert tick(*waiting_for_reference(recipes), *around) == []
    assert len(asked) <= 2
    large = rows.reference(recipes, where={"ra_deg": 151.0, "side_deg": 3.0})
    assert len(tick(large)) == 1
