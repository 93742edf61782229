"""Which images make a reference, which reference an image gets, and what comes from outside; on a real database."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from io_managers.external_references import register_reference
from io_managers.lookups import SurveyStore
from io_managers.references import Candidate, base_key, covering, stacked_depth
from resources.archive import Archive
from resources.database import Database
from resources.settings import Settings
from seechange_assets.definitions import build_recipes
from seechange_assets.discover.reference import ReferenceParameters
from seechange_assets.errors import InvalidName, ReferenceConflict, ReferenceNotFound, ReferenceUnusable
from seechange_assets.instruments.base import get_instrument
from seechange_assets.partitions import Partition
from seechange_assets.products import Reference
from sql.models import (
    BackgroundRow,
    DifferenceRow,
    ImageRow,
    PsfRow,
    ReferenceRow,
    SourceListRow,
    WcsRow,
    ZeroPointRow,
)  # fmt: skip
from tests.science.pairs import as_reference, observe, rotated_wcs, star_field
from tests.sensors.rows import footprint

FIELD = Partition("f1.r", "01")
MJD = 61366.2
ALL = ReferenceParameters(projects=None, max_fwhm_px=None, min_images=1, min_images_everywhere=1)
INSTRUMENT = get_instrument("demo")
SHAPE = (120, 130)
#: A good image, by column; every test of a cut spoils one of these.
GOOD = {
    "mjd": MJD, "fwhm_px": 3.0, "limiting_magnitude": 21.0, "exptime_s": 45.0, "airmass": 1.2, "level": 800.0,
    "project": "reference", "field": "f1", "filter": "r", "instrument": "demo", "bitflag": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(str(tmp_path_factory.mktemp("archive")))


@pytest.fixture
def store(database_url: str, archive: Archive, tmp_path: Path) -> Iterator[SurveyStore]:
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"})
    store = SurveyStore(Database(database_url), archive, build_recipes(settings), "demo")
    store.database.upgrade()
    store.register_recipes()
    yield store
    store.database.engine.dispose()


def add_image(store: SurveyStore, exposure: str, where: dict[str, float] | None = None, **spoiled: Any) -> None:
    """The rows of a calibrated image, without files."""
    v = GOOD | spoiled

    def common(process: str) -> dict[str, Any]:
        return {
            "id": uuid.uuid4(), "partition": exposure, "ccd": "01", "filepath": f"{process}/{uuid.uuid4()}.fits",
            "sha256": "0" * 64, "content_hash": "0" * 64, "n_bytes": 1, "summary": {}, "inputs": {},
            "provenance_id": store.recipes[process].id, "bitflag": v.get(f"{process}_bitflag", 0),
        }  # fmt: skip

    names = ("instrument", "field", "filter", "project", "mjd", "exptime_s", "airmass")
    rows = [
        ImageRow(**common("image"), **{name: v[name] for name in names}, target=""),
        BackgroundRow(**common("background"), level=v["level"], rms=20.0),
        SourceListRow(**common("sources"), n_sources=9, n_stars=9, fwhm_px=v["fwhm_px"]),
        PsfRow(**common("psf"), fwhm_px=v["fwhm_px"], n_stars=9, form="pixels", chi2=1.0),
        WcsRow(**common("wcs"), n_matched=9, residual_ra_mas=1, residual_dec_mas=1, **footprint(**(where or {}))),
        ZeroPointRow(
            **common("zp"), zp=25, zp_err=0.01, scatter=0.01, n_stars=9, limiting_magnitude=v["limiting_magnitude"]
        ),
    ]
    with store.database.session() as session:
        session.add_all(rows)


def selected(store: SurveyStore, selection: Any) -> set[str]:
    return {exposure for _, exposure in store.reference_candidates(selection, FIELD)}


@pytest.mark.parametrize(
    ("cut", "spoiled"),
    [
        ({"max_fwhm_px": 4.0}, {"fwhm_px": 4.1}),
        ({"min_fwhm_px": 2.0}, {"fwhm_px": 1.9}),
        ({"min_limiting_magnitude": 20.5}, {"limiting_magnitude": 20.4}),
        ({"max_limiting_magnitude": 22.0}, {"limiting_magnitude": 22.1}),
        ({"min_exptime_s": 40.0}, {"exptime_s": 39.0}),
        ({"max_exptime_s": 50.0}, {"exptime_s": 51.0}),
        ({"max_airmass": 1.5}, {"airmass": 1.6}),
        ({"max_airmass": 1.5}, {"airmass": None}),
        ({"min_airmass": 1.1}, {"airmass": 1.05}),
        ({"max_background": 1000.0}, {"level": 1001.0}),
        ({"min_background": 500.0}, {"level": 499.0}),
        ({"min_mjd": MJD - 1}, {"mjd": MJD - 1.1}),
        ({"max_mjd": MJD + 1}, {"mjd": MJD + 1.1}),
        ({"projects": ("reference", "deep")}, {"project": "survey"}),
    ],
)
def test_every_cut_acts(store: SurveyStore, cut: dict[str, Any], spoiled: dict[str, Any]) -> None:
    add_image(store, "good")
    add_image(store, "spoiled", **spoiled)
    assert selected(store, ALL) == {"good", "spoiled"}
    assert selected(store, ALL.model_copy(update=cut)) == {"good"}


def test_there_is_a_test_of_every_cut() -> None:
    names = {name for name in ReferenceParameters.model_fields if name.startswith(("min_", "max_"))}
    cuts = {name for mark in test_every_cut_acts.pytestmark for cut, _ in mark.args[1] for name in cut}
    tested_elsewhere = {"min_images", "max_images", "min_overlap", "min_images_everywhere", "min_gain_mag"}
    assert names - cuts == tested_elsewhere | {"min_stars_linear"}


@pytest.mark.parametrize("product", ["image", "background", "sources", "psf", "wcs", "zp"])
def test_nothing_flagged_is_chosen(store: SurveyStore, product: str) -> None:
    add_image(store, "good")
    add_image(store, "flagged", **{f"{product}_bitflag": 1})
    assert selected(store, ALL) == {"good"}


def test_field_filter_ccd_and_instrument(store: SurveyStore) -> None:
    add_image(store, "good")
    for name, value in (("field", "f2"), ("filter", "g"), ("instrument", "ls4")):
        add_image(store, f"other_{name}", **{name: value})
    assert selected(store, ALL) == {"good"}
    assert store.reference_candidates(ALL, Partition("f1.r", "02")) == []


def test_number_of_images(store: SurveyStore) -> None:
    for i in range(4):
        add_image(store, f"e{i}", limiting_magnitude=21 + 0.1 * i)
    few = ALL.model_copy(update={"min_images": 5})
    with pytest.raises(ReferenceNotFound, match="4 images qualify"):
        store.reference_members(FIELD, few)
    assert store.references_to_build(few) == {}
    limited = ALL.model_copy(update={"max_images": 2})
    assert len(store.reference_members(FIELD, limited)) == 2
    assert store.references_to_build(limited) == {FIELD: ["e3", "e2"]}  # the deepest


def candidate(name: str, ra_deg: float = 150.0, dec_deg: float = 2.0) -> Candidate:
    return Candidate(name, 21.0, footprint(ra_deg, dec_deg)["corners"])


def test_an_image_beside_the_field_stays_out() -> None:
    """Even the deepest one, which comes first: the field is where most images are."""
    selection = ALL.model_copy(update={"min_images": 2})
    group = [candidate("beside", ra_deg=150.1), candidate("a"), candidate("b", dec_deg=2.004), candidate("c", 150.003)]
    assert [c.exposure for c in covering(group, selection)] == ["a", "b", "c"]
    assert covering(group[:2], selection) == []
    loose = selection.model_copy(update={"min_overlap": 0.3})
    assert len(covering(group, loose)) == 4


@pytest.mark.parametrize("ra_deg", [150.0, 0.0, 359.99])
def test_the_whole_footprint_is_covered(ra_deg: float) -> None:
    """Images that overlap by 86 % but leave one side to a single one of them."""
    group = [candidate("a", ra_deg), *(candidate(name, (ra_deg + 0.027) % 360) for name in "bc")]
    selection = ALL.model_copy(update={"min_images": 3, "min_images_everywhere": 2})
    assert len(covering(group, selection.model_copy(update={"min_images_everywhere": 1}))) == 3
    assert covering([candidate("d", (ra_deg - 0.027) % 360), *group], selection) != []
    far = [candidate("a", ra_deg), candidate("b", (ra_deg + 0.027) % 360), candidate("c", (ra_deg - 0.027) % 360)]
    assert covering(far, selection.model_copy(update={"min_images_everywhere": 3})) == []
    assert len(covering(far, selection)) == 3


def test_depth_adds_as_inverse_variance() -> None:
    assert stacked_depth([21.0] * 4) == pytest.approx(21.0 + 1.25 * np.log10(4))
    assert stacked_depth([21.0, 10.0]) == pytest.approx(21.0, abs=1e-6)
    assert stacked_depth([]) == -np.inf


# Which reference ------------------------------------------------------------------------------------------------------


def make_reference(seed: int = 1, depth: float = 22.0, members: tuple[str, ...] = ("e0",), **info: Any) -> Reference:
    rng = np.random.default_rng(seed)
    observed = observe(rng, star_field(rng, SHAPE, 20), rotated_wcs(SHAPE), SHAPE)
    reference = as_reference(observed)
    given = {"field": "f1", "filter": "r", "ccd": "01", "exposure": f"sim{seed}"} | info
    return replace(
        reference, name="default", info=replace(reference.info, **given),
        zp=replace(reference.zp, limiting_magnitude=depth, residual_map=np.zeros((0, 0), np.float32)), members=members,
    )  # fmt: skip


def found(store: SurveyStore, exposure: str = "new", filter_name: str = "r") -> Reference:
    observed = make_reference(9)
    info = replace(observed.info, exposure=exposure, filter=filter_name)
    return store.find_reference(info, observed.wcs, SHAPE, 0.85)[1]


def test_a_deeper_reference_supersedes_and_both_stay(store: SurveyStore, archive: Archive) -> None:
    selection = ALL.model_copy(update={"min_images": 3})
    for i in range(3):
        add_image(store, f"e{i}")
    assert store.references_to_build(selection) == {FIELD: ["e0", "e1", "e2"]}
    store.save("reference", FIELD, make_reference(1, 22.0, ("e0", "e1", "e2")))
    assert store.references_to_build(selection) == {}
    add_image(store, "e3")  # 0.16 mag deeper: not worth it
    assert store.references_to_build(selection) == {}
    add_image(store, "e4")  # 0.28 mag
    second = Partition("f1.r.v2", "01")
    assert store.references_to_build(selection) == {second: ["e0", "e1", "e2", "e3", "e4"]}
    assert len(store.reference_members(second, selection)) == 5
    assert found(store).members == ("e0", "e1", "e2")
    store.save("reference", second, make_reference(2, 22.3, ("e0", "e1", "e2", "e3", "e4")))
    assert store.references_to_build(selection) == {}
    assert len(found(store).members) == 5
    with store.database.session() as session:
        rows = session.scalars(sa.select(ReferenceRow)).all()
    assert {row.partition for row in rows} == {"f1.r", "f1.r.v2"}
    assert all(archive.exists(row.filepath) for row in rows)
    # What is itself in the deeper one gets the other.
    assert found(store, "e4").members == ("e0", "e1", "e2")


def test_a_flagged_reference_is_not_used_and_made_anew_of_others(store: SurveyStore) -> None:
    for i in range(3):
        add_image(store, f"e{i}")
    selection = ALL.model_copy(update={"min_images": 2, "max_images": 2})
    store.save("reference", FIELD, make_reference(1, members=("e0", "e1")))
    with store.database.session() as session:
        session.execute(sa.update(ReferenceRow).values(bitflag=1))
    with pytest.raises(ReferenceNotFound, match="no reference in r covers"):
        found(store)
    assert store.references_to_build(selection) == {}  # of the same images it would be the same
    with store.database.session() as session:
        session.execute(sa.update(ImageRow).where(ImageRow.partition == "e0").values(bitflag=1))
    assert store.references_to_build(selection) == {Partition("f1.r.v2", "01"): ["e1", "e2"]}


def test_a_difference_keeps_its_reference(store: SurveyStore) -> None:
    """A rerun of what has been made changes nothing; what is new gets the deeper one."""
    store.save("reference", FIELD, make_reference(1, 22.0, ("e0",)))
    first = store.row_id("reference", FIELD)
    place = Partition("old", "01")
    row = DifferenceRow(
        id=store.row_id("diff", place), partition="old", ccd="01", filepath="diff.fits", sha256="0" * 64,
        content_hash="0" * 64, n_bytes=1, summary={}, inputs={}, provenance_id=store.recipes["diff"].id,
        reference_id=first, method="zogy", mjd=MJD, filter="r", limiting_magnitude=21.0, **footprint(),
    )  # fmt: skip
    with store.database.session() as session:
        session.add(row)
    store.save("reference", Partition("f1.r.v2", "01"), make_reference(2, 22.5, ("e1",)))
    assert found(store, "old").members == ("e0",)
    assert found(store, "new").members == ("e1",)
    with store.database.session() as session:
        session.execute(sa.update(ReferenceRow).where(ReferenceRow.id == first).values(bitflag=1))
    assert found(store, "old").members == ("e1",)


def test_a_reference_keeps_its_pixels(store: SurveyStore) -> None:
    store.save("reference", FIELD, make_reference(1))
    with pytest.raises(ReferenceConflict, match="of the same images, and stays; a new one is made in a partition"):
        store.save("reference", FIELD, make_reference(2))


@pytest.mark.parametrize(("key", "base"), [("f1.r", "f1.r"), ("f1.r.v2", "f1.r"), ("f1.v2.r.v13", "f1.v2.r")])
def test_versions_of_a_partition(key: str, base: str) -> None:
    assert base_key(key) == base


# From outside ---------------------------------------------------------------------------------------------------------


def test_a_reference_from_outside_is_found_by_depth_and_set(store: SurveyStore) -> None:
    store.save("reference", FIELD, make_reference(1, 22.0))
    register_reference(store, INSTRUMENT, make_reference(2, 21.0, ("shallow",), instrument="demo"))
    assert found(store).members == ("e0",)
    row_id, partition = register_reference(store, INSTRUMENT, make_reference(3, 24.0, ("deep",), instrument="demo"))
    assert partition.key == "f1.r.v2"
    assert found(store).members == ("deep",)
    assert store.reference(row_id).members == ("deep",)
    other = replace(make_reference(4, 25.0, ("other set",), instrument="demo"), name="other")
    register_reference(store, INSTRUMENT, other)
    assert found(store).members == ("deep",)
    with pytest.raises(ReferenceNotFound):
        found(store, filter_name="g")


def test_the_same_file_again_changes_nothing(store: SurveyStore) -> None:
    reference = make_reference(1, instrument="demo")
    first = register_reference(store, INSTRUMENT, reference)
    assert register_reference(store, INSTRUMENT, reference) == first
    with store.database.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ReferenceRow)) == 1


@pytest.mark.parametrize(
    ("info", "depth", "error", "said"),
    [
        ({"ccd": "77"}, 22.0, ReferenceUnusable, "no CCD '77'"),
        ({"filter": "X"}, 22.0, ReferenceUnusable, "no filter 'X': expected one of"),
        ({"field": "../x"}, 22.0, InvalidName, "field.filter"),
        ({}, float("nan"), ReferenceUnusable, "depth is not known"),
    ],
)
def test_what_cannot_be_registered(
    store: SurveyStore, info: dict[str, Any], depth: float, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        register_reference(store, INSTRUMENT, make_reference(1, depth, **{"instrument": "demo"} | info))
    with store.database.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ReferenceRow)) == 0
