"""What failed because a disk was full is requested again when there is room."""

from datetime import timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets import partitions
from seechange_assets.errors import StorageFull
from sensors.runs import is_in_work
from sql.models import ExposureHoldRow, ExposureRow, ReportRow

#: Partitions looked at in a tick.
MAX_REQUESTS = 160
#: All products of a CCD take less than this many times the bytes of its raw pixels.
PRODUCTS_PER_RAW = 40
#: A failure younger than this is left alone: others may be failing yet.
PAUSE = timedelta(seconds=15)


def _sensor(name: str, job_name: str, dimension: str) -> dg.SensorDefinition:
    """The sensor of the steps that a job makes; `dimension` is that of its partitions beside the CCD."""

    def tick(context: dg.SensorEvaluationContext, store: dg.ResourceParam[Any]) -> dg.SensorResult:
        """The oldest failures first, as many as the archive has room for.

        The time of the failure is part of the run key: each is requested again once.
        """
        reports = _failed_for_room(store, dimension)
        requests = []
        for report in reports[: _n_fitting(store)]:
            key = dg.MultiPartitionKey({dimension: report.partition, "ccd": report.ccd})
            is_known = context.instance.has_dynamic_partition(dimension, report.partition)
            if is_known and not is_in_work(context.instance, key):
                requests.append(_request(context.instance, report, key, store))
        told = f"{len(reports)} failed for want of room, and there is none yet" if reports else "there is room for all"
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else dg.SkipReason(told))

    return dg.sensor(
        name=name,
        job_name=job_name,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests again what failed for want of room on a disk, as far as there is room now.",
    )(tick)


out_of_room = _sensor("out_of_room", "process_ccd", partitions.EXPOSURE)
masters_out_of_room = _sensor("masters_out_of_room", "build_masters", partitions.CALIBRATION)
references_out_of_room = _sensor("references_out_of_room", "build_reference", partitions.FIELD_FILTER)


def _failed_for_room(store: Any, dimension: str) -> list[ReportRow]:
    """Steps of these partitions that failed so under the recipes in force and are not held, the oldest first."""
    report = ReportRow
    query = (
        sa.select(report)
        .where(report.outcome == "failed", report.error == StorageFull.__name__)
        .where(report.provenance_id.in_([recipe.id for recipe in store.recipes.values()]))
        .where(report.updated_at < sa.func.now() - PAUSE)
        .where(~sa.exists().where(ExposureHoldRow.exposure == report.partition))
        .order_by(report.updated_at)
        .limit(MAX_REQUESTS)
    )
    of_masters, of_references = report.step.like("master\\_%"), report.step == "reference"
    of_exposures = sa.not_(sa.or_(of_masters, of_references))
    wanted = {partitions.CALIBRATION: of_masters, partitions.FIELD_FILTER: of_references}
    with store.database.session() as session:
        return list(session.scalars(query.where(wanted.get(dimension, of_exposures))))


def _n_fitting(store: Any) -> int:
    """CCDs whose products there is room for, by the newest exposure."""
    room = store.archive.free_bytes()
    newest = sa.select(ExposureRow).where(ExposureRow.instrument == store.instrument)
    with store.database.session() as session:
        exposure = session.scalar(newest.order_by(ExposureRow.sequence.desc()).limit(1))
    if room is None or exposure is None:
        return MAX_REQUESTS
    return int(room / (PRODUCTS_PER_RAW * exposure.n_bytes / max(1, len(exposure.filters))))


def _request(instance: dg.DagsterInstance, report: ReportRow, key: dg.MultiPartitionKey, store: Any) -> dg.RunRequest:
    """The step and what its run would have made after it."""
    run = instance.get_run_by_id(report.run_id or "")
    selected = {asset.path[-1] for asset in (run.asset_selection if run is not None else None) or ()}
    order = list(store.recipes)  # that of the pipeline
    assets = [report.step, *(name for name in order[order.index(report.step) + 1 :] if name in selected)]
    return dg.RunRequest(
        run_key=f"{report.partition}/{report.ccd}/{report.step}/room/{report.updated_at.timestamp():.6f}",
        partition_key=key,
        asset_selection=[dg.AssetKey(name) for name in assets],
        tags={"dagster/priority": "5"},
    )
