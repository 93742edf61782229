"""How far the exposures of a night are, from the survey's own tables: claims, holds, reports and products."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.orm import Session

from io_managers.claims import CLAIM_LASTS
from io_managers.references import in_current_set
from seechange_assets.nights import CcdState, ExposureState
from sql.models import AlertSetRow, ExposureClaimRow, ExposureHoldRow, ExposureRow, ReferenceRow, ReportRow

#: The step that ends the chain of a CCD.
LAST_STEP = "alerts"
#: An image that is part of its reference is finished: what could come is a reference without it.
MEMBER = "it is part of its reference, and nothing is subtracted from itself"
#: A backfill would not find it: where nothing was made, nothing is stale.
LOST = "its run ended without a word; `seechange process {exposure} --ccd {ccd}` makes it"

_Key = tuple[str, str]


def exposure_states(
    session: Session,
    recipes: Any,
    instrument: str,
    *,
    night: str | None = None,
    keys: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[ExposureState]:
    """State of science exposures, newest first.

    Parameters
    ----------
    recipes : seechange_assets.provenance.Recipes
        What counts as done; where only other recipes have made the alerts, they count too (see `stale`).
    night, keys : only these exposures.
    limit : at most so many, the newest.
    """
    chosen = sa.select(ExposureRow.key).where(ExposureRow.instrument == instrument, ExposureRow.kind == "science")
    if night is not None:
        chosen = chosen.where(ExposureRow.night == night)
    if keys is not None:
        chosen = chosen.where(ExposureRow.key.in_(list(keys)))
    chosen = chosen.order_by(ExposureRow.mjd.desc(), ExposureRow.key).limit(limit)
    rows = session.execute(
        sa.select(ExposureRow, ExposureHoldRow.reason, ExposureClaimRow)
        .outerjoin(ExposureHoldRow, ExposureHoldRow.exposure == ExposureRow.key)
        .outerjoin(ExposureClaimRow, ExposureClaimRow.exposure == ExposureRow.key)
        .where(ExposureRow.key.in_(chosen))
        .order_by(ExposureRow.mjd.desc(), ExposureRow.key)
    ).all()
    facts = _Facts(session, recipes, chosen)
    return [
        ExposureState(
            exposure=row.key,
            night=row.night,
            mjd=row.mjd,
            registered_at=row.created_at,
            held=held,
            ccds=tuple(facts.state_of((row.key, ccd), held, claim) for ccd in sorted(row.filters)),
        )
        for row, held, claim in rows
    ]


class _Facts:
    """What the tables say of every CCD of the chosen exposures."""

    def __init__(self, session: Session, recipes: Any, chosen: sa.Select[Any]) -> None:
        self._ids = {name: recipe.id for name, recipe in recipes.items()}
        report, alerts = ReportRow, AlertSetRow
        is_recent = sa.func.max(report.updated_at) > sa.func.now() - CLAIM_LASTS
        begun = sa.select(report.partition, report.ccd, is_recent).where(report.partition.in_(chosen))
        begun = begun.group_by(report.partition, report.ccd)
        #: What has begun, and whether a step of it has reported so lately that it may be at work.
        self._begun = {(partition, ccd): recently for partition, ccd, recently in session.execute(begun)}
        self._problems: Mapping[_Key, list[ReportRow]] = defaultdict(list)
        query = sa.select(report).where(report.partition.in_(chosen), report.outcome != "computed")
        for row in session.scalars(query.order_by(report.updated_at.desc())):
            self._problems[row.partition, row.ccd].append(row)
        made = sa.select(alerts.partition, alerts.ccd, alerts.provenance_id, alerts.materialized_at)
        self._done: Mapping[_Key, dict[str, Any]] = defaultdict(dict)
        for partition, ccd, provenance_id, at in session.execute(made.where(alerts.partition.in_(chosen))):
            self._done[partition, ccd][provenance_id] = at
        self._members = _members(session, recipes, {key for key, rows in self._problems.items() if _waits(rows)})

    def state_of(self, key: _Key, held: str | None, claim: ExposureClaimRow | None) -> CcdState:
        """The newest word counts: alerts under the recipes in force, then what stopped these recipes, then the past."""
        ccd, made = key[1], self._done.get(key, {})
        problems = self._problems.get(key, [])
        current = [row for row in problems if row.provenance_id == self._ids.get(row.step)]
        done_at = made.get(self._ids[LAST_STEP])
        stopped = next((row for row in current if done_at is None or row.updated_at > done_at), None)
        if stopped is None and not made and problems:
            stopped = problems[0]
        if stopped is not None:
            is_member = stopped.outcome == "waiting" and key in self._members
            outcome, reason = ("done", MEMBER) if is_member else (stopped.outcome, _reason(stopped))
            return CcdState(ccd, outcome, stopped.step, reason)
        if made:
            return CcdState(ccd, "done")
        is_settled = claim is not None and claim.expires_at is None
        if is_settled and not self._begun.get(key):  # what waited goes on after its exposure was settled
            return CcdState(ccd, "failed", None, LOST.format(exposure=key[0], ccd=ccd))
        if key in self._begun:
            return CcdState(ccd, "running")
        if claim is not None:
            return CcdState(ccd, "claimed")
        return CcdState(ccd, "ready" if held is None else "held")


def _waits(rows: Sequence[ReportRow]) -> bool:
    return any(row.outcome == "waiting" and row.step == "diff" for row in rows)


def _members(session: Session, recipes: Any, waiting: set[_Key]) -> set[_Key]:
    """Those of the images that a reference in use has been made of."""
    if not waiting:
        return set()
    member = sa.func.jsonb_array_elements_text(ReferenceRow.members).label("member")
    query = sa.select(member, ReferenceRow.ccd).where(in_current_set(recipes), ReferenceRow.bitflag == 0)
    query = query.where(ReferenceRow.members.has_any(array(sorted({key for key, _ in waiting}))))
    return {(key, ccd) for key, ccd in session.execute(query)} & waiting


def _reason(row: ReportRow) -> str:
    return f"{row.error}: {row.message}" if row.error and row.outcome == "failed" else str(row.message)
