"""Partitions that wait for a master or a reference run on when it appears."""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from io_managers.references import in_current_set
from seechange_assets import partitions
from sensors.runs import is_one_of
from sql.base import ProductRow
from sql.models import ExposureHoldRow, ExposureRow, MasterRow, ReferenceRow, ReportRow, WcsRow
from sql.sky import overlap_fraction, separation_deg

MAX_REQUESTS = 160
#: A product counts as new to a step if it was committed after the step began; this much may lie between a
#: transaction's time and its commit, or between the end of a step and its report [s].
COMMIT_MARGIN_S = 30.0
#: Masters of these kinds serve every filter.
_WITHOUT_FILTER = ("bias", "dark")
#: Footprints whose centres are farther apart than this cannot overlap [deg]; no CCD here is larger.
_SEARCH_RADIUS_DEG = 2.5

#: Centres are not exactly in the middle of their corners.
_MARGIN = 1.1
#: Rows read at once.
_CHUNK = 500
#: A report that waits, a product that it may be waiting for, and whether that serves it: asked last, it costs most.
_Freed = tuple[ReportRow, ProductRow, Callable[[], bool]]


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
    held = context.instance.get_dynamic_partitions(partitions.EXPOSURE)
    new: dict[str, dg.RunRequest] = {}
    still_waiting: set[str] = set()
    with database.session() as session:
        groups = itertools.chain(
            _by_report(_freed_by_masters(session, recipes, instrument, held)),
            _by_report(_freed_by_references(session, recipes, instrument, held)),
        )
        for freed in groups:
            digest, request = _newest(freed, requested, recipes)
            if request is not None:
                new[digest] = request
            still_waiting.add(digest)
            if len(new) == MAX_REQUESTS:
                still_waiting |= requested  # nobody has looked at the rest
                break
    return dg.SensorResult(
        run_requests=list(new.values()),
        skip_reason=None if new else dg.SkipReason("nothing that waits can go on"),
        cursor=json.dumps(sorted(requested & still_waiting | new.keys())),
    )


def _by_report(freed: Iterator[_Freed]) -> Iterator[list[_Freed]]:
    """What frees each report, the newest first."""
    for _, group in itertools.groupby(freed, key=lambda one: (one[0].partition, one[0].ccd, one[0].step)):
        yield list(group)


def _newest(freed: list[_Freed], requested: Collection[str], recipes: Any) -> tuple[str, dg.RunRequest | None]:
    """(digest, request) of the newest product that frees a report; no request if it was made before, or none does."""
    for report, product, serves in freed:
        key = _run_key(report, product)
        digest = _digest(key)
        if digest in requested:
            return digest, None
        if serves():
            return digest, _request(report, key, recipes)
    return "", None


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


def _freed_by_masters(session: Session, recipes: Any, instrument: Any, held: Collection[str]) -> Iterator[_Freed]:
    """A master frees the exposures it is valid for, by the rules of `SurveyStore.master`."""
    of_filter = ExposureRow.filters.op("->>")(ReportRow.ccd)
    made_here = [recipe.id for name, recipe in recipes.items() if name.startswith("master_")]
    query = (
        _waiting(MasterRow, recipes, instrument, held)
        .where(ReportRow.waits_for == sa.func.concat("master_", MasterRow.kind, "//", MasterRow.ccd))
        .where(MasterRow.ccd == ReportRow.ccd)
        .where(sa.or_(MasterRow.provenance_id.in_(made_here), MasterRow.calibration_set == "external"))
        .where(MasterRow.valid_from <= ExposureRow.mjd, MasterRow.valid_to >= ExposureRow.mjd)
        .where(sa.or_(MasterRow.kind.in_(_WITHOUT_FILTER), MasterRow.filter == of_filter))
    )
    for report, master in session.execute(query.execution_options(yield_per=_CHUNK)):
        yield report, master, lambda: True


def _freed_by_references(session: Session, recipes: Any, instrument: Any, held: Collection[str]) -> Iterator[_Freed]:
    """A reference frees what it can be subtracted from, by the rules of `SurveyStore.find_reference`."""
    min_overlap = recipes.parameters("diff").min_overlap
    query = (
        _waiting(ReferenceRow, recipes, instrument, held)
        .add_columns(WcsRow)
        .join(WcsRow, sa.and_(WcsRow.partition == ReportRow.partition, WcsRow.ccd == ReportRow.ccd))
        .where(WcsRow.provenance_id == recipes["wcs"].id)
        .where(ReportRow.waits_for == sa.func.concat("reference/", ReferenceRow.filter, "/", ReportRow.ccd))
        .where(in_current_set(recipes))
        .where(sa.not_(ReferenceRow.members.has_key(ReportRow.partition)))
        .where(_is_near(ReferenceRow, WcsRow))
    )
    for report, reference, wcs in session.execute(query.execution_options(yield_per=_CHUNK)):
        yield report, reference, functools.partial(_covers, reference, wcs, min_overlap)


def _covers(reference: ReferenceRow, image: WcsRow, min_overlap: float) -> bool:
    """Whether a reference covers enough of an image; most neighbours are told by their distance, which costs little.

    What covers more than half of a rectangle and is convex has the rectangle's centre in it.
    """
    away_deg = separation_deg(reference.ra_deg, reference.dec_deg, image.ra_deg, image.dec_deg)
    if min_overlap > 0.5 and away_deg > _MARGIN * _reach_deg(reference):
        return False
    return overlap_fraction(image.corners, reference.corners) >= min_overlap


def _reach_deg(reference: ReferenceRow) -> float:
    """Distance of the farthest corner from the centre."""
    corners = reference.corners
    return float(separation_deg(reference.ra_deg, reference.dec_deg, corners["ra"], corners["dec"]).max())


def _waiting(table: Any, recipes: Any, instrument: Any, held: Collection[str]) -> sa.Select:
    """Every report of a step that waits, with every good product of `table` written since the step began.

    Only of exposures that Dagster holds: those of old nights wait by the thousand and cannot be requested.
    """
    seconds = sa.func.coalesce(ReportRow.seconds, 0.0) + COMMIT_MARGIN_S
    began = ReportRow.updated_at - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return (
        sa.select(ReportRow, table)
        .join(ExposureRow, ExposureRow.key == ReportRow.partition)
        .join(table, table.updated_at > began)
        .where(ReportRow.outcome == "waiting", ReportRow.provenance_id.in_([r.id for r in recipes.values()]))
        .where(is_one_of(ReportRow.partition, held))
        .where(ExposureRow.instrument == instrument.name, table.instrument == instrument.name, table.bitflag == 0)
        .where(~sa.exists().where(ExposureHoldRow.exposure == ReportRow.partition))
        .order_by(ReportRow.partition, ReportRow.ccd, ReportRow.step, table.updated_at.desc())
    )


def _is_near(one: Any, other: Any) -> sa.ColumnElement[bool]:
    """The centres of two footprints lie within the search radius (spherical law of cosines)."""
    sind, cosd = sa.func.sind, sa.func.cosd
    along = cosd(one.dec_deg) * cosd(other.dec_deg) * cosd(one.ra_deg - other.ra_deg)
    return sind(one.dec_deg) * sind(other.dec_deg) + along > math.cos(math.radians(_SEARCH_RADIUS_DEG))
