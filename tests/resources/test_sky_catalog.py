"""Cones from files, cells and a fake Gaia archive."""

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits
from astropy.table import Table

from io_managers.verify import verify
from resources.archive import Archive
from resources.archived_excerpts import ArchivedExcerpts
from resources.catalog_excerpts import Cell, FolderExcerpts
from resources.catalog_tables import normalised
from resources.database import Database
from resources.sky_catalog import FileCatalog, GaiaArchive, PartitionedCatalog, open_sky_catalog, write_partitioned
from seechange_assets.errors import ArchiveError, CatalogError, ServiceUnavailable
from sql.models import CatalogExcerptRow


def gaia_table(ra, dec, seed=0) -> Table:
    """A table with the archive's own column names."""
    rng, n = np.random.default_rng(seed), len(ra)
    return Table(
        {
            "ra": np.asarray(ra) % 360.0,
            "dec": dec,
            "ra_error": np.full(n, 0.1),
            "dec_error": np.full(n, 0.2),
            "pmra": rng.normal(0, 5, n),
            "pmdec": rng.normal(0, 5, n),
            "parallax": np.full(n, 1.0),
            "ref_epoch": np.full(n, 2016.0),
            "phot_g_mean_mag": rng.uniform(12, 21, n),
            "phot_bp_mean_mag": rng.uniform(12, 21, n),
            "phot_rp_mean_mag": rng.uniform(12, 21, n),
            "phot_g_mean_flux_over_error": np.full(n, 100.0),
        }
    )


def whole_sky(n=20000, seed=1) -> Table:
    rng = np.random.default_rng(seed)
    return gaia_table(rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n))), seed)


def within(table, ra, dec, radius):
    """Which stars lie in a cone, by the dot product of unit vectors."""

    def vector(ra, dec):
        ra, dec = np.radians(ra), np.radians(dec)
        return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)

    return vector(np.array(table["ra"]), np.array(table["dec"])) @ vector(ra, dec) > np.cos(np.radians(radius))


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.1, -30.0), (359.9, 10.0), (77.0, 89.5), (200.0, -90.0)])
def test_file_and_cells_give_the_same_cone(tmp_path, ra, dec):
    sky = whole_sky()
    sky.write(tmp_path / "stars.fits")
    write_partitioned(normalised(sky, "sky"), tmp_path / "cells", 2)
    one = open_sky_catalog(str(tmp_path / "stars.fits")).cone(ra, dec, 4.0, max_mag=20.0)
    two = open_sky_catalog(str(tmp_path / "cells")).cone(ra, dec, 4.0, max_mag=20.0)
    expected = within(sky, ra, dec, 4.0) & (sky["phot_g_mean_mag"] <= 20.0)
    assert len(one.table) == len(two.table) == expected.sum() > 5
    for column in one.table.colnames:
        np.testing.assert_array_equal(one.table[column], two.table[column])
    assert one.name.split("-")[-1] == two.name.split("-")[-1]
    assert np.all(np.diff(one.table["mag_g"]) >= 0)


@pytest.mark.parametrize("suffix", ["csv", "ecsv", "fits", "parquet"])
def test_formats(tmp_path, suffix):
    sky = whole_sky(200)
    path = tmp_path / f"stars.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({name: np.asarray(sky[name]) for name in sky.colnames}), path)
    else:
        sky.write(path, format="ascii.csv" if suffix == "csv" else None)
    catalog = FileCatalog(path).cone(0.0, 0.0, 180.0)
    assert len(catalog.table) == 200
    assert catalog.epoch_yr == 2016.0
    np.testing.assert_allclose(np.sort(catalog.table["pm_ra"]), np.sort(sky["pmra"]))
    np.testing.assert_allclose(catalog.table["mag_g_err"], 2.5 / np.log(10) / 100)
    np.testing.assert_allclose(catalog.table["dec_err"], 0.2)


