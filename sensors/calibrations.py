"""A night's calibration frames become master frames once they are complete."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets import partitions
from sql.models import ExposureRow

#: Frames of one run follow each other within seconds; after this pause the run is complete.
SETTLE_S = 5.0


@dg.sensor(
    job_name="build_masters",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Builds the master frames of a night when its bias and flat frames are there.",
)
def calibration_runs(
    context: dg.SensorEvaluationContext,
    database: dg.ResourceParam[Any],
    recipes: dg.ResourceParam[Any],
    instrument: dg.ResourceParam[Any],
) -> dg.SensorResult | dg.SkipReason:
    """One tick. The cursor remembers how many frames each night's newest request had."""
    requested: dict[str, dict[str, int]] = json.loads(context.cursor or "{}")
    requests: list[dg.RunRequest] = []
    for night, counts, ccds in _complete_runs(database, recipes, instrument.name):
        if requested.get(night) == counts:
            continue
        requested[night] = counts
        context.instance.add_dynamic_partitions(partitions.CALIBRATION, [night])
        requests += [_request(night, ccd, counts, recipes) for ccd in ccds]
    if not requests:
        return dg.SkipReason("no new calibration frames")
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(requested))


def _request(night: str, ccd: str, counts: dict[str, int], recipes: Any) -> dg.RunRequest:
    assets = [f"master_{kind}" for kind in counts]
    recipe = recipes[assets[-1]].short_id
    return dg.RunRequest(
        run_key=f"{night}/{ccd}/{'-'.join(f'{k}{n}' for k, n in counts.items())}/{recipe}",
        partition_key=dg.MultiPartitionKey({"calibration": night, "ccd": ccd}),
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        tags={"dagster/priority": "20", "night": night},
    )


def _complete_runs(database: Any, recipes: Any, instrument: str) -> list[tuple[str, dict[str, int], list[str]]]:
    """(night, frames per kind, CCDs) of every night whose frames are enough and have settled."""
    query = (
        sa.select(
            ExposureRow.night,
            ExposureRow.kind,
            sa.func.count().label("frames"),
            sa.func.max(ExposureRow.created_at).label("newest"),
            sa.func.min(sa.cast(ExposureRow.filters, sa.Text)).label("filters"),
        )
        .where(ExposureRow.kind.in_(["bias", "flat"]), ExposureRow.instrument == instrument)
        .group_by(ExposureRow.night, ExposureRow.kind)
        .order_by(ExposureRow.night, ExposureRow.kind)
    )
    with database.session() as session:
        rows = session.execute(query).all()
    settled = datetime.now(UTC) - timedelta(seconds=SETTLE_S)
    nights: dict[str, tuple[dict[str, int], set[str]]] = {}
    for row in rows:
        enough = row.frames >= recipes.parameters(f"master_{row.kind}").min_frames
        if enough and row.newest < settled:
            counts, ccds = nights.setdefault(row.night, ({}, set()))
            counts[row.kind] = row.frames
            ccds |= set(json.loads(row.filters))
    return [(night, counts, sorted(ccds)) for night, (counts, ccds) in nights.items()]
