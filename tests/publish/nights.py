"""One CCD from a difference to committed alerts, for the tests of this folder."""

import numpy as np
import sqlalchemy as sa

from resources.alert_stream import decode
from seechange_assets.publish.alerts import build_alerts
from seechange_assets.publish.associations import associate_measurements
from seechange_assets.publish.forced_photometry import force_at_objects
from sql.alerts import OutboxRow
from sql.base import deterministic_id
from sql.models import DifferenceRow, ExposureRow, ReferenceRow
from sql.sky import healpix_of, polygon_of
from tests.publish.sky import MJD, PROVENANCES, cutouts, difference, measurements, scores

STARS = ((60.3, 80.7, 5000.0), (120.2, 40.1, 3000.0), (30.0, 150.0, 2000.0))
SHAPE = (200, 160)


def night(database, exposure="ls4_1", mjd=MJD, stars=STARS, ccd="S1", date="20251121", **options):
    """One CCD from a difference to committed alerts."""
    product = difference(SHAPE, stars, exposure=exposure, mjd=mjd, ccd=ccd)
    register(database, product)
    x, y, flux = np.array(stars).reshape(-1, 3).T
    ra, dec = product.wcs.astropy().all_pix2world(x, y, 0)
    found = measurements(ra, dec, flux, x=x, y=y)
    linked = associate_measurements(
        database, product.info, found, scores(len(found.table)), provenance_id=PROVENANCES["associations"]
    )
    force_at_objects(database, product, provenance_id=PROVENANCES["forced_photometry"])
    told = {"provenance_ids": PROVENANCES, "provenance_tag": "current", "software_version": "1.0.0"}
    return build_alerts(
        database, product.info, linked, cutouts(x, y), product.wcs, product.psf, night=date, **(told | options)
    )[0]


def register(database, product):
    """The rows that the store writes for an exposure and its difference."""
    info = product.info
    ra, dec, corners = polygon_of(product.wcs.astropy(), SHAPE)
    corners = {"ra": corners[0], "dec": corners[1]}
    file = {"sha256": "0" * 64, "n_bytes": 1}
    row = file | {
        "ccd": info.ccd, "content_hash": "0" * 64, "summary": {}, "inputs": {}, "filter": info.filter,
        "limiting_magnitude": product.limiting_magnitude, "ra_deg": ra, "dec_deg": dec, "corners": corners,
        "healpix": healpix_of(ra, dec),
    }  # fmt: skip
    reference_id = deterministic_id("reference")
    with database.session() as session:
        session.merge(ExposureRow(
            key=info.exposure, instrument="ls4", kind="science", night="20251121", mjd=info.mjd, exptime_s=60.0,
            target="", project="", field="f1", filters={}, filepath=info.exposure,
            provenance_id=PROVENANCES["diff"], **file,
        ))  # fmt: skip
        session.merge(ReferenceRow(
            id=reference_id, partition="f1.r", filepath="ref", provenance_id=PROVENANCES["reference"], name="r",
            instrument="ls4", field="f1", fwhm_px=2.0, members=[], **row,
        ))  # fmt: skip
        session.flush()
        session.merge(DifferenceRow(
            id=deterministic_id("diff", info.exposure, info.ccd), partition=info.exposure,
            provenance_id=PROVENANCES["diff"],
            filepath=f"{info.exposure}/{info.ccd}", reference_id=reference_id, method="test", mjd=info.mjd, **row,
        ))  # fmt: skip


def outbox(database):
    with database.session() as session:
        return list(session.scalars(sa.select(OutboxRow).order_by(OutboxRow.sequence)))


def packets(database):
    return {row.key: decode(row.packet, row.schema_name) for row in outbox(database)}
