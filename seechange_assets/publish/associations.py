"""Each kept measurement linked to an object on the sky."""

import math
import string
import uuid
from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
import numpy as np
import pydantic
from numpy.typing import NDArray

from seechange_assets.data_product import data_product
from seechange_assets.errors import TooManyDetections
from seechange_assets.names import checked_name
from seechange_assets.parameters import Field, Parameters
from seechange_assets.products import NJY_ZERO_POINT, Associations, Difference, ImageInfo, Measurements, Scores, plain
from seechange_assets.provenance import Recipes

if TYPE_CHECKING:
    from astropy.table import Table
    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from resources.database import Database


class AssociationParameters(Parameters):
    """Which measurements are kept, and how they find their objects."""

    process: ClassVar[str] = "associations"
    algorithm_version: ClassVar[str] = "2"
    radius_arcsec: float = Field(2.0, gt=0, le=60, description="Farthest object that is the same one [arcsec].")
    min_score: float | None = Field(
        None, ge=0, le=1, description="Lowest real/bogus score kept; empty takes the cut of the scoring algorithm."
    )
    link_negative: bool = Field(
        True, description="Link negative detections (something faded) to known objects; they never create one."
    )
    max_new_objects: int = Field(
        1000, ge=1, description="More new objects than this from one CCD is a bad subtraction."
    )
    name_format: str = Field(
        "SC{year}{letters}", description="Names of objects: {year} and {letters} (a, b ... z, aa) or {number}."
    )

    @pydantic.field_validator("name_format")
    @classmethod
    def _names_are_unique(cls, value: str) -> str:
        fields = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        if "year" not in fields or not fields & {"letters", "number"} or fields - {"year", "letters", "number"}:
            raise ValueError("must contain {year} and one of {letters}, {number}, and no other field")
        checked_name(object_name(value, 2026, 1), "object name")
        return value


def associate_measurements(
    database: "Database",
    info: ImageInfo,
    measurements: Measurements,
    scores: Scores,
    *,
    provenance_id: str,
    min_score: float | None = None,
    is_test: bool = False,
    **parameters: Any,
) -> Associations:
    """Write the measurements of one CCD and link the kept ones to objects, in one transaction.

    Parameters
    ----------
    provenance_id : str
        That of the associations.
    is_test : bool
        Test objects and real ones never meet.
    **parameters
        The other fields of `AssociationParameters`.

    Raises
    ------
    TooManyDetections
        More new objects than a real sky can give; nothing was written.
    ServiceUnavailable
        If Postgres does not answer.
    """
    rows = measurement_rows(info, measurements, scores, provenance_id)
    is_kept = kept(measurements, scores, min_score)
    with database.session() as session:
        return associate(session, info, rows, is_kept, provenance_id=provenance_id, is_test=is_test, **parameters)


def kept(measurements: Measurements, scores: Scores, min_score: float | None = None) -> NDArray[np.bool_]:
    """Rows that are not bad, have a place and a flux, and reach the score (None: the algorithm's cut)."""
    cut = scores.cut if min_score is None else min_score
    is_good = ~np.asarray(measurements.table["is_bad"], bool)
    for name in ("ra", "dec", "flux_psf"):
        is_good &= np.isfinite(np.asarray(measurements.table[name], float))
    return is_good & (np.asarray(scores.table["score"], float) >= cut)


def associate(
    session: "Session",
    info: ImageInfo,
    rows: Sequence[dict[str, Any]],
    is_kept: NDArray[np.bool_],
    *,
    provenance_id: str,
    radius_arcsec: float = 2.0,
    max_new_objects: int = 1000,
    name_format: str = "SC{year}{letters}",
    link_negative: bool = True,
    is_test: bool = False,
) -> Associations:
    """Link rows to the nearest objects and create what is missing, inside the caller's transaction.

    Rows that are in the database already keep their objects. Stored rows that are not among `rows` were
    measured on a difference that has been made again since: they are deleted, and with them the objects that have
    no other measurement and that no alert has named. The locks of the sky around the new rows and those objects
    are held to the end of the transaction, so no two batches, and no two rows of one, create objects within
    the radius of each other.

    Parameters
    ----------
    info : ImageInfo
        Of the difference; the year of the exposure stands in the names of new objects.
    rows : sequence of dict
        Columns of `MeasurementRow`, all of this CCD and provenance.
    is_kept : ndarray of bool
        Rows to link; the others are only stored.
    """
    from sql import objects as sky
    from sql.alerts import forget_undetected

    stored = sky.stored_measurements(session, info.exposure, info.ccd, provenance_id)
    outdated = stored.keys() - {row["id"] for row in rows}
    left = {linked for key in outdated if (linked := stored[key]) is not None}
    is_new_row = np.array([row["id"] not in stored for row in rows], bool)
    flux = np.array([row["flux_psf"] for row in rows], float)
    todo = np.flatnonzero(is_new_row & is_kept & (link_negative | (flux > 0)))
    # Brightest first: it gives a group of detections its object and position.
    todo = todo[np.argsort([-abs(rows[i]["snr"] or 0.0) for i in todo.tolist()], kind="stable")]
    links: dict[int, uuid.UUID] = {}
    if len(todo) or left:
        known = _known_objects(session, [rows[i] for i in todo.tolist()], left, radius_arcsec, is_test)
        links = _link(session, rows, todo, known, radius_arcsec, info.mjd_mid, name_format, max_new_objects, is_test)
    sky.delete_measurements(session, sorted(outdated))
    sky.insert_measurements(session, [row | {"object_id": links.get(i)} for i, row in enumerate(rows) if is_new_row[i]])
    sky.refresh_objects(session, sorted(left | set(links.values())))
    forget_undetected(session, sorted(left))
    links |= {i: linked for i, row in enumerate(rows) if (linked := stored.get(row["id"])) is not None}
    return Associations(_table(session, rows, links))


