"""Masters are requested once a night's frames are complete, and again when frames or recipes change."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dagster as dg
import pytest

from resources.settings import Settings
from seechange_assets.definitions import build_recipes
from sensors.calibrations import calibration_runs
from tests.sensors import rows


@pytest.fixture
def tick(database, store, instance, instrument):
    """Evaluate the sensor; what it requests. The cursor is carried on."""
    cursor = None

    def evaluate(*new, recipes=store.recipes, settle_s=120.0):
        nonlocal cursor
        with database.session() as session:
            session.add_all(new)
        resources = {
            "database": database,
            "recipes": recipes,
            "instrument": instrument,
            "settings": SimpleNamespace(settle_s=settle_s),
        }
        result = calibration_runs(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
        if isinstance(result, dg.SkipReason):
            return []
        cursor = result.cursor
        return result.run_requests

    return evaluate


def frames(recipes, kind, n, *, first=0, age_s=600.0, **values):
    created = datetime.now(UTC) - timedelta(seconds=age_s)
    keys = (f"demo_{kind}{first + i}" for i in range(n))
    return [rows.exposure(recipes, key, kind=kind, created_at=created, **values) for key in keys]


def assets(request):
    return [key.path[-1] for key in request.asset_selection]


def test_a_settled_night_is_requested_once_per_ccd(tick, recipes, instance):
    requests = tick(*frames(recipes, "bias", 5), *frames(recipes, "flat", 5))
    assert [r.partition_key.keys_by_dimension["ccd"] for r in requests] == ["01", "02"]
    assert [assets(r) for r in requests] == [["master_bias", "master_flat"]] * 2
    assert instance.get_dynamic_partitions("calibration") == ["2026-11-22"]
    assert tick() == []


def test_nothing_is_requested_while_frames_come_in(tick, recipes):
    """The biases are complete; the flats that follow them at a real camera's pace are not."""
    assert tick(*frames(recipes, "bias", 5), *frames(recipes, "flat", 3, age_s=60)) == []
    assert len(tick(settle_s=30)) == 2


def test_another_frame_builds_again(tick, recipes):
    first = tick(*frames(recipes, "bias", 5))
    again = tick(*frames(recipes, "bias", 1, first=5))
    assert len(again) == len(first) == 2
    assert {r.run_key for r in first}.isdisjoint(r.run_key for r in again)


def test_changed_parameters_build_again(tick, recipes, tmp_path):
    first = tick(*frames(recipes, "bias", 5), *frames(recipes, "flat", 5))
    changed = tmp_path / "changed.yaml"
    changed.write_text("master_flat: {validity_days: 7}\n")
    environment = {"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo", "SEECHANGE_CONFIG": str(changed)}
    other = build_recipes(Settings.from_environment(environment))
    again = tick(recipes=other)
    assert len(again) == 2
    assert {r.run_key for r in first}.isdisjoint(r.run_key for r in again)
    assert tick(recipes=other) == []


def test_too_few_bad_or_foreign_frames_do_not_count(tick, recipes):
    assert tick(*frames(recipes, "bias", 1)) == []
    assert tick(*frames(recipes, "bias", 5, first=1, bitflag=1)) == []
    assert tick(*frames(recipes, "bias", 5, first=6, instrument="ls4")) == []


def test_darks_and_types_of_flat_of_one_night(tick, recipes):
    """With a filter in front of each CCD, a night is one run."""
    flats = [*frames(recipes, "flat", 3, flat_type="dome"), *frames(recipes, "flat", 3, first=3, flat_type="twilight")]
    requests = tick(*frames(recipes, "bias", 5), *frames(recipes, "dark", 3), *flats)
    assert [assets(r) for r in requests] == [["master_bias", "master_dark", "master_flat"]] * 2


