"""What goes with a product, what stays, and what is refused; rows on a real database, files in a folder."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from io_managers import deletion
from seechange_assets.errors import AlertsSent
from sql.alerts import OutboxRow, commit_alerts
from sql.models import PRODUCT_ROWS
from tests.io_managers.lineage_rows import AFTER, CALIBRATED
from tests.io_managers.test_badness import Ids, both, message, survey  # noqa: F401  (a fixture)


def no_objects(_session: Any, ids: Any) -> None:
    raise AssertionError(f"no object lost a measurement, but {ids}")


def planned(store: Any, ids: Ids, name: str, **options: Any) -> set[str]:
    """Names of what would go with a product."""
    product, _, _ = name.partition("/")
    with store.database.session() as session:
        going = {one.id for one in deletion.plan(session, {product: [ids[name]]}, **options).products}
    return {name for name, row_id in ids.items() if row_id in going}


def with_files(store: Any) -> set[str]:
    """A file for every row."""
    root = Path(store.archive.root)
    with store.database.session() as session:
        paths = {path for table in set(PRODUCT_ROWS.values()) for path in session.scalars(sa.select(table.filepath))}
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("pixels")
    return paths


def test_one_version_goes_alone(survey):  # noqa: F811
    old, _, ids = survey
    expected = {"wcs/m1'", "zp/m1'", "reference/f.r'", *(f"{product}/science'" for product in AFTER)}
    assert planned(old, ids, "wcs/m1'") == expected


def test_all_versions_go_with_what_they_were_made_of(survey):  # noqa: F811
    old, _, ids = survey
    expected = {*(f"{product}/m1" for product in CALIBRATED), "wcs/m1'", "zp/m1'"}
    assert planned(old, ids, "image/m1") == expected | both("reference/f.r", *(f"{p}/science" for p in AFTER))


def test_rows_and_files_go_and_the_others_stay(survey):  # noqa: F811
    old, _, ids = survey
    files = with_files(old)
    done = deletion.delete(old.database, old.archive, {"reference": [ids["reference/f.r"]]}, no_objects)
    gone = {one.path for one in done.products}
    assert set(old.archive.files()) == files - gone
    assert done.counts == dict.fromkeys(("reference", *AFTER), 1)
    with old.database.session() as session:
        left = {path for table in set(PRODUCT_ROWS.values()) for path in session.scalars(sa.select(table.filepath))}
    assert left == files - gone


@pytest.mark.parametrize("column", ["sent_at", "attempts"])
def test_what_was_told_stays(survey, column):  # noqa: F811
    """Sent, or tried without an answer: the broker may have it."""
    old, new, ids = survey
    files = with_files(old)
    with old.database.session() as session:
        commit_alerts(session, [message(old), message(new) | {"alert_id": uuid.uuid4(), "ra": 50.0}])
        value = sa.func.now() if column == "sent_at" else 1
        mine = OutboxRow.provenance_id == old.recipes["alerts"].id
        session.execute(sa.update(OutboxRow).where(mine).values({column: value}))
    for name in ("image/m1", "image/science", "reference/f.r", "scores/science", "alerts/science"):
        roots = {name.split("/")[0]: [ids[name]]}
        with pytest.raises(AlertsSent, match="science CCD 01 have been sent"):
            deletion.delete(old.database, old.archive, roots, no_objects)
    assert set(old.archive.files()) == files
    kept = {f"{product}/m1" for product in CALIBRATED} | {"reference/f.r", *(f"{p}/science" for p in AFTER)}
    assert planned(old, ids, "image/m1", keep_sent=True) == planned_without(kept)


def planned_without(kept: set[str]) -> set[str]:
    """Of all that is made of ``image/m1``, the version that nobody was told of."""
    everything = {*(f"{p}/m1" for p in CALIBRATED), "wcs/m1'", "zp/m1'"}
    everything |= both("reference/f.r", *(f"{product}/science" for product in AFTER))
    return everything - kept


def test_unsent_messages_go(survey):  # noqa: F811
    old, new, ids = survey
    with_files(old)
    with old.database.session() as session:
        commit_alerts(session, [message(old)])
        commit_alerts(session, [message(new) | {"ra": 50.0}])
    done = deletion.delete(old.database, old.archive, {"diff": [ids["diff/science"]]}, no_objects)
    assert done.n_messages == 1
    with old.database.session() as session:
        assert set(session.scalars(sa.select(OutboxRow.provenance_id))) == {new.recipes["alerts"].id}
