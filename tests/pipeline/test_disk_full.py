"""A disk that fills up while products are written: one clear line, nothing half-made, and on by itself with room."""

import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits

from resources.archive import Archive
from resources.database import Database
from seechange_assets.errors import StorageFull
from seechange_assets.partitions import Partition
from sensors import repeats

CHAIN = [
    "image", "background", "sources", "psf", "wcs", "zp", "diff", "detections", "cutouts", "measurements", "scores",
    "associations", "forced_photometry", "alerts",
]  # fmt: skip
MOUNT_BYTES = 8 << 20


@contextmanager
def files_below(n_bytes: int) -> Iterator[None]:
    """The kernel lets no file of this process grow beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; without the right to mount one, these tests are done with a limit on file sizes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MOUNT_BYTES}", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB: writing fails with EFBIG, as at a quota."""
    with files_below(100_000):
        yield


def write_fits(path: Path) -> None:
    """16 MB by astropy, which hides the number of the error."""
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((2048, 2048), np.float32))]).writeto(path)


def write_bytes(path: Path) -> None:
    path.write_bytes(bytes(2 * MOUNT_BYTES))


@pytest.mark.parametrize("writer", [write_fits, write_bytes])
def test_a_file_without_room_leaves_nothing(small_disk, writer):
    archive = Archive(str(small_disk))
    with pytest.raises(StorageFull, match=r"demo/a.fits: no room left in the archive .* free space") as caught:
        archive.write("demo/a.fits", writer)
    assert len(str(caught.value).splitlines()) == 1
    assert list(archive.files()) == []
    assert archive.free_bytes() > 0.9 * MOUNT_BYTES


@pytest.mark.parametrize("writer", [write_fits, write_bytes])
def test_a_quota_is_a_full_disk_too(small_files, tmp_path, writer):
    with pytest.raises(StorageFull):
        Archive(str(tmp_path)).write("demo/a.fits", writer)
    assert list(Archive(str(tmp_path)).files()) == []


def test_another_error_of_writing_stays_what_it_is(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"x")
        raise OSError("something else")

    with pytest.raises(OSError, match="something else"):
        Archive(str(tmp_path)).write("demo/a.fits", fail)
    assert list(Archive(str(tmp_path)).files()) == []


@pytest.fixture
def exposure_without_products(world, tmp_path) -> str:
    """The sky of the first science exposure at another time, ingested."""
    path = tmp_path / "new.fits"
    shutil.copy(world.simulated.science[0], path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["DATE-OBS"] = "2026-11-24T07:15:00.000"
        hdus[0].header.remove("MJD-OBS", ignore_missing=True)
    return world.cli("ingest", str(path), "--json").json[0]["exposure"]


def requested(world, monkeypatch) -> list[dg.RunRequest]:
    """What the sensor requests once the pause after a failure is over."""
    monkeypatch.setattr(repeats, "PAUSE", timedelta(0))
    context = dg.build_sensor_context(instance=world.session.instance, resources={"store": world.session.store})
    return repeats.repeat_exposures(context).run_requests or []


def test_a_step_without_room_for_its_file(world, exposure, exposure_without_products, monkeypatch):
    """The difference is the largest file: it fails alone, says why, and is requested again with what follows."""
    key, store = exposure_without_products, world.session.store
    sizes = {name: store.row(name, Partition(exposure, "01")).n_bytes for name in ("image", "diff")}
    with files_below(sum(sizes.values()) // 2):
        answer = world.cli("process", key, "--ccd", "01", "--json")
    assert sizes["image"] < sizes["diff"]
    assert answer.code == 1
    reason = answer.json[0]["reason"]
    assert re.match(
        rf"diff: demo/2026-11-23/{key}/01/diff\.\w{{10}}\.fits: no room left in the archive .*free space", reason
    )
    (told,) = [told for told in world.cli("exposures", "--json").json if told["exposure"] == key]
    assert (told["state"], told["ccds"][0]["step"]) == ("failed", "diff")
    assert told["ccds"][0]["reason"].startswith("StorageFull: ")
    assert store.row("zp", Partition(key, "01")) is not None
    assert store.row("diff", Partition(key, "01")) is None
    assert not list(Path(world.settings.archive).rglob(".partial-*"))
    assert world.cli("verify").code == 0
    (request,) = requested(world, monkeypatch)
    assert request.partition_key == dg.MultiPartitionKey({"exposure": key, "ccd": "01"})
    assert [asset.path[-1] for asset in request.asset_selection] == CHAIN[CHAIN.index("diff") :]
    assert world.cli("process", key, "--json").code == 0
    assert requested(world, monkeypatch) == []
    assert world.cli("verify").code == 0


def test_nothing_is_requested_while_there_is_no_room(world, exposure, monkeypatch):
    """Room for one CCD's products by the size of the raw file, for none, and where nobody can tell."""
    store = world.session.store
    newest = world.session.registry.after(0)[-1]
    per_ccd = repeats.PRODUCTS_PER_RAW * newest.n_bytes / len(newest.filters)
    for free, n_fitting in ((1.5 * per_ccd, 1), (0.9 * per_ccd, 0), (None, repeats.MAX_REQUESTS)):
        monkeypatch.setattr(Archive, "free_bytes", lambda _, free=free: free)
        assert repeats._n_fitting(store) == n_fitting


def test_the_room_that_products_take(world, exposure):
    """`PRODUCTS_PER_RAW` is more than the products of a CCD take, with what is kept beside them."""
    raw = world.session.registry.get(exposure)
    folder = Path(world.settings.archive, raw.filepath).parent / "01"
    products = sum(path.stat().st_size for path in folder.iterdir())
    assert repeats.PRODUCTS_PER_RAW / 3 < products / (raw.n_bytes / len(raw.filters)) < repeats.PRODUCTS_PER_RAW


def test_a_database_without_room(database_url):
    """Postgres's own word for a full disk, as it says it when a table cannot grow."""
    full = sa.text(
        "do $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$"
    )
    told = r"Postgres has no room left on its disk .*could not extend file.*free space"
    with pytest.raises(StorageFull, match=told), Database(database_url).session() as session:
        session.execute(full)
