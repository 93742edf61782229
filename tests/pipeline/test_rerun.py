"""The same input under the same recipe: the same bytes, no further row, object or alert."""

import dataclasses
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from seechange_assets.errors import ReferenceConflict
from seechange_assets.partitions import Partition
from sql.models import ReferenceRow
from sql.objects import ObjectRow


def test_rerun_changes_nothing(world, exposure):
    files, counts = world.files(), world.counts()
    answer = world.cli("process", exposure, "--json")
    assert answer.code == 0, answer.err
    assert [row["outcome"] for row in answer.json] == ["done", "done"]
    assert world.counts() == counts
    after = world.files()
    assert after.keys() == files.keys()
    assert [name for name in files if files[name] != after[name]] == []


def test_another_process_writes_the_same_bytes(world, exposure):
    files = world.files()
    process = world.spawn("process", exposure, "--ccd", "01", "--through", "zp")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert world.files() == files


def test_sigkill_while_writing_leaves_nothing_bad(world, second_exposure):
    """Killed at a moment when a file is being written; the rerun completes and cleans up."""
    archive = Path(world.settings.archive)
    process = world.spawn("process", second_exposure, "--ccd", "01")
    deadline = time.monotonic() + 240
    while not any(archive.rglob(".partial-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    problems = world.cli("verify", "--json").json["problems"]
    assert {problem["kind"] for problem in problems} <= {"orphan"}  # a whole file whose row did not follow
    rerun = world.cli("process", second_exposure, "--ccd", "01", "--json")
    assert rerun.code == 0, rerun.err
    assert rerun.json[0]["outcome"] == "done"
    assert world.cli("verify").code == 0
    assert not list(archive.rglob(".partial-*"))


def test_rerun_after_a_later_exposure_changes_nothing(world, exposure, second_exposure):
    """What the later one finds (new objects, other mean positions) is no news for the earlier one."""
    assert world.session.registry.get(second_exposure).mjd > world.session.registry.get(exposure).mjd
    later = world.cli("process", second_exposure, "--json")
    assert [row["outcome"] for row in later.json] == ["done", "done"], later.err
    with world.session.store.database.session() as session:
        assert session.scalar(sa.select(sa.func.max(ObjectRow.n_detections))) == 2
        assert session.scalar(sa.select(sa.func.count()).where(ObjectRow.exposure == second_exposure)) > 0
    files, counts = world.files(), world.counts()
    answer = world.cli("process", exposure, "--json")
    assert [row["outcome"] for row in answer.json] == ["done", "done"], answer.err
    assert world.counts() == counts
    after = world.files()
    assert after.keys() == files.keys()
    assert [name for name in files if files[name] != after[name]] == []


def test_a_reference_never_changes(world, exposure):
    """Made again of the same images it is the same; with other images the first stays."""
    store = world.session.store
    with store.database.session() as session:
        row = session.scalars(sa.select(ReferenceRow).order_by(ReferenceRow.partition)).first()
    partition, files, counts = Partition(row.partition, row.ccd), world.files(), world.counts()
    reference = store.load("reference", partition)
    store.save("reference", partition, reference)
    other = dataclasses.replace(reference, members=(*reference.members, exposure), data=reference.data + 1)
    with pytest.raises(ReferenceConflict, match="of other images, and stays"):
        store.save("reference", partition, other)
    again = dataclasses.replace(reference, data=reference.data + 1)
    with pytest.raises(ReferenceConflict, match="of the same images, and stays"):
        store.save("reference", partition, again)
    assert (world.files(), world.counts()) == (files, counts)
    assert store.row("reference", partition).updated_at == row.updated_at


def test_a_reference_is_made_again_of_its_own_images(world):
    """However many more qualify by then."""
    store = world.session.store
    selection = store.recipes.parameters("reference").model_copy(update={"min_images": 1, "max_images": 1})
    with store.database.session() as session:
        row = session.scalars(sa.select(ReferenceRow)).first()
    members = store.reference_members(Partition(row.partition, row.ccd), selection)
    assert [member.image.info.exposure for member in members] == row.members
