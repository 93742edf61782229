"""The outbox of alerts, and the queries that fill a packet.

A packet is committed to the outbox before anything is sent (Richardson's transactional
outbox): a broker that is down delays alerts and loses none.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from sql.base import Base, CreatedMixin, ProductRow
from sql.copying import copy_rows
from sql.lineage import hold_flags, is_made_of_flagged
from sql.models import AlertSetRow, AssociationSetRow, DifferenceRow, ExposureRow, ForcedPhotometrySetRow
from sql.object_records import IdentificationRow
from sql.objects import ForcedPhotometryRow, MeasurementRow, ObjectRow
from sql.sky import cone_condition, separation_deg

Row = Mapping[str, Any]
#: Bulk statements here run on sessions that have loaded none of the rows they change.
_IN_DATABASE = {"synchronize_session": False}
#: First key of the advisory locks on the outbox; the second stands for an exposure and CCD.
OUTBOX_LOCK = 7317
#: Why a message is withheld.
REPEATED, FLAGGED = "repeated", "flagged"


class OutboxRow(CreatedMixin, Base):
    """One message to send: ``sent_at`` is set when the broker has acknowledged it.

    ``packet`` is what goes over the wire, in the ``wire_format`` of its ``stream``. ``sequence`` is the order of
    sending. ``is_withheld``: the detection at ``ra, dec`` of this exposure and CCD was told on this stream before,
    by another recipe or run, or what it was made of is flagged bad, so it is not sent unless somebody asks;
    ``withheld_for`` says which: `REPEATED`, or `FLAGGED`, which ends with the flag.
    ``queued_at`` is when it was committed or asked for again. ``broker_partition`` and ``broker_offset`` say where the
    broker put it.
    """

    __tablename__ = "alerts_outbox"
    __table_args__ = (
        sa.Index(
            "ix_alerts_outbox_unsent", "sequence", postgresql_where=sa.text("sent_at IS NULL AND NOT is_withheld")
        ),
        sa.Index("ix_alerts_outbox_partition", "exposure", "ccd"),
    )

    alert_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(sa.String(32), primary_key=True, server_default="main")
    sequence: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), unique=True)
    measurement_id: Mapped[uuid.UUID]
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), index=True)
    exposure: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    topic: Mapped[str] = mapped_column(sa.String(80), index=True)
    key: Mapped[str] = mapped_column(sa.String(80))
    schema_name: Mapped[str] = mapped_column(sa.String(32))
    wire_format: Mapped[str] = mapped_column(sa.String(16), server_default="bare")
    via: Mapped[str] = mapped_column(sa.String(16), server_default="kafka")
    packet: Mapped[bytes]
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    is_withheld: Mapped[bool] = mapped_column(server_default=sa.false())
    withheld_for: Mapped[str | None] = mapped_column(sa.String(16))
    queued_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    attempted_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    last_error: Mapped[str | None]
    broker_partition: Mapped[int | None]
    broker_offset: Mapped[int | None] = mapped_column(sa.BigInteger)


class AlertFileRow(CreatedMixin, Base):
    """The Avro container file in the archive with all packets of one CCD under one recipe."""

    __tablename__ = "alert_files"
    __table_args__ = (sa.UniqueConstraint("partition", "ccd", "provenance_id"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    partition: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), index=True)
    filepath: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    n_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    n_alerts: Mapped[int]


def commit_alerts(session: Session, rows: Sequence[Row], *, radius_arcsec: float = 2.0, resend: bool = False) -> int:
    """Put the messages of one exposure and CCD into the outbox; those already there stay untouched.

    A detection that was told before on the same stream, within `radius_arcsec`, by other alerts of this exposure
    and CCD is withheld, unless `resend`. So is everything made of a product
    that is flagged bad. Reruns that commit at the same time take turns.

    Returns
    -------
    int
        How many are new and will be sent.
    """
    if not rows:
        return 0
    o = OutboxRow
    place = sa.func.hashtext(f"{rows[0]['exposure']}/{rows[0]['ccd']}")
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(OUTBOX_LOCK, place)))
    hold_flags(session)
    is_flagged = is_made_of_flagged(session, rows[0]["exposure"], rows[0]["ccd"], rows[0]["provenance_id"])
    here = (o.exposure == rows[0]["exposure"], o.ccd == rows[0]["ccd"])
    told = session.execute(sa.select(o.alert_id, o.stream, o.ra, o.dec, o.is_withheld).where(*here)).all()
    known = {(row.alert_id, row.stream) for row in told}
    new = [
        dict(row, is_withheld=False, withheld_for=None) for row in rows if (row["alert_id"], row["stream"]) not in known
    ]
    ours = {row["alert_id"] for row in rows}
    others = [row for row in told if row.alert_id not in ours and not row.is_withheld and row.ra is not None]
    for stream in {row["stream"] for row in new}:
        mine = [row for row in new if row["stream"] == stream]
        before = [row for row in others if row.stream == stream]
        for row, is_told in zip(mine, _within(mine, before, radius_arcsec), strict=True):
            is_repeated = bool(is_told) and not resend
            row["is_withheld"] = is_flagged or is_repeated
            row["withheld_for"] = REPEATED if is_repeated else FLAGGED if is_flagged else None
    copy_rows(session, o, new)
    return sum(not row["is_withheld"] for row in new)


def _within(rows: Sequence[Row], told: Sequence[Any], radius_arcsec: float) -> NDArray[np.bool_]:
    """Which rows lie within a distance of anything told."""
    near = np.zeros(len(rows), bool)
    if not told:
        return near
    there = _unit(np.array([row.ra for row in told]), np.array([row.dec for row in told])).T
    farthest = 1.0 - np.cos(np.deg2rad(radius_arcsec / 3600.0))  # 5e-11 for 2 arcsec: far above rounding
    for start in range(0, len(rows), 500):
        part = rows[start : start + 500]
        here = _unit(np.array([row["ra"] for row in part]), np.array([row["dec"] for row in part]))
        near[start : start + 500] = (1.0 - here @ there <= farthest).any(axis=1)
    return near


def withhold_flagged(session: Session, alert_sets: Iterable[uuid.UUID]) -> None:
    """Withhold what is unsent of those of these sets of alerts that are flagged bad or inherit that."""
    a, o = AlertSetRow, OutboxRow
    statement = sa.update(o).where(
        o.exposure == a.partition, o.ccd == a.ccd, o.provenance_id == a.provenance_id, a.bitflag != 0,
        a.id.in_(list(alert_sets)), o.sent_at.is_(None), ~o.is_withheld,
    )  # fmt: skip
    session.execute(statement.values(is_withheld=True, withheld_for=FLAGGED), execution_options=_IN_DATABASE)


def release_unflagged(session: Session, alert_sets: Iterable[uuid.UUID], *, radius_arcsec: float = 2.0) -> int:
    """Let go what was withheld for flags that are gone from these sets of alerts; returns how many messages.

    What another recipe has told of the same detection meanwhile stays withheld, as a repetition.
    """
    a, o = AlertSetRow, OutboxRow
    of_set = sa.and_(o.exposure == a.partition, o.ccd == a.ccd, o.provenance_id == a.provenance_id)
    free = (a.id.in_(list(alert_sets)), a.bitflag == 0, o.withheld_for == FLAGGED)
    rows = session.execute(sa.select(o.sequence, o.stream, o.exposure, o.ccd, o.ra, o.dec).join(a, of_set).where(*free))
    released: list[int] = []
    for (stream, exposure, ccd), mine in _by_place(dict(row) for row in rows.mappings()).items():
        here = (o.stream == stream, o.exposure == exposure, o.ccd == ccd, ~o.is_withheld, o.ra.is_not(None))
        is_told = _within(mine, session.execute(sa.select(o.ra, o.dec).where(*here)).all(), radius_arcsec)
        repeated = [row["sequence"] for row, is_one in zip(mine, is_told, strict=True) if is_one]
        released += [row["sequence"] for row, is_one in zip(mine, is_told, strict=True) if not is_one]
        _update(session, repeated, withheld_for=REPEATED)
    _update(session, released, is_withheld=False, withheld_for=None, queued_at=sa.func.now())
    return len(released)


def _by_place(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Messages of each stream, exposure and CCD."""
    grouped: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["stream"], row["exposure"], row["ccd"]].append(row)
    return grouped


