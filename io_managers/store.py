"""Save and load products: a file in the archive, then its row in Postgres.

The order makes loss impossible: the file is whole under its final name before the row
exists, and both are named by (product, partition, ccd, provenance), so a repetition
writes the same bytes to the same place and changes nothing.
"""

import functools
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from io_managers import badness, tags
from io_managers import recipes as recipe_rows
from io_managers.fits_codec import read_product, write_product
from io_managers.rows import inputs, row_columns, summary
from resources.archive import Archive, file_digest
from resources.database import Database
from seechange_assets.content import content_hash
from seechange_assets.errors import ArchiveError, ProductNotFound, ReferenceConflict
from seechange_assets.files import once_per_file
from seechange_assets.names import checked_name
from seechange_assets.partitions import Partition
from seechange_assets.products import plain
from seechange_assets.provenance import Recipes
from sql.base import ProductRow, deterministic_id
from sql.models import PRODUCT_ROWS, ExposureRow, ReportRow

#: Folder of products that do not belong to an exposure.
_SHARED_FOLDERS = {
    "master_bias": "calibration",
    "master_dark": "calibration",
    "master_flat": "calibration",
    "master_fringe": "calibration",
    "reference": "references",
}
#: A raw file is read by the runs of all its CCDs.
_digest_once = once_per_file(file_digest)


