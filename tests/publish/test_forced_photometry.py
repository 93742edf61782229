"""Forced photometry at known objects."""

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.table import Table

from seechange_assets.products import Flag
from seechange_assets.publish.associations import associate_measurements
from seechange_assets.publish.forced_photometry import ForcedPhotometryParameters, force_at_objects
from seechange_assets.science.forced_photometry import force_photometry
from sql.objects import ForcedPhotometryRow, ObjectRow
from tests.publish.sky import MJD, PROVENANCES, ZP, difference, image_info, measurements, scores


def at_pixels(product, x, y):
    ra, dec = product.wcs.astropy().all_pix2world(np.asarray(x, float), np.asarray(y, float), 0)
    names = [f"o{i}" for i in range(len(ra))]
    return Table({"object_id": names, "object_name": names, "ra": ra, "dec": dec})


def test_fluxes_are_unbiased_with_honest_errors():
    """400 sources: the mean pull has an error of 0.05, its width one of 0.035; five sigma of each."""
    rng = np.random.default_rng(3)
    gx, gy = np.meshgrid(np.arange(20, 420, 20.0), np.arange(20, 420, 20.0))
    x, y = gx.ravel() + rng.uniform(-0.5, 0.5, 400), gy.ravel() + rng.uniform(-0.5, 0.5, 400)
    flux = rng.uniform(-300, 3000, 400)
    product = difference((440, 440), list(zip(x, y, flux, strict=True)), seed=4)
    table = force_photometry(product, at_pixels(product, x, y)).table
    pull = (table["flux_psf"] - flux) / table["flux_psf_err"]
    assert abs(pull.mean()) < 0.25
    assert abs(pull.std() - 1) < 0.18
    assert np.abs(table["x"] - x).max() < 1e-6


def test_nanojansky_use_the_zero_point():
    product = difference(noise=1e-3)
    row = force_photometry(product, at_pixels(product, [60.3], [80.7])).table[0]
    assert row["flux_psf"] == pytest.approx(5000, rel=1e-4)
    assert row["flux_njy"] == pytest.approx(5000 * 10 ** (-0.4 * (ZP - 31.4)), rel=1e-4)
    assert row["flux_njy"] / row["flux_njy_err"] == pytest.approx(row["flux_psf"] / row["flux_psf_err"])


def test_objects_off_the_image_are_left_out_and_masked_ones_have_no_flux():
    product = difference()
    product.flags[40:60, 40:60] = Flag.SATURATED
    product.flags[121, 100] = Flag.BAD
    table = force_photometry(product, at_pixels(product, [50, -3, 500, 100, 0], [50, 50, 5000, 120, 100])).table
    assert list(table["object_id"]) == ["o0", "o3", "o4"]
    assert list(np.isfinite(table["flux_psf"])) == [False, True, False]  # the last: nearly half the PSF is outside
    assert list(table["image_flags"]) == [int(Flag.SATURATED), int(Flag.BAD), 0]
    assert len(force_photometry(product, at_pixels(product, [], [])).table) == 0


def test_later_exposures_change_nothing(database):
    """Objects count from their first detection on, at the place where that was."""

    def linked(x, y, exposure, mjd):
        ra, dec = product.wcs.astropy().all_pix2world(x, y, 0)
        associate_measurements(
            database, image_info(exposure, mjd=mjd), measurements(ra, dec), scores(len(x)),
            provenance_id=PROVENANCES["associations"],
        )  # fmt: skip

    product = difference(exposure="ls4_1")
    linked([60.3], [80.7], "ls4_1", MJD)
    first = force_at_objects(database, product, provenance_id=PROVENANCES["forced_photometry"]).table
    linked([60.8, 100.0], [80.7, 100.0], "ls4_2", MJD + 1)
    again = force_at_objects(database, product, provenance_id=PROVENANCES["forced_photometry"]).table
    assert len(first) == len(again) == 1
    assert all((first[name] == again[name]).all() for name in first.colnames)
    assert again["x"][0] == pytest.approx(60.3, abs=1e-6)
    later = difference(exposure="ls4_2", mjd=MJD + 1)
    assert len(force_at_objects(database, later, provenance_id=PROVENANCES["forced_photometry"]).table) == 2


def test_known_objects_are_measured_and_stored_once(database):
    product = difference(exposure="ls4_2")
    ra, dec = product.wcs.astropy().all_pix2world([60.3, 20.0, 5000.0], [80.7, 20.0, 80.0], 0)
    associate_measurements(
        database, image_info(), measurements(ra, dec), scores(3), provenance_id=PROVENANCES["associations"]
    )
    arguments = ForcedPhotometryParameters().arguments_without("max_offset_arcsec")
    first = force_at_objects(database, product, provenance_id=PROVENANCES["forced_photometry"], **arguments)
    again = force_at_objects(database, product, provenance_id=PROVENANCES["forced_photometry"], **arguments)
    assert len(first.table) == 2
    assert all((first.table[name] == again.table[name]).all() for name in first.table.colnames)
    with database.session() as session:
        rows = list(session.scalars(sa.select(ForcedPhotometryRow).order_by(ForcedPhotometryRow.flux_psf)))
        session.execute(sa.update(ObjectRow).values(is_bad=True))
    assert len(rows) == 2
    assert rows[1].flux_psf == pytest.approx(5000, abs=200)
    assert len(force_at_objects(database, product, provenance_id=PROVENANCES["forced_photometry"]).table) == 0
