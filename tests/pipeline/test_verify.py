"""`seechange verify` names what is wrong with the archive."""

import threading
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from io_managers import store as store_module
from io_managers import verify as verify_module
from io_managers.verify import verify
from seechange_assets.errors import ArchiveError
from seechange_assets.partitions import Partition
from sql.models import PsfRow


def test_deleted_changed_and_foreign_files_are_named(world, exposure):
    root = Path(world.settings.archive)
    gone = next(root.rglob(f"{exposure}/01/psf.*.fits"))
    changed = next(root.rglob(f"{exposure}/01/zp.*.fits"))
    foreign = changed.with_name("foreign.fits")
    kept = {path: path.read_bytes() for path in (gone, changed)}
    try:
        gone.unlink()
        data = bytearray(kept[changed])
        data[len(data) // 2] ^= 1
        changed.write_bytes(data)
        foreign.write_bytes(b"x")
        answer = world.cli("verify")
        assert answer.code == 1
        assert f"missing: {gone.relative_to(root)}" in answer.err
        assert f"changed: {changed.relative_to(root)}" in answer.err
        assert f"orphan: {foreign.relative_to(root)}" in answer.err
        found = {problem["kind"] for problem in world.cli("verify", "--json").json["problems"]}
        assert found == {"missing", "changed", "orphan"}
    finally:
        foreign.unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
    assert world.cli("verify").code == 0


def test_a_damaged_input_stops_the_step_with_one_clear_line(world, exposure):
    path = next(Path(world.settings.archive).rglob(f"{exposure}/02/psf.*.fits"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1])
        with world.as_environment():
            result = world.session.run("process_ccd", {"exposure": exposure, "ccd": "02"}, ["zp"])
        assert not result.success
        failure = next(event for event in result.all_events if event.is_step_failure)
        assert "differs from its row" in failure.event_specific_data.error.to_string()
    finally:
        path.write_bytes(content)


def test_mapped_products_are_read_whole_only_after_their_file_was_touched(world, exposure, monkeypatch):
    digests = []
    digest = store_module._digest_once
    monkeypatch.setattr(store_module, "_digest_once", lambda path: digests.append(path) or digest(path))
    place, store = Partition(exposure, "02"), world.session.store
    path = next(Path(world.settings.archive).rglob(f"{exposure}/02/image.*.fits"))
    whole, mapped = store.load("image", place), store.load("image", place, mapped=True)
    np.testing.assert_array_equal(mapped.data, whole.data)
    assert not digests
    content = path.read_bytes()
    try:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(ArchiveError, match="differs from its row"):
            store.load("image", place, mapped=True)
    finally:
        path.write_bytes(content)
    assert store.load("image", place, mapped=True).data.shape == whole.data.shape
    assert len(digests) == 2


def test_what_is_written_meanwhile_is_no_problem(world, exposure, monkeypatch):
    """Three writers at work: one between its file and its row, one that rewrites, one that begins after the list."""
    store, root = world.session.store, Path(world.settings.archive)
    with store.database.session() as session:
        row = session.scalars(sa.select(PsfRow).where(PsfRow.partition == exposure, PsfRow.ccd == "01")).one()
    path = root / row.filepath
    half, late = path.with_name("half.fits"), path.with_name("late.fits")
    content = path.read_bytes()

    def finish(name):
        """The row of a file that was there before."""
        with store.database.session() as session:
            session.execute(sa.update(PsfRow).where(PsfRow.id == row.id).values(filepath=name))

    def slow_check(*arguments):
        late.write_bytes(b"written after the list was made")
        return check(*arguments)

    check = verify_module._check
    half.write_bytes(content)
    path.unlink()  # its row seems to lack a file until the writer has committed
    writer = threading.Timer(1.0, finish, [str(half.relative_to(root))])
    try:
        with monkeypatch.context() as patch:
            patch.setattr(verify_module, "_check", slow_check)
            patch.setattr(verify_module, "PATIENCE_S", 2.0)
            writer.start()
            n_files, problems = verify(store.database, store.archive)
        assert n_files > 0
        assert problems == []
        assert {p.kind for p in verify(store.database, store.archive)[1]} == {"orphan"}  # nobody wrote a row for it
    finally:
        writer.join()
        path.write_bytes(content)
        finish(row.filepath)
        half.unlink()
        late.unlink()
    assert verify(store.database, store.archive)[1] == []
