"""What catalogues show near a new object, stored once per object."""

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seechange_assets.instruments.base import Instrument
from seechange_assets.names import printable
from seechange_assets.products import Associations, Difference, Reference, plain
from seechange_assets.publish.solar_system import footprint_circle, julian_year, star_magnitudes

if TYPE_CHECKING:
    from astropy.table import Table

    from resources.database import Database
    from seechange_assets.ports import SkyCatalogSource

#: How far away the nearest star and reference source may be [arcsec]; in the catalogue of galaxies all within are told.
STAR_RADIUS_ARCSEC, GALAXY_RADIUS_ARCSEC = 60.0, 10.0


def cross_match(
    database: "Database",
    associations: Associations,
    difference: Difference,
    reference: Reference,
    instrument: Instrument,
    sky: "SkyCatalogSource",
    galaxies: Any = None,
) -> None:
    """Store the nearest star, the nearest source of the reference and the galaxies of each object that lacks them.

    Parameters
    ----------
    galaxies : object, optional
        Answers ``cone(ra, dec, radius_deg) -> Table`` with ``name, ra, dec, mag, star_score``, and has a ``name``.

    Raises
    ------
    ServiceUnavailable
        If Postgres does not answer.
    """
    from sql.object_records import insert_cross_matches, objects_without
    from sql.objects import places_of

    ids = sorted({uuid.UUID(str(value)) for value in associations.table["object_id"]})
    with database.session() as session:
        lacking = {kind: objects_without(session, ids, kind) for kind in ("gaia", "reference", "galaxy")}
        places = places_of(session, ids)
    rows = []
    if lacking["gaia"]:
        rows += nearest_rows("gaia", lacking["gaia"], places, *_stars(difference, instrument, sky), STAR_RADIUS_ARCSEC)
    if lacking["reference"]:
        table, name = reference_sources(reference), f"{reference.name} {difference.reference_id}"
        rows += nearest_rows("reference", lacking["reference"], places, table, name, STAR_RADIUS_ARCSEC)
    if lacking["galaxy"] and galaxies:
        centre, radius = footprint_circle(difference)
        table = galaxies.cone(*centre, radius + GALAXY_RADIUS_ARCSEC / 3600.0)
        rows += all_rows("galaxy", lacking["galaxy"], places, table, galaxies.name, GALAXY_RADIUS_ARCSEC)
    with database.session() as session:
        insert_cross_matches(session, rows)


def _stars(difference: Difference, instrument: Instrument, sky: "SkyCatalogSource") -> tuple["Table", str]:
    """Catalogue stars at the time of the image, as `reference_sources`: all count as stars."""
    from astropy.table import Table

    from seechange_assets.science.known_sources import moved_to

    centre, radius = footprint_circle(difference)
    stars = sky.cone(*centre, radius + STAR_RADIUS_ARCSEC / 3600.0)
    ra, dec = moved_to(stars, julian_year(difference.info.mjd_mid))
    names = [f"{a:.6f}{d:+.6f}" for a, d in zip(stars.table["ra"], stars.table["dec"], strict=True)]
    mag = star_magnitudes(stars, instrument, difference.info.filter)
    return Table({"name": names, "ra": ra, "dec": dec, "mag": mag, "star_score": np.ones(len(ra))}), stars.name


def reference_sources(reference: Reference) -> "Table":
    """``name, ra, dec, mag, star_score`` of the sources of a reference."""
    from astropy.table import Table

    table = reference.sources.table
    ra, dec = reference.wcs.astropy().all_pix2world(np.asarray(table["x"], float), np.asarray(table["y"], float), 0)
    flux = np.asarray(table["flux_auto"], float)
    mag = reference.zp.zp - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
    names = [str(row) for row in range(len(table))]
    return Table(
        {"name": names, "ra": ra, "dec": dec, "mag": mag, "star_score": np.asarray(table["star_score"], float)}
    )


def nearest_rows(
    kind: str, ids: set[uuid.UUID], places: Mapping[uuid.UUID, tuple[float, float]], table: "Table", catalog: str,
    radius_arcsec: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Columns of `CrossMatchRow`: the nearest source of each object, or a row that says there is none."""
    from seechange_assets.science.association import match_nearest

    keys = sorted(ids)
    ra, dec = np.array([places[key] for key in keys], float).reshape(-1, 2).T
    index, separation = match_nearest(
        ra, dec, np.asarray(table["ra"], float), np.asarray(table["dec"], float), radius_arcsec
    )
    return [
        _row(key, kind, 0, catalog, table[int(i)] if i >= 0 else None, float(d))
        for key, i, d in zip(keys, index, separation, strict=True)
    ]


def all_rows(
    kind: str, ids: set[uuid.UUID], places: Mapping[uuid.UUID, tuple[float, float]], table: "Table", catalog: str,
    radius_arcsec: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """As `nearest_rows`, with every source within the radius, nearest first."""
    from seechange_assets.science.association import chord_to_arcsec, unit_vectors

    rows: list[dict[str, Any]] = []
    sources = unit_vectors(np.asarray(table["ra"], float), np.asarray(table["dec"], float))
    for key in sorted(ids):
        here = unit_vectors(*(np.array([value]) for value in places[key]))
        distance = chord_to_arcsec(np.linalg.norm(sources - here, axis=1))
        near: Sequence[int] = [int(i) for i in np.argsort(distance, kind="stable") if distance[i] <= radius_arcsec]
        found = [_row(key, kind, rank, catalog, table[i], float(distance[i])) for rank, i in enumerate(near)]
        rows += found or [_row(key, kind, 0, catalog, None, float("nan"))]
    return rows


def _row(key: uuid.UUID, kind: str, rank: int, catalog: str, source: Any, separation_arcsec: float) -> dict[str, Any]:
    names = ("name", "ra", "dec", "mag", "star_score")
    told = {name: None if source is None else plain(source[name]) for name in names}
    told["name"] = None if source is None else printable(str(told["name"]))
    separation = plain(separation_arcsec)
    return {
        "object_id": key,
        "kind": kind,
        "rank": rank,
        "catalog": catalog[:120],
        "separation_arcsec": separation,
        **told,
    }
