"""Dagster's Postgres storage with pooled connections.

The stock class opens a new connection for every query: 327 for one run of 12 assets, three quarters of its time
(2.0 s, against 0.4 to 0.6 s with a pool). No option turns a pool on, so the engines are replaced after construction.
That touches private attributes: `DAGSTER_VERSION` pins the minor version, and a test asserts that the pool is in use.
"""

import os
import weakref
from collections.abc import Callable
from typing import Any, Self

import sqlalchemy
from dagster import Field, StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.storage import DagsterPostgresStorage

from resources import services
from resources.dagster_events import StepwiseEventLog
from resources.postgres_pool import check_after_a_pause
from resources.settings import Settings

DAGSTER_VERSION = "1.13"
# The three storages of a process share them; threads of the web server may take more for a moment.
POOL = {"pool_size": 3, "max_overflow": 20, "pool_use_lifo": True}


def _once(question: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A question about the schema that is not asked again once the answer was yes."""
    name = question.__name__

    def ask(self: Any) -> bool:
        known: set[str] = self.__dict__.setdefault("_known", set())
        if name not in known and question(self):
            known.add(name)
        return name in known

    return ask


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
        self._run_storage = RunStorage(url, should_autocreate_tables=False)
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
    check_after_a_pause(engine)
    reference = weakref.ref(engine)

    def forget_connections_of_parent() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget_connections_of_parent)
    return engine


class RunStorage(PostgresRunStorage):
    """Runs, without asking for the columns of its tables again and again: they stay while a process lives."""

    has_run_stats_index_cols = _once(PostgresRunStorage.has_run_stats_index_cols)
    has_bulk_actions_selector_cols = _once(PostgresRunStorage.has_bulk_actions_selector_cols)
    has_backfill_id_column = _once(PostgresRunStorage.has_backfill_id_column)
    has_bulk_action_job_name_column = _once(PostgresRunStorage.has_bulk_action_job_name_column)
    has_backfill_tags_table = _once(PostgresRunStorage.has_backfill_tags_table)
