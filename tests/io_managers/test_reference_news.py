"""Which fields the sensor of references looks at: those with news, and all of them where anything may have changed."""

import json
import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from io_managers import reference_news
from io_managers.reference_news import SWEEP_S, ReferenceNews, Seen
from seechange_assets.discover.reference import ReferenceParameters
from seechange_assets.partitions import Partition
from sql.models import FlagChangeRow, ReferenceRow, ZeroPointRow
from tests.io_managers.test_references import (  # noqa: F401  (fixtures)
    ALL,
    add_image,
    archive,
    make_reference,
    store,
)

FIELDS = [f"f{number}" for number in range(8)]


@pytest.fixture
def quiet(store):  # noqa: F811
    """Eight fields with images that came long ago, and the cursor of a tick that has looked at all of them."""
    for field in FIELDS:
        add_image(store, f"e_{field}", field=field)
    pass_an_hour(store)
    looked_at, cursor = tick(store)
    assert looked_at == ["", *FIELDS]
    return cursor


def pass_an_hour(store):  # noqa: F811
    with store.database.session() as session:
        session.execute(sa.update(ZeroPointRow).values(materialized_at=sa.func.now() - sa.text("interval '1 hour'")))


def tick(store, cursor=None, selection=ALL, now=None, open_fields=()):  # noqa: F811
    """(fields looked at, next cursor)."""
    news = ReferenceNews(store, selection, cursor, now)
    return list(news.fields()), news.cursor(open_fields)


def test_a_quiet_tick_is_a_few_small_queries(store, quiet):  # noqa: F811
    statements = []
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda _c, _u, text, *_: statements.append(text))
    assert tick(store, quiet)[0] == []
    assert len([text for text in statements if text.startswith("SELECT")]) <= 4
    assert not any("corners" in text or "limiting_magnitude" in text for text in statements)


def test_a_new_image_is_news_of_its_field_and_of_no_other(store, quiet):  # noqa: F811
    add_image(store, "new", field="f3")
    looked_at, cursor = tick(store, quiet)
    assert looked_at == ["f3"]
    assert tick(store, cursor)[0] == ["f3"]  # rows of the last two minutes: one may become visible late
    pass_an_hour(store)
    assert tick(store, cursor)[0] == []
    selection = ALL.model_copy(update={"min_images": 2})
    assert store.references_to_build(selection, "f3") == {Partition("f3.r", "01"): ["e_f3", "new"]}
    assert store.references_to_build(selection, "f4") == {}


def test_one_field_gives_what_all_fields_give_of_it(store):  # noqa: F811
    for field in ("f1", "f2"):
        for number in range(3):
            add_image(store, f"{field}_{number}", field=field)
    store.save("reference", Partition("f1.r", "01"), make_reference(1, 22.0, ("f1_0", "f1_1", "f1_2")))
    add_image(store, "f1_3", field="f1", limiting_magnitude=22.0)
    selection = ALL.model_copy(update={"min_images": 3})
    whole = store.references_to_build(selection)
    assert set(whole) == {Partition("f1.r.v2", "01"), Partition("f2.r", "01")}
    assert store.references_to_build(selection, "f1") | store.references_to_build(selection, "f2") == whole


def test_what_is_open_is_looked_at_again(store, quiet):  # noqa: F811
    _, cursor = tick(store, quiet, open_fields=["f5"])
    assert tick(store, cursor)[0] == ["f5"]


def flag(store):  # noqa: F811
    change = FlagChangeRow(
        product="image", partition="e_f1", ccd="01", provenance_id="", set_flags=["bad"], cleared_flags=[]
    )
    with store.database.session() as session:
        session.add(change)


def test_a_flag_sends_it_through_all_fields(store, quiet):  # noqa: F811
    flag(store)
    looked_at, cursor = tick(store, quiet)
    assert looked_at == ["", *FIELDS]
    assert tick(store, cursor)[0] == []


def test_another_selection_sends_it_through_all_fields(store, quiet):  # noqa: F811
    assert tick(store, quiet, ReferenceParameters(min_images=2))[0] == ["", *FIELDS]


def test_a_reference_that_is_gone_sends_it_through_all_fields(store, quiet):  # noqa: F811
    store.save("reference", Partition("f1.r", "01"), make_reference(1))
    looked_at, cursor = tick(store, quiet)
    assert looked_at == []
    with store.database.session() as session:
        session.execute(sa.delete(ReferenceRow))
    assert tick(store, cursor)[0] == ["", *FIELDS]


def test_every_hour_all_fields_are_looked_at(store, quiet):  # noqa: F811
    now = time.time()
    assert tick(store, quiet, now=now + SWEEP_S / 2)[0] == []
    assert tick(store, quiet, now=now + SWEEP_S + 60)[0] == ["", *FIELDS]


def test_a_look_at_all_goes_on_where_it_ended(store, quiet, monkeypatch):  # noqa: F811
    flag(store)
    clock = iter(range(1000))
    # Of this module alone: others ask for the time too.
    monkeypatch.setattr(reference_news, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(clock)))
    monkeypatch.setattr(reference_news, "MAX_SECONDS", 4)
    looked_at, cursor = [], quiet
    for _ in range(4):
        fields, cursor = tick(store, cursor)
        assert len(fields) <= 4
        looked_at += fields
    assert looked_at == ["", *FIELDS]
    assert Seen.read(cursor).after is None


@pytest.mark.parametrize("cursor", [None, "", "12", "[1]", '{"other": 1}', "{"])
def test_a_cursor_that_is_not_ours_begins_anew(store, cursor):  # noqa: F811
    add_image(store, "e")
    assert tick(store, cursor)[0] == ["", "f1"]
    assert json.loads(tick(store, cursor)[1])["after"] is None
