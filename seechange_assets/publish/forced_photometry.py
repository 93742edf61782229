"""Flux at every object in the footprint, and at new objects in the days before."""

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from seechange_assets.errors import ArchiveError
from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import Partition
from seechange_assets.ports import Resource
from seechange_assets.process import data_product
from seechange_assets.products import Difference, ForcedPhotometry, plain
from seechange_assets.provenance import Recipes

if TYPE_CHECKING:
    from astropy.table import Table

    from resources.database import Database


class ForcedPhotometryParameters(Parameters):
    """How the flux at a known position is fitted."""

    process: ClassVar[str] = "forced_photometry"
    algorithm_version: ClassVar[str] = "4"
    stamp_fwhms: float = Field(2.5, ge=1, le=6, description="Half side of the fitted stamp [FWHM].")
    max_masked_fraction: float = Field(
        0.3, ge=0, lt=1, description="No flux where a larger part of the PSF falls on flagged pixels."
    )
    history_days: float = Field(
        30.0, ge=0, le=3650, description="An object is measured from so long before its first detection on [day]."
    )
    max_offset_arcsec: float = Field(
        0.05, ge=0, le=10, description="A flux is measured again when the mean position has moved farther [arcsec]."
    )


def force_at_objects(
    database: "Database",
    difference: Difference,
    *,
    provenance_id: str,
    associations_id: str | None = None,
    history_days: float = 30.0,
    is_test: bool = False,
    **parameters: Any,
) -> ForcedPhotometry:
    """Forced photometry of one difference at the objects on it, written to the database.

    What is returned are fluxes of the objects first detected by the middle of the exposure, at their mean positions
    from the detections by then: neither changes with what later exposures find, so a rerun after them gives the
    same table. In the database are fluxes at what is the mean position now, also of objects that were found up to
    `history_days` later. Objects marked bad or merged into others are left out. The measurement itself runs between
    two short transactions.

    Parameters
    ----------
    associations_id : str, optional
        Provenance of the detections that give the positions; all of them without it.

    Raises
    ------
    ServiceUnavailable
        If Postgres does not answer.
    """
    from seechange_assets.science.forced_photometry import force_photometry

    now, then = objects_on(database, difference, associations_id, history_days, is_test=is_test)
    store_forced_photometry(database, difference, force_photometry(difference, now, **parameters), provenance_id)
    return force_photometry(difference, then, **parameters)


def objects_on(
    database: "Database", difference: Difference, associations_id: str | None, history_days: float, *, is_test: bool
) -> "tuple[Table, Table]":
    """Objects on (and some just around) a difference at their mean positions: those of now, and those known by then."""
    from seechange_assets.publish.positions import means_of
    from sql.objects import objects_in_footprint
    from sql.sky import polygon_of

    mjd = difference.info.mjd_mid
    _, _, (ra, dec) = polygon_of(difference.wcs.astropy(), difference.data.shape)
    with database.session() as session:
        found = objects_in_footprint(session, {"ra": ra, "dec": dec}, is_test=is_test)
        good = [o for o in found if not (o.is_bad or o.is_merged) and o.first_mjd - history_days <= mjd]
        known = [o.id for o in good if o.first_mjd <= mjd]
        means = means_of(session, known, associations_id, until_mjd=mjd)
    now = {o.id: (o.mean_ra, o.mean_dec) for o in good}
    names = {o.id: o.name for o in good}
    then = {} if means is None else dict(zip(means.ids, zip(means.mean.ra, means.mean.dec, strict=True), strict=True))
    return _objects(names, now), _objects(names, then)


def _objects(names: Mapping[uuid.UUID, str], places: Mapping[uuid.UUID, tuple[float, float]]) -> "Table":
    """The table that `force_photometry` takes, sorted by object."""
    from astropy.table import Table

    ids = sorted(places)
    ra, dec = np.array([places[key] for key in ids], float).reshape(-1, 2).T
    return Table({
        "object_id": np.array([str(key) for key in ids], "U36"),
        "object_name": np.array([names[key] for key in ids], "U80"),
        "ra": ra,
        "dec": dec,
    })  # fmt: skip


def measure_history(
    database: "Database",
    load: Callable[[str, str], Difference],
    difference: Difference,
    *,
    provenance_ids: Mapping[str, str],
    history_days: float = 30.0,
    max_offset_arcsec: float = 0.05,
    is_test: bool = False,
    **parameters: Any,
) -> int:
    """Measure the objects detected on a difference on the other differences that show their places.

    Those begin `history_days` before the first detection. A flux that exists is measured again where the object's
    mean position has moved by more than `max_offset_arcsec` since. So the fluxes of an object do not depend on the
    order in which its exposures were processed.

    Parameters
    ----------
    load : callable
        (exposure, ccd) -> the difference of the recipes in use.
    provenance_ids : mapping
        Ids of ``associations``, ``forced_photometry`` and ``diff``.

    Returns
    -------
    int
        How many differences were looked at.
    """
    from seechange_assets.science.forced_photometry import force_photometry

    todo, names = _history(database, difference, provenance_ids, history_days, max_offset_arcsec, is_test)
    for (exposure, ccd), places in todo.items():
        try:
            earlier = load(exposure, ccd)
        except ArchiveError as error:  # a damaged file of another night must not stop this one
            logging.getLogger(__name__).warning("no forced photometry on %s CCD %s: %s", exposure, ccd, error)
            continue
        photometry = force_photometry(earlier, _objects(names, places), **parameters)
        store_forced_photometry(database, earlier, photometry, provenance_ids["forced_photometry"])
    return len(todo)