def _update(session: Session, sequences: Sequence[int], **values: Any) -> None:
    if sequences:
        statement = sa.update(OutboxRow).where(OutboxRow.sequence.in_(sequences)).values(**values)
        session.execute(statement, execution_options=_IN_DATABASE)


def known_alert_file(session: Session, **where: str) -> int | None:
    """How many alerts the container file of this partition, CCD and provenance holds; None without one."""
    return session.scalar(sa.select(AlertFileRow.n_alerts).filter_by(**where))


def insert_alert_file(session: Session, row: Row) -> None:
    """Write the row of a container file, over the one of the same partition, CCD and provenance."""
    statement = insert(AlertFileRow).values(**row)
    changed = {name: statement.excluded[name] for name in ("sha256", "n_bytes", "n_alerts")}
    session.execute(statement.on_conflict_do_update(index_elements=[AlertFileRow.id], set_=changed))


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
        .where(OutboxRow.sent_at.is_(None), ~OutboxRow.is_withheld, OutboxRow.sequence > after)
        .order_by(OutboxRow.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(query))


def mark_attempted(session: Session, answers: Sequence[tuple[int, str, int | None, int | None]]) -> None:
    """Record what the broker said of each row: (sequence, error or "", partition, offset)."""
    columns = [list(column) for column in zip(*answers, strict=True)]
    kinds = (sa.BigInteger, sa.String, sa.Integer, sa.BigInteger)
    arrays: list[Any] = [sa.cast(column, ARRAY(kind)) for column, kind in zip(columns, kinds, strict=True)]
    told = sa.func.unnest(*arrays).table_valued("sequence", "error", "part", "position").render_derived()
    o = OutboxRow
    now = sa.func.clock_timestamp()
    statement = sa.update(o).where(o.sequence == sa.cast(told.c.sequence, sa.BigInteger))
    statement = statement.values(
        attempts=o.attempts + 1,
        attempted_at=now,
        last_error=sa.func.nullif(told.c.error, ""),
        sent_at=sa.case((told.c.error == "", now), else_=o.sent_at),
        broker_partition=told.c.part,
        broker_offset=told.c.position,
    )
    session.execute(statement, execution_options=_IN_DATABASE)


