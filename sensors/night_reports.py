"""A night that has become quiet gets its report, and another when more was made of it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets import partitions
from sql.models import ExposureRow, ReportRow

#: Nothing has come or been made for so long: the night is over for now.
QUIET = timedelta(hours=1)
#: Only so many nights back; older ones by `seechange report`.
MAX_NIGHTS = 7


@dg.sensor(
    job_name="report_night",
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes the report of a night when nothing more happens to it.",
)
def night_reports(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[Any], instrument: dg.ResourceParam[Any]
) -> dg.SensorResult | dg.SkipReason:
    """One tick. The cursor holds the newest event of each night that has been reported."""
    reported: dict[str, str] = json.loads(context.cursor or "{}")
    newest = _newest_events(database, instrument.name)
    now = datetime.now(UTC)
    due = {night: at.isoformat() for night, at in newest.items() if now - at > QUIET}
    due = {night: at for night, at in due.items() if reported.get(night) != at}
    if not due:
        return dg.SkipReason("no night to report")
    context.instance.add_dynamic_partitions(partitions.NIGHT, sorted(due))
    requests = [dg.RunRequest(run_key=f"{night}/{at}", partition_key=night) for night, at in sorted(due.items())]
    kept = {night: at for night, at in (reported | due).items() if night in newest}
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(kept))


def _newest_events(database: Any, instrument: str) -> dict[str, datetime]:
    """Night -> when an exposure of it was registered or a step of it ended last, of the newest nights."""
    exposure, report = ExposureRow, ReportRow
    nights = (
        sa.select(exposure.night)
        .where(exposure.instrument == instrument, exposure.kind == "science")
        .distinct()
        .order_by(exposure.night.desc())
        .limit(MAX_NIGHTS)
    )
    at = sa.func.greatest(sa.func.max(exposure.created_at), sa.func.max(report.updated_at))
    query = (
        sa.select(exposure.night, at)
        .outerjoin(report, report.partition == exposure.key)
        .where(exposure.night.in_(nights), exposure.instrument == instrument, exposure.kind == "science")
        .group_by(exposure.night)
    )
    with database.session() as session:
        return {night: moment for night, moment in session.execute(query)}  # noqa: C416  (rows are no pairs to mypy)
