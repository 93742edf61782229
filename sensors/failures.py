"""A run that ended without a word of its own (its worker was killed) leaves a row that says so."""

from collections.abc import Collection, Sequence
from typing import Any

import dagster as dg
import sqlalchemy as sa

from io_managers.staleness import DIMENSIONS, dimension_of
from seechange_assets.errors import WorkerLost
from seechange_assets.partitions import Partition
from sql.models import ReportRow


@dg.run_failure_sensor(
    name="failed_runs",
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes down why a run of a CCD failed, where the step could not do it itself.",
)
def failed_runs(context: dg.RunFailureSensorContext, store: dg.ResourceParam[Any]) -> None:
    """One failed run. A retry of it that gets further replaces the row."""
    run = context.dagster_run
    record = context.instance.get_run_record_by_id(run.run_id)
    if record is None or record.dagster_run.status is not dg.DagsterRunStatus.FAILURE:
        return  # it was taken for lost, and came to its end after all
    dimension, partition = _partition_of(run)
    if partition is None or _is_told_of_later(store, partition, run.run_id, record.end_time or 0.0):
        return
    failed = {event.step_key: event.step_failure_data.error for event in context.get_step_failure_events()}
    step = _untold_step(store, partition, run.run_id, _chain(run, store.recipes, dimension), failed)
    if step is not None:
        error = failed.get(step)
        said = (error and error.message.strip()) or context.failure_event.message or "the run ended without a word"
        reason = WorkerLost(f"{step}: {said}")
        store.report(step, partition, outcome="failed", error=reason, run_id=run.run_id)


def _partition_of(run: dg.DagsterRun) -> tuple[str, Partition | None]:
    """(dimension beside the CCD, partition) of a run that makes products of one CCD."""
    ccd = run.tags.get("dagster/partition/ccd")
    keys = {name: run.tags.get(f"dagster/partition/{name}") for name in DIMENSIONS}
    return next(((name, Partition(key, ccd)) for name, key in keys.items() if key and ccd), ("", None))


def _chain(run: dg.DagsterRun, recipes: Any, dimension: str) -> list[str]:
    """The steps of a run in the order of the pipeline; a retry has only those that were left."""
    selected = [key.path[-1] for key in run.asset_selection or ()] or list(recipes)
    steps = set(selected) & set(run.step_keys_to_execute or selected)
    return [name for name in recipes if name in steps and name != "exposure" and dimension_of(name) == dimension]


def _is_told_of_later(store: Any, partition: Partition, run_id: str, ended: float) -> bool:
    """Whether another run, a retry, has reported since this one ended."""
    later = sa.exists().where(
        ReportRow.partition == partition.key,
        ReportRow.ccd == partition.ccd,
        ReportRow.run_id != run_id,
        ReportRow.updated_at > sa.func.to_timestamp(ended),
    )
    with store.database.session() as session:
        return bool(session.scalar(sa.select(later)))


def _untold_step(
    store: Any, partition: Partition, run_id: str, chain: Sequence[str], failed: Collection[Any]
) -> str | None:
    """The step that a run died in; None where its own reports say how it ended.

    A step that failed and has no row met a database that was down. Otherwise it is the one after the last reported.
    """
    query = sa.select(ReportRow.step, ReportRow.outcome).where(
        ReportRow.partition == partition.key, ReportRow.ccd == partition.ccd, ReportRow.run_id == run_id
    )
    with store.database.session() as session:
        outcomes = {step: outcome for step, outcome in session.execute(query)}  # noqa: C416  (rows are no pairs to mypy)
    if set(outcomes.values()) - {"computed"}:
        return None
    untold = [name for name in chain if name in failed]
    n_done = max((number for number, name in enumerate(chain, start=1) if name in outcomes), default=0)
    return next(iter([*untold, *chain[n_done:]]), None)
