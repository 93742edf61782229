"""What is told of objects and measurements beside their photometry: identifications, cross-matches, changes."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from sql.base import Base, CreatedMixin


class IdentificationRow(CreatedMixin, Base):
    """The known thing that explains a measurement, which therefore makes no object.

    ``kind`` is ``minor_planet`` or ``moving_star``; position [deg] and magnitude are those predicted for
    the middle of the exposure from ``catalog``.
    """

    __tablename__ = "identifications"

    measurement_id: Mapped[uuid.UUID] = mapped_column(
        sa.ForeignKey("measurements.id", ondelete="CASCADE"), primary_key=True
    )
    kind: Mapped[str] = mapped_column(sa.String(16))
    name: Mapped[str] = mapped_column(sa.String(80), index=True)
    ra: Mapped[float]
    dec: Mapped[float]
    separation_arcsec: Mapped[float]
    mag: Mapped[float | None]
    catalog: Mapped[str] = mapped_column(sa.String(120))


class CrossMatchRow(CreatedMixin, Base):
    """A catalogue source near an object, stored once; rank 0 is the nearest of its kind.

    ``kind`` is ``gaia``, ``reference`` (the sources of the reference image) or ``galaxy`` (an external catalogue);
    ``star_score`` is 1 for a star and 0 for what is extended. A row without position says that the
    catalogue was asked and has nothing within its radius.
    """

    __tablename__ = "object_cross_matches"

    object_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("objects.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    catalog: Mapped[str] = mapped_column(sa.String(120))
    name: Mapped[str | None] = mapped_column(sa.String(80))
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    separation_arcsec: Mapped[float | None]
    mag: Mapped[float | None]
    star_score: Mapped[float | None]


class ObjectChangeRow(CreatedMixin, Base):
    """A merge or split that a person asked for: which measurements went from ``other_id`` to ``object_id``, and why."""

    __tablename__ = "object_changes"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    action: Mapped[str] = mapped_column(sa.String(16))
    object_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("objects.id"))
    other_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("objects.id"))
    measurements: Mapped[list[str]]
    reason: Mapped[str]


def insert_identifications(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write identifications; a measurement that has one keeps it."""
    if rows:
        session.execute(insert(IdentificationRow).on_conflict_do_nothing(), [dict(row) for row in rows])


def objects_without(session: Session, ids: Sequence[uuid.UUID], kind: str) -> set[uuid.UUID]:
    """Those of these objects for which a catalogue has not been asked."""
    row = CrossMatchRow
    known = session.scalars(sa.select(row.object_id).where(row.object_id.in_(list(ids)), row.kind == kind))
    return set(ids) - set(known)


def insert_cross_matches(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write cross-matches; what an object has stays."""
    if rows:
        session.execute(insert(CrossMatchRow).on_conflict_do_nothing(), [dict(row) for row in rows])


def cross_matches(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[dict[str, Any]]]:
    """Catalogue sources near each object, by kind, nearest first."""
    names = ("kind", "rank", "catalog", "name", "ra", "dec", "separation_arcsec", "mag", "star_score")
    row = CrossMatchRow
    query = (
        sa.select(row.object_id, *(getattr(row, name) for name in names))
        .where(row.object_id.in_(list(ids)), row.ra.is_not(None))
        .order_by(row.object_id, row.kind, row.rank)
    )
    found: dict[uuid.UUID, list[dict[str, Any]]] = {}
    for item in session.execute(query).mappings():
        found.setdefault(item["object_id"], []).append({name: item[name] for name in names})
    return found
