"""A run whose worker was killed leaves a row; one that has told its reason, or was repeated, does not."""

import time
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import pytest

from sensors.failures import failed_runs
from sql.models import ReportRow
from tests.sensors import rows

KEY = "demo_a"
PARTITION = {"dagster/partition/exposure": KEY, "dagster/partition/ccd": "01"}


@pytest.fixture
def failed(instance, store, database, recipes):
    """Report a run as failed and evaluate the sensor; the rows of its partition."""

    def evaluate(run_id="run1", *, before=None, tags=PARTITION, **of_run):
        run = dg.DagsterRun("process_ccd", run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags, **of_run)
        instance.add_run(run)
        event = instance.report_run_failed(run, "The worker of this run is gone.")
        if before:
            before()
        context = dg.build_run_status_sensor_context(
            "failed_runs", event, instance, instance.get_run_by_id(run_id), resources={"store": store}
        ).for_run_failure()
        failed_runs(context)
        with database.session() as session:
            return {row.step: row for row in session.query(ReportRow).all()}

    return evaluate


def test_a_killed_run_leaves_its_reason(failed):
    told = failed()
    assert list(told) == ["image"]
    row = told["image"]
    assert (row.outcome, row.error, row.run_id) == ("failed", "WorkerLost", "run1")
    assert row.message == "image: The worker of this run is gone."


def test_it_is_laid_to_the_step_after_the_last_reported(failed, database, recipes):
    with database.session() as session:
        session.add(rows.exposure(recipes, KEY))
        for step in ("image", "background"):
            session.add(rows.report(recipes, KEY, step, None, outcome="computed", run_id="run1"))
    told = failed()
    assert {step for step, row in told.items() if row.outcome == "failed"} == {"sources"}


def test_a_retry_that_has_begun_is_left_alone(failed, database, recipes):
    def retry():
        time.sleep(0.05)
        with database.session() as session:
            session.add(rows.report(recipes, KEY, "image", None, outcome="computed", run_id="run2"))

    assert {row.outcome for row in failed(before=retry).values()} == {"computed"}


@pytest.mark.parametrize(
    ("dimension", "key", "step"), [("calibration", "2026-11-22", "master_bias"), ("field_filter", "f1.r", "reference")]
)
def test_masters_and_references_leave_their_reason_too(failed, dimension, key, step):
    told = failed(tags={f"dagster/partition/{dimension}": key, "dagster/partition/ccd": "01"})
    assert [(row.partition, row.ccd, row.step, row.error) for row in told.values()] == [(key, "01", step, "WorkerLost")]


def test_a_master_is_one_that_the_run_was_to_make(failed):
    tags = {"dagster/partition/calibration": "2026-11-22", "dagster/partition/ccd": "01"}
    assert list(failed(tags=tags, asset_selection=frozenset({dg.AssetKey("master_flat")}))) == ["master_flat"]


def test_a_retry_died_in_what_it_had_to_do(failed, database, recipes):
    """The steps before are another run's."""
    with database.session() as session:
        session.add(rows.report(recipes, KEY, "image", None, outcome="computed", run_id="run0"))
    told = failed(step_keys_to_execute=["wcs", "zp"])
    assert {step: row.outcome for step, row in told.items()} == {"image": "computed", "wcs": "failed"}


@pytest.mark.parametrize(("step", "outcome"), [("alerts", "computed"), ("diff", "waiting"), ("psf", "failed")])
def test_a_run_that_died_after_its_last_word_is_left_alone(failed, database, recipes, step, outcome):
    with database.session() as session:
        for name in ("image", step):
            how = outcome if name == step else "computed"
            session.add(rows.report(recipes, KEY, name, None, outcome=how, run_id="run1", error="TooFewStars"))
    told = failed()
    assert {name: row.outcome for name, row in told.items()} == {"image": "computed", step: outcome}
    assert {row.error for row in told.values()} == {"TooFewStars"}


def test_a_run_that_was_taken_for_lost_and_was_not_is_left_alone(failed, instance):
    def finish():
        instance.run_storage.handle_run_event(
            "run1", dg.DagsterEvent("PIPELINE_SUCCESS", "process_ccd"), update_timestamp=datetime.now(UTC)
        )

    assert failed(before=finish) == {}


def test_a_step_that_could_not_leave_its_row_is_told_of(failed, instance, monkeypatch):
    """The database was down when it failed."""
    error = SimpleNamespace(message="ServiceUnavailable: Postgres does not answer\n")
    event = SimpleNamespace(step_key="wcs", step_failure_data=SimpleNamespace(error=error))
    monkeypatch.setattr(dg.RunFailureSensorContext, "get_step_failure_events", lambda _: [event])
    told = failed()
    assert {step: row.message for step, row in told.items()} == {
        "wcs": "wcs: ServiceUnavailable: Postgres does not answer"
    }


def test_other_runs_are_none_of_its_business(failed):
    assert failed(tags={"dagster/partition": "2026-11-22"}) == {}
