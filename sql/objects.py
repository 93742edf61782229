"""Objects on the sky, the measurements that belong to them and their forced photometry.

An object is found by its HEALPix index: a neighbourhood on the sky is a set of index
ranges, joined to the table through its B-tree. Whoever may create objects in a place
holds the advisory locks of that place's cells until the transaction ends.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import hpgeom
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from sql.base import Base, CreatedMixin, deterministic_id
from sql.copying import copied_rows, copy_rows
from sql.sky import ORDER, cone_condition, separation_deg

if TYPE_CHECKING:
    from astropy.table import Table

#: First key of the advisory locks on the sky; the second is a cell at `LOCK_ORDER` (14').
SKY_LOCK = 7316
#: First key of the advisory locks on measurements; the second stands for an exposure and CCD.
MEASUREMENTS_LOCK = 7318
LOCK_ORDER = 8
#: Order of the smallest cells that are asked for (1.7 arcmin): a CCD full of detections is some hundred index ranges,
#: which Postgres answers in milliseconds, and a cell holds few objects that are not needed.
FINEST_ORDER = 11
#: Farthest a mean position moves from the first one: the largest association radius.
MEAN_MARGIN_ARCSEC = 60.0


class ObjectRow(CreatedMixin, Base):
    """Something on the sky that was detected at least once.

    ``ra, dec, healpix`` are those of the first detection and never change, so an
    association made once stays valid; ``mean_*`` follow the measurements (weighted by
    their errors; errors in ra times cos(dec), covariance [deg^2]). An object that was merged into another keeps
    its row: what is detected at its place belongs to ``merged_into``. ``exposure, ccd, provenance_id`` say
    which detection created it. An object without
    detections (``n_detections`` 0) lost them when differences were made again, but an alert has named it.
    """

    __tablename__ = "objects"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80), unique=True)
    ra: Mapped[float]
    dec: Mapped[float]
    healpix: Mapped[int] = mapped_column(sa.BigInteger, index=True)
    mean_ra: Mapped[float]
    mean_dec: Mapped[float]
    mean_ra_err: Mapped[float | None]
    mean_dec_err: Mapped[float | None]
    mean_ra_dec_cov: Mapped[float | None]
    n_detections: Mapped[int] = mapped_column(server_default="0")
    first_mjd: Mapped[float]
    last_mjd: Mapped[float]
    is_test: Mapped[bool] = mapped_column(server_default=sa.false())
    is_fake: Mapped[bool] = mapped_column(server_default=sa.false())
    is_bad: Mapped[bool] = mapped_column(server_default=sa.false())
    merged_into: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("objects.id"))
    exposure: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"))


class ObjectNameRow(Base):
    """The highest number used in the names of a year."""

    __tablename__ = "object_name_max_used"

    year: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    maxnum: Mapped[int]


class MeasurementRow(CreatedMixin, Base):
    """One measurement of a difference, scored and, if it was kept, linked to its object.

    ``provenance_id`` is that of the associations, so a row stands for one complete recipe;
    ``id`` follows from all that was measured (`measurement_id`). ``mjd_mid`` is UTC; errors on the
    sky are in degrees, those in right ascension times cos(dec). What was not measured is null.
    """

    __tablename__ = "measurements"
    __table_args__ = (sa.UniqueConstraint("exposure", "ccd", "provenance_id", "detection"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), index=True)
    exposure: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    detection: Mapped[int]
    object_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("objects.id"), index=True)
    mjd_mid: Mapped[float] = mapped_column(index=True)
    exptime_s: Mapped[float]
    filter: Mapped[str] = mapped_column(sa.String(32))
    x: Mapped[float | None]
    y: Mapped[float | None]
    x_err: Mapped[float | None]
    y_err: Mapped[float | None]
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    ra_err: Mapped[float | None]
    dec_err: Mapped[float | None]
    ra_dec_cov: Mapped[float | None]
    healpix: Mapped[int | None] = mapped_column(sa.BigInteger, index=True)
    flux_psf: Mapped[float | None]
    flux_psf_err: Mapped[float | None]
    flux_njy: Mapped[float | None]
    flux_njy_err: Mapped[float | None]
    flux_aper_njy: Mapped[float | None]
    flux_aper_njy_err: Mapped[float | None]
    aperture_radius_px: Mapped[float | None]
    zp: Mapped[float]
    zp_err: Mapped[float | None]
    snr: Mapped[float | None]
    chi2: Mapped[float | None]
    score: Mapped[float | None]
    score_cut: Mapped[float]
    score_algorithm: Mapped[str]
    is_bad: Mapped[bool]
    bad_reasons: Mapped[str]
    diagnostics: Mapped[dict[str, Any]]


class ForcedPhotometryRow(CreatedMixin, Base):
    """Flux on a difference at the place of an object that was known by then."""

    __tablename__ = "forced_photometry"
    __table_args__ = (sa.UniqueConstraint("object_id", "exposure", "ccd", "provenance_id"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    object_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("objects.id"))
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), index=True)
    exposure: Mapped[str] = mapped_column(sa.String(80), index=True)
    ccd: Mapped[str] = mapped_column(sa.String(16))
    mjd_mid: Mapped[float]
    filter: Mapped[str] = mapped_column(sa.String(32))
    ra: Mapped[float]
    dec: Mapped[float]
    x: Mapped[float]
    y: Mapped[float]
    flux_psf: Mapped[float | None]
    flux_psf_err: Mapped[float | None]
    flux_njy: Mapped[float | None]
    flux_njy_err: Mapped[float | None]
    image_flags: Mapped[int]


def measurement_id(row: dict[str, Any]) -> uuid.UUID:
    """Identifier of a measurement, from everything its row says.

    The same recipe on the same pixels gives the same one; what was measured anew on a difference that was
    made again (from another reference) is another measurement, with an alert of its own.
    """
    told = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return deterministic_id("measurement", hashlib.sha256(told.encode()).hexdigest())


def object_id(first_measurement: uuid.UUID, ra: float, dec: float) -> uuid.UUID:
    """Identifier of the object that this measurement, at this place, creates."""
    return deterministic_id("object", first_measurement, f"{ra:.8f}", f"{dec:.8f}")


def neighbourhood(
    ra: NDArray[np.float64], dec: NDArray[np.float64], radius_deg: float
) -> tuple[NDArray[np.int64], int]:
    """Sorted cells, and their order, that hold everything within `radius_deg` of the positions.

    A cell is at least four radii wide, so the one of a position and its (up to eight)
    neighbours suffice; this holds at the poles and across right ascension 0.
    """
    order = int(np.clip(np.floor(np.log2(58.6 / (4.0 * radius_deg))), 0, FINEST_ORDER))
    cells = np.unique(hpgeom.angle_to_pixel(2**order, ra % 360.0, dec, nest=True))
    around = np.unique(np.append(cells, hpgeom.neighbors(2**order, cells, nest=True).ravel()))
    return around[around >= 0].astype(np.int64), order


def index_ranges(cells: NDArray[np.int64], order: int) -> tuple[list[int], list[int]]:
    """First and last index at the table's order of each run of adjacent, sorted cells."""
    first = np.flatnonzero(np.diff(cells, prepend=-2) != 1)
    last = np.append(first[1:], len(cells)) - 1
    shift = 2 * (ORDER - order)
    return (cells[first] << shift).tolist(), (((cells[last] + 1) << shift) - 1).tolist()


