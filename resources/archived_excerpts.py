"""Excerpts of a star catalogue in the archive, with rows in Postgres; see `catalog_excerpts`."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from resources.archive import Archive, file_digest
from resources.catalog_excerpts import Cell
from resources.catalog_tables import read_catalog, write_catalog
from resources.database import Database
from seechange_assets.errors import ArchiveError
from seechange_assets.products import SkyCatalog
from sql.base import deterministic_id
from sql.models import CatalogExcerptRow


class ArchivedExcerpts:
    """Excerpts as files of the archive with rows in Postgres, for all machines of a survey."""

    def __init__(self, database: Database, archive: Archive) -> None:
        self._database, self._archive = database, archive

    def load(self, cell: Cell) -> SkyCatalog | None:
        """See `ExcerptStore.load`; an excerpt whose file is lost counts as not kept.

        Raises
        ------
        ArchiveError
            The file differs from its row.
        """
        with self._database.session() as session:
            row = session.get(CatalogExcerptRow, _row_id(cell))
        if row is None or not self._archive.exists(row.filepath):
            return None
        with self._archive.local_copy(row.filepath) as path:
            if file_digest(path) != row.sha256:
                raise ArchiveError(f"{row.filepath} differs from its row (SHA-256); delete it, it is fetched again")
            return read_catalog(path)

    def save(self, cell: Cell, stars: SkyCatalog) -> None:
        """See `ExcerptStore.save`: the file first, then its row."""
        path = f"catalogs/{cell.folder}/{cell.cell}.fits"
        sha256, n_bytes = self._archive.write(path, lambda file: write_catalog(stars, file))
        content = {"filepath": path, "sha256": sha256, "n_bytes": n_bytes, "n_stars": len(stars.table)}
        key = {"catalog": cell.catalog, "healpix_order": cell.order, "healpix": cell.cell, "max_mag": cell.max_mag}
        statement = insert(CatalogExcerptRow).values(id=_row_id(cell), **key, **content)
        with self._database.session() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=content))

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[None]:
        """An advisory lock of Postgres on a connection of its own: the server frees it when the holder dies."""
        key = int.from_bytes(hashlib.sha256(str(_row_id(cell)).encode()).digest()[:8], "big", signed=True)
        # Outside a transaction, which would stay open for as long as the download takes.
        engine = self._database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(key)))
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))


def _row_id(cell: Cell) -> uuid.UUID:
    return deterministic_id("catalog_excerpt", cell.catalog, cell.order, cell.cell, cell.max_mag)
