"""What the survey is doing now: states, throughput, latency, the oldest that waits, failures by reason."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from io_managers.nights import exposure_states
from seechange_assets.nights import ExposureState
from sql.alerts import OutboxRow
from sql.models import AlertSetRow, ExposureRow, RejectedFileRow, ReportRow

#: What happened in this time is told.
SINCE = timedelta(hours=24)
#: Newest exposures whose states are counted: a night of LS4.
N_EXPOSURES = 600
_UNIX_EPOCH_MJD, _SECONDS_PER_DAY = 40587.0, 86400.0
_PERCENTILES = {"p50_s": 0.5, "p98_s": 0.98}
_OPEN = frozenset({"ready", "claimed", "running"})


def activity(session: Session, recipes: Any, instrument: str) -> dict[str, Any]:
    """Numbers of the last 24 hours, ready for JSON.

    Returns
    -------
    dict
        ``exposures``: how many of the newest 600 are in which state; ``ccds_per_hour``: CCDs that reached their
        alerts in the last hour; ``shutter_to_alert`` and ``arrival_to_alert``: seconds to the committed alerts of a
        CCD, ``shutter_to_delivery``: to the broker's acknowledgement of an alert, each with ``n``, ``p50_s``,
        ``p98_s``; ``oldest_open`` and ``oldest_waiting``: exposure and age; ``failures``: step, error and count.
    """
    states = exposure_states(session, recipes, instrument, limit=N_EXPOSURES)
    now = session.scalar(sa.select(sa.func.now()))
    shutter = sa.func.to_timestamp((ExposureRow.mjd - _UNIX_EPOCH_MJD) * _SECONDS_PER_DAY + ExposureRow.exptime_s)
    return {
        "exposures": dict(Counter(state.state for state in states)),
        "ccds_per_hour": _n_recent(session, instrument, timedelta(hours=1)),
        "shutter_to_alert": _latency(session, instrument, AlertSetRow, AlertSetRow.created_at, shutter),
        "arrival_to_alert": _latency(session, instrument, AlertSetRow, AlertSetRow.created_at, ExposureRow.created_at),
        "shutter_to_delivery": _latency(session, instrument, OutboxRow, OutboxRow.sent_at, shutter),
        "oldest_open": _oldest(states, _OPEN, now),
        "oldest_waiting": _oldest(states, frozenset({"waiting"}), now),
        "failures": _failures(session, instrument),
    }


def _n_recent(session: Session, instrument: str, since: timedelta) -> int:
    query = (
        sa.select(sa.func.count())
        .select_from(AlertSetRow)
        .join(ExposureRow, ExposureRow.key == AlertSetRow.partition)
        .where(ExposureRow.instrument == instrument, AlertSetRow.created_at > sa.func.now() - since)
    )
    return session.scalar(query) or 0


def _latency(session: Session, instrument: str, table: Any, end: Any, start: Any) -> dict[str, float | int | None]:
    """Percentiles of ``end - start`` [s] of what ended in the last 24 hours."""
    exposure = table.partition if table is AlertSetRow else table.exposure
    seconds = sa.func.extract("epoch", end - start)
    query = (
        sa.select(sa.func.count(), *(sa.func.percentile_cont(p).within_group(seconds) for p in _PERCENTILES.values()))
        .select_from(table)
        .join(ExposureRow, ExposureRow.key == exposure)
        .where(ExposureRow.instrument == instrument, end > sa.func.now() - SINCE)
    )
    n, *values = session.execute(query).one()
    rounded = [None if value is None else round(float(value), 1) for value in values]
    return {"n": n, **dict(zip(_PERCENTILES, rounded, strict=True))}


def _oldest(states: Sequence[ExposureState], wanted: frozenset[str], now: Any) -> dict[str, Any] | None:
    """The exposure that has been known longest among those with a CCD in one of these states."""
    found = [state for state in states if wanted & state.counts.keys()]
    if not found:
        return None
    oldest = min(found, key=lambda state: state.registered_at)
    age_s = round((now - oldest.registered_at).total_seconds(), 1)
    reason = next((ccd.reason for ccd in oldest.ccds if ccd.state in wanted and ccd.reason), None)
    return {"exposure": oldest.exposure, "state": oldest.state, "age_s": age_s, "reason": reason}


def _failures(session: Session, instrument: str) -> list[dict[str, Any]]:
    report, count = ReportRow, sa.func.count()
    query = (
        sa.select(report.step, report.error, count.label("ccds"), sa.func.max(report.message).label("example"))
        .join(ExposureRow, ExposureRow.key == report.partition)
        .where(ExposureRow.instrument == instrument, report.outcome == "failed")
        .where(report.updated_at > sa.func.now() - SINCE)
        .group_by(report.step, report.error)
        .order_by(count.desc(), report.step)
    )
    return [dict(row) for row in session.execute(query).mappings()]


def refused(session: Session) -> dict[str, Any]:
    """Files refused in the last 24 hours: how many, and the newest with its reason; each content counts once."""
    row = RejectedFileRow
    recent = row.created_at > sa.func.now() - SINCE
    n = session.scalar(sa.select(sa.func.count()).select_from(row).where(recent))
    age_s = sa.func.extract("epoch", sa.func.now() - row.created_at).label("age_s")
    newest = sa.select(row.name, row.error, row.message, age_s).where(recent).order_by(row.created_at.desc()).limit(1)
    one = session.execute(newest).mappings().first()
    return {"refused": n or 0, "newest": one and {**one, "age_s": round(float(one["age_s"]), 1)}}


def queue(session: Session) -> dict[str, int]:
    """Runs of Dagster that wait and that are at work.

    Parameters
    ----------
    session : of Dagster's database.
    """
    finished = "'SUCCESS', 'FAILURE', 'CANCELED'"
    query = sa.text(f"select status, count(*) from runs where status not in ({finished}) group by 1")  # noqa: S608
    found = {status: n for status, n in session.execute(query)}  # noqa: C416  (rows are no pairs to mypy)
    n_waiting = sum(found.get(status, 0) for status in ("NOT_STARTED", "QUEUED"))
    return {"queued": n_waiting, "at_work": sum(found.values()) - n_waiting}
