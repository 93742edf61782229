"""The drop directory: whole files are registered, bad ones refused, and no file stops the others."""

import gzip
import os
import shutil
import time
from types import SimpleNamespace

import dagster as dg
import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits

from io_managers.claims import Claims
from io_managers.exposures import ExposureRegistry, one_line
from io_managers.nights import exposure_states
from seechange_assets.errors import BadExposure, ServiceUnavailable
from sensors.new_exposures import MAX_EXPOSURES, REFUSE_AFTER_S, SETTLE_S, collect_drop, n_waiting, new_exposures
from sql.models import ExposureClaimRow, RejectedFileRow
from tests.sensors import rows

LONG = "x" * 245 + ".fits"


class Registry:
    """Registers what begins with ``good``, refuses ``bad`` ones, fails for others as told."""

    def __init__(self):
        self.registered, self.rejected, self.failures = [], [], {}

    def register(self, file):
        if file.name in self.failures:
            raise self.failures[file.name]
        if not file.read_bytes().startswith(b"good"):
            raise BadExposure(f"{file}: junk")
        self.registered.append(file.name)

    def reject(self, file, error):
        self.rejected.append(file.name)


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def drop(tmp_path):
    (tmp_path / "drop").mkdir()
    return tmp_path / "drop"


def put(drop, name, content=b"good", quiet_s=2 * REFUSE_AFTER_S):
    path = drop / os.fsdecode(name)
    path.write_bytes(content)
    os.utime(path, (time.time() - quiet_s,) * 2)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", [LONG, b"bad\xff\xfe.fits", b"bad\n\x1b[31m'; drop.fits", "bäd.fits"])
def test_no_name_stops_the_others(drop, registry, name):
    put(drop, name, b"junk")
    put(drop, "zz_good.fits")
    (problem,) = collect_drop(drop, registry)
    assert registry.registered == ["zz_good.fits"]
    assert names(drop) == ["refused"]
    problem.encode("utf-8")
    assert problem.isprintable()
    assert len(problem) <= 200
    kept = sorted((drop / "refused").iterdir())
    assert [path.suffix for path in kept] == [".fits", ".reason"]
    assert kept[1].name == f"{kept[0].name}.reason"
    assert set(kept[0].name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+ -[")
    assert kept[0].read_bytes() == b"junk"
    assert kept[1].read_text(encoding="utf-8").isprintable() is False  # the newline at its end
    assert len(kept[1].read_text(encoding="utf-8").splitlines()) == 1


def test_good_files_of_any_name_are_registered(drop, registry):
    for name in (LONG, b"good\xff.fits", "a b.fits"):
        put(drop, name)
    assert collect_drop(drop, registry) == []
    assert len(registry.registered) == 3
    assert names(drop) == []


def test_two_refused_files_of_one_name_are_both_kept(drop, registry):
    for content in (b"junk 1", b"junk 2"):
        put(drop, "bad.fits", content)
        collect_drop(drop, registry)
    contents = {path.read_bytes() for path in (drop / "refused").glob("*.fits")}
    assert contents == {b"junk 1", b"junk 2"}


def test_a_service_that_is_down_refuses_nothing(drop, registry):
    for name in ("a.fits", "b.fits", "c.fits"):
        put(drop, name)
    registry.failures["b.fits"] = ServiceUnavailable("Postgres does not answer")
    assert collect_drop(drop, registry) == ["collection stopped: Postgres does not answer"]
    assert names(drop) == ["b.fits", "c.fits"]
    registry.failures.clear()
    assert collect_drop(drop, registry) == []
    assert names(drop) == []


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), ValueError("strange"), OSError(28, "full")]
)
def test_what_cannot_be_handled_is_left_and_reported(drop, registry, error):
    put(drop, "a.fits")
    put(drop, "b.fits")
    registry.failures["a.fits"] = error
    (problem,) = collect_drop(drop, registry)
    assert problem.startswith("left 'a.fits'")
    assert names(drop) == ["a.fits"]


