"""Light curves: detections, forced fluxes and limits of an object, of one set of recipes."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from seechange_assets.errors import ProductNotFound
from sql.alerts import covered, is_flagged
from sql.models import PRODUCT_ROWS, AssociationSetRow, DifferenceRow, ExposureRow
from sql.objects import ForcedPhotometryRow, MeasurementRow, ObjectRow
from sql.sky import cone_condition, separation_deg

#: What `light_curve` tells of each point.
LIGHT_CURVE_COLUMNS = (
    "kind", "mjd_mid", "filter", "flux_njy", "flux_njy_err", "snr", "limiting_magnitude", "exposure", "ccd",
)  # fmt: skip
#: Processes whose provenance ids choose the points.
LIGHT_CURVE_RECIPES = ("associations", "forced_photometry", "diff")
#: Farthest corner of a CCD from its centre that is looked for around an object [deg].
_REACH_DEG = 1.5


def light_curve(session: Session, name: str, recipes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Detections, forced fluxes and limits of an object, oldest first, with the keys `LIGHT_CURVE_COLUMNS`.

    ``kind`` is ``detection``, ``forced`` or ``limit`` (a difference that covers the object and on which it was not
    detected: its 5 sigma limiting magnitude). What is flagged bad is left out; what does not apply is None. The name of
    an object that was merged into another gives the light curve of that one.

    Parameters
    ----------
    recipes : mapping
        Provenance ids of `LIGHT_CURVE_RECIPES`: of a tag, say.

    Raises
    ------
    ProductNotFound
        There is no such object.
    """
    target = object_named(session, name)
    points = []
    tables: Sequence[tuple[str, Any, str]] = (
        ("detection", MeasurementRow, "associations"), ("forced", ForcedPhotometryRow, "forced_photometry"),
    )  # fmt: skip
    for kind, table, process in tables:
        columns = (
            table.mjd_mid, table.filter, table.flux_njy, table.flux_njy_err, table.exposure, table.ccd,
            is_flagged(table, PRODUCT_ROWS[process]).label("is_flagged"),
        )  # fmt: skip
        mine = (table.object_id == target.id, table.provenance_id == recipes[process])
        for row in session.execute(sa.select(*columns).where(*mine)).mappings():
            usable = row["flux_njy"] is not None and row["flux_njy_err"]
            snr = row["flux_njy"] / row["flux_njy_err"] if usable else None
            points.append({"kind": kind, **row, "snr": snr, "limiting_magnitude": None})
    detected = {point["exposure"] for point in points if point["kind"] == "detection"}
    points += [
        {"kind": "limit", "flux_njy": None, "flux_njy_err": None, "snr": None, **difference}
        for difference in differences_at(session, target.mean_ra, target.mean_dec, recipes["diff"])
        if difference["exposure"] not in detected and difference["limiting_magnitude"] is not None
    ]
    good = [point for point in points if not point.get("is_flagged")]
    points = [{column: point[column] for column in LIGHT_CURVE_COLUMNS} for point in good]
    return sorted(points, key=lambda p: (p["mjd_mid"], p["kind"], p["ccd"], p["exposure"]))


def object_named(session: Session, name: str) -> ObjectRow:
    """The object of this name, or the one it was merged into.

    Raises
    ------
    ProductNotFound
        There is none.
    """
    # Postgres takes neither NUL nor unpaired surrogates, and no object has such a name.
    found = session.scalar(sa.select(ObjectRow).where(ObjectRow.name == name)) if name.isprintable() else None
    if found is None:
        raise ProductNotFound(f"there is no object {name!a:.90}; `seechange objects` finds them by position")
    while found.merged_into is not None:
        found = session.get_one(ObjectRow, found.merged_into)
    return found


def differences_at(session: Session, ra_deg: float, dec_deg: float, provenance_id: str) -> list[dict[str, Any]]:
    """Differences of one recipe that cover a position, oldest first; see `differences_near` for the keys."""
    rows = differences_near(session, ra_deg, dec_deg, _REACH_DEG, provenance_id)
    inside = covered([row["corners"] for row in rows], ra_deg, dec_deg)
    return [row for row, is_inside in zip(rows, inside, strict=True) if is_inside]


def differences_near(
    session: Session, ra_deg: float, dec_deg: float, radius_deg: float, provenance_id: str,
    mjd_range: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Good differences of one recipe with their centre in a cone, oldest first.

    Each has ``exposure, ccd, mjd_mid, filter, limiting_magnitude, corners, id``. Only those whose corners reach
    the cone's centre matter to whom asks for a position.
    """
    row = DifferenceRow
    mjd_mid = (row.mjd + sa.func.coalesce(ExposureRow.exptime_s, 0.0) / 172800.0).label("mjd_mid")
    query = (
        sa.select(
            row.id, row.partition.label("exposure"), row.ccd, mjd_mid, row.filter, row.limiting_magnitude, row.corners
        )
        .outerjoin(ExposureRow, ExposureRow.key == row.partition)
        .where(row.provenance_id == provenance_id, row.bitflag == 0)
        .where(cone_condition(row.healpix, ra_deg, dec_deg, radius_deg))
        .order_by(mjd_mid, row.partition, row.ccd)
    )
    if mjd_range is not None:
        query = query.where(row.mjd >= mjd_range[0] - 1.0, mjd_mid.between(*mjd_range))
    return [dict(item) for item in session.execute(query).mappings()]


def differences_overlapping(
    session: Session, corners: Mapping[str, list[float]], centre: tuple[float, float], recipes: Mapping[str, str],
    mjd_range: tuple[float, float],
) -> list[dict[str, Any]]:  # fmt: skip
    """Good differences whose footprints, of like size, may overlap this one, within a range of times.

    Only those whose detections have been linked to objects: a bad subtraction never gets so far, and who has yet to
    link his will find every object that there is by then.

    Parameters
    ----------
    recipes : provenance ids of ``diff`` and ``associations``.
    """
    # Centres of footprints that overlap are within two half diagonals.
    half_diagonal = float(max(separation_deg(*centre, corners["ra"], corners["dec"])))
    found = differences_near(session, *centre, 2.1 * half_diagonal, recipes["diff"], mjd_range)
    row = AssociationSetRow
    query = sa.select(row.partition, row.ccd).where(row.provenance_id == recipes["associations"])
    query = query.where(row.partition.in_([one["exposure"] for one in found]))
    linked = {(key, ccd) for key, ccd in session.execute(query)}
    return [one for one in found if (one["exposure"], one["ccd"]) in linked]


def forced_places(
    session: Session, ids: Sequence[uuid.UUID], provenance_id: str
) -> dict[tuple[uuid.UUID, str, str], tuple[float, float]]:
    """(object, exposure, ccd) -> place [deg] at which a forced flux was measured."""
    row = ForcedPhotometryRow
    query = sa.select(row.object_id, row.exposure, row.ccd, row.ra, row.dec)
    rows = session.execute(query.where(row.object_id.in_(list(ids)), row.provenance_id == provenance_id))
    return {(r.object_id, r.exposure, r.ccd): (r.ra, r.dec) for r in rows}
