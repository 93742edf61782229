"""The survey database: one engine per process, short transactions, migrations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from resources.postgres_pool import check_after_a_pause
from seechange_assets.errors import ServiceUnavailable, StorageFull

#: SQLSTATE ``disk_full``.
_DISK_FULL = "53100"
MIGRATIONS = Path(__file__).resolve().parents[1] / "sql" / "migrations"


class Database:
    """Sessions on the survey database.

    Parameters
    ----------
    url : str or a function that gives it
        SQLAlchemy URL with its driver written out (``postgresql+psycopg2://``). A function is asked at
        the first connection, so definitions load while no server runs.
    """

    def __init__(self, url: str | Callable[[], str]) -> None:
        self._url = url

    def __repr__(self) -> str:
        return f"Database({self.engine.url.render_as_string(hide_password=True)})"

    @cached_property
    def engine(self) -> sa.Engine:
        """Pooled engine; a stale connection is replaced before use."""
        url = self._url if isinstance(self._url, str) else self._url()
        engine = sa.create_engine(url, pool_size=2, max_overflow=8, pool_use_lifo=True)
        check_after_a_pause(engine)
        return engine

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: commit at the end, roll back on any error.

        Raises
        ------
        ServiceUnavailable
            When Postgres does not answer.
        StorageFull
            When Postgres has no room left on its disk; nothing was written.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except DBAPIError as error:  # a server that ends within a commit is no OperationalError to the driver
            if getattr(error.orig, "pgcode", None) == _DISK_FULL:
                raise StorageFull(
                    f"Postgres has no room left on its disk ({_first_line(error.orig)}), and nothing was written; free "
                    "space: what is missing is then made by itself"
                ) from error
            is_refused = isinstance(error, OperationalError) and "connect" in str(error.orig).lower()
            if error.connection_invalidated or is_refused:
                raise ServiceUnavailable(
                    f"Postgres does not answer ({_first_line(error.orig)}); run `seechange up`"
                ) from error
            raise

    def upgrade(self, revision: str = "head") -> None:
        """Bring the schema to `revision`; processes that do so at once take turns."""
        from alembic import command

        with self.engine.connect() as lock:
            lock.execute(sa.text("SELECT pg_advisory_lock(7315)"))
            try:
                command.upgrade(self._alembic(), revision)
            finally:
                lock.execute(sa.text("SELECT pg_advisory_unlock(7315)"))

    def revisions(self) -> tuple[str | None, str | None]:
        """(revision of the database, newest revision of the code). Every command asks, so without importing alembic."""
        with self.engine.connect() as connection:
            has_any = connection.scalar(sa.select(sa.func.to_regclass("alembic_version"))) is not None
            current = connection.scalar(sa.text("select version_num from alembic_version")) if has_any else None
        numbers = (path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
        return current, max(numbers, default=None)

    def _alembic(self) -> Any:
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["engine"] = self.engine
        return config


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0]
