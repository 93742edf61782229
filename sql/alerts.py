"""The outbox of alerts, and the queries that fill a packet.

A packet is committed to the outbox before anything is sent (Richardson's transactional
outbox): a broker that is down delays alerts and loses none.
"""

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from sql.base import Base, CreatedMixin
from sql.models import DifferenceRow, ExposureRow
from sql.objects import ForcedPhotometryRow, MeasurementRow, ObjectRow
from sql.sky import cone_condition, separation_deg

Row = Mapping[str, Any]
#: Bulk statements here run on sessions that have loaded none of the rows they change.
_IN_DATABASE = {"synchronize_session": False}


class OutboxRow(CreatedMixin, Base):
    """One packet to send: ``sent_at`` is set when the broker has acknowledged it.

    ``sequence`` is the order of sending. ``broker_partition`` and ``broker_offset`` say where the
    broker put it.
    """

    __tablename__ = "alerts_outbox"
    __table_args__ = (
        sa.UniqueConstraint("measurement_id", "topic"),
        sa.Index("ix_alerts_outbox_unsent", "sequence", postgresql_where=sa.text("sent_at IS NULL")),
        sa.Index("ix_alerts_outbox_partition", "exposure", "ccd"),
    )

    alert_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), unique=True)
    measurement_id: Mapped[uuid.UUID]
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), index=True)
    exposure: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    topic: Mapped[str] = mapped_column(sa.String(80), index=True)
    key: Mapped[str] = mapped_column(sa.String(80))
    schema_name: Mapped[str] = mapped_column(sa.String(32))
    packet: Mapped[bytes]
    sent_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    last_error: Mapped[str | None]
    broker_partition: Mapped[int | None]
    broker_offset: Mapped[int | None] = mapped_column(sa.BigInteger)


def commit_alerts(session: Session, rows: Sequence[Row]) -> int:
    """Put packets into the outbox; those already there stay untouched. Returns how many are new."""
    if not rows:
        return 0
    statement = insert(OutboxRow).on_conflict_do_nothing().returning(OutboxRow.alert_id)
    return len(session.execute(statement, [dict(row) for row in rows]).all())


