"""A run that ended without a word of its own (its worker was killed) leaves a row that says so."""

from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets.errors import WorkerLost
from seechange_assets.partitions import Partition
from sql.models import ReportRow


@dg.run_failure_sensor(
    name="failed_runs",
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes down why a run of an exposure and CCD failed, where the step could not do it itself.",
)
def failed_runs(context: dg.RunFailureSensorContext, store: dg.ResourceParam[Any]) -> None:
    """One failed run. A retry of it that gets further replaces the row."""
    run = context.dagster_run
    exposure, ccd = (run.tags.get(f"dagster/partition/{name}") for name in ("exposure", "ccd"))
    if exposure is None or ccd is None or context.get_step_failure_events():
        return
    steps = [key.path[-1] for key in run.asset_selection or ()] or list(store.recipes)
    partition = Partition(exposure, ccd)
    record = context.instance.get_run_record_by_id(run.run_id)
    if _is_told_of_later(store, partition, run.run_id, (record and record.end_time) or 0.0):
        return
    step = _next_step(store, partition, run.run_id, steps)
    reason = WorkerLost(f"{step}: {context.failure_event.message or 'the run ended without a word'}")
    store.report(step, partition, outcome="failed", error=reason, run_id=run.run_id)


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


def _next_step(store: Any, partition: Partition, run_id: str, steps: list[str]) -> str:
    """The step after the last one that this run has reported, in the order of the pipeline."""
    query = sa.select(ReportRow.step).where(
        ReportRow.partition == partition.key, ReportRow.ccd == partition.ccd, ReportRow.run_id == run_id
    )
    with store.database.session() as session:
        reported = set(session.scalars(query))
    apart = {"exposure", "reference", *(name for name in store.recipes if name.startswith("master_"))}
    chain = [name for name in store.recipes if name in steps and name not in apart]
    last = max((number for number, name in enumerate(chain) if name in reported), default=-1)
    return chain[min(last + 1, len(chain) - 1)]