def lock_sky(session: Session, cells: NDArray[np.int64], order: int) -> None:
    """Hold the advisory locks of these cells until the transaction ends.

    They are taken in ascending order, so two transactions can wait for each other but never both.
    Statements after this one see what the previous holder committed (READ COMMITTED).
    """
    shift = 2 * (order - LOCK_ORDER)
    coarse = np.unique(cells >> shift if shift >= 0 else cells[:, None] << -shift | np.arange(1 << -shift))
    each = sa.func.unnest(sa.cast(coarse.tolist(), ARRAY(sa.Integer))).table_valued("cell").render_derived()
    ascending = sa.select(each.c.cell).order_by(each.c.cell).subquery()
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(SKY_LOCK, ascending.c.cell)))


def objects_in_cells(session: Session, cells: NDArray[np.int64], order: int, *, is_test: bool) -> list[sa.Row[Any]]:
    """Objects whose first position lies in the cells: ``id, name, ra, dec, mean_ra, mean_dec, first_mjd, is_bad``.

    ``id`` is that of the object to which detections at this place belong: for one that was merged, the
    object it was merged into (``is_merged``).
    """
    if len(cells) == 0:
        return []
    o = ObjectRow
    # Written out: of ranges in a table the planner knows nothing, and would rather read all objects.
    inside = (o.healpix.between(int(low), int(high)) for low, high in zip(*index_ranges(cells, order), strict=True))
    columns = (o.name, o.ra, o.dec, o.mean_ra, o.mean_dec, o.first_mjd, o.is_bad)
    target = sa.func.coalesce(o.merged_into, o.id).label("id")
    query = (
        sa.select(target, *columns, o.merged_into.is_not(None).label("is_merged"))
        .where(sa.or_(*inside), ObjectRow.is_test == is_test, ~ObjectRow.is_fake)
        .order_by(ObjectRow.id)
    )
    return list(session.execute(query))


