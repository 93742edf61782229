"""Compare the archive with the rows, both ways, while others write to it."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from resources.archive import TEMPORARY_PREFIX, Archive, file_digest
from resources.database import Database
from sql.alerts import AlertFileRow
from sql.base import ProductRow
from sql.models import PRODUCT_ROWS, CatalogExcerptRow, ExposureRow

_CHUNK = 1000
#: What looks wrong is looked at again no sooner than this after the beginning: a writer is allowed this
#: long between the rename of its file and the commit of its row [s].
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Problem:
    """One disagreement: ``missing``, ``changed`` or ``orphan``."""

    kind: str
    path: str
    detail: str


def verify(
    database: Database, archive: Archive, progress: Callable[[int, int], None] | None = None
) -> tuple[int, list[Problem]]:
    """Check every row's file and every file's row.

    A file is written before its row, so files are listed before rows are read: what appears later is not
    judged. What disagrees then may be half of somebody's work, so it is judged by a second look, at rows
    read anew. Partial files of writers that were killed are no problem: nothing reads them, and the next
    writer of the same file removes them.

    Returns
    -------
    (number of files checked, problems)
    """
    began = time.monotonic()
    listed = {path for path in archive.files() if not path.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX)}
    expected = dict(_expected(database))
    suspects = listed - expected.keys()
    for done, (path, sha256) in enumerate(sorted(expected.items()), start=1):
        if _check(archive, path, sha256):
            suspects.add(path)
        if progress:
            progress(done, len(expected))
    if suspects:
        time.sleep(max(0.0, began + PATIENCE_S - time.monotonic()))
    return len(expected), list(_second_look(database, archive, sorted(suspects)))


def _second_look(database: Database, archive: Archive, suspects: list[str]) -> Iterator[Problem]:
    chunks = [suspects[i : i + _CHUNK] for i in range(0, len(suspects), _CHUNK)]
    rows = dict(row for chunk in chunks for row in _expected(database, chunk))
    present = set(archive.files()) if suspects else set()
    for path in suspects:
        problem = None
        if path in rows:
            problem = _check(archive, path, rows[path])
        elif path in present:
            problem = Problem("orphan", path, "no row names this file")
        if problem:
            yield problem


def _check(archive: Archive, path: str, sha256: str) -> Problem | None:
    if not archive.exists(path):
        return Problem("missing", path, "the row's file does not exist")
    with archive.local_copy(path) as local:
        found = file_digest(local)
    if found != sha256:
        return Problem("changed", path, f"SHA-256 {found[:12]} differs from the row's {sha256[:12]}")
    return None


def _expected(database: Database, paths: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """(path, SHA-256) of every row that has a file, or of those that name one of `paths`."""
    tables: set[type[AlertFileRow | ExposureRow | CatalogExcerptRow | ProductRow]] = {
        AlertFileRow, ExposureRow, CatalogExcerptRow, *PRODUCT_ROWS.values(),
    }  # fmt: skip
    for table in tables:
        query = sa.select(table.filepath, table.sha256).execution_options(yield_per=_CHUNK)
        if paths is not None:
            query = query.where(table.filepath.in_(list(paths)))
        with database.session() as session:
            yield from ((path, sha256) for path, sha256 in session.execute(query))