class ProductStore:
    """Products of one instrument under one set of recipes.

    Parameters
    ----------
    database, archive : where rows and files are.
    recipes : the provenance each product is saved under and loaded by.
    instrument : first part of every path.
    tag : the provenance tag that `recipes` are computed under; it must name them, or nothing yet.
    """

    def __init__(
        self, database: Database, archive: Archive, recipes: Recipes, instrument: str, tag: str = "current"
    ) -> None:
        self.database, self.archive, self.recipes = database, archive, recipes
        self.instrument, self.tag = instrument, tag

    def path(self, product: str, partition: Partition) -> str:
        """Path of a product in the archive, relative to its root."""
        key, ccd = checked_name(partition.key, "partition"), checked_name(partition.ccd, "ccd")
        folder = _SHARED_FOLDERS.get(product) or self.night(key)
        return f"{self.instrument}/{folder}/{key}/{ccd}/{product}.{self.recipes[product].short_id}.fits"

    def save(self, product_name: str, partition: Partition, product: Any) -> dict[str, Any]:
        """Write the file, then the row. Saving the same product again changes nothing.

        Returns
        -------
        dict
            The key numbers of the product, for people.
        """
        self.register_recipes()
        provenance = self.recipes[product_name]
        path = self.path(product_name, partition)
        cards = {"PRODUCT": product_name, "PARTITN": partition.key, "CCD": partition.ccd, "PROVENAN": provenance.id}
        columns = row_columns(product)  # first: what cannot have a row gets no file
        sha256, n_bytes = self.archive.write(path, lambda file: write_product(product, file, cards))
        values = {
            "id": self.row_id(product_name, partition),
            "partition": partition.key,
            "ccd": partition.ccd,
            "provenance_id": provenance.id,
            "filepath": path,
            "sha256": sha256,
            "content_hash": content_hash(product),
            "n_bytes": n_bytes,
            "summary": summary(product),
            "inputs": inputs(product),
        }
        with self.database.session() as session:
            upsert(session, PRODUCT_ROWS[product_name], values | columns)
            badness.inherit(
                session, product_name, self.row_id(product_name, partition), self.recipes.upstreams(product_name)
            )
        return summary(product) | {k: v for k, v in plain(columns).items() if isinstance(v, (int, float, str))}

    def load(self, product: str, partition: Partition, *, without: Collection[str] = (), mapped: bool = False) -> Any:
        """The product of the current recipe, its file verified against its row.

        The arrays of the fields named in `without` are not read and come back empty. With `mapped` images stay in
        the file, and only what is looked at is read: for a few stamps of a large product.

        Raises
        ------
        ProductNotFound
            When it has not been made.
        ArchiveError
            When its file is missing or differs from the row.
        """
        row = self.row(product, partition)
        if row is None:
            raise ProductNotFound(
                f"no {product} of {partition.key} CCD {partition.ccd} under provenance {self.recipes[product].id}",
                waits_for=f"{product}/{partition.key}/{partition.ccd}",
            )
        return self.load_row(row, without=without, mapped=mapped)

    def load_row(self, row: ProductRow, *, without: Collection[str] = (), mapped: bool = False) -> Any:
        """The product of a row, its file verified."""
        digest = functools.partial(_digest_if_touched, row) if mapped else file_digest
        with self.verified_file(row.filepath, row.sha256, digest) as path:
            return read_product(path, without, mapped=mapped)

    @contextmanager
    def verified_file(self, path: str, sha256: str, digest: Callable[[Path], str] = file_digest) -> Iterator[Path]:
        """A file of the archive whose SHA-256 is the one of its row."""
        with self.archive.local_copy(path) as local:
            if digest(local) != sha256:
                raise ArchiveError(f"{path} differs from its row (SHA-256); restore it or make it again")
            yield local

    @contextmanager
    def exposure_file(self, exposure: str) -> Iterator[Path]:
        """The raw file of a registered exposure, verified."""
        with self.database.session() as session:
            row = session.get(ExposureRow, exposure)
        if row is None:
            raise ProductNotFound(f"exposure {exposure} is not registered; run `seechange ingest`")
        with self.verified_file(row.filepath, row.sha256, digest=_digest_once) as path:
            yield path

    def row(self, product: str, partition: Partition) -> ProductRow | None:
        """The row of a product under the current recipe, if there is one."""
        with self.database.session() as session:
            return session.get(PRODUCT_ROWS[product], self.row_id(product, partition))

    def recognised(self, product: str, partition: Partition) -> ProductRow | None:
        """The row of a product that was made before by these recipes, when another version has come since.

        That is so after a change was taken back: it need not be made again. None where what it is made of was
        written anew since, where its file is gone, and where the product is the newest version: who asks for that
        wants it made again.
        """
        table = PRODUCT_ROWS[product]
        with self.database.session() as session:  # mostly there is none: asked without the machinery of the mapper
            if session.scalar(_is_there(product), {"id": self.row_id(product, partition)}) is None:
                return None
        row = self.row(product, partition)
        if row is None or not self.archive.exists(row.filepath):
            return None
        versions = sa.select(sa.func.max(table.materialized_at)).where(
            table.partition == partition.key, table.ccd == partition.ccd, table.id != row.id
        )
        with self.database.session() as session:
            newest_other = session.scalar(versions)
            if newest_other is None or newest_other <= row.materialized_at:
                return None
            is_current = all(self._is_older(session, up, partition, row) for up in self.recipes.upstreams(product))
        return row if is_current else None

    def _is_older(self, session: Session, upstream: str, partition: Partition, row: ProductRow) -> bool:
        """Whether an input of a row was written before it."""
        if upstream == "exposure":
            return True  # its bytes never change
        if upstream in _SHARED_FOLDERS:
            table = PRODUCT_ROWS[upstream]
            used = [name for kind, name in row.inputs.get("masters", {}).items() if upstream == f"master_{kind}"]
            named = sa.func.concat(table.partition, "/", table.provenance_id).in_(used)
            newest = sa.select(sa.func.max(table.updated_at)).where(table.ccd == partition.ccd, named)
            return not used or (session.scalar(newest) or row.updated_at) <= row.updated_at
        made = session.get(PRODUCT_ROWS[upstream], self.row_id(upstream, partition))
        return made is not None and made.updated_at <= row.updated_at

    def materialized(self, product: str, ids: Sequence[uuid.UUID]) -> None:
        """Note that Dagster has just been told of the products with these rows."""
        table = PRODUCT_ROWS[product]
        with self.database.session() as session:
            now = sa.func.clock_timestamp()
            session.execute(sa.update(table).where(table.id.in_(ids)).values(materialized_at=now))

    def of_reference_set(self) -> Self:
        """The same archive under the recipes by which the reference set in use is made.

        Raises
        ------
        ReferenceConflict
            The set is of a recipe that this code cannot repeat.
        """
        recipes = self.recipes.references
        if recipes is None:
            name = self.recipes.parameters("reference").name
            raise ReferenceConflict(
                f"reference set {name!r} was begun with other algorithms than this version of the code has; its "
                "references stay in use, but new ones need a set of another name (reference.name)"
            )
        return self if recipes is self.recipes else type(self)(self.database, self.archive, recipes, self.instrument)

    def reading(self, name: str) -> Self:
        """The same archive under the recipes that a tag or a provenance id names, for reading.

        Raises
        ------
        ProductNotFound
            There is no such tag or recipe.
        """
        recipes: Any = tags.Tags(self.database).recipes(name)
        return type(self)(self.database, self.archive, recipes, self.instrument, name)

    def row_id(self, product: str, partition: Partition) -> uuid.UUID:
        """Identifier of a product's row: the same on every rerun."""
        return deterministic_id(product, self.recipes[product].id, partition.key, partition.ccd)

    def report(
        self, step: str, partition: Partition, *, outcome: str, error: BaseException | None, **numbers: Any
    ) -> None:
        """Record how the newest attempt at a step ended (one row per step and partition)."""
        values = numbers | {
            "partition": partition.key,
            "ccd": partition.ccd,
            "step": step,
            "provenance_id": self.recipes[step].id,
            "outcome": outcome,
            "waits_for": getattr(error, "waits_for", None),
            "error": type(error).__name__ if error else None,
            "message": str(error)[:2000] if error else None,
        }
        with self.database.session() as session:
            session.execute(_report_statement(frozenset(values)), values)

    def latest_report(self, partition: str, ccd: str) -> ReportRow | None:
        """The newest step of a partition that did not end well, or None."""
        query = (
            sa.select(ReportRow)
            .where(ReportRow.partition == partition, ReportRow.ccd == ccd, ReportRow.outcome != "computed")
            .order_by(ReportRow.updated_at.desc())
            .limit(1)
        )
        with self.database.session() as session:
            return session.scalar(query)

    def register_recipes(self) -> None:
        """Write every recipe, and the tag at its first use, once per process; idempotent across processes.

        Raises
        ------
        TagConflict
            The tag names other recipes than these.
        """
        _register_recipes(self)

    def register_recipe(self, process: str) -> str:
        """Write the recipe of a process that has no upstreams, and return its id; no tag is looked at."""
        with self.database.session() as session:
            recipe_rows.register(session, [self.recipes[process]])
        return self.recipes[process].id

    @functools.lru_cache(maxsize=4096)  # noqa: B019  (one store per process)
    def night(self, exposure: str) -> str:
        """Night of a registered exposure, ``YYYY-MM-DD``."""
        with self.database.session() as session:
            night = session.scalar(sa.select(ExposureRow.night).where(ExposureRow.key == exposure))
        if night is None:
            raise ProductNotFound(f"exposure {exposure} is not registered; run `seechange ingest`")
        return night


