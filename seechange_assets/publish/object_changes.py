"""Objects split and merged by a person, with a record of it."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from seechange_assets.errors import InvalidRequest, ProductNotFound
from seechange_assets.names import printable

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from resources.database import Database
    from sql.objects import MeasurementRow, ObjectRow


def merge_objects(database: "Database", name: str, other: str, reason: str) -> int:
    """Give all measurements of one object to another. Returns how many.

    The other object keeps its row, its name and its forced photometry; who asks for it is shown the one it was merged
    into, and what is detected at its place from now on belongs to that one.

    Raises
    ------
    ProductNotFound
        For an unknown name.
    InvalidRequest
        If both are one object already, or one is a test object and the other is not.
    """
    from sql import objects as sky
    from sql.object_records import ObjectChangeRow

    with database.session() as session:
        kept, given = _objects(session, [name, other])
        if kept.id == given.id:
            raise InvalidRequest(f"{name!r} and {other!r} are one object already")
        if (kept.is_test, kept.is_fake) != (given.is_test, given.is_fake):
            raise InvalidRequest(
                f"{name!r} and {other!r} are of different kinds: test, fake and real objects stay apart"
            )
        moved = _measurements(session, sky.MeasurementRow.object_id == given.id)
        _move(session, moved, kept.id)
        earlier = sa.update(sky.ObjectRow).where(sky.ObjectRow.merged_into == given.id)
        session.execute(earlier.values(merged_into=kept.id), execution_options={"synchronize_session": False})
        given.merged_into = kept.id
        given.n_detections = 0
        session.add(_change(ObjectChangeRow, "merge", kept.id, given.id, moved, reason))
        session.flush()
        _refresh(session, [kept.id])
    return len(moved)


def split_object(
    database: "Database", name: str, measurements: Sequence[str], reason: str, name_format: str = "SC{year}{letters}"
) -> str:
    """Make a new object of some measurements of another. Returns its name.

    Raises
    ------
    ProductNotFound
        For an unknown name.
    InvalidRequest
        For a measurement that is not the object's, and if none would be left to it.
    """
    from sql import objects as sky
    from sql.object_records import ObjectChangeRow

    wanted = {_uuid(text) for text in measurements}
    with database.session() as session:
        (source,) = _objects(session, [name])
        mine = _measurements(session, sky.MeasurementRow.object_id == source.id)
        moved = [row for row in mine if row.id in wanted]
        strange = wanted - {row.id for row in moved}
        if strange:
            raise InvalidRequest(f"{min(strange)} is no measurement of {source.name}")
        if not moved or len(moved) == len(mine):
            raise InvalidRequest(f"name some, but not all, of the {len(mine)} measurements of {source.name}")
        made = _create(session, source, moved, name_format)
        _move(session, moved, made.id)
        _hand_over_places(session, source, made)
        session.add(_change(ObjectChangeRow, "split", made.id, source.id, moved, reason))
        session.flush()
        _refresh(session, [source.id, made.id])
        return made.name


def changes_of(database: "Database", name: str) -> list[dict[str, Any]]:
    """Merges and splits in which an object took part, oldest first."""
    from sql.object_records import ObjectChangeRow
    from sql.objects import ObjectRow

    change, into, origin = ObjectChangeRow, sa.orm.aliased(ObjectRow), sa.orm.aliased(ObjectRow)
    query = (
        sa.select(
            change.created_at, change.action, into.name.label("object"), origin.name.label("other"),
            sa.func.jsonb_array_length(change.measurements).label("measurements"), change.reason,
        )
        .join(into, into.id == change.object_id)
        .join(origin, origin.id == change.other_id)
        .where((into.name == name) | (origin.name == name))
        .order_by(change.id)
    )  # fmt: skip
    with database.session() as session:
        return [dict(row) for row in session.execute(query).mappings()]


def _objects(session: "Session", names: Sequence[str]) -> "list[ObjectRow]":
    """The objects, as they are after earlier merges, with the sky around them locked."""
    import numpy as np

    from sql.light_curves import object_named
    from sql.objects import lock_sky, neighbourhood

    found = [object_named(session, name) for name in names]
    ra, dec = np.array([(o.ra, o.dec) for o in found], float).T
    lock_sky(session, *neighbourhood(ra, dec, 2.0 / 3600.0))
    for row in found:
        session.refresh(row)
    return found


def _measurements(session: "Session", condition: Any) -> "list[MeasurementRow]":
    from sql.objects import MeasurementRow

    query = sa.select(MeasurementRow).where(condition).order_by(MeasurementRow.mjd_mid, MeasurementRow.id)
    return list(session.scalars(query))


def _move(session: "Session", rows: "Sequence[MeasurementRow]", target: uuid.UUID) -> None:
    for row in rows:
        row.object_id = target
    session.flush()


def _create(session: "Session", source: "ObjectRow", rows: "Sequence[MeasurementRow]", name_format: str) -> "ObjectRow":
    """A new object at the place of the first of the measurements."""
    from seechange_assets.publish.object_names import date_of, object_name
    from sql.base import deterministic_id
    from sql.objects import ObjectRow, reserve_names
    from sql.sky import healpix_of

    first = rows[0]
    assert first.ra is not None
    assert first.dec is not None
    number = reserve_names(session, date_of(first.mjd_mid).year, 1)
    made = ObjectRow(
        id=deterministic_id("split", *(row.id for row in rows), number),
        name=object_name(name_format, first.mjd_mid, number, first.ra, first.dec),
        ra=first.ra, dec=first.dec, healpix=healpix_of(first.ra, first.dec), mean_ra=first.ra, mean_dec=first.dec,
        first_mjd=first.mjd_mid, last_mjd=rows[-1].mjd_mid, n_detections=0, is_test=source.is_test,
        is_fake=source.is_fake, is_bad=False, exposure=first.exposure, ccd=first.ccd,
        provenance_id=first.provenance_id,
    )  # fmt: skip
    session.add(made)
    session.flush()
    return made


def _hand_over_places(session: "Session", source: "ObjectRow", made: "ObjectRow") -> None:
    """Objects merged into the source of a split that lie nearer to the new object belong to that one from now on."""
    from sql.objects import ObjectRow
    from sql.sky import separation_deg

    for row in session.scalars(sa.select(ObjectRow).where(ObjectRow.merged_into == source.id)):
        to_made = separation_deg(row.ra, row.dec, made.ra, made.dec)
        if to_made < separation_deg(row.ra, row.dec, source.ra, source.dec):
            row.merged_into = made.id
    session.flush()


def _change(
    table: Any, action: str, target: uuid.UUID, origin: uuid.UUID, rows: "Sequence[MeasurementRow]", reason: str
) -> Any:
    ids = [str(row.id) for row in rows]
    return table(action=action, object_id=target, other_id=origin, measurements=ids, reason=printable(reason, 1000))


def _refresh(session: "Session", ids: Sequence[uuid.UUID]) -> None:
    from seechange_assets.publish.positions import refresh_objects

    session.expire_all()
    refresh_objects(session, sorted(ids))


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ProductNotFound(f"{text!r:.60} is no identifier of a measurement") from None
