"""Partitions that wait for a master or a reference run on when it appears."""

from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets import partitions
from sql.models import MasterRow, ReferenceRow, ReportRow

MAX_REQUESTS = 160


@dg.sensor(
    job_name="process_ccd",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests again what waited for a master or a reference that is there now.",
)
def waiting_partitions(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[Any], recipes: dg.ResourceParam[Any]
) -> dg.SensorResult | dg.SkipReason:
    """One tick: the steps whose cause of waiting was removed after they gave up."""
    requests = [
        _request(report, product_id, recipes)
        for query in (_freed_by_masters(), _freed_by_references())
        for report, product_id in _rows(database, query)
        if context.instance.has_dynamic_partition(partitions.EXPOSURE, report.partition)
    ]
    return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("nothing that waits can go on")


def _request(report: ReportRow, product_id: Any, recipes: Any) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{report.partition}/{report.ccd}/{report.step}/{product_id}/{report.updated_at.timestamp():.0f}",
        partition_key=dg.MultiPartitionKey({"exposure": report.partition, "ccd": report.ccd}),
        asset_selection=[dg.AssetKey(name) for name in [report.step, *descendants(report.step, recipes)]],
        tags={"dagster/priority": "5"},
    )


def descendants(process: str, recipes: Any) -> list[str]:
    """Every exposure-wise asset that is made, directly or not, from `process`."""
    found = {process}
    for name in recipes:  # in order of the pipeline, so one pass suffices
        if found & set(recipes.upstreams(name)) and name != "reference":
            found.add(name)
    return sorted(found - {process})


def _freed_by_masters() -> sa.Select:
    waits_for = sa.func.concat("master_", MasterRow.kind, "//", MasterRow.ccd)
    return (
        sa.select(ReportRow, MasterRow.id)
        .join(MasterRow, MasterRow.ccd == ReportRow.ccd)
        .where(ReportRow.outcome == "waiting", ReportRow.waits_for == waits_for)
        .where(MasterRow.created_at > ReportRow.updated_at)
        .distinct(ReportRow.partition, ReportRow.ccd, ReportRow.step)
        .limit(MAX_REQUESTS)
    )


def _freed_by_references() -> sa.Select:
    """A reference frees what it can be subtracted from: not its own members."""
    waits_for = sa.func.concat("reference/", ReferenceRow.filter, "/", ReferenceRow.ccd)
    return (
        sa.select(ReportRow, ReferenceRow.id)
        .join(ReferenceRow, ReferenceRow.ccd == ReportRow.ccd)
        .where(ReportRow.outcome == "waiting", ReportRow.waits_for == waits_for)
        .where(ReferenceRow.created_at > ReportRow.updated_at)
        .where(~ReferenceRow.members.op("?")(ReportRow.partition))
        .distinct(ReportRow.partition, ReportRow.ccd, ReportRow.step)
        .limit(MAX_REQUESTS)
    )


def _rows(database: Any, query: sa.Select) -> list[Any]:
    with database.session() as session:
        return list(session.execute(query))