def test_each_filter_is_a_run_where_filters_change(tick, recipes, instrument, monkeypatch):
    monkeypatch.setattr(type(instrument), "filter_by_ccd", False)
    one, other = {"01": "r", "02": "r"}, {"01": "g", "02": "g"}
    flats = [*frames(recipes, "flat", 3, filters=one), *frames(recipes, "flat", 4, first=3, filters=other)]
    requests = tick(*frames(recipes, "bias", 5, filters=one), *flats)
    runs = {(r.partition_key.keys_by_dimension["calibration"], *assets(r)) for r in requests}
    assert runs == {
        ("2026-11-22", "master_bias"), ("2026-11-22.r", "master_flat"), ("2026-11-22.g", "master_flat")
    }  # fmt: skip


def test_fringes_where_they_are_wanted_when_the_night_is_over(tick, recipes, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text("image: {steps: [overscan, bias, linearity, flat, fringe]}\n")
    environment = {"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo", "SEECHANGE_CONFIG": str(changed)}
    wanted = build_recipes(Settings.from_environment(environment))
    skies = frames(recipes, "science", 6, filters={"01": "z", "02": "g"}, age_s=4 * 3600)
    assert tick(*skies) == []
    requests = tick(recipes=wanted)
    assert [(assets(r), r.partition_key.keys_by_dimension["ccd"]) for r in requests] == [(["master_fringe"], "01")]
    assert tick(*frames(recipes, "science", 1, first=6, age_s=60), recipes=wanted) == []


@pytest.fixture
def changed_recipes(tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text("master_bias: {validity_days: 7}\n")
    environment = {"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo", "SEECHANGE_CONFIG": str(changed)}
    return build_recipes(Settings.from_environment(environment))


def nights_of(requests):
    return [r.partition_key.keys_by_dimension["calibration"] for r in requests]


def biases_of_nights(recipes, *days):
    return [
        frame
        for day in days
        for frame in frames(recipes, "bias", 5, first=100 * day, night=f"2026-11-{day:02d}", filters={"01": "r"})
    ]


def test_the_newest_night_comes_first_and_the_others_after_live_data(tick, recipes):
    requests = tick(*biases_of_nights(recipes, 3, 1, 2))
    assert nights_of(requests) == ["2026-11-03", "2026-11-02", "2026-11-01"]
    assert [r.tags["dagster/priority"] for r in requests] == ["20", "5", "5"]


def test_a_change_of_recipe_leaves_nights_before_the_window_alone(tick, recipes, changed_recipes, instance):
    """Night 2 is nearest to the oldest exposures that Dagster holds; nobody asks for night 1 any more."""
    held = rows.exposure(recipes, "demo_held", night="2026-11-04")
    foreign = rows.exposure(recipes, "demo_retired", night="2026-11-01")
    instance.add_dynamic_partitions("exposure", ["demo_held"])
    assert len(tick(held, foreign, *biases_of_nights(recipes, 1, 2, 9))) == 3
    assert nights_of(tick(recipes=changed_recipes)) == ["2026-11-09", "2026-11-02"]
    assert tick(recipes=changed_recipes) == []
    instance.add_dynamic_partitions("exposure", ["demo_retired"])  # somebody activates its night
    assert nights_of(tick(recipes=changed_recipes)) == ["2026-11-01"]


def test_the_newest_of_each_kind_is_needed(tick, recipes, changed_recipes):
    """Biases are not taken every night."""
    flats = frames(recipes, "flat", 5, night="2026-11-05", filters={"01": "r"})
    assert len(tick(*biases_of_nights(recipes, 1, 2), *flats)) == 3
    again = tick(recipes=changed_recipes)
    assert nights_of(again) == ["2026-11-05", "2026-11-02"]
    assert {r.tags["dagster/priority"] for r in again} == {"20"}


def test_a_tick_requests_a_few_whole_nights(tick, recipes, monkeypatch):
    monkeypatch.setattr("sensors.calibrations.MAX_REQUESTS", 2)
    assert nights_of(tick(*biases_of_nights(recipes, 1, 2, 3))) == ["2026-11-03", "2026-11-02"]
    assert nights_of(tick()) == ["2026-11-01"]
    assert tick() == []
