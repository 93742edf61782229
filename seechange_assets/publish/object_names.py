"""Names of objects from a format."""

import hashlib
import math
import re
import string
from datetime import date, timedelta

from seechange_assets.names import checked_name

_FIELDS = ("year", "yy", "month", "day", "ra", "dec", "letters", "LETTERS", "number", "random")
#: Codes with a percent sign and the fields they stand for.
_CODES = {
    "Y": "{year}", "y": "{yy}", "m": "{month}", "d": "{day}", "R": "{ra}", "D": "{dec}", "a": "{letters}",
    "A": "{LETTERS}", "n": "{number}", "l": "{random}", "%": "%",
}  # fmt: skip


def name_fields(name_format: str) -> str:
    """The format with its fields in braces, percent codes translated.

    Codes are ``%Y %y %m %d`` (date of the first detection), ``%R %D`` (its place, ``{:08.4f}`` and ``{:+08.4f}``
    degrees), ``%a %A`` (letters), ``%n`` (number), ``%l`` (a letter drawn from the place) and ``%%``.

    Raises
    ------
    ValueError
        For an unknown code or field, and for a format that would give two objects one name.
    """
    text = re.sub("%(.?)", _translated, name_format, flags=re.DOTALL)
    fields = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    if fields - set(_FIELDS):
        raise ValueError(f"unknown field {min(fields - set(_FIELDS))!r}: expected one of {', '.join(_FIELDS)}")
    if not fields & {"year", "yy"} or not fields & {"letters", "LETTERS", "number"}:
        raise ValueError("must contain {year} (or {yy}) and one of {letters}, {LETTERS}, {number}")
    return text


def _translated(match: re.Match[str]) -> str:
    if match[1] not in _CODES:
        raise ValueError(f"unknown code {match[0]}: expected one of %{' %'.join(_CODES)}")
    return _CODES[match[1]]


def object_name(name_format: str, mjd: float, number: int, ra_deg: float, dec_deg: float) -> str:
    """Name of the `number`-th object of a year (counted from 1), first detected then and there.

    Raises
    ------
    InvalidName
        For a name beyond the allow-list; of signs only the plus of a declination is let in.
    """
    from seechange_assets.science.association import letters

    pattern = name_fields(name_format)
    day = date_of(mjd)
    text = letters(number)
    drawn = hashlib.sha256(f"{ra_deg:.8f} {dec_deg:.8f} {number}".encode()).digest()
    for byte in drawn[: pattern.count("{random}")]:
        pattern = pattern.replace("{random}", chr(ord("a") + byte % 26), 1)
    name = pattern.format(
        year=day.year, yy=f"{day.year % 100:02d}", month=f"{day.month:02d}", day=f"{day.day:02d}",
        ra=f"{ra_deg:08.4f}", dec=f"{dec_deg:+08.4f}", letters=text, LETTERS=text.upper(), number=number,
    )  # fmt: skip
    checked_name(name.replace("+", "-"), "object name")
    return name


def date_of(mjd: float) -> date:
    """Calendar day (UTC) of a Modified Julian Date."""
    return date(1858, 11, 17) + timedelta(days=math.floor(mjd))