def test_a_stalled_transfer_is_not_moved_away_under_its_writer(drop, registry):
    put(drop, "stalled.fits", b"half of a file", quiet_s=REFUSE_AFTER_S / 2)
    put(drop, "writing.fits", b"good", quiet_s=SETTLE_S / 4)
    put(drop, "whole.fits", b"good", quiet_s=SETTLE_S + 1)
    assert collect_drop(drop, registry) == []
    assert registry.registered == ["whole.fits"]
    assert names(drop) == ["stalled.fits", "writing.fits"]
    put(drop, "stalled.fits", b"good: the rest came", quiet_s=SETTLE_S + 1)
    assert collect_drop(drop, registry) == []
    assert registry.registered == ["whole.fits", "stalled.fits"]


def test_stalled_files_do_not_hold_up_the_others(drop, registry):
    for i in range(2 * MAX_EXPOSURES):
        put(drop, f"a{i}.fits", b"half", quiet_s=REFUSE_AFTER_S / 2)
    put(drop, "good.fits")
    assert collect_drop(drop, registry) == []
    assert registry.registered == ["good.fits"]


def test_a_collection_has_a_limit(drop, registry):
    for i in range(MAX_EXPOSURES + 2):
        put(drop, f"good{i}.fits")
    collect_drop(drop, registry)
    assert len(registry.registered) == MAX_EXPOSURES
    collect_drop(drop, registry)
    assert names(drop) == []


def test_one_line_shortens_and_escapes():
    assert one_line("a\nb\udcff") == "a\\nb\\udcff"
    assert one_line("a\tµm") == "a\\tµm"
    short = one_line("begin" + "x" * 500 + "end", 100)
    assert len(short) == 100
    assert short.startswith("begin")
    assert short.endswith("end")


@pytest.fixture
def raw(tmp_path):
    """A whole raw file that holds pixels nobody reads here."""
    path = tmp_path / "whole.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.arange(9000, dtype=np.int16).reshape(90, 100))]
    fits.HDUList(hdus).writeto(path)
    return path


class Camera:
    """Takes any file for one exposure of the demonstration camera."""

    name = "demo"

    def read_exposure(self, path):
        from seechange_assets.products import ExposureInfo

        with fits.open(path) as hdus:
            if len(hdus) < 1:
                raise BadExposure(f"{path}: empty")
        return ExposureInfo(
            key="demo_20261122T040000", instrument="demo", kind="science", night="2026-11-21", mjd=rows.MJD,
            exptime_s=45.0, ra_deg=150.0, dec_deg=2.0, airmass=1.1, target="t", project="survey", field="f1",
            filters={"01": "r"},
        )  # fmt: skip


def test_compressed_files_keep_their_ending(store, raw, tmp_path):
    registry = ExposureRegistry(store, Camera())
    compressed = tmp_path / "RAW.FITS.GZ"
    compressed.write_bytes(gzip.compress(raw.read_bytes()))
    registry.register(compressed)
    row = registry.get("demo_20261122T040000")
    assert row.filepath.endswith(f"/raw.{row.sha256[:10]}.fits.gz")
    with store.exposure_file(row.key) as path, fits.open(path) as hdus:
        assert len(hdus) == 2


@pytest.mark.parametrize(
    ("name", "ending"), [("a.fits", "fits"), ("a.fits.fz", "fits.fz"), ("a.b/../c", "fits"), ("a.fits.exe", "fits")]
)
def test_endings_are_from_an_allow_list(store, raw, tmp_path, name, ending):
    registry = ExposureRegistry(store, Camera())
    file = tmp_path / name.replace("/", "_")
    shutil.copy(raw, file)
    registry.register(file)
    row = registry.get("demo_20261122T040000")
    assert row.filepath.rsplit("/", 1)[-1] == f"raw.{row.sha256[:10]}.{ending}"


