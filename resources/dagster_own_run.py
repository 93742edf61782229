"""What a run has made itself is known without asking: Dagster's questions about the inputs of a step, from memory.

Before each step Dagster asks the event log for the newest materialization of every input, and for the data version of
its partition: three queries an input, 130 in a run of 14 steps. All inputs but the first were made by the run itself a
moment ago, by the process that asks.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster import AssetKey, AssetRecordsFilter, EventLogEntry, EventLogRecord, EventRecordsResult
from dagster import DagsterEventType as Type
from dagster._core.events import PIPELINE_EVENTS
from dagster._core.storage.event_log.base import AssetEntry, AssetRecord
from dagster_postgres.event_log import PostgresEventLogStorage

#: When an asset was wiped is asked again after this time [s].
_DETAILS_STAY_S = 10.0


class OwnRun(PostgresEventLogStorage):
    """Remembers the materializations of the run that a thread executes, from when they are stored to its end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._run = threading.local()
        self._details: dict[str, tuple[float, Any]] = {}
        super().__init__(*arguments, **options)

    def remember(self, event: EventLogEntry, event_id: int) -> None:
        """Take note of an event that has been stored: a step's materialization is kept, the end of a run forgets."""
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind in PIPELINE_EVENTS:
            self._run.made, self._run.newest = {}, {}
        elif kind is Type.ASSET_MATERIALIZATION and event.step_key and event.run_id:
            key = event.get_dagster_event().asset_key
            if key is not None:
                self._made[key] = EventLogRecord(event_id, event)
                self._newest.clear()

    def get_asset_records(self, asset_keys: Sequence[AssetKey] | None = None) -> Sequence[AssetRecord]:
        """Newest materializations; of what the run in hand has made, its own."""
        if not self._made or asset_keys is None:
            return super().get_asset_records(asset_keys)
        own = [_record(key, self._made[key]) for key in asset_keys if key in self._made]
        others = [key for key in asset_keys if key not in self._made]
        return [*own, *(super().get_asset_records(others) if others else ())]

    def get_latest_tags_by_partition(
        self,
        asset_key: AssetKey,
        event_type: dg.DagsterEventType,
        tag_keys: Sequence[str],
        asset_partitions: Sequence[str] | None = None,
        before_cursor: int | None = None,
        after_cursor: int | None = None,
    ) -> Mapping[str, Mapping[str, str]]:
        """Tags of the newest materializations by partition; of what the run in hand has made, its own."""
        own = self._made.get(asset_key)
        made = own.event_log_entry.asset_materialization if own is not None else None
        is_asked = event_type is Type.ASSET_MATERIALIZATION and not before_cursor and not after_cursor
        if made is None or not is_asked or list(asset_partitions or ()) != [made.partition]:
            return super().get_latest_tags_by_partition(
                asset_key, event_type, tag_keys, asset_partitions, before_cursor, after_cursor
            )
        tags = {key: value for key, value in (made.tags or {}).items() if key in tag_keys}
        return {str(made.partition): tags} if tags else {}

    def fetch_materializations(
        self,
        records_filter: AssetKey | AssetRecordsFilter,
        limit: int,
        cursor: str | None = None,
        ascending: bool = False,
    ) -> EventRecordsResult:
        """Materializations; the newest of a partition, which each check asks for twice, is asked once in a run."""
        key = _partition_of(records_filter)
        if key is None or limit != 1 or cursor is not None or ascending or not self._made:
            return super().fetch_materializations(records_filter, limit, cursor, ascending)
        if key not in self._newest:
            self._newest[key] = super().fetch_materializations(records_filter, limit, cursor, ascending)
        return self._newest[key]

    def wipe_asset(self, asset_key: AssetKey) -> None:
        """Forget everything of an asset."""
        self._details.clear()
        super().wipe_asset(asset_key)

    def _get_assets_details(self, asset_keys: Sequence[AssetKey]) -> Sequence[Any]:
        """When assets were wiped; what was asked a moment ago is not asked again (60 times in a run)."""
        now = time.monotonic()
        known = {key: self._details.get(key.to_string(), (float("-inf"), None)) for key in asset_keys}
        asked = [key for key, (at, _) in known.items() if now - at > _DETAILS_STAY_S]
        if asked:
            told = zip(asked, super()._get_assets_details(asked), strict=True)
            self._details |= {key.to_string(): (now, details) for key, details in told}
        return [self._details[key.to_string()][1] for key in asset_keys]

    @property
    def _newest(self) -> dict[tuple[AssetKey, str], EventRecordsResult]:
        if not hasattr(self._run, "newest"):
            self._run.newest = {}
        newest: dict[tuple[AssetKey, str], EventRecordsResult] = self._run.newest
        return newest

    @property
    def _made(self) -> dict[AssetKey, EventLogRecord]:
        if not hasattr(self._run, "made"):
            self._run.made = {}
        made: dict[AssetKey, EventLogRecord] = self._run.made
        return made


def _partition_of(records_filter: AssetKey | AssetRecordsFilter) -> tuple[AssetKey, str] | None:
    """The asset and partition, if a filter asks for one partition and nothing else."""
    if isinstance(records_filter, AssetKey) or len(records_filter.asset_partitions or ()) != 1:
        return None
    (partition,) = records_filter.asset_partitions or ("",)
    only = AssetRecordsFilter(asset_key=records_filter.asset_key, asset_partitions=[partition])
    return (records_filter.asset_key, partition) if records_filter == only else None


def _record(key: AssetKey, materialized: EventLogRecord) -> AssetRecord:
    entry = AssetEntry(
        asset_key=key, last_materialization_record=materialized, last_run_id=materialized.event_log_entry.run_id
    )
    return AssetRecord(storage_id=materialized.storage_id, asset_entry=entry)