def _known_objects(
    session: "Session", rows: Sequence[dict[str, Any]], left: set[uuid.UUID], radius_arcsec: float, is_test: bool
) -> "list[Row[Any]]":
    """Objects around the rows; their cells and those of the objects in `left` are locked first, all at once."""
    import sqlalchemy as sa

    from sql import objects as sky

    query = sa.select(sky.ObjectRow.ra, sky.ObjectRow.dec).where(sky.ObjectRow.id.in_(left))
    places = [(row["ra"], row["dec"]) for row in rows] + [(o.ra, o.dec) for o in session.execute(query)]
    ra, dec = np.array(places, float).T
    cells, order = sky.neighbourhood(ra, dec, radius_arcsec / 3600.0)
    sky.lock_sky(session, cells, order)
    return sky.objects_in_cells(session, cells, order, is_test=is_test)


def _link(
    session: "Session", rows: Sequence[dict[str, Any]], todo: NDArray[np.intp], known: "list[Row[Any]]",
    radius_arcsec: float, mjd: float, name_format: str, max_new_objects: int, is_test: bool,
) -> dict[int, uuid.UUID]:  # fmt: skip
    """Object of each row in `todo` that has one; missing objects are created."""
    from seechange_assets.science.association import leaders, match_nearest

    ra, dec = (np.array([rows[i][name] for i in todo], float) for name in ("ra", "dec"))
    nearest, _ = match_nearest(
        ra, dec, np.array([o.ra for o in known], float), np.array([o.dec for o in known], float), radius_arcsec
    )
    links = {int(todo[k]): known[n].id for k, n in enumerate(nearest) if n >= 0}
    unmatched = np.flatnonzero(nearest < 0)
    may_create = unmatched[[rows[todo[k]]["flux_psf"] > 0 for k in unmatched]] if len(unmatched) else unmatched
    first = may_create[leaders(ra[may_create], dec[may_create], radius_arcsec)]
    if len(first) > max_new_objects:
        raise TooManyDetections(
            f"{rows[0]['exposure']} {rows[0]['ccd']}: {len(first)} new objects, at most {max_new_objects} are "
            "plausible; look at the subtraction"
        )
    created = _create(session, [rows[todo[k]] for k in first], mjd, name_format, is_test)
    joined, _ = match_nearest(ra[unmatched], dec[unmatched], ra[first], dec[first], radius_arcsec)
    return links | {int(todo[unmatched[k]]): created[n] for k, n in enumerate(joined) if n >= 0}


def _create(
    session: "Session", rows: list[dict[str, Any]], mjd: float, name_format: str, is_test: bool
) -> list[uuid.UUID]:
    """Insert one named object per row, at the row's position."""
    import sqlalchemy as sa

    from sql import objects as sky

    if not rows:
        return []
    year = year_of(mjd)
    number = sky.reserve_names(session, year, len(rows))
    objects = [
        {
            "id": sky.object_id(row["id"], row["ra"], row["dec"]),
            "name": object_name(name_format, year, number + k),
            "mean_ra": row["ra"],
            "mean_dec": row["dec"],
            "first_mjd": row["mjd_mid"],
            "last_mjd": row["mjd_mid"],
            "is_test": is_test,
            "is_fake": False,
            "is_bad": False,
            "n_detections": 0,
        }
        | {name: row[name] for name in ("ra", "dec", "healpix", "exposure", "ccd", "provenance_id")}
        for k, row in enumerate(rows)
    ]
    session.execute(sa.insert(sky.ObjectRow), objects)
    return [item["id"] for item in objects]


