"""Flux at every object in the footprint that was known by then."""

from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
import numpy as np

from seechange_assets.data_product import data_product
from seechange_assets.parameters import Field, Parameters
from seechange_assets.products import Difference, ForcedPhotometry, plain
from seechange_assets.provenance import Recipes

if TYPE_CHECKING:
    from astropy.table import Table

    from resources.database import Database


class ForcedPhotometryParameters(Parameters):
    """How the flux at a known position is fitted."""

    process: ClassVar[str] = "forced_photometry"
    algorithm_version: ClassVar[str] = "2"
    stamp_fwhms: float = Field(2.5, ge=1, le=6, description="Half side of the fitted stamp [FWHM].")
    max_masked_fraction: float = Field(
        0.3, ge=0, lt=1, description="No flux where a larger part of the PSF falls on flagged pixels."
    )


def force_at_objects(
    database: "Database", difference: Difference, *, provenance_id: str, is_test: bool = False, **parameters: Any
) -> ForcedPhotometry:
    """Forced photometry of one difference at the objects on it, written to the database.

    Those are the objects first detected by the middle of the exposure, at their first positions: neither changes
    with what later exposures find, so a rerun after them gives the same table. Objects marked bad are left out.
    The measurement itself runs between two short transactions.

    Raises
    ------
    ServiceUnavailable
        If Postgres does not answer.
    """
    from seechange_assets.science.forced_photometry import force_photometry

    photometry = force_photometry(difference, objects_on(database, difference, is_test=is_test), **parameters)
    store_forced_photometry(database, difference, photometry, provenance_id)
    return photometry


def objects_on(database: "Database", difference: Difference, *, is_test: bool = False) -> "Table":
    """Objects first detected by then on (and some just around) a difference, at their first positions."""
    from astropy.table import Table

    from sql.objects import objects_in_footprint
    from sql.sky import polygon_of

    _, _, (ra, dec) = polygon_of(difference.wcs.astropy(), difference.data.shape)
    with database.session() as session:
        found = objects_in_footprint(session, {"ra": ra, "dec": dec}, is_test=is_test)
    good = [o for o in found if not o.is_bad and o.first_mjd <= difference.info.mjd_mid]
    return Table({
        "object_id": np.array([str(o.id) for o in good], "U36"),
        "object_name": np.array([o.name for o in good], "U80"),
        "ra": np.array([o.ra for o in good], float),
        "dec": np.array([o.dec for o in good], float),
    })  # fmt: skip


def store_forced_photometry(
    database: "Database", difference: Difference, photometry: ForcedPhotometry, provenance_id: str
) -> None:
    """Write the rows; those of an earlier run of the same recipe are replaced."""
    import uuid

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
    recipes: dg.ResourceParam[Recipes],
    database: dg.ResourceParam[Any],
) -> ForcedPhotometry:
    """PSF flux at every object in the footprint that was known by then."""
    return force_at_objects(database, diff, provenance_id=recipes["forced_photometry"].id, **parameters.arguments())