def objects_in_footprint(
    session: Session, corners: dict[str, list[float]], *, is_test: bool = False
) -> list[sa.Row[Any]]:
    """Objects within, and some just outside, a convex footprint given by its corners [deg]."""
    order = 10
    ra = np.asarray(corners["ra"]) % 360.0
    cells = hpgeom.query_polygon(2**order, ra, np.asarray(corners["dec"]), inclusive=True, nest=True)
    return objects_in_cells(session, np.sort(np.asarray(cells, np.int64)), order, is_test=is_test)


def objects_in_cone(session: Session, ra_deg: float, dec_deg: float, radius_arcsec: float) -> "Table":
    """Objects around a position by their mean positions, nearest first, test objects included, merged ones not.

    Columns ``id, name, mean_ra, mean_dec, separation_arcsec, n_detections, first_mjd, last_mjd, is_test, is_bad``.
    """
    from astropy.table import Table

    o = ObjectRow
    # The index is that of the first position; the mean may lie on the other side of the cone's edge.
    near = cone_condition(o.healpix, ra_deg, dec_deg, (radius_arcsec + MEAN_MARGIN_ARCSEC) / 3600.0)
    rows = session.execute(
        sa.select(
            o.id, o.name, o.mean_ra, o.mean_dec, o.n_detections, o.first_mjd, o.last_mjd, o.is_test, o.is_bad
        ).where(near, o.merged_into.is_(None))
    ).all()
    distance = 3600.0 * separation_deg(ra_deg, dec_deg, [r.mean_ra for r in rows], [r.mean_dec for r in rows])
    chosen = [i for i in np.argsort(distance, kind="stable") if distance[i] <= radius_arcsec]
    columns = {
        "id": np.array([str(rows[i].id) for i in chosen], "U36"),
        "name": np.array([rows[i].name for i in chosen], "U80"),
        "mean_ra": np.array([rows[i].mean_ra for i in chosen], float),
        "mean_dec": np.array([rows[i].mean_dec for i in chosen], float),
        "separation_arcsec": distance[chosen] if chosen else np.empty(0),
        "n_detections": np.array([rows[i].n_detections for i in chosen], int),
        "first_mjd": np.array([rows[i].first_mjd for i in chosen], float),
        "last_mjd": np.array([rows[i].last_mjd for i in chosen], float),
        "is_test": np.array([rows[i].is_test for i in chosen], bool),
        "is_bad": np.array([rows[i].is_bad for i in chosen], bool),
    }
    return Table(columns)


def reserve_names(session: Session, year: int, count: int) -> int:
    """First of `count` consecutive numbers for names of that year; none is given out twice."""
    statement = insert(ObjectNameRow).values(year=year, maxnum=count)
    statement = statement.on_conflict_do_update(
        index_elements=[ObjectNameRow.year], set_={"maxnum": ObjectNameRow.maxnum + count}
    )
    last: int = session.execute(statement.returning(ObjectNameRow.maxnum)).scalar_one()
    return last - count + 1


def stored_measurements(
    session: Session, exposure: str, ccd: str, provenance_id: str
) -> dict[uuid.UUID, uuid.UUID | None]:
    """Every measurement of a CCD under a recipe, and the object it is linked to."""
    m = MeasurementRow
    here = (m.exposure == exposure, m.ccd == ccd, m.provenance_id == provenance_id)
    return {row.id: row.object_id for row in session.execute(sa.select(m.id, m.object_id).where(*here))}


