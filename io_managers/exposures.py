"""Register raw exposures: checksum, archive, row. The same file twice is one exposure."""

import gzip
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from io_managers.store import ProductStore
from resources.archive import file_digest
from seechange_assets.errors import BadExposure, ExposureConflict
from seechange_assets.instruments.base import Instrument
from seechange_assets.names import checked_name
from seechange_assets.products import ExposureInfo, plain
from seechange_assets.provenance import SHORT_LENGTH
from sql.models import ExposureRow, RejectedFileRow
from sql.sky import healpix_of

_REGISTRATION_LOCK = 7316
#: Ends of names that the archive keeps: readers go by them.
_COMPRESSED = (".fits.fz", ".fits.gz", ".fits.bz2")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Registration:
    """The outcome for one file: ``is_new`` is False when these bytes were registered before."""

    info: ExposureInfo
    is_new: bool


class ExposureRegistry:
    """The raw exposures of one instrument."""

    def __init__(self, store: ProductStore, instrument: Instrument) -> None:
        self._store, self._instrument = store, instrument

    def register(self, file: Path) -> Registration:
        """Parse, checksum, copy into the archive, then write the row.

        Raises
        ------
        BadExposure
            The file cannot be used; nothing is written.
        ExposureConflict
            The exposure is registered with other bytes; the first stays.
        """
        if not file.is_file():
            raise BadExposure(f"{file}: no such file")
        info = self._instrument.read_exposure(file)
        _check_compressed(file)
        checked_name(info.key, "exposure key")
        sha256 = file_digest(file)
        known = self.get(info.key)
        is_new = known is None and self._archive_and_insert(file, info, sha256)
        if not is_new and (known := self.get(info.key)) is not None and known.sha256 != sha256:
            raise ExposureConflict(
                f"{file}: exposure {info.key} is registered with other bytes (SHA-256 {known.sha256[:12]}, "
                f"this file {sha256[:12]}); the registered one stays"
            )
        return Registration(info, is_new)

    def reject(self, file: Path, error: Exception) -> None:
        """Remember a refused file once per content, so that nobody has to search a log for it."""
        values = {
            "sha256": file_digest(file),
            "name": one_line(file.name),
            "error": type(error).__name__,
            "message": one_line(error, 2000),
        }
        with self._store.database.session() as session:
            session.execute(insert(RejectedFileRow).values(**values).on_conflict_do_nothing())

    def after(self, sequence: int, limit: int | None = None) -> list[ExposureRow]:
        """Exposures registered after `sequence`, in order of registration."""
        query = (
            sa.select(ExposureRow)
            .where(ExposureRow.sequence > sequence, ExposureRow.instrument == self._instrument.name)
            .order_by(ExposureRow.sequence)
            .limit(limit)
        )
        with self._store.database.session() as session:
            return list(session.scalars(query))

    def get(self, key: str) -> ExposureRow | None:
        """The row of an exposure."""
        with self._store.database.session() as session:
            return session.get(ExposureRow, key)

    def _archive_and_insert(self, file: Path, info: ExposureInfo, sha256: str) -> bool:
        """Copy, then insert; False when another process registered the key first."""
        provenance_id = self._store.register_recipe("exposure")
        # The name carries the content, so two files that fight for a key never share a path.
        path = f"{self._store.instrument}/{info.night}/{info.key}/raw.{sha256[:SHORT_LENGTH]}{_ending(file)}"
        archived, n_bytes = self._store.archive.write(path, lambda target: _copy(file, target))
        if archived != sha256:
            self._store.archive.remove(path)
            raise BadExposure(f"{file}: the file changed while it was read; try again when it is complete")
        values = _row_values(info) | {"filepath": path, "sha256": sha256, "n_bytes": n_bytes}
        values["provenance_id"] = provenance_id
        statement = insert(ExposureRow).values(**values).on_conflict_do_nothing().returning(ExposureRow.key)
        with self._store.database.session() as session:
            # One at a time: sequence numbers then become visible in order, and no cursor skips one.
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(_REGISTRATION_LOCK)))
            inserted = session.scalar(statement) is not None
        if not inserted and (row := self.get(info.key)) is not None and row.sha256 != sha256:
            self._store.archive.remove(path)
        return inserted


def one_line(text: object, limit: int = 200) -> str:
    """Text of a foreign origin, fit for a log, a row or a file: printable, valid Unicode, at most `limit` characters.

    What is not printable is escaped (names that are no UTF-8 arrive as lone surrogates); the middle of a
    longer text is left out.
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    if len(escaped) <= limit:
        return escaped
    end = limit // 3
    return f"{escaped[: limit - end - 3]}...{escaped[-end:]}"


def _ending(file: Path) -> str:
    """How the archived name ends: as the file's where readers go by it, else ``.fits``."""
    return next((end for end in _COMPRESSED if file.name.lower().endswith(end)), ".fits")


def _check_compressed(file: Path) -> None:
    """Refuse a gzip file that ends early: its reader would find a whole file with fewer extensions."""
    if file.suffix.lower() != ".gz":
        return
    try:
        with gzip.open(file) as stream:
            while stream.read(_READ_BYTES):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadExposure(f"{file}: not a whole gzip file ({error}): transfer it again") from error


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _row_values(info: ExposureInfo) -> dict[str, Any]:
    values = plain(asdict(info))
    has_position = np.isfinite(info.ra_deg) and np.isfinite(info.dec_deg)
    values["healpix"] = healpix_of(info.ra_deg, info.dec_deg) if has_position else None
    return values