def refused_lately(session: Session, seconds: float) -> bool:
    """Whether a message that waits now was tried in vain less than so long ago."""
    o = OutboxRow
    recent = o.attempted_at > sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    waits = sa.select(sa.literal(1)).where(o.sent_at.is_(None), ~o.is_withheld, recent).limit(1)
    return session.scalar(waits) is not None


def requeue(session: Session, *conditions: sa.ColumnElement[bool], withheld: bool = False) -> int:
    """Mark messages unsent, so that the relay sends the same bytes with the same ids (again).

    Parameters
    ----------
    withheld : bool
        Also those that were withheld.
    """
    o = OutboxRow
    chosen = sa.or_(o.sent_at.is_not(None), o.is_withheld) if withheld else o.sent_at.is_not(None)
    statement = sa.update(o).where(chosen, *conditions).values(
        sent_at=None, last_error=None, broker_partition=None, broker_offset=None, is_withheld=False, withheld_for=None,
        queued_at=sa.func.now(),
    )  # fmt: skip
    return len(session.execute(statement.returning(o.alert_id), execution_options=_IN_DATABASE).all())


def taken_in_night(night: str) -> sa.ColumnElement[bool]:
    """The condition that a message is of an exposure of this night (``YYYYMMDD`` or ``YYYY-MM-DD``)."""
    digits = sa.func.replace(ExposureRow.night, "-", "")
    return OutboxRow.exposure.in_(sa.select(ExposureRow.key).where(digits == night.replace("-", "")))


