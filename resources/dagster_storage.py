"""Dagster's Postgres storage with pooled connections.

The stock class opens a new connection for every query: 327 for one run of 12 assets, three quarters of its time
(2.0 s, against 0.4 to 0.6 s with a pool). No option turns a pool on, so the engines are replaced after construction.
That touches private attributes: `DAGSTER_VERSION` pins the minor version, and a test asserts that the pool is in use.
"""

import os
import time
import weakref
from typing import Any, Self

import sqlalchemy
from dagster import Field, StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres.storage import DagsterPostgresStorage

from resources import services
from resources.dagster_events import StepwiseEventLog
from resources.settings import Settings

DAGSTER_VERSION = "1.13"
# The three storages of a process share them; threads of the web server may take more for a moment.
POOL = {"pool_size": 3, "max_overflow": 20, "pool_use_lifo": True}
#: A connection that was used so recently is taken to be alive [s].
_FRESH_S = 1.0


class SeeChangeDagsterStorage(DagsterPostgresStorage):
    """Runs, events and ticks of Dagster in the Postgres server of this installation.

    Parameters
    ----------
    home : str, optional
        Overrides ``SEECHANGE_HOME``; `seechange up` writes it into ``dagster.yaml``, so that ``DAGSTER_HOME`` alone
        is enough to find the instance.
    """

    def __init__(self, home: str | None = None, inst_data: ConfigurableClassData | None = None) -> None:
        url = dagster_url(home)
        super().__init__(url, should_autocreate_tables=True, inst_data=inst_data)
        self._event_log_storage = StepwiseEventLog(url, should_autocreate_tables=False)
        engine = pooled_engine(url)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Schema of ``storage.custom.config``."""
        return {"home": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Build from ``dagster.yaml``."""
        return cls(inst_data=inst_data, **config_value)


def dagster_url(home: str | None = None) -> str:
    """URL of Dagster's database; the embedded server is started if it is the one to use and is down."""
    settings = Settings.of_home(home)
    services.ensure_postgres(settings)
    return settings.dagster_url


def pooled_engine(url: str) -> sqlalchemy.Engine:
    """An engine that keeps a connection open, and gives a forked child (a Celery worker) its own."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", **POOL)
    sqlalchemy.event.listen(engine, "checkin", _note_the_time)
    sqlalchemy.event.listen(engine, "checkout", _ping_unless_fresh)
    reference = weakref.ref(engine)

    def forget_connections_of_parent() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget_connections_of_parent)
    return engine


def _note_the_time(_: Any, record: sqlalchemy.pool.ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _ping_unless_fresh(connection: Any, record: sqlalchemy.pool.ConnectionPoolEntry, _: Any) -> None:
    """As ``pool_pre_ping``, which doubles the number of round trips, but only after a pause."""
    if time.monotonic() - record.info.get("used_at", 0.0) < _FRESH_S:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    except connection.Error as error:
        raise sqlalchemy.exc.DisconnectionError from error  # the pool opens another
