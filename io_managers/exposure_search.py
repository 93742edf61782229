"""Exposures by their state, which no column holds: candidates by what the tables say, then each one's state."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from io_managers.nights import exposure_states
from seechange_assets.nights import ExposureState
from sql.models import AlertSetRow, ExposureClaimRow, ExposureRow, ReportRow

#: Exposures whose states are told together.
_PAGE = 200


def exposures_in_state(
    session: Session, recipes: Any, instrument: str, state: str, *, night: str | None = None, limit: int | None = None
) -> list[ExposureState]:
    """Science exposures in a state, newest first, at most `limit` of them however far back they are."""
    query = (
        sa.select(ExposureRow.key)
        .where(ExposureRow.instrument == instrument, ExposureRow.kind == "science", _can_be(state))
        .order_by(ExposureRow.mjd.desc(), ExposureRow.key)
    )
    keys = list(session.scalars(query if night is None else query.where(ExposureRow.night == night)))
    found: list[ExposureState] = []
    for start in range(0, len(keys), _PAGE):
        states = exposure_states(session, recipes, instrument, keys=keys[start : start + _PAGE])
        found += [one for one in states if one.state == state]
        if limit is not None and len(found) >= limit:
            break
    return found[:limit]


def _can_be(state: str) -> sa.ColumnElement[bool]:
    """What an exposure in this state fulfils, and few others do; see `io_managers.nights`."""
    key = ExposureRow.key
    if state == "done":
        return sa.true()
    if state == "waiting":
        return key.in_(_with_reports("waiting"))
    if state == "failed":
        lost = sa.select(ExposureClaimRow.exposure).where(ExposureClaimRow.expires_at.is_(None))
        return sa.or_(key.in_(_with_reports("failed")), key.in_(lost))
    n_ccds = sa.select(sa.func.count()).select_from(sa.func.jsonb_object_keys(ExposureRow.filters).alias())
    n_made = sa.func.count(AlertSetRow.ccd.distinct())
    told = sa.select(AlertSetRow.partition, n_made.label("n")).group_by(AlertSetRow.partition).subquery()
    n_all = n_ccds.correlate(ExposureRow).scalar_subquery()
    is_whole = sa.tuple_(key, n_all).in_(sa.select(told.c.partition, told.c.n))
    return sa.or_(~is_whole, key.in_(_with_reports("failed", "waiting")))


def _with_reports(*outcomes: str) -> sa.Select:
    return sa.select(ReportRow.partition).where(ReportRow.outcome.in_(outcomes))
