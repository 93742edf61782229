"""What failed for a reason that passes is requested again: a full disk when there is room, an outage after a pause.

Dagster itself tries a failed run again twice, at once. An outage lasts longer: of the catalogue or a service minutes,
of workers as long as a machine takes to come back. Pauses grow to an hour within the first half hour, and to a day
after a day: nobody has to remember what an outage of a weekend left undone, and what can never end well, such as a
CCD that kills its worker, costs one run a day until its night leaves Dagster's window.

How often something has been repeated stands in a tag of the run that failed, so nothing has to be kept about it here.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from io_managers.staleness import dimension_of
from seechange_assets import partitions
from seechange_assets.errors import OUTAGES, MasterNotFound, StorageFull
from sensors.runs import UNFINISHED, in_work, is_one_of
from sensors.waiting import descendants
from sql.models import ExposureHoldRow, ExposureRow, ReportRow

#: Repetitions of a kind that are queued or at work at once: those that fail again must not crowd out everything else.
MAX_REQUESTS = 160
#: All products of a CCD take less than this many times the bytes of its raw pixels.
PRODUCTS_PER_RAW = 40
#: A failure younger than this is left alone: others may be failing yet, and Dagster may be about to try again.
PAUSE = timedelta(seconds=15)
#: How old a failure must be after so many repetitions; the last holds for all that follow.
PAUSES = (
    PAUSE,
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
    *[timedelta(hours=1)] * 24,
    timedelta(days=1),
)
#: Tag of a run: how many repetitions after pauses it is the last of.
ATTEMPT_TAG = "seechange/attempt"
#: Failures that pass, by the class name in their rows; those of Python and of the database's driver are connections
#: and mounts that broke under a step.
_OUTAGES = (
    *(error.__name__ for error in OUTAGES),
    *("OSError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError", "ConnectionAbortedError"),
    *("BrokenPipeError", "TimeoutError", "OperationalError", "InterfaceError", "DatabaseError"),
)
#: Below live data (10); what makes masters and references keeps the priority that its run had.
_PRIORITY = "5"


def _sensor(name: str, job_name: str, dimension: str) -> dg.SensorDefinition:
    """The sensor of the steps that a job makes; `dimension` is that of its partitions beside the CCD."""

    def tick(context: dg.SensorEvaluationContext, store: dg.ResourceParam[Any]) -> dg.SensorResult:
        """The oldest failures first. The time of the failure is in the run key: each is requested again once.

        The cursor holds what was requested and has not been at work since: those whose run somebody canceled do not
        take the place of others.
        """
        requested = set(json.loads(context.cursor or "[]"))
        limit = _n_free(context.instance, job_name)
        due = {_digest(report): report for report in _due(context.instance, store, dimension, limit, len(requested))}
        new = _at_rest(context.instance, dimension, [due[digest] for digest in due if digest not in requested][:limit])
        runs = _runs(context.instance, new.values())
        told = "nothing that failed can be tried again now"
        return dg.SensorResult(
            run_requests=[
                _request(report, key, runs.get(report.run_id or ""), store.recipes) for key, report in new.items()
            ],
            skip_reason=None if new else dg.SkipReason(told),
            cursor=json.dumps(sorted(requested & due.keys() | {_digest(report) for report in new.values()})),
        )

    return dg.sensor(
        name=name,
        job_name=job_name,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests again what failed in an outage, after a pause, or for want of room, when there is room.",
    )(tick)


repeat_exposures = _sensor("repeat_exposures", "process_ccd", partitions.EXPOSURE)
repeat_masters = _sensor("repeat_masters", "build_masters", partitions.CALIBRATION)
repeat_references = _sensor("repeat_references", "build_reference", partitions.FIELD_FILTER)


def _digest(report: ReportRow) -> str:
    told = f"{report.partition}/{report.ccd}/{report.step}/{report.updated_at.timestamp():.6f}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _at_rest(
    instance: dg.DagsterInstance, dimension: str, reports: Iterable[ReportRow]
) -> dict[dg.MultiPartitionKey, ReportRow]:
    """The failures by partition, without those that somebody is working on."""
    keys = {dg.MultiPartitionKey({dimension: report.partition, "ccd": report.ccd}): report for report in reports}
    busy = in_work(instance, keys)
    return {key: report for key, report in keys.items() if str(key) not in busy}


def _due(instance: dg.DagsterInstance, store: Any, dimension: str, limit: int, n_requested: int) -> list[ReportRow]:
    """Failures whose time has come, the oldest first: as many as may be requested, and those that have been."""
    held = instance.get_dynamic_partitions(dimension)
    failed = _failed(store, dimension, held)
    full, broken = ReportRow.error == StorageFull.__name__, ReportRow.error != StorageFull.__name__
    with store.database.session() as session:
        errors = set(session.scalars(failed.with_only_columns(ReportRow.error).distinct()))
    found: list[ReportRow] = []
    if StorageFull.__name__ in errors:
        found += _rows(store, failed.where(full), min(limit, _n_fitting(store)))
    if errors - {StorageFull.__name__}:
        resting = _resting(instance, datetime.now(UTC))
        is_rested = sa.not_(is_one_of(sa.func.coalesce(ReportRow.run_id, ""), resting))
        found += _rows(store, failed.where(broken, is_rested), limit + n_requested)
    return sorted(found, key=lambda report: report.updated_at)


def _failed(store: Any, dimension: str, held: Collection[str]) -> sa.Select[Any]:
    """Steps of these partitions that failed so under the recipes in force, of exposures that nobody holds back.

    Among them masters that are made with one of another run, which is being made: images that miss one wait for it
    (`sensors.waiting`), masters fail.
    """
    recipes = {name: recipe.id for name, recipe in store.recipes.items() if dimension_of(name) == dimension}
    report = ReportRow
    passes: sa.ColumnElement[bool] = report.error.in_([*_OUTAGES, StorageFull.__name__])
    if dimension == partitions.CALIBRATION:
        passes |= sa.and_(report.error == MasterNotFound.__name__, report.waits_for.is_not(None))
    return (
        sa.select(report)
        .where(report.outcome == "failed", passes)
        .where(sa.tuple_(report.step, report.provenance_id).in_(list(recipes.items())))
        .where(report.updated_at < sa.func.now() - PAUSE)
        .where(is_one_of(report.partition, held))
        .where(~sa.exists().where(ExposureHoldRow.exposure == report.partition))
    )


def _rows(store: Any, query: sa.Select[Any], limit: int) -> list[ReportRow]:
    with store.database.session() as session:
        return list(session.scalars(query.order_by(ReportRow.updated_at).limit(limit)))


def _resting(instance: dg.DagsterInstance, now: datetime) -> list[str]:
    """Runs that were repetitions, and ended too short a time ago to be repeated."""
    attempts: dict[timedelta, list[str]] = defaultdict(list)
    for attempt, pause in enumerate(PAUSES):
        if attempt:  # of runs that were none, the row says how long ago they failed
            attempts[pause].append(str(attempt))
    return [
        run_id
        for pause, numbers in attempts.items()
        for run_id in instance.get_run_ids(dg.RunsFilter(tags={ATTEMPT_TAG: numbers}, updated_after=now - pause))
    ]


def _n_free(instance: dg.DagsterInstance, job_name: str) -> int:
    numbers = [str(attempt) for attempt in range(1, len(PAUSES))]
    unfinished = dg.RunsFilter(job_name=job_name, statuses=UNFINISHED, tags={ATTEMPT_TAG: numbers})
    return max(0, MAX_REQUESTS - instance.get_runs_count(unfinished))


def _n_fitting(store: Any) -> int:
    """CCDs whose products there is room for, by the newest exposure."""
    room = store.archive.free_bytes()
    newest = sa.select(ExposureRow).where(ExposureRow.instrument == store.instrument)
    with store.database.session() as session:
        exposure = session.scalar(newest.order_by(ExposureRow.sequence.desc()).limit(1))
    if room is None or exposure is None:
        return MAX_REQUESTS
    return int(room / (PRODUCTS_PER_RAW * exposure.n_bytes / max(1, len(exposure.filters))))


def _runs(instance: dg.DagsterInstance, reports: Iterable[ReportRow]) -> dict[str, dg.DagsterRun]:
    """The runs that failed, as far as Dagster has them still."""
    run_ids = [report.run_id for report in reports if report.run_id]
    return {run.run_id: run for run in instance.get_runs(dg.RunsFilter(run_ids=run_ids))} if run_ids else {}


def _request(report: ReportRow, key: dg.MultiPartitionKey, run: dg.DagsterRun | None, recipes: Any) -> dg.RunRequest:
    """The step and what its run would have made after it."""
    tags = dict(run.tags) if run is not None else {}
    attempt = int(tags.get(ATTEMPT_TAG, "0"))
    of_exposure = dimension_of(report.step) == partitions.EXPOSURE
    told = {"dagster/priority": _PRIORITY if of_exposure else tags.get("dagster/priority", _PRIORITY)}
    if report.error != StorageFull.__name__:
        attempt = min(attempt + 1, len(PAUSES) - 1)
    if attempt:
        told |= {ATTEMPT_TAG: str(attempt), "dagster/max_retries": "0"}  # the pauses stand in for Dagster's retries
    return dg.RunRequest(
        run_key=f"{report.partition}/{report.ccd}/{report.step}/{attempt}/{report.updated_at.timestamp():.6f}",
        partition_key=key,
        asset_selection=[dg.AssetKey(name) for name in _assets(report.step, run, recipes)],
        tags=told,
    )


def _assets(step: str, run: dg.DagsterRun | None, recipes: Any) -> list[str]:
    """The step and, in the order of the pipeline, what follows of the run's selection; of a run of all, everything."""
    if run is not None and run.asset_selection:
        wanted = {asset.path[-1] for asset in run.asset_selection}
    else:
        wanted = set(descendants(step, recipes))
    order = [name for name in recipes if dimension_of(name) == dimension_of(step)]
    return [step, *(name for name in order[order.index(step) + 1 :] if name in wanted)]