def delete_measurements(session: Session, ids: Sequence[uuid.UUID]) -> None:
    """Delete measurement rows."""
    if ids:
        session.execute(sa.delete(MeasurementRow).where(MeasurementRow.id.in_(list(ids))))


def hold_measurements(session: Session, exposure: str, ccd: str) -> None:
    """Let nobody else write measurements of this CCD until the transaction ends."""
    place = sa.func.hashtext(f"{exposure}/{ccd}")
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(MEASUREMENTS_LOCK, place)))


def insert_measurements(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Write measurement rows that do not exist."""
    copy_rows(session, MeasurementRow, rows)


def replace_forced_photometry(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Write forced photometry rows over those of the same object, partition and provenance."""
    if not rows:
        return
    statement = insert(ForcedPhotometryRow)
    keep = {"id", "object_id", "provenance_id", "exposure", "ccd"}
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keep}
    session.execute(statement.on_conflict_do_update(index_elements=[ForcedPhotometryRow.id], set_=changed), list(rows))


#: Columns of a detection from which place and time of its object follow. Exposures are told apart by 64 bits of a hash.
_DETECTION_KINDS = {
    "object_id": "V16", "ra": ">f8", "dec": ">f8", "ra_err": ">f8", "dec_err": ">f8", "ra_dec_cov": ">f8",
    "mjd_mid": ">f8", "exposure": ">i8", "is_of_recipe": "?",
}  # fmt: skip
_DETECTIONS = """
SELECT object_id, coalesce(ra, 'NaN'), coalesce(dec, 'NaN'), coalesce(ra_err, 'NaN'), coalesce(dec_err, 'NaN'),
       coalesce(ra_dec_cov, 'NaN'), mjd_mid, hashtextextended(exposure, 0), provenance_id = %(provenance_id)s
FROM measurements WHERE object_id = ANY(%(ids)s::uuid[]) ORDER BY object_id, mjd_mid, ccd, id
"""


def detections_of(session: Session, ids: Sequence[uuid.UUID], provenance_id: str | None = None) -> NDArray[np.void]:
    """All measurements of these objects, object by object (in the order of their ids) in order of time.

    Returns
    -------
    structured ndarray
        ``object_id`` (16 bytes), ``ra, dec, ra_err, dec_err, ra_dec_cov, mjd_mid`` (NaN where not measured),
        ``exposure`` (a number that stands for it), ``is_of_recipe`` (associated under `provenance_id`).
    """
    told = {"ids": [str(key) for key in ids], "provenance_id": provenance_id or ""}
    return copied_rows(session, _DETECTIONS, told, _DETECTION_KINDS)


def update_objects(session: Session, columns: dict[str, list[Any]]) -> None:
    """Write mean positions, numbers of detections and times of objects: ``id`` and the changed columns."""
    table = ObjectRow.__table__
    arrays = [sa.cast(values, ARRAY(table.c[name].type)) for name, values in columns.items()]
    told = sa.func.unnest(*arrays).table_valued(*columns).render_derived()
    changed = {name: told.c[name] for name in columns if name != "id"}
    statement = sa.update(ObjectRow).where(ObjectRow.id == sa.cast(told.c.id, table.c.id.type)).values(changed)
    session.execute(statement, execution_options={"synchronize_session": False})


def places_of(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, tuple[float, float]]:
    """Mean position [deg] of each of these objects."""
    query = sa.select(ObjectRow.id, ObjectRow.mean_ra, ObjectRow.mean_dec).where(ObjectRow.id.in_(list(ids)))
    return {row.id: (row.mean_ra, row.mean_dec) for row in session.execute(query)}


def detected_objects(
    session: Session, exposure: str, ccd: str, provenance_id: str, *, is_test: bool = False
) -> list[sa.Row[Any]]:
    """Good objects with a detection on this CCD: ``id, name, mean_ra, mean_dec, first_mjd``."""
    o, m = ObjectRow, MeasurementRow
    here = sa.select(m.object_id).where(m.exposure == exposure, m.ccd == ccd, m.provenance_id == provenance_id)
    query = sa.select(o.id, o.name, o.mean_ra, o.mean_dec, o.first_mjd).where(o.id.in_(here), ~o.is_bad)
    return list(session.execute(query.where(o.is_test == is_test, o.merged_into.is_(None)).order_by(o.id)))
