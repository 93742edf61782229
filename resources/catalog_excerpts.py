"""Excerpts of a remote star catalogue, kept for ever and downloaded once.

An excerpt is one HEALPix cell down to a magnitude. Whoever needs one that is not kept claims it, looks again and
downloads it; a claim ends with the process (or connection) that holds it, so a dead one never blocks others.
"""

import fcntl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from resources.catalog_tables import read_catalog, write_catalog
from seechange_assets.products import SkyCatalog


@dataclass(frozen=True, slots=True)
class Cell:
    """What an excerpt holds: a catalogue's stars of one nested HEALPix cell, down to a magnitude."""

    catalog: str
    order: int
    cell: int
    max_mag: float

    @property
    def folder(self) -> str:
        """Name of the folder of all cells of this kind."""
        return f"{self.catalog}_order{self.order}_g{self.max_mag:g}"


class ExcerptStore(Protocol):
    """Where excerpts are kept."""

    def load(self, cell: Cell) -> SkyCatalog | None:
        """The excerpt, or None if it is not kept."""

    def save(self, cell: Cell, stars: SkyCatalog) -> None:
        """Keep an excerpt."""

    def claim(self, cell: Cell) -> AbstractContextManager[None]:
        """Be the only one to download an excerpt; waits for others, but never for a dead one."""


class FolderExcerpts:
    """Excerpts as files of one folder, for one machine."""

    def __init__(self, folder: Path) -> None:
        self._root = folder

    def load(self, cell: Cell) -> SkyCatalog | None:
        """See `ExcerptStore.load`."""
        path = self._path(cell)
        return read_catalog(path) if path.exists() else None

    def save(self, cell: Cell, stars: SkyCatalog) -> None:
        """See `ExcerptStore.save`."""
        write_catalog(stars, self._path(cell))

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[None]:
        """A lock of the operating system, which ends with the process that holds it."""
        path = self._path(cell).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _path(self, cell: Cell) -> Path:
        return self._root / cell.folder / f"npix={cell.cell}.fits"
