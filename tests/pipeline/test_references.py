"""References through Dagster: a deeper one supersedes the first, and one from a file is subtracted."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits

from seechange_assets.partitions import Partition
from seechange_assets.products import header_from_text
from seechange_assets.simulation.survey import simulate_survey
from sql.models import DifferenceRow, ReferenceRow
from tests.pipeline.world import SEED

CCD = "01"


def reference_rows(world: Any) -> list[ReferenceRow]:
    query = sa.select(ReferenceRow).where(ReferenceRow.ccd == CCD).order_by(ReferenceRow.created_at)
    with world.session.store.database.session() as session:
        return list(session.scalars(query))


def new_exposure(world: Any, folder: Path, hour: int) -> str:
    """A science exposure of another time, calibrated."""
    path = folder / f"new{hour}.fits"
    shutil.copy(world.simulated.science[0], path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["DATE-OBS"] = f"2026-11-24T{hour:02d}:30:00.000"
        hdus[0].header.remove("MJD-OBS", ignore_missing=True)
    key = world.cli("ingest", str(path), "--json").json[0]["exposure"]
    assert world.process(key, CCD, "zp").success
    assert world.session.store.row("zp", Partition(key, CCD)) is not None
    return key


@contextmanager
def without_other_references(world: Any) -> Iterator[None]:
    """Flag the references of the CCD, as a person would who wants others to be used; then flag those others."""
    good = [row.id for row in reference_rows(world) if row.bitflag == 0]
    mine = ReferenceRow.ccd == CCD
    with world.session.store.database.session() as session:
        session.execute(sa.update(ReferenceRow).where(mine).values(bitflag=1))
    try:
        yield
    finally:
        flag = sa.case((ReferenceRow.id.in_(good), 0), else_=1)
        with world.session.store.database.session() as session:
            session.execute(sa.update(ReferenceRow).where(mine).values(bitflag=flag))


def difference(world: Any, exposure: str) -> DifferenceRow:
    row: Any = world.session.store.row("diff", Partition(exposure, CCD))
    return row


@pytest.fixture(scope="module")
def as_file(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first reference as a plain FITS image, with what a header says of one."""
    row = reference_rows(world)[0]
    reference = world.session.store.reference(str(row.id))
    header = header_from_text(reference.wcs.header)
    for keyword in [card.keyword for card in header.cards if card.keyword.startswith("NAXIS")]:
        header.remove(keyword)
    header["GAIN"], header["SATURATE"], header["MJD-OBS"] = reference.info.gain, 5e4, reference.info.mjd
    header["EXPTIME"] = reference.info.exptime_s
    path = tmp_path_factory.mktemp("outside") / "survey_coadd.fits"
    fits.PrimaryHDU(reference.data + 100, header).writeto(path)
    fits.PrimaryHDU((reference.flags != 0).astype(np.uint8)).writeto(path.with_name("mask.fits"))
    return path


def arguments(world: Any, path: Path) -> list[str]:
    info = world.session.store.reference(str(reference_rows(world)[0].id)).info
    return ["reference", "register", str(path), "--field", info.field, "--filter", info.filter, "--ccd", CCD, "--json"]


def test_a_file_becomes_a_reference_that_is_subtracted(world, tmp_path, as_file):
    exposure = new_exposure(world, tmp_path, 1)
    command = [*arguments(world, as_file), "--mask", str(as_file.with_name("mask.fits"))]
    with without_other_references(world):
        answer = world.cli(*command)
        assert answer.code == 0, answer.err
        first = reference_rows(world)[0]
        assert answer.json["limiting_magnitude"] == pytest.approx(first.limiting_magnitude, abs=0.15)
        again = world.cli(*command)
        assert again.json == answer.json
        assert world.process(exposure, CCD, "scores").success
        assert str(difference(world, exposure).reference_id) == answer.json["id"]
        made = world.session.store.load("diff", Partition(exposure, CCD))
        blank = made.score[(made.flags == 0) & np.isfinite(made.score)]
        assert np.percentile(blank, [15.87, 84.13]) == pytest.approx([-1, 1], abs=0.1)
        listed = {row["id"]: row for row in world.cli("reference", "list", "--json").json}
        assert listed[answer.json["id"]]["used"]
        assert not listed[str(first.id)]["used"]
    assert world.cli("verify").code == 0


def without_wcs(path: Path) -> None:
    with fits.open(path, mode="update") as hdus:
        for keyword in ("CTYPE1", "CTYPE2"):
            hdus[0].header.remove(keyword)


def all_nan(path: Path) -> None:
    with fits.open(path, mode="update") as hdus:
        hdus[0].data[:] = np.nan


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20000])


@pytest.mark.parametrize(
    ("spoil", "option", "value", "said"),
    [
        (None, "--filter", "X", "no filter 'X'"),
        (None, "--ccd", "99", "no CCD '99'"),
        (None, "--catalog", "/nowhere.fits", "nowhere.fits"),
        (without_wcs, None, None, "WCS"),
        (all_nan, None, None, "usable pixels"),
        (cut_short, None, None, "survey_coadd"),
    ],
)
def test_what_cannot_be_registered_leaves_nothing(world, tmp_path, as_file, spoil, option, value, said):
    path = tmp_path / as_file.name
    shutil.copy(as_file, path)
    if spoil is not None:
        spoil(path)
    command = arguments(world, path)
    if option in command:
        command[command.index(option) + 1] = value
    elif option is not None:
        command += [option, value]
    before = world.counts(), world.files().keys()
    answer = world.cli(*command)
    assert answer.code == 1, answer.err
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert (world.counts(), world.files().keys()) == before


def test_a_deeper_reference_supersedes_the_first_and_both_stay(world, exposure, tmp_path):
    """Three more epochs qualify: another reference is made, new images get it, what is made keeps the first."""
    store = world.session.store
    more = simulate_survey(
        tmp_path, seed=SEED, exposures=1, ccds=(CCD,), reference_epochs=6, biases=0, flats=0, instrument="demo"
    )
    epochs = [more.keys[file] for file in more.references[3:]]
    assert world.ingest(more.references[3:]).code == 0
    selection = store.recipes.parameters("reference")
    assert store.references_to_build(selection) == {}
    for epoch in epochs:
        assert world.process(epoch, CCD, "zp").success
    (second,) = store.references_to_build(selection)
    first = Partition(second.key.removesuffix(".v2"), CCD)
    world.session.instance.add_dynamic_partitions("field_filter", [second.key])
    assert world.session.run("build_reference", {"field_filter": second.key, "ccd": CCD}, ["reference"]).success
    old, new = store.row("reference", first), store.row("reference", second)
    assert store.archive.exists(old.filepath)
    assert store.archive.exists(new.filepath)
    assert set(new.members) == {*old.members, *epochs}
    assert 0.15 < new.limiting_magnitude - old.limiting_magnitude < 0.6  # twice the images: 0.38 mag
    later = new_exposure(world, tmp_path, 2)
    assert world.process(later, CCD, "diff").success
    assert difference(world, later).reference_id == new.id
    made = difference(world, exposure)
    assert world.process(exposure, CCD, "diff").success
    again = difference(world, exposure)
    assert (again.reference_id, again.sha256, again.updated_at) == (old.id, made.sha256, made.updated_at)
    assert world.cli("verify").code == 0
