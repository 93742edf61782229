"""Partitions that wait for a master or a reference run on when it appears."""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from io_managers.references import in_current_set
from seechange_assets import partitions
from sql.base import ProductRow
from sql.models import ExposureHoldRow, ExposureRow, MasterRow, ReferenceRow, ReportRow, WcsRow
from sql.sky import overlap_fraction

MAX_REQUESTS = 160
#: A product counts as new to a step if it was committed after the step began; this much may lie between a
#: transaction's time and its commit, or between the end of a step and its report [s].
COMMIT_MARGIN_S = 30.0
#: Masters of these kinds serve every filter.
_WITHOUT_FILTER = ("bias", "dark")
#: Footprints whose centres are farther apart than this cannot overlap [deg]; no CCD here is larger.
_SEARCH_RADIUS_DEG = 2.5


@dg.sensor(
    job_name="process_ccd",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests again what waited for a master or a reference that is there now.",
)
def waiting_partitions(
    context: dg.SensorEvaluationContext,
    database: dg.ResourceParam[Any],
    recipes: dg.ResourceParam[Any],
    instrument: dg.ResourceParam[Any],
) -> dg.SensorResult:
    """One tick: the steps whose cause of waiting was removed after they looked.

    The cursor holds what was requested and still waits, so that runs that are queued, or were lost, do not
    take the place of others.
    """
    requested = set(json.loads(context.cursor or "[]"))
    with database.session() as session:
        rows: list[tuple[ReportRow, Any]] = [
            *_freed_by_masters(session, recipes, instrument),
            *_freed_by_references(session, recipes, instrument),
        ]
    newest = {(report.partition, report.ccd, report.step): (report, _run_key(report, made)) for report, made in rows}
    freed = {_digest(key): (report, key) for report, key in newest.values()}
    new = [
        digest
        for digest, (report, _) in freed.items()
        if digest not in requested and context.instance.has_dynamic_partition(partitions.EXPOSURE, report.partition)
    ][:MAX_REQUESTS]
    return dg.SensorResult(
        run_requests=[_request(*freed[digest], recipes) for digest in new],
        skip_reason=None if new else dg.SkipReason("nothing that waits can go on"),
        cursor=json.dumps(sorted(requested & freed.keys() | set(new))),
    )


def _run_key(report: ReportRow, product: ProductRow) -> str:
    """One request for every content of the product: what waits on in spite of it is not requested for it again."""
    return f"{report.partition}/{report.ccd}/{report.step}/{product.id}/{product.content_hash[:10]}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _request(report: ReportRow, run_key: str, recipes: Any) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=run_key,
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


def _freed_by_masters(session: Session, recipes: Any, instrument: Any) -> Iterator[tuple[ReportRow, MasterRow]]:
    """A master frees the exposures it is valid for, by the rules of `SurveyStore.master`."""
    of_filter = ExposureRow.filters.op("->>")(ReportRow.ccd)
    made_here = [recipe.id for name, recipe in recipes.items() if name.startswith("master_")]
    query = (
        _waiting(MasterRow, recipes, instrument)
        .where(ReportRow.waits_for == sa.func.concat("master_", MasterRow.kind, "//", MasterRow.ccd))
        .where(MasterRow.ccd == ReportRow.ccd)
        .where(sa.or_(MasterRow.provenance_id.in_(made_here), MasterRow.calibration_set == "external"))
        .where(MasterRow.valid_from <= ExposureRow.mjd, MasterRow.valid_to >= ExposureRow.mjd)
        .where(sa.or_(MasterRow.kind.in_(_WITHOUT_FILTER), MasterRow.filter == of_filter))
    )
    yield from ((report, master) for report, master in session.execute(query))


def _freed_by_references(session: Session, recipes: Any, instrument: Any) -> Iterator[tuple[ReportRow, ReferenceRow]]:
    """A reference frees what it can be subtracted from, by the rules of `SurveyStore.find_reference`."""
    min_overlap = recipes.parameters("diff").min_overlap
    query = (
        _waiting(ReferenceRow, recipes, instrument)
        .add_columns(WcsRow.corners)
        .join(WcsRow, sa.and_(WcsRow.partition == ReportRow.partition, WcsRow.ccd == ReportRow.ccd))
        .where(WcsRow.provenance_id == recipes["wcs"].id)
        .where(ReportRow.waits_for == sa.func.concat("reference/", ReferenceRow.filter, "/", ReportRow.ccd))
        .where(in_current_set(recipes))
        .where(sa.not_(ReferenceRow.members.has_key(ReportRow.partition)))
        .where(_is_near(ReferenceRow, WcsRow))
    )
    for report, reference, corners in session.execute(query.execution_options(yield_per=500)):
        if overlap_fraction(corners, reference.corners) >= min_overlap:
            yield report, reference


def _waiting(table: Any, recipes: Any, instrument: Any) -> sa.Select:
    """Every report of a step that waits, with every good product of `table` written since the step began."""
    seconds = sa.func.coalesce(ReportRow.seconds, 0.0) + COMMIT_MARGIN_S
    began = ReportRow.updated_at - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return (
        sa.select(ReportRow, table)
        .join(ExposureRow, ExposureRow.key == ReportRow.partition)
        .join(table, table.updated_at > began)
        .where(ReportRow.outcome == "waiting", ReportRow.provenance_id.in_([r.id for r in recipes.values()]))
        .where(ExposureRow.instrument == instrument.name, table.instrument == instrument.name, table.bitflag == 0)
        .where(~sa.exists().where(ExposureHoldRow.exposure == ReportRow.partition))
        .order_by(ReportRow.partition, ReportRow.ccd, ReportRow.step, table.updated_at)
    )


def _is_near(one: Any, other: Any) -> sa.ColumnElement[bool]:
    """The centres of two footprints lie within the search radius (spherical law of cosines)."""
    sind, cosd = sa.func.sind, sa.func.cosd
    along = cosd(one.dec_deg) * cosd(other.dec_deg) * cosd(one.ra_deg - other.ra_deg)
    return sind(one.dec_deg) * sind(other.dec_deg) + along > math.cos(math.radians(_SEARCH_RADIUS_DEG))
