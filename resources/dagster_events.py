"""Dagster's event log with one transaction per step, and without events that nobody reads.

The stock class commits every event by itself, asks for the columns of a table before most of them, and tells listeners
that do not exist any more. A run here is 14 short steps with ten events each, so that was most of what a run cost.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from dagster import DagsterEventType as Type
from dagster import EventLogEntry
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

from resources.dagster_own_run import OwnRun

#: What the materialization, the start and the end of the step say as well.
NOISE = frozenset({
    Type.STEP_INPUT, Type.LOADED_INPUT, Type.HANDLED_OUTPUT, Type.RESOURCE_INIT_STARTED, Type.RESOURCE_INIT_SUCCESS,
    Type.LOGS_CAPTURED,
})  # fmt: skip
#: What waits in memory for the next event of its run: milliseconds, as the next step or the queue follows at once.
HELD = frozenset({
    Type.ASSET_MATERIALIZATION_PLANNED, Type.ASSET_CHECK_EVALUATION_PLANNED,
    Type.STEP_OUTPUT, Type.ASSET_MATERIALIZATION, Type.ASSET_CHECK_EVALUATION, Type.STEP_SUCCESS,
})  # fmt: skip
#: A partition that was there is taken to be there for so long [s]; about so many are remembered.
_PARTITION_STAYS_S, _MAX_PARTITIONS = 10.0, 1000
#: What is wrong with an event itself: sent again it would be refused again, and with it all that is told after it.
_REFUSED = (sa.exc.DataError, sa.exc.IntegrityError)
_RETURN_IDS = sa.insert(SqlEventLogStorageTable).returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)


class StepwiseEventLog(OwnRun):
    """Stores the events of a step together when the next step begins or the run ends.

    What a thread has not stored yet is stored before it reads. A worker that is killed in between loses the end of
    a step: the run that replaces it does that step again, which changes nothing. Events without a run (a
    materialization that is only reported) are stored at once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._own = threading.local()
        self._known: set[str] = set()
        self._partitions: dict[tuple[str, str], float] = {}
        super().__init__(*arguments, **options)

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, or keep it for a moment."""
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind in NOISE:
            return
        self._held.append(event)
        if kind not in HELD or event.step_key is None or not event.run_id:
            self._store_held()

    def dispose(self) -> None:
        """Store what is held, then let go of the server."""
        self._store_held()
        super().dispose()

    def has_table(self, table_name: str) -> bool:
        """Whether a table exists; asked once, as tables do not vanish. Dagster asks 150 times in a run."""
        return self._once(f"table {table_name}", lambda: super(StepwiseEventLog, self).has_table(table_name))

    def has_asset_key_col(self, column_name: str) -> bool:
        """Whether the table of assets has a column; asked once."""
        return self._once(f"column {column_name}", lambda: super(StepwiseEventLog, self).has_asset_key_col(column_name))

    def has_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> bool:
        """Whether a partition exists; one that was found is not looked for again for a moment (250 times in a run)."""
        key = (partitions_def_name, partition_key)
        if time.monotonic() - self._partitions.get(key, float("-inf")) < _PARTITION_STAYS_S:
            return True
        if not super().has_dynamic_partition(partitions_def_name, partition_key):
            return False
        if len(self._partitions) >= _MAX_PARTITIONS:
            self._partitions.clear()
        self._partitions[key] = time.monotonic()
        return True

    def delete_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> None:
        """Delete a partition."""
        self._partitions.pop((partitions_def_name, partition_key), None)
        super().delete_dynamic_partition(partitions_def_name, partition_key)

    def _once(self, what: str, ask: Callable[[], bool]) -> bool:
        if what not in self._known and ask():
            self._known.add(what)
        return what in self._known

    @property
    def _held(self) -> list[EventLogEntry]:
        if not hasattr(self._own, "held"):
            self._own.held = []
        return self._own.held

    def _connect(self) -> AbstractContextManager[sa.Connection]:
        self._store_held()
        return super()._connect()

    def index_connection(self) -> AbstractContextManager[sa.Connection]:
        """A connection; while events are being stored that of their transaction, so that all is written or nothing."""
        open_one = getattr(self._own, "connection", None)
        return nullcontext(open_one) if open_one is not None else super().index_connection()

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for everything that this thread stores within."""
        self._store_held()
        with self._one_transaction():
            yield

    def store_many(self, events: Sequence[EventLogEntry]) -> list[int]:
        """Store thousands of events in a second, in one transaction. Returns their ids in the log."""
        self._store_held()
        return self._insert(events) if events else []

    def _store_held(self) -> None:
        if not self._held:
            return
        batches, refused = [self._held], None
        self._own.held = []  # what is asked for on the way must not begin to store them too
        while batches:
            try:
                for event, event_id in zip(batches[0], self._insert(batches[0]), strict=True):
                    self.remember(event, event_id)
            except BaseException as error:
                if not _is_refused(error):  # nothing of them is written: they are told when the server is back
                    self._own.held = [event for batch in batches for event in batch]
                    raise
                if len(batches[0]) > 1:
                    batches[1:1] = [[event] for event in batches[0]]
                else:
                    refused = refused or error
            batches.pop(0)
        if refused is not None:
            raise refused

    def _insert(self, events: Sequence[EventLogEntry]) -> list[int]:
        with self._one_transaction() as connection:
            return self._insert_within(connection, events)

    @contextmanager
    def _one_transaction(self) -> Iterator[sa.Connection]:
        outer = getattr(self._own, "connection", None)
        with self.index_transaction() as connection:
            self._own.connection = connection
            try:
                yield connection
            finally:
                self._own.connection = outer

    def _insert_within(self, connection: sa.Connection, events: Sequence[EventLogEntry]) -> list[int]:
        ids = list(connection.scalars(_RETURN_IDS, [self._event_to_row(event) for event in events]))
        told = [(asset, event, i) for event, i in zip(events, ids, strict=True) if (asset := _asset(event))]
        self._store_asset_event_tags(connection, [event for _, event, _ in told], [i for *_, i in told])
        newest: dict[tuple[str, str], tuple[int, EventLogEntry]] = {}
        for asset, event, event_id in told:  # the newest of its kind says all that the table of assets keeps
            newest[asset, event.get_dagster_event().event_type_value] = event_id, event
        # In one order for all: two submitters that lock the rows of assets must not wait for each other.
        for _, (event_id, event) in sorted(newest.items(), key=lambda item: (item[0][0], item[1][0])):
            self._store_asset_event(connection, event, event_id)
        for event, event_id in zip(events, ids, strict=True):
            if event.is_dagster_event and event.dagster_event_type in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(event, event_id)
        return ids


def _is_refused(error: BaseException) -> bool:
    """Whether an event is at fault; anything else (no server, no connection left, an interrupt) passes."""
    if isinstance(error, sa.exc.SQLAlchemyError):
        return isinstance(error, _REFUSED)
    return isinstance(error, Exception) and not isinstance(error, OSError)


def _asset(event: EventLogEntry) -> str:
    """The asset that an event is about; empty if it is none of those that change what is known of an asset."""
    if not event.is_dagster_event or event.dagster_event_type not in ASSET_EVENTS:
        return ""
    key = event.get_dagster_event().asset_key
    return key.to_string() if key else ""