@functools.lru_cache(maxsize=8)
def _register_recipes(store: ProductStore) -> None:
    with store.database.session() as session:
        recipe_rows.register(session, store.recipes.values())
        tags.use(session, store.tag, store.recipes.values())


def _table(mapped: Any) -> sa.Table:
    """The table behind a mapped class: its statements are compiled without the machinery of the mapper."""
    table: sa.Table = mapped.__table__
    return table


@functools.cache
def _digest_if_touched(row: ProductRow, path: Path) -> str:
    """SHA-256 of the file of a row, read only where the file changed in any way after the row was written.

    Reading all of a file would cost a hundred times what is wanted of it.
    """
    stat = path.stat()
    is_untouched = stat.st_size == row.n_bytes and stat.st_ctime <= row.updated_at.timestamp()
    return row.sha256 if is_untouched else _digest_once(path)


def _is_there(product: str) -> sa.Select[Any]:
    """Whether there is a row of this id (parameter ``id``)."""
    table = _table(PRODUCT_ROWS[product])
    return sa.select(table.c.id).where(table.c.id == sa.bindparam("id"))


@functools.cache
def _report_statement(names: frozenset[str]) -> Any:
    """Write a row of `reports` with these columns, or over the one of the same step and partition; built once."""
    statement = insert(_table(ReportRow))
    new = {name: statement.excluded[name] for name in sorted(names)} | {"updated_at": sa.func.now()}
    return statement.on_conflict_do_update(index_elements=["partition", "ccd", "step"], set_=new)


def upsert(session: Session, table: type[ProductRow], values: dict[str, Any]) -> None:
    """Insert a row; if it exists with the same content only note that it was materialized again."""
    written = session.execute(_upsert_statement(_table(table), frozenset(values)), values)
    if written.scalar() is None:
        now = sa.func.clock_timestamp()
        session.execute(sa.update(table).where(table.id == values["id"]).values(materialized_at=now))


@functools.cache
def _upsert_statement(rows: sa.Table, names: frozenset[str]) -> Any:
    """Insert a row with these columns; over one of other content; returns the id of what was written."""
    statement = insert(rows)
    changed = sa.or_(*(rows.c[name] != statement.excluded[name] for name in ("content_hash", "sha256")))
    kept = {"id", "partition", "ccd", "provenance_id"}
    new = {name: statement.excluded[name] for name in sorted(names - kept)}
    now = sa.func.clock_timestamp()
    return (
        statement.values({**{name: sa.bindparam(name) for name in sorted(names)}, "materialized_at": now})
        .on_conflict_do_update(
            index_elements=["partition", "ccd", "provenance_id"],
            set_=new | {"updated_at": sa.func.now(), "materialized_at": now},
            where=changed,
        )
        .returning(rows.c.id)
    )
