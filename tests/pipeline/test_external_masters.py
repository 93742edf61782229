"""Masters from files, as a user registers them: what waited for one goes on, and what is wrong leaves nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from resources.settings import Settings
from seechange_assets.cli.session import Session
from seechange_assets.partitions import Partition

CCD = "01"
SHAPE = (512, 512)
#: A response that falls across the CCD, of median 1.
ILLUMINATION = np.broadcast_to(np.linspace(0.9, 1.1, SHAPE[1], dtype=np.float32), SHAPE)
STEPS = "image: {steps: [overscan, bias, linearity, flat, illumination]}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The illumination in an extension, as files of many CCDs have it."""
    path = tmp_path / "illumination.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(ILLUMINATION, name="CCD01")]).writeto(path)
    return path


def arguments(world: Any, exposure: str, path: Path, **options: str) -> list[str]:
    info = world.session.store.load("image", Partition(exposure, CCD)).info
    given = {
        "name": "dome2026", "kind": "illumination", "ccd": CCD, "filter": info.filter, "extension": "CCD01",
        "valid-from": "2026-01-01", "valid-to": str(info.mjd + 1),
    } | options  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    return ["master", "register", str(path), *words, "--json"]


def listed(world: Any, *options: str) -> list[dict[str, Any]]:
    return world.cli("master", "list", *options, "--json").json


def test_an_image_waits_for_an_illumination_and_takes_the_file(world, exposure, file, tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text(STEPS)
    monkeypatch.setitem(world.environment, "SEECHANGE_CONFIG", str(tmp_path / "site.yaml"))
    monkeypatch.setitem(world.environment, "SEECHANGE_TAG", "lit")
    process = ["process", exposure, "--ccd", CCD, "--through", "image", "--json"]
    (waiting,) = world.cli(*process).json
    assert waiting["outcome"] == "waiting"
    assert "no master illumination" in waiting["reason"]
    assert "register a file" in waiting["reason"]
    answer = world.cli(*arguments(world, exposure, file))
    assert answer.code == 0, answer.err
    assert (answer.json["set"], answer.json["valid_from"], answer.json["bad_pixels"]) == ("external", 61041.0, 0)
    (made,) = world.cli(*process).json
    assert made["outcome"] == "done"
    partition = Partition(exposure, CCD)
    before = world.session.store.load("image", partition)
    after = Session(Settings.from_environment(world.environment)).store.load("image", partition)
    good = (before.flags == 0) & (after.flags == 0)
    np.testing.assert_allclose(after.data[good] * ILLUMINATION[good], before.data[good], rtol=1e-5)
    assert after.masters["illumination"].startswith("dome2026/")
    assert world.cli("verify").code == 0


def test_the_same_file_again_changes_nothing_and_another_replaces_it(world, exposure, file):
    first = world.cli(*arguments(world, exposure, file, name="again"))
    kept = world.counts(), world.files()
    again = world.cli(*arguments(world, exposure, file, name="again"))
    assert (again.json, world.counts(), world.files()) == (first.json, *kept)
    with fits.open(file, mode="update") as hdus:
        hdus["CCD01"].data[10, 20] = np.nan
    other = world.cli(*arguments(world, exposure, file, name="again"))
    assert other.json == first.json | {"bad_pixels": 1}
    assert world.counts() == kept[0]
    assert world.cli("verify").code == 0


def test_all_masters_are_listed(world, exposure, file):
    assert world.cli(*arguments(world, exposure, file, name="mine")).code == 0
    shown = {(row["kind"], row["name"], row["ccd"]): row for row in listed(world)}
    mine = shown["illumination", "mine", CCD]
    assert (mine["set"], mine["used"]) == ("external", True)
    assert {(kind, ccd) for kind, _, ccd in shown} >= {(kind, ccd) for kind in ("bias", "flat") for ccd in ("01", "02")}
    assert all(row["used"] for row in shown.values())
    assert {(row["kind"], row["ccd"]) for row in listed(world, "--kind", "flat", "--ccd", "02")} == {("flat", "02")}
    assert "mine" in world.cli("master", "list").out


def test_an_unknown_kind_is_no_empty_list(world):
    answer = world.cli("master", "list", "--kind", "flats")
    assert (answer.code, answer.out) == (1, "")
    assert "did you mean 'flat'" in answer.err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("kind", "gain", "expected one of bias"),
        ("ccd", "77", "no CCD '77'"),
        ("filter", "X", "needs a filter"),
        ("flat-type", "dome", "'dome' of a illumination"),
        ("valid-from", "3000-01-01", "no range of MJD"),
        ("valid-from", "yesterday", "expected an MJD or YYYY-MM-DD"),
        ("valid-to", "nan", "no range of MJD"),
        ("extension", "CCD09", "no extension 'CCD09'"),
        ("extension", "0", "no two-dimensional image"),
        ("name", "../../up", "is not allowed"),
    ],
)
def test_what_cannot_be_registered_leaves_nothing(world, exposure, file, option, value, said):
    before = world.counts(), world.files().keys()
    answer = world.cli(*arguments(world, exposure, file, **{option: value}))
    assert answer.code == 1, answer.err
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert (world.counts(), world.files().keys()) == before


@pytest.mark.parametrize("content", ["", "no FITS"])
def test_a_file_that_is_none_leaves_nothing(world, exposure, tmp_path, content):
    before = world.counts(), world.files().keys()
    path = tmp_path / "text.fits"
    if content:
        path.write_text(content)
    answer = world.cli(*arguments(world, exposure, path))
    assert answer.code == 1
    assert str(path) in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert (world.counts(), world.files().keys()) == before