def _history(
    database: "Database", difference: Difference, provenance_ids: Mapping[str, str], history_days: float,
    max_offset_arcsec: float, is_test: bool,
) -> tuple[dict[tuple[str, str], dict[uuid.UUID, tuple[float, float]]], dict[uuid.UUID, str]]:  # fmt: skip
    """(exposure, ccd) -> places of the objects to measure on it, and the objects' names."""
    from sql.alerts import covered
    from sql.light_curves import differences_overlapping, forced_places
    from sql.objects import detected_objects
    from sql.sky import polygon_of, separation_deg

    info = difference.info
    ra, dec, (corner_ra, corner_dec) = polygon_of(difference.wcs.astropy(), difference.data.shape)
    with database.session() as session:
        objects = detected_objects(session, info.exposure, info.ccd, provenance_ids["associations"], is_test=is_test)
        if not objects:
            return {}, {}
        window = (min(o.first_mjd for o in objects) - history_days, np.inf)
        corners = {"ra": corner_ra, "dec": corner_dec}
        others = differences_overlapping(session, corners, (ra, dec), provenance_ids, window)
        measured = forced_places(session, [o.id for o in objects], provenance_ids["forced_photometry"])
    todo: dict[tuple[str, str], dict[uuid.UUID, tuple[float, float]]] = {}
    others = [row for row in others if (row["exposure"], row["ccd"]) != (info.exposure, info.ccd)]
    for item in objects:
        inside = covered([row["corners"] for row in others], item.mean_ra, item.mean_dec)
        for row in (others[k] for k in np.flatnonzero(inside)):
            place = measured.get((item.id, row["exposure"], row["ccd"]))
            is_close = place is not None and (
                3600 * separation_deg(*place, item.mean_ra, item.mean_dec) <= max_offset_arcsec
            )
            if not is_close and row["mjd_mid"] >= item.first_mjd - history_days:
                todo.setdefault((row["exposure"], row["ccd"]), {})[item.id] = (item.mean_ra, item.mean_dec)
    return todo, {o.id: o.name for o in objects}


def store_forced_photometry(
    database: "Database", difference: Difference, photometry: ForcedPhotometry, provenance_id: str
) -> None:
    """Write the rows; those of an earlier run of the same recipe are replaced."""
    from sql.base import deterministic_id
    from sql.objects import replace_forced_photometry

    info, table = difference.info, photometry.table
    common = {
        "provenance_id": provenance_id, "exposure": info.exposure, "ccd": info.ccd,
        "mjd_mid": info.mjd_mid, "filter": info.filter,
    }  # fmt: skip
    names = ("ra", "dec", "x", "y", "flux_psf", "flux_psf_err", "flux_njy", "flux_njy_err", "image_flags")
    columns = {name: plain(np.asarray(table[name]).tolist()) for name in names}
    rows = [
        common
        | {
            "id": deterministic_id("forced", provenance_id, info.exposure, info.ccd, object_id),
            "object_id": uuid.UUID(str(object_id)),
        }
        | {name: columns[name][i] for name in names}
        for i, object_id in enumerate(table["object_id"])
    ]
    with database.session() as session:
        replace_forced_photometry(session, rows)


@data_product(ForcedPhotometryParameters, deps=["associations"])
def forced_photometry(
    diff: Difference,
    parameters: ForcedPhotometryParameters,
    recipes: Resource[Recipes],
    store: Resource[Any],
) -> ForcedPhotometry:
    """PSF flux at every object in the footprint, here and, of objects detected here, in the days before."""
    ids = {name: recipes[name].id for name in ("associations", "forced_photometry", "diff")}
    is_test = recipes.parameters("associations").is_test
    arguments = parameters.arguments_without("max_offset_arcsec") | {"is_test": is_test}
    photometry = force_at_objects(
        store.database, diff, provenance_id=ids["forced_photometry"], associations_id=ids["associations"], **arguments
    )

    def load(exposure: str, ccd: str) -> Difference:
        unused = ("score", "flux", "flux_err")
        earlier: Difference = store.load("diff", Partition(exposure, ccd), without=unused, mapped=True)
        return earlier

    measure_history(store.database, load, diff, provenance_ids=ids, is_test=is_test, **parameters.arguments())
    return photometry
