"""Bad files are refused with one clear line, nothing is written, everything else goes on."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from seechange_assets.errors import InvalidName
from seechange_assets.partitions import Partition
from sensors.new_exposures import collect_drop
from sql.models import ReportRow


def copy_of(world, tmp_path, *, date="2026-11-25T04:00:00.000", name="new.fits") -> Path:
    """A science file of another time, so of another key."""
    path = tmp_path / name
    shutil.copy(world.simulated.science[0], path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["DATE-OBS"] = date
        hdus[0].header.remove("MJD-OBS", ignore_missing=True)
    return path


def refused(world, path) -> str:
    """Ingest a file that must be refused; the one line it gives."""
    files, counts = world.files(), world.counts()
    answer = world.cli("ingest", str(path), "--json")
    assert answer.code == 1
    assert world.counts() == counts
    assert world.files().keys() == files.keys()
    line = answer.json[0]["error"]
    assert len(line.splitlines()) == 1
    assert path.name in line
    return line


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.999])
def test_truncated_files(world, tmp_path, fraction):
    path = copy_of(world, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert "BadExposure" in refused(world, path)


@pytest.mark.parametrize("content", [b"", b"no FITS", b"SIMPLE  =                    T" + b" " * 50, b"\x89PNG" * 3000])
def test_not_fits(world, tmp_path, content):
    path = tmp_path / "junk.fits"
    path.write_bytes(content)
    assert "BadExposure" in refused(world, path)


def test_wrong_number_of_extensions(world, tmp_path):
    path = copy_of(world, tmp_path)
    with fits.open(path, mode="update") as hdus:
        del hdus[-1]
    assert "extension" in refused(world, path)


@pytest.mark.parametrize(
    ("extension", "keyword", "value"),
    [
        (0, "DATE-OBS", None),
        (0, "DATE-OBS", "yesterday"),
        (0, "DATE-OBS", "1850-01-01T00:00:00"),
        (0, "DATE-OBS", "2850-01-01T00:00:00"),
        (0, "EXPTIME", None),
        (0, "EXPTIME", -1.0),
        (0, "EXPTIME", 0.0),
        (0, "EXPTIME", 1e9),
        (0, "EXPTIME", "long"),
        (1, "FILTER", None),
        (1, "FILTER", "Q"),
        (1, "FILTER", "../g"),
        (0, "RA", 720.0),
        (0, "DEC", 95.0),
        (0, "IMAGETYP", "portrait"),
    ],
)
def test_missing_or_absurd_keywords(world, tmp_path, extension, keyword, value):
    path = copy_of(world, tmp_path)
    with fits.open(path, mode="update") as hdus:
        if value is None:
            hdus[extension].header.remove(keyword)
        else:
            hdus[extension].header[keyword] = value
    assert keyword in refused(world, path)


def ruin(path, ccd, how):
    """Replace the pixels of one CCD."""
    with fits.open(path) as original:
        hdus = fits.HDUList([hdu.copy() for hdu in original])
        data = hdus[f"CCD{ccd}"].data
        header = hdus[f"CCD{ccd}"].header.copy()
        for keyword in ("BZERO", "BSCALE"):
            header.remove(keyword, ignore_missing=True)
        new = {
            "nan": np.full(data.shape, np.nan, np.float32),
            "zero": np.zeros_like(data),
            "saturated": np.full_like(data, 65535),
        }
        hdus[f"CCD{ccd}"] = fits.ImageHDU(new[how], header, name=f"CCD{ccd}")
        hdus.writeto(path, overwrite=True)


@pytest.mark.parametrize(("how", "day"), [("nan", 26), ("zero", 27), ("saturated", 28)])
def test_a_ruined_ccd_stops_alone(world, tmp_path, how, day):
    path = copy_of(world, tmp_path, date=f"2026-11-{day}T04:00:00.000")
    ruin(path, "01", how)
    key = world.cli("ingest", str(path), "--json").json[0]["exposure"]
    answer = world.cli("process", key, "--through", "zp", "--json")
    assert answer.code == 1
    bad, good = answer.json
    assert (bad["outcome"], bad["made"]) == ("failed", 0)
    assert bad["reason"].startswith("image: ")
    assert len(bad["reason"].splitlines()) == 1
    assert good["outcome"] == "done"
    assert not list(Path(world.settings.archive).rglob(f"{key}/01/*"))


def test_the_same_file_twice_is_no_error(world, tmp_path):
    counts, files = world.counts(), world.files()
    renamed = tmp_path / "another name.fits"
    shutil.copy(world.simulated.science[0], renamed)
    answer = world.cli("ingest", str(world.simulated.science[0]), str(renamed), "--json")
    assert answer.code == 0
    assert [item["new"] for item in answer.json] == [False, False]
    assert world.counts() == counts
    assert world.files().keys() == files.keys()


def test_the_same_key_with_other_bytes_is_a_conflict(world, tmp_path):
    path = tmp_path / "other.fits"
    shutil.copy(world.simulated.science[0], path)
    with fits.open(path, mode="update") as hdus:
        hdus[1].data[5, 5] += 1
    assert "ExposureConflict" in refused(world, path)
    assert world.cli("verify").code == 0


def test_too_many_detections_stop_before_objects_and_alerts(world, tmp_path, monkeypatch):
    """A bad subtraction gives thousands of peaks: none of them becomes an object."""
    from astropy.table import vstack

    from seechange_assets.science import detections

    path = copy_of(world, tmp_path, date="2026-11-24T04:00:00.000")
    key = world.cli("ingest", str(path), "--json").json[0]["exposure"]
    found = detections.detect

    def detect_noise(*args, **kwargs):
        real = found(*args, **kwargs)
        return dataclasses.replace(real, table=vstack([real.table] * (1000 // len(real.table) + 1)))

    monkeypatch.setattr(detections, "detect", detect_noise)
    before = world.counts()
    assert not world.process(key, "01").success
    after = world.counts()
    grown = {name for name in after if after[name] != before[name]}
    assert "detection_lists" in grown
    assert grown.isdisjoint({"cutouts", "association_sets", "objects", "alert_sets", "alerts_outbox"})
    with world.session.store.database.session() as session:
        report = session.get(ReportRow, (key, "01", "detections"))
        assert session.get(ReportRow, (key, "01", "associations")) is None
    assert report.outcome == "failed"
    assert "detection_count" in report.message


HOSTILE = ["../x", "a\nb", "a'b", 'a"; DROP TABLE exposures; --', "a,b", "a|b", "x" * 300, "", "."]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys(world, key):
    answer = world.cli("process", key)
    assert answer.code == 1
    assert len(answer.err.strip().splitlines()) == 1
    for partition in (Partition(key, "01"), Partition(world.simulated.keys[world.simulated.science[0]], key)):
        with pytest.raises(InvalidName):
            world.session.store.path("image", partition)


@pytest.mark.parametrize("keyword", ["OBJECT", "PROJECT", "FIELD", "OBSERVER"])
def test_hostile_header_strings_become_harmless(world, tmp_path, keyword):
    from seechange_assets.instruments.base import get_instrument

    path = copy_of(world, tmp_path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header[keyword] = "../../x'; DROP TABLE objects; --|,"
    info = get_instrument("demo").read_exposure(path)
    assert info.key == "demo_20261125T040000"
    for text in (info.target, info.project, info.field):
        assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def test_the_drop_directory_keeps_what_it_refuses(world, tmp_path):
    drop = tmp_path / "drop"
    drop.mkdir()
    good = copy_of(world, drop, date="2026-11-29T04:00:00.000", name="good.fits")
    bad = drop / "b'ad;\n|,.fits"
    bad.write_bytes(b"junk")
    for path in (good, bad):
        os.utime(path, (0, 0))
    problems = collect_drop(drop, world.session.registry)
    assert len(problems) == 1
    assert [path.name for path in drop.iterdir()] == ["refused"]
    kept, reason = sorted((drop / "refused").iterdir())
    assert reason.name == f"{kept.name}.reason"
    assert kept.name.endswith(".b_ad____.fits")
    assert kept.read_bytes() == b"junk"
    assert "BadExposure" in reason.read_text()
    assert world.session.registry.get("demo_20261129T040000") is not None


def test_a_file_that_still_grows_is_left_alone(world, tmp_path):
    drop = tmp_path / "drop"
    drop.mkdir()
    copy_of(world, drop, date="2026-11-30T04:00:00.000")
    assert collect_drop(drop, world.session.registry) == []
    assert [path.name for path in drop.iterdir()] == ["new.fits"]


def test_errors_are_one_line_and_debug_shows_more(world):
    answer = world.cli("process", "ls4_20991231T000000")
    assert answer.code == 1
    assert answer.err.startswith("seechange: ")
    assert "Traceback" not in answer.err
    assert json.loads(world.cli("verify", "--json").out)["problems"] == []
