"""Orbits of minor planets from a local file of the Minor Planet Center (``MPCORB.DAT``, plain or gzipped)."""

import gzip
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seechange_assets.errors import CatalogError

#: First and last column (from 1) of the fields that are read; see minorplanetcenter.net/iau/info/MPOrbitFormat.html.
_FIELDS = {
    "h": (9, 13), "g": (15, 19), "mean_anomaly": (27, 35), "perihelion": (38, 46), "node": (49, 57),
    "inclination": (60, 68), "eccentricity": (71, 79), "a": (93, 103),
}  # fmt: skip
_EPOCH, _PACKED_NAME, _NAME = (21, 25), (1, 7), (167, 194)
_LINE_LENGTH = 194
_DIGITS = {character: value for value, character in enumerate("0123456789ABCDEFGHIJKLMNOPQRSTUV")}
#: Where H or G are not given.
_UNKNOWN = {"h": 99.0, "g": 0.15}


class MinorPlanets:
    """The orbits in a file, read once per process.

    Parameters
    ----------
    path : Path or None
        None: there is no file, and nothing is identified.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @cached_property
    def orbits(self) -> dict[str, Any] | None:
        """Arrays by name, as `science.minor_planets.Orbits` takes them; None without a file.

        Raises
        ------
        CatalogError
            The file is missing, or not of this format.
        """
        return None if self._path is None else read_orbits(self._path)


def read_orbits(path: Path) -> dict[str, Any]:
    """Elements of a file in the format of ``MPCORB.DAT``, header lines skipped.

    Raises
    ------
    CatalogError
        The file is missing, or no line of it is an orbit.
    """
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError) as error:
        raise CatalogError(f"{path}: cannot be read as a file of orbits: {error}") from error
    lines = np.array([line[:_LINE_LENGTH].ljust(_LINE_LENGTH) for line in text.splitlines()], f"S{_LINE_LENGTH}")
    lines = lines[[_is_orbit(line) for line in lines.tolist()]]
    if len(lines) == 0:
        raise CatalogError(f"{path}: no line is an orbit in the format of MPCORB.DAT")
    columns: dict[str, Any] = {}
    for name, (first, last) in _FIELDS.items():
        columns[name] = _numbers(_column(lines, first, last), _UNKNOWN.get(name, np.nan), f"{path}: {name}")
    columns["epoch_mjd"] = _epochs(_column(lines, *_EPOCH))
    readable, packed = (
        np.char.strip(np.char.decode(_column(lines, *c), "ascii", "replace")) for c in (_NAME, _PACKED_NAME)
    )
    columns["name"] = np.where(np.char.str_len(readable) > 0, readable, packed)
    is_ellipse = (columns["eccentricity"] < 1) & (columns["a"] > 0)
    columns = {name: column[is_ellipse] for name, column in columns.items()}
    return columns | {"catalog": f"{path.name} {hashlib.sha256(content).hexdigest()[:10]}"}


def _is_orbit(line: bytes) -> bool:
    """An ellipse has its epoch, the decimal points of its elements and an eccentricity below 1, each in its place."""
    return line[29:30] == b"." and line[70:72] == b"0." and b"." in line[92:103] and line[20:21].isalpha()


def _column(lines: Any, first: int, last: int) -> Any:
    characters = lines.view("S1").reshape(len(lines), -1)[:, first - 1 : last]
    return np.ascontiguousarray(characters).view(f"S{last - first + 1}").ravel()


def _text(column: Any) -> Any:
    return np.char.strip(np.char.decode(column, "ascii", "replace"))


def _numbers(column: Any, unknown: float, what: str) -> Any:
    text = np.char.strip(column)
    try:
        return np.where(text == b"", str(unknown).encode(), text).astype(float)
    except ValueError as error:
        raise CatalogError(f"{what}: {error}") from error


def _epochs(packed: Any) -> Any:
    """MJD (TT) of packed dates: ``K25BL`` is 2025 November 21."""
    from datetime import date

    zero = date(1858, 11, 17)
    dates = {}
    for text in np.unique(packed):
        code = text.decode("ascii", "replace")
        try:
            year = 100 * (ord(code[0]) - ord("A") + 10) + int(code[1:3])
            dates[text] = float((date(year, _DIGITS[code[3]], _DIGITS[code[4]]) - zero).days)
        except (KeyError, ValueError, IndexError) as error:
            raise CatalogError(f"epoch {code!r} of an orbit is no packed date") from error
    return np.array([dates[text] for text in packed])
