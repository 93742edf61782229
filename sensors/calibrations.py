"""A night's calibration frames become master frames once they are complete."""

import hashlib
import json
from collections import defaultdict
from datetime import date, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets import partitions
from sensors.runs import is_one_of
from sql.models import ExposureRow

#: No exposure for so long: the night is over.
NIGHT_OVER_S = 3 * 3600.0
#: Requests of a tick, in whole nights.
MAX_REQUESTS = 160
#: The newest masters of each kind go before live data (10), which would wait for them; older ones after it.
NEWEST_PRIORITY, OLDER_PRIORITY = "20", "5"

#: Run -> (frames per kind of master, CCDs).
_Runs = dict[str, tuple[dict[str, int], list[str]]]


@dg.sensor(
    job_name="build_masters",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Builds the masters of a night when its bias, dark and flat frames are there, of fringes at its end.",
)
def calibration_runs(
    context: dg.SensorEvaluationContext,
    database: dg.ResourceParam[Any],
    recipes: dg.ResourceParam[Any],
    instrument: dg.ResourceParam[Any],
    settings: dg.ResourceParam[Any],
) -> dg.SensorResult | dg.SkipReason:
    """One tick, the newest nights first. The cursor remembers the frames and recipes of each night's newest request.

    A change of recipe makes again what the nights in Dagster's window need; nights before it are left to a backfill.
    """
    requested: dict[str, str] = json.loads(context.cursor or "{}")
    runs = _complete_runs(database, recipes, instrument, settings.settle_s)
    held = _nights_held(context.instance, database)
    newest = _nearest(runs, max((_night(run) for run in runs), default=""))
    needed = newest.union(*(_nearest(runs, night) for night in held))
    requests: list[dg.RunRequest] = []
    for run in sorted(runs, reverse=True):
        counts, ccds = runs[run]
        wanted = _identity(counts, recipes)
        has_same_frames = requested.get(run, "").partition("/")[0] == wanted.partition("/")[0]
        if requested.get(run) == wanted or (has_same_frames and run not in needed):
            continue
        if requests and len(requests) + len(ccds) > MAX_REQUESTS:
            break
        requested[run] = wanted
        context.instance.add_dynamic_partitions(partitions.CALIBRATION, [run])
        priority = NEWEST_PRIORITY if run in newest else OLDER_PRIORITY
        requests += [_request(run, ccd, counts, wanted, priority) for ccd in ccds]
    if not requests:
        return dg.SkipReason("no new calibration frames")
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(requested))


def _nights_held(instance: dg.DagsterInstance, database: Any) -> set[str]:
    """Nights with an exposure that Dagster holds."""
    held = is_one_of(ExposureRow.key, instance.get_dynamic_partitions(partitions.EXPOSURE))
    with database.session() as session:
        return set(session.scalars(sa.select(ExposureRow.night).where(held).distinct()))


def _night(run: str) -> str:
    return run.partition(".")[0]


def _nearest(runs: _Runs, night: str) -> set[str]:
    """The runs whose masters serve a night: of each kind and filter those nearest in time, as images choose them."""
    by_kind: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for run, (counts, _) in runs.items():
        days = abs((date.fromisoformat(_night(run)) - date.fromisoformat(night)).days)
        for kind in counts:
            by_kind[kind, run.partition(".")[2]][run] = days
    return {run for days in by_kind.values() for run, away in days.items() if away == min(days.values())}


def _identity(counts: dict[str, int], recipes: Any) -> str:
    """What a night's masters are made from and how: another frame or recipe gives another text."""
    ids = " ".join(recipes[f"master_{kind}"].id for kind in counts)
    frames = "-".join(f"{kind}{n}" for kind, n in counts.items())
    return f"{frames}/{hashlib.sha256(ids.encode()).hexdigest()[:10]}"


def _request(night: str, ccd: str, counts: dict[str, int], identity: str, priority: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{night}/{ccd}/{identity}",
        partition_key=dg.MultiPartitionKey({"calibration": night, "ccd": ccd}),
        asset_selection=[dg.AssetKey(f"master_{kind}") for kind in counts],
        tags={"dagster/priority": priority, "night": night},
    )


def _complete_runs(database: Any, recipes: Any, instrument: Any, settle_s: float) -> _Runs:
    """(frames per kind of master, CCDs) of every run with enough frames, none younger than `settle_s`.

    A run is a night; with cameras that change filters, flats and fringes of each filter are a run ``night.filter``.
    """
    wanted = ["bias", "dark", "flat"]
    if "fringe" in recipes.parameters("image").steps:
        wanted.append("science")
    with database.session() as session:
        rows = session.execute(_frames_per_night(instrument.name, wanted)).all()
    unsettled = {row.night for row in rows if row.kind != "science" and row.age < timedelta(seconds=settle_s)}
    runs: dict[str, tuple[dict[str, int], set[str]]] = {}
    for row in rows:
        # A night's exposures go on for hours; its fringes are of use to later nights first of all.
        waits = row.age < timedelta(seconds=NIGHT_OVER_S) if row.kind == "science" else row.night in unsettled
        filters = json.loads(row.filters)
        for run, ccds in _runs_of(row.night, row.kind, filters, instrument).items():
            master = "fringe" if row.kind == "science" else row.kind
            if not waits and ccds:
                counts, all_ccds = runs.setdefault(run, ({}, set()))
                counts[master] = counts.get(master, 0) + row.frames
                all_ccds |= ccds
    enough = {
        run: {kind: n for kind, n in counts.items() if n >= recipes.parameters(f"master_{kind}").min_frames}
        for run, (counts, _) in runs.items()
    }
    return {run: (enough[run], sorted(ccds)) for run, (_, ccds) in runs.items() if enough[run]}


def _runs_of(night: str, kind: str, filters: dict[str, str], instrument: Any) -> dict[str, set[str]]:
    """The runs that frames of a kind belong to, and their CCDs; no fringes where the instrument skips them."""
    runs: dict[str, set[str]] = {}
    for ccd, name in filters.items():
        if kind == "science" and "fringe" in instrument.skip_by_filter.get(name, ()):
            continue
        by_filter = kind in ("flat", "science") and not instrument.filter_by_ccd
        runs.setdefault(f"{night}.{name}" if by_filter else night, set()).add(ccd)
    return runs


def _frames_per_night(instrument: str, kinds: list[str]) -> sa.Select:
    filters = sa.cast(ExposureRow.filters, sa.Text)
    return (
        sa.select(
            ExposureRow.night,
            ExposureRow.kind,
            sa.func.count().label("frames"),
            (sa.func.now() - sa.func.max(ExposureRow.created_at)).label("age"),
            filters.label("filters"),
        )
        .where(ExposureRow.kind.in_(kinds), ExposureRow.instrument == instrument, ExposureRow.bitflag == 0)
        .group_by(ExposureRow.night, ExposureRow.kind, filters)
        .order_by(ExposureRow.night, ExposureRow.kind, filters)
    )
