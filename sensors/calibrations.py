"""A night's calibration frames become master frames once they are complete."""

import hashlib
import json
from datetime import timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from seechange_assets import partitions
from sql.models import ExposureRow

#: No exposure for so long: the night is over.
NIGHT_OVER_S = 3 * 3600.0


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
    """One tick. The cursor remembers the frames and recipes of each night's newest request."""
    requested: dict[str, str] = json.loads(context.cursor or "{}")
    requests: list[dg.RunRequest] = []
    for night, counts, ccds in _complete_runs(database, recipes, instrument, settings.settle_s):
        wanted = _identity(counts, recipes)
        if requested.get(night) == wanted:
            continue
        requested[night] = wanted
        context.instance.add_dynamic_partitions(partitions.CALIBRATION, [night])
        requests += [_request(night, ccd, counts, wanted) for ccd in ccds]
    if not requests:
        return dg.SkipReason("no new calibration frames")
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(requested))


def _identity(counts: dict[str, int], recipes: Any) -> str:
    """What a night's masters are made from and how: another frame or recipe gives another text."""
    ids = " ".join(recipes[f"master_{kind}"].id for kind in counts)
    frames = "-".join(f"{kind}{n}" for kind, n in counts.items())
    return f"{frames}/{hashlib.sha256(ids.encode()).hexdigest()[:10]}"


def _request(night: str, ccd: str, counts: dict[str, int], identity: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{night}/{ccd}/{identity}",
        partition_key=dg.MultiPartitionKey({"calibration": night, "ccd": ccd}),
        asset_selection=[dg.AssetKey(f"master_{kind}") for kind in counts],
        tags={"dagster/priority": "20", "night": night},
    )


def _complete_runs(
    database: Any, recipes: Any, instrument: Any, settle_s: float
) -> list[tuple[str, dict[str, int], list[str]]]:
    """(run, frames per kind of master, CCDs) of every run with enough frames, none younger than `settle_s`.

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
    return [(run, enough[run], sorted(ccds)) for run, (_, ccds) in sorted(runs.items()) if enough[run]]


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
