"""An external catalogue of galaxies (and stars told from them) from a local file."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seechange_assets.errors import CatalogError

if TYPE_CHECKING:
    from astropy.table import Table

#: What a file must have, and the names under which catalogues have it.
_COLUMNS = {
    "name": ("name", "lsid", "id", "objid"), "ra": ("ra",), "dec": ("dec",),
    "mag": ("mag", "white_mag", "mag_r"), "star_score": ("star_score", "xgboost", "p_star"),
}  # fmt: skip


class GalaxyCatalog:
    """The sources of a FITS, CSV or ECSV file, sorted by declination.

    Columns: a name (``name``, ``lsid``, ``id`` or ``objid``), ``ra, dec`` [deg], a magnitude (``mag``, ``white_mag`` or
    ``mag_r``) and how star-like the source is, 0 to 1 (``star_score``, ``xgboost`` or ``p_star``).
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __bool__(self) -> bool:
        """Whether there is a file at all."""
        return self._path is not None

    @cached_property
    def name(self) -> str:
        """File name and the beginning of its hash."""
        assert self._path is not None
        try:
            digest = hashlib.sha256(self._path.read_bytes()).hexdigest()
        except OSError as error:
            raise CatalogError(f"{self._path}: cannot be read: {error.strerror}") from error
        return f"{self._path.name} {digest[:10]}"

    @cached_property
    def table(self) -> "Table":
        """``name, ra, dec, mag, star_score`` of all sources.

        Raises
        ------
        CatalogError
            The file cannot be read or lacks a column.
        """
        from astropy.table import Table

        assert self._path is not None
        try:
            given = Table.read(self._path)
        except (OSError, ValueError) as error:
            raise CatalogError(f"{self._path}: cannot be read as a table: {error}") from error
        lower = {column.lower(): column for column in given.colnames}
        columns = {}
        for wanted, candidates in _COLUMNS.items():
            present = [lower[name] for name in candidates if name in lower]
            if not present:
                raise CatalogError(f"{self._path}: no column {wanted}: expected one of {', '.join(candidates)}")
            values = np.ma.filled(given[present[0]], np.nan) if wanted in ("mag", "star_score") else given[present[0]]
            columns[wanted] = np.asarray(values, "U80" if wanted == "name" else float)
        table = Table(columns)
        table.sort("dec")
        return table

    def cone(self, ra_deg: float, dec_deg: float, radius_deg: float) -> "Table":
        """Sources within a radius."""
        low, high = np.searchsorted(self.table["dec"], [dec_deg - radius_deg, dec_deg + radius_deg])
        strip = self.table[low:high]
        ra, dec = np.deg2rad(strip["ra"] - ra_deg), np.deg2rad(np.asarray(strip["dec"]))
        dec0 = np.deg2rad(dec_deg)
        half = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin(ra / 2) ** 2
        return strip[2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))) <= np.deg2rad(radius_deg)]