def _table(session: "Session", rows: Sequence[dict[str, Any]], links: dict[int, uuid.UUID]) -> "Table":
    """The `Associations` table, in the order of the measurements."""
    import sqlalchemy as sa
    from astropy.table import Table

    from seechange_assets.science.association import chord_to_arcsec, unit_vectors
    from sql.objects import ObjectRow, object_id

    query = sa.select(ObjectRow.id, ObjectRow.name, ObjectRow.ra, ObjectRow.dec)
    objects = {o.id: o for o in session.execute(query.where(ObjectRow.id.in_(set(links.values()))))} if links else {}
    linked = sorted(links)
    mine = [rows[i] for i in linked]
    of = [objects[links[i]] for i in linked]
    chord = np.linalg.norm(
        unit_vectors(np.array([r["ra"] for r in mine]), np.array([r["dec"] for r in mine]))
        - unit_vectors(np.array([o.ra for o in of]), np.array([o.dec for o in of])), axis=1,
    )  # fmt: skip
    return Table({
        "measurement": np.array(linked, np.int64),
        "measurement_id": np.array([str(row["id"]) for row in mine], "U36"),
        "object_id": np.array([str(o.id) for o in of], "U36"),
        "object_name": np.array([o.name for o in of], "U80"),
        "separation_arcsec": chord_to_arcsec(chord),
        "is_new": np.array(
            [o.id == object_id(row["id"], row["ra"], row["dec"]) for o, row in zip(of, mine, strict=True)], bool
        ),
    })  # fmt: skip


def object_name(name_format: str, year: int, number: int) -> str:
    """Name of the `number`-th object of a year (counted from 1)."""
    from seechange_assets.science.association import letters

    return name_format.format(year=year, number=number, letters=letters(number))


def year_of(mjd: float) -> int:
    """Calendar year (UTC) of a Modified Julian Date."""
    return (date(1858, 11, 17) + timedelta(days=math.floor(mjd))).year


#: Columns of `Measurements` with a database column of the same name.
_COPIED = (
    "x", "y", "x_err", "y_err", "ra", "dec", "ra_err", "dec_err", "ra_dec_cov", "flux_psf", "flux_psf_err", "snr",
    "chi2",
)  # fmt: skip
_HANDLED = {*_COPIED, "detection", "flux_aper", "flux_aper_err", "is_bad", "bad_reasons"}


def measurement_rows(
    info: ImageInfo, measurements: Measurements, scores: Scores, provenance_id: str
) -> list[dict[str, Any]]:
    """Columns of `MeasurementRow` for every measurement; diagnostics without a column go to JSON.

    The aperture flux is that of the first (smallest) aperture.
    """
    from sql.objects import measurement_id
    from sql.sky import healpix_of

    table = measurements.table
    columns = {name: _values(table[name]) for name in table.colnames}
    score = _values(scores.table["score"])
    to_njy = 10.0 ** (-0.4 * (measurements.zp - NJY_ZERO_POINT))
    diagnostics = [name for name in table.colnames if name not in _HANDLED]
    common = {
        "provenance_id": provenance_id, "exposure": info.exposure, "ccd": info.ccd, "filter": info.filter,
        "mjd_mid": info.mjd_mid, "exptime_s": info.exptime_s, "zp": float(measurements.zp),
        "zp_err": plain(float(measurements.zp_err)),
        "score_cut": float(scores.cut), "score_algorithm": scores.algorithm,
        "aperture_radius_px": measurements.aperture_radii_px[0] if measurements.aperture_radii_px else None,
    }  # fmt: skip
    rows = []
    for i in range(len(table)):
        row = common | {name: columns[name][i] if name in columns else None for name in _COPIED}
        row |= {name: columns[name][i] for name in ("detection", "is_bad", "bad_reasons")}
        is_placed = row["ra"] is not None and row["dec"] is not None
        row |= {"score": score[i], "healpix": healpix_of(row["ra"], row["dec"]) if is_placed else None}
        row |= {"flux_njy": _scaled(row["flux_psf"], to_njy), "flux_njy_err": _scaled(row["flux_psf_err"], to_njy)}
        row["flux_aper_njy"] = _scaled(_first(columns.get("flux_aper"), i), to_njy)
        row["flux_aper_njy_err"] = _scaled(_first(columns.get("flux_aper_err"), i), to_njy)
        row["diagnostics"] = {name: columns[name][i] for name in diagnostics}
        rows.append(row | {"id": measurement_id(row)})
    return rows


def _values(column: Any) -> list[Any]:
    """Plain Python values of a table column, NaN as None."""
    values: list[Any] = plain(np.asarray(column).tolist())
    return values


def _first(column: list[Any] | None, row: int) -> float | None:
    if column is None:
        return None
    value = column[row]
    return (value[0] if value else None) if isinstance(value, list) else value


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


@data_product(AssociationParameters)
def associations(
    diff: Difference,
    measurements: Measurements,
    scores: Scores,
    parameters: AssociationParameters,
    recipes: dg.ResourceParam[Recipes],
    database: dg.ResourceParam[Any],
) -> Associations:
    """Kept measurements linked to objects on the sky."""
    provenance_id = recipes["associations"].id
    return associate_measurements(
        database, diff.info, measurements, scores, provenance_id=provenance_id, **parameters.arguments()
    )
