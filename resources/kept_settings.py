"""What the last `up` of a home was given, so that commands without its variables go on with the same.

It lies in ``settings.json`` of the home and outlives `down`. Of a variable that may hold a user, a password or a token
only the name is written.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seechange_assets.errors import ParameterError

PREFIX = "SEECHANGE_"
#: Addresses with a scheme or without; whatever else has ``://`` is one too.
_ADDRESSES = {"POSTGRES_URL", "QUEUE_URL", "KAFKA_SERVERS", "HOP_URL", "POLL_URL"}
#: What may stand in the query of Postgres's URL; anything else there may be a password or the path to a key.
_PUBLIC_QUERY = {"host", "port", "sslmode"}


@dataclass(frozen=True, slots=True)
class Kept:
    """Variables of the last `up`, by their whole names.

    Attributes
    ----------
    values : mapping of str to str
        Those that differed from their defaults, paths absolute.
    secrets : tuple of str
        Names of those whose value is not written down.
    """

    values: Mapping[str, str]
    secrets: tuple[str, ...] = ()


def read(home: Path) -> Kept:
    """What is kept in a home; nothing if no `up` has written anything.

    Raises
    ------
    ParameterError
        If the file is spoilt.
    """
    path = _file(home)
    try:
        content = json.loads(path.read_text())
        return Kept({str(name): str(value) for name, value in content["values"].items()}, tuple(content["secrets"]))
    except FileNotFoundError:
        return Kept({})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ParameterError(f"{path} is spoilt: delete it, and give `up` its variables again") from None


def write(home: Path, given: Mapping[str, str]) -> None:
    """Keep these variables in place of those before; only the owner may read them."""
    secrets = {name for name, value in given.items() if is_secret(name.removeprefix(PREFIX), value)}
    if any(name.startswith(f"{PREFIX}KAFKA_") for name in secrets):  # its address alone would be of no use
        secrets |= given.keys() & {f"{PREFIX}KAFKA_SERVERS"}
    content = {"values": {name: given[name] for name in sorted(given.keys() - secrets)}, "secrets": sorted(secrets)}
    write_json(_file(home), content)


def write_json(path: Path, content: Any) -> None:
    """Replace a file as a whole; only the owner may read it."""
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def is_secret(name: str, value: str) -> bool:
    """Whether the value of a variable, named without prefix, may hold a user, a password or a token.

    A user alone is none in Postgres's URL; elsewhere it may be a token.
    """
    if name == "POSTGRES_URL":
        return _postgres_has_password(value)
    if name.startswith(("KAFKA_", "HOP_")) and name not in {*_ADDRESSES, "KAFKA_PORT"}:
        return True
    return (name in _ADDRESSES or "://" in value) and re.search("[@?#]", value) is not None


def _postgres_has_password(url: str) -> bool:
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return True
    return bool(parsed.password) or not parsed.query.keys() <= _PUBLIC_QUERY


def _file(home: Path) -> Path:
    return home / "settings.json"