def test_ldac(tmp_path):
    names = ["X_WORLD", "Y_WORLD", "ERRA_WORLD", "ERRB_WORLD", "MAG", "MAGERR", "OBSDATE"]
    values = [[10.0, 10.1], [5.0, 5.1], [1e-6, 1e-6], [2e-6, 2e-6], [17.0, 16.0], [0.01, 0.02], [2015.5, 2015.5]]
    columns = [
        fits.Column(n, "D", array=v, unit="deg" if "WORLD" in n else None) for n, v in zip(names, values, strict=True)
    ]
    image_header = fits.BinTableHDU.from_columns(
        [fits.Column("Field Header Card", "80A", array=["x"])], name="LDAC_IMHEAD"
    )
    objects = fits.BinTableHDU.from_columns(columns, name="LDAC_OBJECTS")
    fits.HDUList([fits.PrimaryHDU(), image_header, objects]).writeto(tmp_path / "gaia.ldac")
    catalog = FileCatalog(tmp_path / "gaia.ldac").cone(10.0, 5.0, 1.0)
    assert list(catalog.table["mag_g"]) == [16.0, 17.0]
    assert catalog.table["ra_err"][0] == pytest.approx(3.6)
    assert catalog.epoch_yr == 2015.5
    assert np.isnan(catalog.table["mag_bp"]).all()


def test_column_map(tmp_path):
    Table({"alpha": [1.0], "delta": [2.0], "brightness": [15.0], "mag": [99.0]}).write(tmp_path / "odd.fits")
    source = open_sky_catalog(
        str(tmp_path / "odd.fits"), column_map={"ra": "alpha", "dec": "delta", "mag_g": "brightness"}
    )
    assert source.cone(1.0, 2.0, 0.1).table["mag_g"][0] == 15.0


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "stars.fits"
    whole_sky(50).write(path)
    assert len(FileCatalog(path).cone(0, 0, 180).table) == 50
    whole_sky(60).write(path, overwrite=True)
    assert len(FileCatalog(path).cone(0, 0, 180).table) == 60


@pytest.mark.parametrize("location", [None, "", "/nowhere/stars.fits"])
def test_no_catalogue(location):
    with pytest.raises(CatalogError, match="SEECHANGE_CATALOG"):
        open_sky_catalog(location)


def test_useless_files(tmp_path):
    (tmp_path / "noise.fits").write_bytes(b"not FITS at all")
    Table({"x": [1.0]}).write(tmp_path / "pixels.fits")
    for name in ("noise.fits", "pixels.fits"):
        with pytest.raises(CatalogError, match="SEECHANGE_CATALOG"):
            FileCatalog(tmp_path / name).cone(0, 0, 1)
    with pytest.raises(CatalogError, match="no partitioned catalogue"):
        PartitionedCatalog(tmp_path)


def test_too_few_stars(tmp_path):
    whole_sky(100).write(tmp_path / "stars.fits")
    with pytest.raises(CatalogError, match=r"within 0\.001 deg of RA 10\.0000 .* 5 required.*SEECHANGE_CATALOG"):
        FileCatalog(tmp_path / "stars.fits").cone(10.0, 5.0, 0.001, min_stars=5)


class FakeArchive:
    """Answers cones out of a synthetic sky and counts them; fails `n_failures` times first."""

    def __init__(self, n_failures=0, n=50_000):
        self.sky, self.n_failures, self.calls = whole_sky(n), n_failures, []

    def __call__(self, ra, dec, radius, max_mag):
        self.calls.append((ra, dec, radius, max_mag))
        if len(self.calls) <= self.n_failures:
            raise ConnectionError("connection reset")
        return self.sky[within(self.sky, ra, dec, radius) & (self.sky["phot_g_mean_mag"] <= max_mag)]


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, 45.0), (10.0, -89.9)])
def test_gaia_cells_are_complete_and_fetched_once(tmp_path, ra, dec):
    archive = FakeArchive()
    source = GaiaArchive(tmp_path, archive)
    first = source.cone(ra, dec, 1.0, max_mag=20.5)
    n_calls = len(archive.calls)
    again = GaiaArchive(tmp_path, archive).cone(ra, dec, 1.0, max_mag=20.5)
    assert len(archive.calls) == n_calls
    expected = within(archive.sky, ra, dec, 1.0) & (archive.sky["phot_g_mean_mag"] <= 20.5)
    assert len(first.table) == expected.sum() > 3
    assert first.name == again.name
    assert first.epoch_yr == 2016.0
    assert not list(tmp_path.rglob(".npix*"))


def test_gaia_without_a_cache(tmp_path):
    archive = FakeArchive()
    assert len(GaiaArchive(None, archive).cone(150.0, 2.0, 1.0).table) == within(archive.sky, 150.0, 2.0, 1.0).sum()


def test_gaia_waits_longer_after_each_failure():
    waits = []
    GaiaArchive(None, FakeArchive(n_failures=3), waits.append).cone(150.0, 2.0, 1.0)
    assert waits == [1.0, 2.0, 4.0]


