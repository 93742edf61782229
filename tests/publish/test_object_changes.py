"""Objects split and merged by a person."""

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from seechange_assets.errors import InvalidName, InvalidRequest, ParameterError, ProductNotFound
from seechange_assets.names import printable
from seechange_assets.publish.associations import AssociationParameters
from seechange_assets.publish.object_changes import changes_of, merge_objects, split_object
from sql.objects import MeasurementRow, ObjectRow, objects_in_cone
from tests.publish.sky import MJD, measurements
from tests.publish.test_associations import ARCSEC, objects, run


def two_objects(database):
    """SC2025a with two detections and SC2025b, three arcseconds away."""
    run(database, measurements([10.0, 10.0], [5.0, 5.0 + 3 * ARCSEC], flux=[3000, 1000]))
    run(database, measurements([10.0], [5.0]), exposure="ls4_2", mjd=MJD + 1)


def of(database, name):
    with database.session() as session:
        target = session.scalar(sa.select(ObjectRow.id).where(ObjectRow.name == name))
        return list(session.scalars(sa.select(MeasurementRow.id).where(MeasurementRow.object_id == target)))


def test_a_merge_moves_measurements_and_what_comes_later(database):
    two_objects(database)
    given = of(database, "SC2025b")
    assert merge_objects(database, "SC2025a", "SC2025b", "one galaxy") == 1
    kept, other = objects(database)
    assert set(given) < set(of(database, "SC2025a"))
    assert (kept.n_detections, other.merged_into) == (2, kept.id)
    assert kept.dec < kept.mean_dec < 5.0 + 2 * ARCSEC
    later = run(database, measurements([10.0], [5.0 + 3.1 * ARCSEC]), exposure="ls4_3", mjd=MJD + 2)
    assert list(later["object_name"]) == ["SC2025a"]
    (change,) = changes_of(database, "SC2025b")
    assert (change["action"], change["object"], change["measurements"], change["reason"]) == (
        "merge", "SC2025a", 1, "one galaxy",
    )  # fmt: skip


def test_the_merged_one_answers_to_both_names_once(database):
    two_objects(database)
    merge_objects(database, "SC2025b", "SC2025a", "")
    with pytest.raises(InvalidRequest, match="already"):
        merge_objects(database, "SC2025a", "SC2025b", "")
    with database.session() as session:
        found = objects_in_cone(session, 10.0, 5.0, 10.0)
    assert list(found["name"]) == ["SC2025b"]


def test_a_split_makes_a_named_object_and_undoes_a_merge(database):
    two_objects(database)
    given = [str(key) for key in of(database, "SC2025b")]
    merge_objects(database, "SC2025a", "SC2025b", "")
    made = split_object(database, "SC2025a", given, "two after all")
    assert made == "SC2025c"
    assert [str(key) for key in of(database, made)] == given
    assert [c["action"] for c in changes_of(database, made)] == ["split"]
    rows = {o.name: o for o in objects(database)}
    assert rows["SC2025a"].n_detections == 2
    assert rows[made].mean_dec == pytest.approx(5.0 + 3 * ARCSEC, abs=1e-9)
    later = run(database, measurements([10.0], [5.0 + 3.1 * ARCSEC]), exposure="ls4_3", mjd=MJD + 2)
    assert list(later["object_name"]) == [made]


def test_what_cannot_be_split_or_merged_is_refused(database):
    two_objects(database)
    run(database, measurements([10.0], [5.0]), exposure="ls4_9", is_test=True)
    strange = [str(key) for key in of(database, "SC2025b")]
    with pytest.raises(InvalidRequest, match="no measurement of SC2025a"):
        split_object(database, "SC2025a", strange, "")
    with pytest.raises(InvalidRequest, match="not all"):
        split_object(database, "SC2025b", strange, "")
    with pytest.raises(ProductNotFound, match="identifier"):
        split_object(database, "SC2025a", ["'; drop table objects"], "")
    with pytest.raises(ProductNotFound, match="no object"):
        merge_objects(database, "SC2025a", "SC1900z", "")
    with pytest.raises(InvalidRequest, match="different kinds"):
        merge_objects(database, "SC2025a", "SC2025c", "")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=200))
def test_text_from_outside_is_valid_utf8_without_control_characters(text):
    told = printable(text)
    assert told.encode().decode() == told
    assert told.isprintable()
    assert len(told) <= 80


@pytest.mark.parametrize("hostile", ["x'; drop table a; --", "\x1b[2J", "\x00", "a\ud800b", "../../etc", "\u202e"])
def test_hostile_names_and_reasons_do_no_harm(database, hostile):
    two_objects(database)
    with pytest.raises((ProductNotFound, InvalidRequest)):
        merge_objects(database, "SC2025a", hostile, "")
    merge_objects(database, "SC2025a", "SC2025b", hostile)
    (change,) = changes_of(database, "SC2025a")
    assert change["reason"] == printable(hostile)
    with pytest.raises((ParameterError, InvalidName)):
        AssociationParameters.from_overrides({"name_format": "SC{year}{letters}" + hostile})
