"""The allow-list every name passes before it becomes a path, a key or a topic; and how a night is written."""

import re
from datetime import date

from seechange_assets.errors import InvalidName, ParameterError

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,80}")


def checked_name(name: str, what: str = "name") -> str:
    """Return `name` if it matches ``[A-Za-z0-9_.-]{1,80}`` and is no path step (``.``, ``..``).

    Raises
    ------
    InvalidName
        With the offending name, shortened and escaped.
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name) or set(name) == {"."}:
        raise InvalidName(f"{what} {str(name)[:60]!r} is not allowed: use 1 to 80 of the characters A-Z a-z 0-9 _ . -")
    return name


def checked_night(text: str) -> str:
    """The night of a date as ``YYYY-MM-DD``; ``YYYYMMDD``, as topics name it, is understood too.

    Raises
    ------
    ParameterError
        It is no date. Taken as it is, it would silently mean a night without exposures.
    """
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ParameterError(f"{text!r:.40} is no night: expected YYYY-MM-DD") from None


def printable(text: str, length: int = 80) -> str:
    """Text from outside that goes into rows and packets: control and unpaired characters replaced, cut to a length."""
    return "".join(character if character.isprintable() else "?" for character in text[:length])
