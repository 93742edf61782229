"""Which exposures have been requested (claimed), and which are held back.

A claim is written while a sensor's tick is evaluated, before Dagster has its runs. The tick's name goes into the
sensor's cursor, which Dagster commits when the runs exist: a claim whose tick never shows up there is repeated at once,
under the same run keys, so whatever had been submitted is not submitted again.
"""

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from resources.database import Database
from seechange_assets.errors import ProductNotFound
from sql.models import ExposureClaimRow, ExposureHoldRow, ExposureRow

#: A claim is looked at after this time: its CCDs have ended, are queued or at work, or their runs were lost.
CLAIM_LASTS = timedelta(minutes=30)


class Claims:
    """Claims and holds on the science exposures of one instrument."""

    def __init__(self, database: Database, instrument: str) -> None:
        self._database, self._instrument = database, instrument

    def confirm(self, tick: str) -> None:
        """Dagster has committed this tick: its runs exist."""
        statement = sa.update(ExposureClaimRow).where(ExposureClaimRow.tick == tick)
        statement = statement.where(~ExposureClaimRow.is_confirmed).values(is_confirmed=True)
        with self._database.session() as session:
            session.execute(statement)

    def open(self, after: int, limit: int) -> tuple[list[ExposureRow], int]:
        """(the oldest exposures to request, the sequence up to which every exposure is claimed).

        Parameters
        ----------
        after : int
            Sequence that an earlier call returned; exposures up to it are not looked at.
        """
        free = (
            sa.select(ExposureRow)
            .outerjoin(ExposureClaimRow, ExposureClaimRow.exposure == ExposureRow.key)
            .where(ExposureRow.sequence > after, ExposureRow.instrument == self._instrument)
            .where(ExposureRow.kind == "science", sa.not_(sa.func.coalesce(ExposureClaimRow.is_confirmed, False)))
        )
        held = sa.exists().where(ExposureHoldRow.exposure == ExposureRow.key)
        with self._database.session() as session:
            oldest_free = session.scalar(free.with_only_columns(sa.func.min(ExposureRow.sequence)))
            newest = session.scalar(sa.select(sa.func.max(ExposureRow.sequence)))
            query = free.where(~held).order_by(ExposureRow.mjd, ExposureRow.key).limit(limit)
            rows = list(session.scalars(query))
        return rows, (newest or after) if oldest_free is None else oldest_free - 1

    def claim(self, exposures: Sequence[str], tick: str) -> None:
        """Write claims of a tick that Dagster has not committed yet."""
        if not exposures:
            return
        expires = sa.func.now() + CLAIM_LASTS
        values = [{"exposure": key, "tick": tick, "expires_at": expires} for key in exposures]
        statement = insert(ExposureClaimRow).values(values)
        new = {"tick": tick, "is_confirmed": False, "expires_at": expires}
        with self._database.session() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["exposure"], set_=new))

    def expired(self, limit: int) -> list[tuple[ExposureRow, int]]:
        """(exposure, attempt) of the claims to look at, the longest expired first."""
        claim = ExposureClaimRow
        query = (
            sa.select(ExposureRow, claim.attempt)
            .join(claim, claim.exposure == ExposureRow.key)
            .where(claim.is_confirmed, claim.expires_at < sa.func.now(), ExposureRow.instrument == self._instrument)
            .order_by(claim.expires_at)
            .limit(limit)
        )
        with self._database.session() as session:
            return [(row, attempt) for row, attempt in session.execute(query)]

    def settle(self, exposure: str) -> None:
        """Nothing more is requested for this exposure."""
        with self._database.session() as session:
            session.execute(_claim_of(exposure).values(expires_at=None))

    def renew(self, exposure: str, attempt: int) -> None:
        """Look at the claim again later; `attempt` counts the requests so far."""
        with self._database.session() as session:
            session.execute(_claim_of(exposure).values(expires_at=sa.func.now() + CLAIM_LASTS, attempt=attempt))

    def hold(self, exposures: Sequence[str], reason: str = "") -> int:
        """Hold exposures back; what is claimed already goes on. Returns how many were not held before.

        Raises
        ------
        ProductNotFound
            One of them is not registered; none is held then.
        """
        with self._database.session() as session:
            self._check_known(session, exposures)
            statement = insert(ExposureHoldRow).on_conflict_do_nothing().returning(ExposureHoldRow.exposure)
            return len(session.execute(statement, [{"exposure": e, "reason": reason} for e in set(exposures)]).all())

    def release(self, exposures: Sequence[str]) -> int:
        """Let held exposures go. Returns how many were held.

        Raises
        ------
        ProductNotFound
            One of them is not registered; none is released then.
        """
        with self._database.session() as session:
            self._check_known(session, exposures)
            statement = sa.delete(ExposureHoldRow).where(ExposureHoldRow.exposure.in_(list(exposures)))
            return len(session.execute(statement.returning(ExposureHoldRow.exposure)).all())

    def keys_of_night(self, night: str) -> list[str]:
        """Keys of the science exposures of a night."""
        query = sa.select(ExposureRow.key).where(ExposureRow.night == night, ExposureRow.kind == "science")
        with self._database.session() as session:
            return list(session.scalars(query.where(ExposureRow.instrument == self._instrument)))

    def _check_known(self, session: Session, exposures: Sequence[str]) -> None:
        query = sa.select(ExposureRow.key).where(ExposureRow.key.in_(list(exposures)))
        unknown = sorted(set(exposures) - set(session.scalars(query.where(ExposureRow.kind == "science"))))
        if unknown:
            raise ProductNotFound(f"{unknown[0]!r:.90} is not a registered science exposure; see `seechange exposures`")


def _claim_of(exposure: str) -> sa.Update:
    return sa.update(ExposureClaimRow).where(ExposureClaimRow.exposure == exposure)
