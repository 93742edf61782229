"""Each kept measurement linked to an object on the sky."""

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pydantic
from numpy.typing import NDArray

from seechange_assets.errors import TooManyDetections
from seechange_assets.instruments.base import Instrument
from seechange_assets.parameters import Field, Parameters
from seechange_assets.ports import Resource, SkyCatalogSource
from seechange_assets.process import data_product
from seechange_assets.products import Associations, Difference, ImageInfo, Measurements, Scores
from seechange_assets.provenance import Recipes
from seechange_assets.publish.cross_match import cross_match
from seechange_assets.publish.measurement_rows import measurement_rows
from seechange_assets.publish.object_names import date_of, object_name
from seechange_assets.publish.positions import refresh_objects
from seechange_assets.publish.solar_system import identify

if TYPE_CHECKING:
    from astropy.table import Table
    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from resources.database import Database


#: Parameters of what is identified before objects are looked for.
IDENTIFICATION = ("identification_radius_arcsec", "identification_depth_mag", "moving_star_flux_ratio")


class AssociationParameters(Parameters):
    """Which measurements are kept, and how they find their objects."""

    process: ClassVar[str] = "associations"
    algorithm_version: ClassVar[str] = "3"
    is_test: bool = Field(False, description="Objects of tests and experiments, which never meet the survey's own.")
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
        "SC{year}{letters}",
        description="Names of objects: {year} or {yy}, {letters} (a, b ... z, aa), {LETTERS} or {number}, and {month}, "
        "{day}, {ra}, {dec}, {random}; or the codes %Y %y %a %A %n %m %d %R %D %l.",
    )
    clip_sigma: float = Field(
        3.0, ge=2, le=10, description="Detections farther from their object's median do not count for its position."
    )
    identification_radius_arcsec: float = Field(
        2.0, ge=0, le=60, description="Farthest known minor planet or moving star that is the source [arcsec]."
    )
    identification_depth_mag: float = Field(
        1.5, ge=0, le=20, description="Minor planets fainter than the limiting magnitude by more are not looked for."
    )
    moving_star_flux_ratio: float = Field(
        3.0, gt=0, description="A source up to this much brighter than what a star's motion leaves is that star."
    )

    @pydantic.field_validator("name_format")
    @classmethod
    def _names_are_unique(cls, value: str) -> str:
        object_name(value, 61000.0, 1, 0.0, 0.0)
        return value


def associate_measurements(
    database: "Database",
    info: ImageInfo,
    measurements: Measurements,
    scores: Scores,
    *,
    provenance_id: str,
    min_score: float | None = None,
    **parameters: Any,
) -> Associations:
    """Write the measurements of one CCD and link the kept ones to objects, in one transaction.

    Parameters
    ----------
    provenance_id : str
        That of the associations.
    **parameters
        The other arguments of `associate`: ``is_test`` (test objects and real ones never meet), ``identifications``
        and fields of `AssociationParameters`.

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
        return associate(session, info, rows, is_kept, provenance_id=provenance_id, **parameters)


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
    clip_sigma: float = 3.0,
    identifications: Mapping[int, dict[str, Any]] | None = None,
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
    identifications : mapping, optional
        Row -> columns of `IdentificationRow`, for rows that something known explains: they are stored and labelled,
        but neither make an object nor join one.
    """
    from sql import objects as sky
    from sql.alerts import forget_undetected
    from sql.object_records import insert_identifications

    sky.hold_measurements(session, info.exposure, info.ccd)
    stored = sky.stored_measurements(session, info.exposure, info.ccd, provenance_id)
    outdated = stored.keys() - {row["id"] for row in rows}
    left = {linked for key in outdated if (linked := stored[key]) is not None}
    is_new_row = np.array([row["id"] not in stored for row in rows], bool)
    flux = np.array([row["flux_psf"] for row in rows], float)
    explained = {i: told for i, told in (identifications or {}).items() if stored.get(rows[i]["id"]) is None}
    is_free = np.array([i not in explained for i in range(len(rows))], bool)
    todo = np.flatnonzero(is_new_row & is_kept & is_free & (link_negative | (flux > 0)))
    # Brightest first: it gives a group of detections its object and position.
    todo = todo[np.argsort([-abs(rows[i]["snr"] or 0.0) for i in todo.tolist()], kind="stable")]
    links: dict[int, uuid.UUID] = {}
    if len(todo) or left:
        known = _known_objects(session, [rows[i] for i in todo.tolist()], left, radius_arcsec, is_test)
        links = _link(session, rows, todo, known, radius_arcsec, info.mjd_mid, name_format, max_new_objects, is_test)
    sky.delete_measurements(session, sorted(outdated))
    sky.insert_measurements(session, [row | {"object_id": links.get(i)} for i, row in enumerate(rows) if is_new_row[i]])
    insert_identifications(session, [told | {"measurement_id": rows[i]["id"]} for i, told in explained.items()])
    refresh_objects(session, sorted(left | set(links.values())), provenance_id, clip_sigma)
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
    from sql import objects as sky
    from sql.copying import copy_rows

    if not rows:
        return []
    number = sky.reserve_names(session, date_of(mjd).year, len(rows))
    objects = [
        {
            "id": sky.object_id(row["id"], row["ra"], row["dec"]),
            "name": object_name(name_format, mjd, number + k, row["ra"], row["dec"]),
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
    copy_rows(session, sky.ObjectRow, objects)
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


@data_product(AssociationParameters)
def associations(
    diff: Difference,
    measurements: Measurements,
    scores: Scores,
    parameters: AssociationParameters,
    recipes: Resource[Recipes],
    store: Resource[Any],
    instrument: Resource[Instrument],
    sky: Resource[SkyCatalogSource],
    minor_planets: Resource[Any],
    galaxies: Resource[Any],
) -> Associations:
    """Kept measurements linked to objects on the sky, unless a minor planet or a moving star explains them."""
    reference = store.reference(diff.reference_id)
    told = {name: getattr(parameters, name) for name in IDENTIFICATION}
    known = identify(diff, measurements, reference, instrument, sky, minor_planets.orbits, **told)
    arguments = parameters.arguments_without(*IDENTIFICATION) | {"identifications": known}
    provenance_id = recipes["associations"].id
    linked = associate_measurements(
        store.database, diff.info, measurements, scores, provenance_id=provenance_id, **arguments
    )
    cross_match(store.database, linked, diff, reference, instrument, sky, galaxies)
    return linked