def outbox_status(session: Session) -> list[dict[str, Any]]:
    """Per topic: how many are sent, pending and withheld, how old the oldest is, the latency, the newest error.

    ``latency_s`` and ``latency_95_s``: median and 95th percentile from commit to acknowledgement [s].
    """
    o = OutboxRow
    waits = sa.and_(o.sent_at.is_(None), ~o.is_withheld)
    latency = sa.extract("epoch", o.sent_at - o.queued_at)
    query = (
        sa.select(
            o.topic,
            sa.func.count().filter(o.sent_at.is_not(None)).label("sent"),
            sa.func.count().filter(waits).label("pending"),
            sa.func.count().filter(o.is_withheld).label("withheld"),
            sa.func.min(o.queued_at).filter(waits).label("oldest_pending"),
            sa.extract("epoch", sa.func.clock_timestamp() - sa.func.min(o.queued_at).filter(waits)).label(
                "oldest_pending_s"
            ),
            sa.func.percentile_cont(0.5).within_group(latency).label("latency_s"),
            sa.func.percentile_cont(0.95).within_group(latency).label("latency_95_s"),
            sa.func.max(o.attempts).filter(waits).label("attempts"),
            sa.func.max(o.last_error).filter(waits).label("last_error"),
        )
        .group_by(o.topic)
        .order_by(o.topic)
    )
    rounded = {"oldest_pending_s", "latency_s", "latency_95_s"}
    return [
        {name: round(float(v), 3) if name in rounded and v is not None else v for name, v in item.items()}
        for item in session.execute(query).mappings()
    ]


def sources_with_objects(session: Session, measurement_ids: Sequence[uuid.UUID]) -> list[tuple[Row, Row]]:
    """Measurement and object of each id that is linked, in the order of time and detection."""
    m, o = MeasurementRow.__table__, ObjectRow.__table__
    query = (
        sa.select(*m.c, *o.c)
        .join_from(m, o, o.c.id == m.c.object_id)
        .where(m.c.id.in_(list(measurement_ids)))
        .order_by(m.c.mjd_mid, m.c.ccd, m.c.detection)
    )
    n, found = len(m.c), session.execute(query).all()
    return [(dict(zip(m.c.keys(), row[:n], strict=True)), dict(zip(o.c.keys(), row[n:], strict=True))) for row in found]


def earlier_sources(
    session: Session, object_ids: Sequence[uuid.UUID], provenance_id: str, before_mjd: float, days: float
) -> dict[uuid.UUID, list[Row]]:
    """Kept measurements of each object, of one recipe, in the window before a time, oldest first.

    ``is_flagged`` stands beside the columns: true for what is flagged bad, or made of it.
    """
    row = MeasurementRow
    query = (
        sa.select(*row.__table__.c, is_flagged(row, AssociationSetRow).label("is_flagged"))
        .where(row.object_id.in_(list(object_ids)), row.provenance_id == provenance_id)
        .where(row.mjd_mid < before_mjd, row.mjd_mid >= before_mjd - days)
        .order_by(row.mjd_mid, row.ccd, row.detection)
    )
    return _by_object(dict(row) for row in session.execute(query).mappings())


def forced_sources(
    session: Session, object_ids: Sequence[uuid.UUID], provenance_id: str, until_mjd: float, days: float
) -> dict[uuid.UUID, list[Row]]:
    """Good forced photometry of each object, of one recipe, in the window up to a time (included), oldest first."""
    row = ForcedPhotometryRow
    query = (
        sa.select(*row.__table__.c)
        .where(~is_flagged(row, ForcedPhotometrySetRow))
        .where(row.object_id.in_(list(object_ids)), row.provenance_id == provenance_id, row.flux_psf.is_not(None))
        .where(row.mjd_mid <= until_mjd, row.mjd_mid >= until_mjd - days)
        .order_by(row.mjd_mid, row.ccd)
    )
    return _by_object(dict(row) for row in session.execute(query).mappings())


def is_flagged(row: type[MeasurementRow | ForcedPhotometryRow], product: type[ProductRow]) -> sa.ColumnElement[bool]:
    """The condition that the product a row belongs to is flagged bad, or inherits that."""
    same = (product.partition == row.exposure, product.ccd == row.ccd, product.provenance_id == row.provenance_id)
    return sa.exists().where(*same, product.bitflag != 0)


def identifications(session: Session, measurement_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Row]:
    """The known moving thing that explains each measurement, where there is one."""
    row = IdentificationRow
    found = session.scalars(sa.select(row).where(row.measurement_id.in_(list(measurement_ids))))
    return {item.measurement_id: _columns(item) for item in found}


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


def _by_object(rows: Iterable[Row]) -> dict[uuid.UUID, list[Row]]:
    grouped: dict[uuid.UUID, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["object_id"]].append(row)
    return dict(grouped)


def _columns(row: Base) -> Row:
    """The row as plain values, usable after the session is closed."""
    return {column.key: getattr(row, column.key) for column in sa.inspect(type(row)).column_attrs}
