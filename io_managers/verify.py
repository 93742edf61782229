"""Compare the archive with the rows, both ways."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from resources.archive import TEMPORARY_PREFIX, Archive, file_digest
from resources.database import Database
from sql.base import ProductRow
from sql.models import PRODUCT_ROWS, ExposureRow

_CHUNK = 1000


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

    Partial files of writers that were killed are no problem: nothing reads them, and the next writer of
    the same file removes them.

    Returns
    -------
    (number of files checked, problems)
    """
    expected = dict(_expected(database))
    problems = []
    for done, (path, sha256) in enumerate(sorted(expected.items()), start=1):
        problem = _check(archive, path, sha256)
        if problem:
            problems.append(problem)
        if progress:
            progress(done, len(expected))
    problems += [
        Problem("orphan", path, "no row names this file")
        for path in archive.files()
        if path not in expected and not path.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX)
    ]
    return len(expected), problems


def _check(archive: Archive, path: str, sha256: str) -> Problem | None:
    if not archive.exists(path):
        return Problem("missing", path, "the row's file does not exist")
    with archive.local_copy(path) as local:
        found = file_digest(local)
    if found != sha256:
        return Problem("changed", path, f"SHA-256 {found[:12]} differs from the row's {sha256[:12]}")
    return None


def _expected(database: Database) -> Iterator[tuple[str, str]]:
    """(path, SHA-256) of every row that has a file."""
    tables: set[type[ExposureRow | ProductRow]] = {ExposureRow, *PRODUCT_ROWS.values()}
    for table in tables:
        with database.session() as session:
            rows = session.execute(sa.select(table.filepath, table.sha256).execution_options(yield_per=_CHUNK))
            yield from ((path, sha256) for path, sha256 in rows)