def packet_sizes(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """Bytes of each packet in the outbox."""
    query = sa.select(OutboxRow.alert_id, sa.func.length(OutboxRow.packet).label("size"))
    rows = session.execute(query.where(OutboxRow.alert_id.in_(list(ids))))
    return {row.alert_id: row.size for row in rows}


def forget_undetected(session: Session, ids: Sequence[uuid.UUID]) -> None:
    """Delete those of these objects that have no measurement, with their forced photometry.

    An object that a packet in the outbox names keeps its row, with ``n_detections`` 0: others know its name.
    """
    if not ids:
        return
    o, m, f = ObjectRow, MeasurementRow, ForcedPhotometryRow
    undetected = (o.id.in_(list(ids)), ~sa.exists().where(m.object_id == o.id))
    session.execute(sa.update(o).where(*undetected).values(n_detections=0), execution_options=_IN_DATABASE)
    unnamed = sa.select(o.id).where(*undetected, ~sa.exists().where(OutboxRow.key == o.name))
    forgotten = session.scalars(unnamed).all()
    session.execute(sa.delete(f).where(f.object_id.in_(forgotten)), execution_options=_IN_DATABASE)
    session.execute(sa.delete(o).where(o.id.in_(forgotten)), execution_options=_IN_DATABASE)


def claim_unsent(session: Session, limit: int, after: int = 0) -> list[OutboxRow]:
    """The oldest unsent packets with ``sequence > after``, locked; those another relay holds are skipped."""
    query = (
        sa.select(OutboxRow)
        .where(OutboxRow.sent_at.is_(None), OutboxRow.sequence > after)
        .order_by(OutboxRow.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(query))


def requeue(session: Session, *conditions: sa.ColumnElement[bool]) -> int:
    """Mark sent packets unsent, so that the relay sends the same bytes with the same ids again."""
    statement = sa.update(OutboxRow).where(OutboxRow.sent_at.is_not(None), *conditions)
    statement = statement.values(sent_at=None, last_error=None, broker_partition=None, broker_offset=None)
    return len(session.execute(statement.returning(OutboxRow.alert_id)).all())


def outbox_status(session: Session) -> list[dict[str, Any]]:
    """Per topic: how many are sent and pending, since when, and the newest error of a pending one."""
    row = OutboxRow
    pending = row.sent_at.is_(None)
    query = (
        sa.select(
            row.topic,
            sa.func.count().filter(~pending).label("sent"),
            sa.func.count().filter(pending).label("pending"),
            sa.func.min(row.created_at).filter(pending).label("oldest_pending"),
            sa.func.max(row.attempts).filter(pending).label("attempts"),
            sa.func.max(row.last_error).filter(pending).label("last_error"),
        )
        .group_by(row.topic)
        .order_by(row.topic)
    )
    return [dict(item) for item in session.execute(query).mappings()]


def sources_with_objects(session: Session, measurement_ids: Sequence[uuid.UUID]) -> list[tuple[Row, Row]]:
    """Measurement and object of each id that is linked, in the order of time and detection."""
    query = (
        sa.select(MeasurementRow, ObjectRow)
        .join(ObjectRow, ObjectRow.id == MeasurementRow.object_id)
        .where(MeasurementRow.id.in_(list(measurement_ids)))
        .order_by(MeasurementRow.mjd_mid, MeasurementRow.ccd, MeasurementRow.detection)
    )
    return [(_columns(source), _columns(item)) for source, item in session.execute(query).all()]


def earlier_sources(
    session: Session, object_ids: Sequence[uuid.UUID], provenance_id: str, before_mjd: float, days: float
) -> dict[uuid.UUID, list[Row]]:
    """Kept measurements of each object, of one recipe, in the window before a time, oldest first."""
    row = MeasurementRow
    query = (
        sa.select(row)
        .where(row.object_id.in_(list(object_ids)), row.provenance_id == provenance_id)
        .where(row.mjd_mid < before_mjd, row.mjd_mid >= before_mjd - days)
        .order_by(row.mjd_mid, row.ccd, row.detection)
    )
    return _by_object(session.scalars(query))


def forced_sources(
    session: Session, object_ids: Sequence[uuid.UUID], provenance_id: str, until_mjd: float, days: float
) -> dict[uuid.UUID, list[Row]]:
    """Forced photometry of each object, of one recipe, in the window up to a time (included), oldest first."""
    row = ForcedPhotometryRow
    query = (
        sa.select(row)
        .where(row.object_id.in_(list(object_ids)), row.provenance_id == provenance_id, row.flux_psf.is_not(None))
        .where(row.mjd_mid <= until_mjd, row.mjd_mid >= until_mjd - days)
        .order_by(row.mjd_mid, row.ccd)
    )
    return _by_object(session.scalars(query))


def difference_limits(
    session: Session, exposure: str, ccd: str, provenance_id: str, before_mjd: float, days: float
) -> list[Row]:
    """Differences of one recipe around this one, in the window before a time, oldest first.

    Each has ``exposure, ccd, mjd_mid, filter, limiting_magnitude, corners``.
    """
    row = DifferenceRow
    own = session.execute(
        sa.select(row.ra_deg, row.dec_deg, row.corners).where(
            row.partition == exposure, row.ccd == ccd, row.provenance_id == provenance_id
        )
    ).first()
    if own is None:
        return []
    # Footprints of one instrument are alike: centres of those that overlap are within two half diagonals.
    half_diagonal = np.max(separation_deg(own.ra_deg, own.dec_deg, own.corners["ra"], own.corners["dec"]))
    mjd_mid = (row.mjd + sa.func.coalesce(ExposureRow.exptime_s, 0.0) / 172800.0).label("mjd_mid")
    query = (
        sa.select(row.partition.label("exposure"), row.ccd, mjd_mid, row.filter, row.limiting_magnitude, row.corners)
        .outerjoin(ExposureRow, ExposureRow.key == row.partition)
        .where(row.provenance_id == provenance_id, row.limiting_magnitude.is_not(None), row.bitflag == 0)
        .where(row.mjd >= before_mjd - days, mjd_mid < before_mjd)
        .where(cone_condition(row.healpix, own.ra_deg, own.dec_deg, 2.1 * float(half_diagonal)))
        .order_by(mjd_mid, row.ccd)
    )
    return [dict(item) for item in session.execute(query).mappings()]


def covered(corners: Sequence[Mapping[str, list[float]]], ra: float, dec: float) -> NDArray[np.bool_]:
    """Which of these convex footprints contain a position: it lies on one side of all four great circles."""
    if len(corners) == 0:
        return np.zeros(0, bool)
    polygon = _unit(np.array([c["ra"] for c in corners]), np.array([c["dec"] for c in corners]))
    side = np.cross(polygon, np.roll(polygon, -1, axis=1)) @ _unit(np.asarray(ra), np.asarray(dec))
    same_side = (side >= 0).all(axis=1) | (side <= 0).all(axis=1)
    in_front: NDArray[np.bool_] = polygon.mean(axis=1) @ _unit(np.asarray(ra), np.asarray(dec)) > 0
    return same_side & in_front


def _unit(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    alpha, delta = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(delta) * np.cos(alpha), np.cos(delta) * np.sin(alpha), np.sin(delta)], axis=-1)


def _by_object(rows: Any) -> dict[uuid.UUID, list[Row]]:
    grouped: dict[uuid.UUID, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.object_id].append(_columns(row))
    return dict(grouped)


def _columns(row: Base) -> Row:
    """The row as plain values, usable after the session is closed."""
    return {column.key: getattr(row, column.key) for column in sa.inspect(type(row)).column_attrs}