@pytest.mark.parametrize("fraction", [0.3, 0.9, 0.999])
def test_a_truncated_gzip_file_is_refused(store, raw, tmp_path, fraction):
    """Its reader would take it for a whole file with fewer extensions."""
    file = tmp_path / "a.fits.gz"
    content = gzip.compress(raw.read_bytes())
    file.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(BadExposure):
        ExposureRegistry(store, Camera()).register(file)


def test_a_refused_file_of_any_name_gets_a_row(store, database, drop):
    put(drop, b"b\xff" + b"x" * 240, b"junk")
    registry = ExposureRegistry(store, Refusing())
    assert len(collect_drop(drop, registry)) == 1
    with database.session() as session:
        row = session.scalars(sa.select(RejectedFileRow)).one()
    assert (row.error, len(row.name)) == ("BadExposure", 200)
    assert row.name.startswith("b\\udcffxxx")


class Refusing(Camera):
    def read_exposure(self, path):
        raise BadExposure(f"{path}: junk")


@pytest.fixture
def tick(store, database, instance, recipes, instrument, drop):
    """Evaluate the sensor; ``commit=False`` is a daemon that dies before it has submitted what was requested."""
    cursor = None
    resources = {
        "registry": ExposureRegistry(store, instrument),
        "settings": SimpleNamespace(drop=drop),
        "recipes": recipes,
        "database": database,
        "instrument": instrument,
    }

    def evaluate(commit=True):
        nonlocal cursor
        result = new_exposures(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
        cursor = result.cursor if commit else cursor
        evaluate.told = result.skip_reason.skip_message if result.skip_reason else ""
        return [request.run_key for request in result.run_requests]

    return evaluate


def test_a_tick_without_requests_says_what_was_refused(tick, drop):
    """Its page in Dagster has no log."""
    tick()
    assert tick.told == "no new exposures"
    put(drop, "a.fits", b"junk")
    tick()
    assert tick.told.startswith("no new exposures; refused: ")
    assert "a.fits" in tick.told
    for name in ("b.fits", "c.fits", "d.fits"):
        put(drop, name, name.encode())
    tick()
    assert "b.fits" in tick.told
    assert tick.told.endswith(" (and 2 more)")
    assert len(tick.told) < 250


def test_what_waits_is_counted(drop, tmp_path):
    assert n_waiting(tmp_path / "nowhere") == 0
    for name in ("a.fits", "b.fits", "b.fits.done", ".c.fits"):
        put(drop, name, quiet_s=0)
    (drop / "d.fits").symlink_to(tmp_path / "nowhere")
    (drop / "refused").mkdir()
    assert n_waiting(drop) == 3


def add(database, recipes, *keys, **values):
    for number, key in enumerate(keys):
        with database.session() as session:  # one transaction each, in order: their sequence is
            session.add(rows.exposure(recipes, key, **({"mjd": rows.MJD + number} | values)))


def test_the_sensor_requests_runs_of_science_exposures_once(tick, database, instance, recipes, drop):
    key, bias = "demo_20261122T040000", "demo_20261122T030000"
    add(database, recipes, bias, kind="bias")
    add(database, recipes, key)
    put(drop, "bad.fits", b"junk")
    assert tick() == [f"{key}/01", f"{key}/02"]
    assert instance.get_dynamic_partitions("exposure") == [key]
    assert names(drop) == ["refused"]
    assert tick() == []


def test_the_oldest_come_first_and_a_few_at_a_time(tick, database, recipes):
    for number in range(MAX_EXPOSURES + 2):
        add(database, recipes, f"demo_{number}", mjd=rows.MJD - number, filters={"01": "r"})
    first, second = tick(), tick()
    assert first == [f"demo_{number}/01" for number in range(MAX_EXPOSURES + 1, 1, -1)]
    assert second == ["demo_1/01", "demo_0/01"]
    assert tick() == []


def test_a_daemon_that_dies_loses_and_doubles_nothing(tick, database, recipes):
    add(database, recipes, "demo_a", "demo_b", filters={"01": "r"})
    lost = tick(commit=False)
    assert tick() == lost == ["demo_a/01", "demo_b/01"]  # the same keys: what was submitted is not submitted again
    assert tick() == []


def test_held_exposures_wait_for_their_release(tick, database, recipes, instrument):
    claims = Claims(database, instrument.name)
    add(database, recipes, "demo_a", "demo_b", "demo_c", filters={"01": "r"})
    assert claims.hold(["demo_a"], "clouds") == 1
    assert tick() == ["demo_b/01", "demo_c/01"]
    assert tick() == []
    assert claims.release(["demo_a"]) == 1
    assert tick() == ["demo_a/01"]
    assert tick() == []


def test_runs_that_ended_without_a_word_are_requested_again(tick, database, recipes, instance, instrument):
    add(database, recipes, "demo_a")
    assert tick() == ["demo_a/01", "demo_a/02"]
    assert tick() == []
    with database.session() as session:
        session.add(rows.report(recipes, "demo_a", "diff", "reference/r/02", ccd="02"))
    for attempt in (1, 2):
        expire(database)
        assert tick() == [f"demo_a/01/{attempt}"]
    expire(database)
    assert tick() == []
    with database.session() as session:
        (state,) = exposure_states(session, recipes, instrument.name)
    assert [(ccd.state, ccd.step) for ccd in state.ccds] == [("failed", None), ("waiting", "diff")]
    assert state.state == "failed"


def test_a_queued_run_keeps_its_claim(tick, database, recipes, instance):
    add(database, recipes, "demo_a", filters={"01": "r"})
    tick()
    key = dg.MultiPartitionKey({"exposure": "demo_a", "ccd": "01"})
    run = dg.DagsterRun("process_ccd", status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": str(key)})
    instance.add_run(run)
    tick()
    expire(database)
    assert tick() == []
    with database.session() as session:
        assert session.get(ExposureClaimRow, "demo_a").attempt == 0


def test_an_expired_claim_costs_one_question_for_all_its_ccds(tick, database, recipes, instance, monkeypatch):
    add(database, recipes, "demo_a", filters={f"{ccd:02d}": "r" for ccd in range(1, 33)})
    tick()
    tick()
    expire(database)
    asked = []
    real = instance.run_storage.get_runs
    monkeypatch.setattr(instance.run_storage, "get_runs", lambda *a, **k: asked.append(1) or real(*a, **k))
    assert len(tick()) == 32
    assert len(asked) == 1


def expire(database):
    with database.session() as session:
        session.execute(sa.update(ExposureClaimRow).values(expires_at=sa.text("now() - interval '1 minute'")))


@pytest.mark.parametrize("target", ["secret.fits", "nowhere.fits"])
def test_a_link_is_refused_unread(drop, registry, tmp_path, target):
    (tmp_path / "secret.fits").write_bytes(b"good secret")
    (drop / "a.fits").symlink_to(tmp_path / target)
    (problem,) = collect_drop(drop, registry)
    assert "symbolic link" in problem
    assert registry.registered == registry.rejected == []
    assert names(drop) == ["refused"]
    (drop / "a.fits").symlink_to(tmp_path / target)
    assert len(collect_drop(drop, registry)) == 1
    assert (tmp_path / "secret.fits").read_bytes() == b"good secret"


def test_a_marker_says_that_a_file_is_whole(drop, registry):
    for name in ("good.fits", "writing.fits"):
        put(drop, name, quiet_s=0)
    put(drop, "bad.fits", b"junk", quiet_s=0)
    for name in ("good.fits.done", "bad.fits.done", "later.fits.done"):
        put(drop, name, b"")
    assert len(collect_drop(drop, registry)) == 1
    assert registry.registered == ["good.fits"]
    assert names(drop) == ["later.fits.done", "refused", "writing.fits"]