def test_gaia_down():
    with pytest.raises(ServiceUnavailable, match=r"connection reset.*SEECHANGE_CATALOG"):
        GaiaArchive(None, FakeArchive(n_failures=99), lambda _: None).cone(150.0, 2.0, 1.0)


def test_gaia_empty_answer_is_not_cached(tmp_path):
    with pytest.raises(CatalogError, match="SEECHANGE_CATALOG"):
        GaiaArchive(tmp_path, lambda *_: whole_sky(0)).cone(150.0, 2.0, 0.1)
    assert not list(tmp_path.rglob("npix=*.fits"))


def _fetch(folder: Path, log: Path) -> None:
    def query(ra, dec, radius, max_mag):
        with log.open("a") as handle:
            handle.write("call\n")
        rng = np.random.default_rng(3)
        return gaia_table(ra + rng.uniform(-1, 1, 100), dec + rng.uniform(-1, 1, 100))

    GaiaArchive(folder, query).cone(150.0, 2.0, 0.5)


def test_two_processes_fetch_a_cell_once_and_a_stale_lock_blocks_nobody(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    (folder / "gaia_dr3_order6_g22").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fetch, args=(folder, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cells = list(folder.rglob("npix=*.fits"))
    assert len(log.read_text().split()) == len(cells)
    for cell in cells:
        cell.unlink()  # the lock files stay, as after a crash
    _fetch(folder, log)
    assert len(list(folder.rglob("npix=*.fits"))) == len(cells)


def _fetch_slowly(excerpts, log: Path, seconds: float) -> None:
    """A process of its own that needs one excerpt; the archive answers after a while."""

    def query(ra, dec, radius, max_mag):
        with log.open("a") as handle:
            handle.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return gaia_table(np.full(50, ra), np.full(50, dec))

    cell = Cell("gaia_dr3", 6, 1000, 22.0)
    GaiaArchive(excerpts(), query)._cell(excerpts(), cell)


@pytest.fixture(params=["folder", "archive"])
def excerpts(request, tmp_path):
    """Both ways of keeping excerpts, as a function that a new process calls."""
    if request.param == "folder":
        return partial(FolderExcerpts, tmp_path / "excerpts")
    url = request.getfixturevalue("database_url")
    database = Database(url)
    database.upgrade()
    database.engine.dispose()
    return partial(_archived, url, str(tmp_path / "archive"))


def _archived(url: str, root: str) -> ArchivedExcerpts:
    return ArchivedExcerpts(Database(url), Archive(root))


def _start(excerpts, log: Path, seconds: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=_fetch_slowly, args=(excerpts, log, seconds))
    process.start()
    return process


def _wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_processes_cause_one_download(tmp_path, excerpts):
    log = tmp_path / "log"
    processes = [_start(excerpts, log, 1.0) for _ in range(2)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().split()) == 1
    assert len(excerpts().load(Cell("gaia_dr3", 6, 1000, 22.0)).table) == 50


def test_a_killed_downloader_is_replaced_within_15_seconds(tmp_path, excerpts):
    log = tmp_path / "log"
    first = _start(excerpts, log, 600.0)
    _wait_for(log.exists)
    second = _start(excerpts, log, 0.0)
    time.sleep(2.0)
    assert second.is_alive()
    assert len(log.read_text().split()) == 1
    first.kill()
    began = time.monotonic()
    second.join(30)
    assert second.exitcode == 0
    assert time.monotonic() - began < 15.0
    assert log.read_text().split() == [str(first.pid), str(second.pid)]


def test_excerpts_of_the_archive_have_rows(tmp_path, database_url):
    database, cell = Database(database_url), Cell("gaia_dr3", 6, 1000, 22.0)
    database.upgrade()
    excerpts = ArchivedExcerpts(database, Archive(str(tmp_path)))
    assert excerpts.load(cell) is None
    for _ in range(2):
        excerpts.save(cell, normalised(whole_sky(30), "gaia_dr3"))
    with database.session() as session:
        row = session.scalars(sa.select(CatalogExcerptRow)).one()
    assert (row.catalog, row.healpix_order, row.healpix, row.n_stars) == ("gaia_dr3", 6, 1000, 30)
    assert verify(database, Archive(str(tmp_path))) == (1, [])
    (tmp_path / row.filepath).write_bytes(b"changed")
    with pytest.raises(ArchiveError, match="differs"):
        excerpts.load(cell)
    (tmp_path / row.filepath).unlink()
    assert excerpts.load(cell) is None
    database.engine.dispose()
