"""A run whose worker was killed leaves a row; one that has told its reason, or was repeated, does not."""

import time

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

    def evaluate(run_id="run1", *, before=None, tags=PARTITION):
        run = dg.DagsterRun("process_ccd", run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags)
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


def test_other_runs_are_none_of_its_business(failed):
    assert failed(tags={"dagster/partition/calibration": "2026-11-22", "dagster/partition/ccd": "01"}) == {}
