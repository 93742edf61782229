"""Flags and what inherits them, on a real database: two versions, a master and a reference."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from io_managers import badness
from io_managers.lookups import SurveyStore
from resources.archive import Archive
from resources.database import Database
from resources.settings import Settings
from seechange_assets.definitions import build_recipes
from seechange_assets.errors import ParameterError, ProductNotFound
from seechange_assets.partitions import Partition
from sql.alerts import OutboxRow, commit_alerts
from sql.lineage import hold_flags
from sql.models import PRODUCT_ROWS, ExposureRow, FlagChangeRow
from tests.io_managers.lineage_rows import AFTER, CALIBRATED, add_survey, two_versions

Ids = dict[str, uuid.UUID]


@pytest.fixture
def survey(database_url: str, tmp_path: Path) -> Iterator[tuple[SurveyStore, SurveyStore, Ids]]:
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"})
    store = SurveyStore(Database(database_url), Archive(str(tmp_path / "archive")), build_recipes(settings), "demo")
    store.database.upgrade()
    old, new = two_versions(store)
    yield old, new, add_survey(old, new)
    store.database.engine.dispose()


def flags(store: SurveyStore, ids: Ids) -> dict[str, tuple[int, int, int]]:
    """(own, upstream, both) of everything that is flagged."""
    found = {}
    with store.database.session() as session:
        for name, row_id in ids.items():
            row: Any = session.get(PRODUCT_ROWS[name.split("/")[0]], row_id)
            if row.bitflag or row.own_bitflag or row.upstream_bitflag:
                found[name] = (row.own_bitflag, row.upstream_bitflag, row.bitflag)
    return found


def flag(store: SurveyStore, ids: Ids, name: str, *set_flags: str, clear: tuple[str, ...] = ()) -> badness.Changed:
    product = name.split("/", maxsplit=1)[0]
    with store.database.session() as session:
        row = session.get(PRODUCT_ROWS[product], ids[name])
        return badness.change(session, product, [row], set_flags=set_flags, clear_flags=clear, reason="seen by eye")


def both(*names: str) -> set[str]:
    return {f"{name}{mark}" for name in names for mark in ("", "'")}


def test_a_flag_reaches_every_version_and_what_was_subtracted_from_the_reference(survey):
    old, _, ids = survey
    changed = flag(old, ids, "image/m1", "banding")
    own = {f"{product}/m1" for product in CALIBRATED} | {"wcs/m1'", "zp/m1'"}
    inherited = own | both("reference/f.r", *(f"{product}/science" for product in AFTER))
    found = flags(old, ids)
    assert found.keys() == inherited
    assert found.pop("image/m1") == (2, 0, 2)
    assert set(found.values()) == {(0, 2, 2)}
    assert (changed.n_addressed, changed.n_descendants, changed.n_changed) == (1, len(inherited) - 1, len(inherited))


def test_one_version_is_flagged_alone(survey):
    old, _, ids = survey
    flag(old, ids, "wcs/m1'", "big residuals")
    expected = {"wcs/m1'", "zp/m1'", "reference/f.r'", *(f"{product}/science'" for product in AFTER)}
    assert flags(old, ids).keys() == expected


def test_round_trip_with_two_sources_of_a_flag(survey):
    """What is cleared at one source stays where another one has it."""
    old, _, ids = survey
    flag(old, ids, "image/m1", "banding")
    flag(old, ids, "image/m2", "banding", "shaking")
    assert flags(old, ids)["reference/f.r"] == (0, 6, 6)
    flag(old, ids, "image/m2", clear=("banding", "shaking"))
    assert flags(old, ids)["reference/f.r"] == (0, 2, 2)
    assert "zp/m2" not in flags(old, ids)
    flag(old, ids, "image/m1", clear=("banding",))
    assert flags(old, ids) == {}
    with old.database.session() as session:
        notes = session.scalars(sa.select(FlagChangeRow).order_by(FlagChangeRow.number)).all()
    assert [(n.partition, n.set_flags, n.cleared_flags, n.reason) for n in notes] == [
        ("m1", ["banding"], [], "seen by eye"),
        ("m2", ["banding", "shaking"], [], "seen by eye"),
        ("m2", [], ["banding", "shaking"], "seen by eye"),
        ("m1", [], ["banding"], "seen by eye"),
    ]


def test_own_flags_stay_when_inherited_ones_go(survey):
    old, _, ids = survey
    flag(old, ids, "zp/science", "big residuals")
    flag(old, ids, "sources/science", "few sources")
    assert flags(old, ids)["zp/science"] == (1 << 23, 1 << 16, 1 << 23 | 1 << 16)
    flag(old, ids, "sources/science", clear=("few sources",))
    assert flags(old, ids)["zp/science"] == (1 << 23, 0, 1 << 23)


def test_a_master_reaches_the_images_that_name_it(survey):
    old, _, ids = survey
    flag(old, ids, "master_bias/n1", "shaking")
    found = flags(old, ids)
    assert {"image/m1", "image/science", "reference/f.r", "alerts/science'"} <= found.keys()
    assert not {"image/m2", "zp/m2"} & found.keys()


def test_raw_exposures_are_flagged_too(survey):
    old, _, ids = survey
    with old.database.session() as session:
        badness.change(session, "exposure", [session.get(ExposureRow, "bias1")], set_flags=["bright sky"])
        badness.change(session, "exposure", [session.get(ExposureRow, "m2")], set_flags=["shaking"])
    found = flags(old, ids)
    assert found["master_bias/n1"] == (0, 1 << 5, 1 << 5)
    assert found["image/m2"] == (0, 1 << 2, 1 << 2)
    assert found["reference/f.r"] == (0, 1 << 5 | 1 << 2, 1 << 5 | 1 << 2)


def test_the_flagged_reference_is_not_chosen(survey):
    old, _, ids = survey
    query = sa.select(PRODUCT_ROWS["reference"].partition)
    with old.database.session() as session:
        from io_managers.references import _is_good

        good = query.where(_is_good(PRODUCT_ROWS["reference"]))
        assert len(session.scalars(good).all()) == 2
    flag(old, ids, "zp/m2'", "no catalog")
    with old.database.session() as session:
        rows = session.scalars(sa.select(PRODUCT_ROWS["reference"]).where(_is_good(PRODUCT_ROWS["reference"]))).all()
    assert [row.id for row in rows] == [ids["reference/f.r"]]


def test_what_is_written_later_inherits(survey):
    old, _, ids = survey
    flag(old, ids, "image/science", "banding")
    table = PRODUCT_ROWS["zp"]
    with old.database.session() as session:
        session.execute(sa.update(table).where(table.id == ids["zp/science"]).values(upstream_bitflag=0, bitflag=0))
        badness.inherit(session, "zp", ids["zp/science"], old.recipes.upstreams("zp"))
    assert flags(old, ids)["zp/science"] == (0, 2, 2)


def test_another_reference_takes_its_flag_away(survey):
    """A difference made again with a good reference is good, and so is all that is made from it."""
    old, _, ids = survey
    flag(old, ids, "reference/f.r", "bad reference")
    assert "alerts/science" in flags(old, ids)
    table = PRODUCT_ROWS["diff"]
    with old.database.session() as session:
        mine = table.id == ids["diff/science"]
        session.execute(sa.update(table).where(mine).values(reference_id=ids["reference/f.r'"]))
        badness.inherit(session, "diff", ids["diff/science"], old.recipes.upstreams("diff"))
    assert flags(old, ids).keys() == {"reference/f.r"}


def message(store: SurveyStore) -> dict[str, Any]:
    return {
        "stream": "main", "provenance_id": store.recipes["alerts"].id, "exposure": "science", "ccd": "01",
        "topic": "t", "schema_name": "s", "wire_format": "bare", "via": "kafka", "alert_id": uuid.uuid4(),
        "measurement_id": uuid.uuid4(), "key": "SC26a", "ra": 1.0, "dec": 1.0, "packet": b"packet",
    }  # fmt: skip


def test_no_alert_of_what_is_flagged(survey):
    """What waits in the outbox is withheld when the flag is set, and so is what comes after."""
    old, new, ids = survey
    with old.database.session() as session:
        assert commit_alerts(session, [message(old)]) == 1
        assert commit_alerts(session, [message(new) | {"ra": 5.0}]) == 1
    flag(old, ids, "wcs/science", "big residuals")
    with old.database.session() as session:
        assert commit_alerts(session, [message(old) | {"ra": 9.0}]) == 0
        assert commit_alerts(session, [message(new) | {"ra": 15.0}]) == 1
        held = {(row.provenance_id, row.ra): row.is_withheld for row in session.scalars(sa.select(OutboxRow))}
    mine, other = old.recipes["alerts"].id, new.recipes["alerts"].id
    assert held == {(mine, 1.0): True, (mine, 9.0): True, (other, 5.0): False, (other, 15.0): False}


def waiting(store: SurveyStore) -> set[float]:
    """Places of what will be sent."""
    with store.database.session() as session:
        return {row.ra for row in session.scalars(sa.select(OutboxRow)) if not row.is_withheld}


def test_a_flag_that_is_cleared_releases_its_alerts(survey):
    """Not before the last flag is gone, and not what another recipe has told of the same detection meanwhile."""
    old, new, ids = survey
    with old.database.session() as session:
        commit_alerts(session, [message(old), message(old) | {"ra": 9.0}])
    flag(old, ids, "wcs/science", "big residuals")
    flag(old, ids, "zp/science", "no catalog")
    with old.database.session() as session:
        commit_alerts(session, [message(old) | {"ra": 13.0}])
        assert commit_alerts(session, [message(new) | {"ra": 9.0}]) == 1
    flag(old, ids, "wcs/science", clear=("big residuals",))
    assert waiting(old) == {9.0}
    flag(old, ids, "zp/science", clear=("no catalog",))
    assert waiting(old) == {1.0, 9.0, 13.0}
    mine = OutboxRow.provenance_id == old.recipes["alerts"].id
    with old.database.session() as session:
        told = {row.ra: row.withheld_for for row in session.scalars(sa.select(OutboxRow).where(mine))}
    assert told == {1.0: None, 9.0: "repeated", 13.0: None}


def test_nobody_writes_between_a_flag_and_its_inheritance(survey):
    """Whoever writes a product waits for a change of flags, and sees it."""
    old, _, ids = survey
    waited = threading.Event()

    def write() -> None:
        with old.database.session() as session:
            badness.inherit(session, "zp", ids["zp/science"], old.recipes.upstreams("zp"))
        waited.set()

    with old.database.session() as session:
        hold_flags(session, to_change=True)
        writer = threading.Thread(target=write)
        writer.start()
        assert not waited.wait(0.5)
        row = session.get(PRODUCT_ROWS["image"], ids["image/science"])
        badness.change(session, "image", [row], set_flags=["banding"])
    writer.join(10.0)
    assert waited.is_set()
    assert flags(old, ids)["zp/science"] == (0, 2, 2)


@pytest.mark.parametrize(
    ("product", "name", "said"),
    [("image", "bandign", "did you mean 'banding'"), ("psf", "banding", "expected one of psf fit failed")],
)
def test_a_flag_that_cannot_be_is_refused(survey, product, name, said):
    old, _, ids = survey
    with pytest.raises(ParameterError, match=said):
        flag(old, ids, f"{product}/science", name)
    assert flags(old, ids) == {}


def test_what_is_not_there_is_said(survey):
    old, _, _ = survey
    with old.database.session() as session:
        assert len(badness.find(session, "wcs", Partition("science", "01"))) == 2
        assert len(badness.find(session, "wcs", Partition("science", "01"), [old.recipes["wcs"].id])) == 1
        with pytest.raises(ProductNotFound, match="no wcs of science CCD 09"):
            badness.find(session, "wcs", Partition("science", "09"))
        with pytest.raises(ParameterError, match="'wcss'"):
            badness.find(session, "wcss", Partition("science", "01"))


def test_numbers_and_names():
    assert badness.bits(["banding", "bleed trail"]) == 2 | 1 << 46
    assert badness.names(2 | 1 << 46 | 1 << 50) == ("banding", "bleed trail", "bit 50")
    for product in PRODUCT_ROWS:
        assert set(badness.flags_of(product)) <= badness.FLAGS.keys()


def test_the_list_tells_own_flags_and_their_reasons(survey):
    old, _, ids = survey
    flag(old, ids, "psf/science", "psf fit failed")
    with old.database.session() as session:
        (mine,) = badness.flagged(session)
        of_exposure = badness.flagged(session, "science")
    assert (mine.product, mine.own, mine.reason) == ("psf", ("psf fit failed",), "seen by eye")
    inherits = {one.product for one in of_exposure if one.upstream}
    assert {"zp", "diff", "alerts"} <= inherits
    assert not {"image", "sources", "psf"} & inherits
