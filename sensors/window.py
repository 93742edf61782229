"""The rolling window: Dagster holds some nights, Postgres and the archive hold everything for ever.

Private names of Dagster are used to see which partitions a backfill has (its minor version is pinned).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

from io_managers import window
from seechange_assets import partitions
from seechange_assets.errors import ProductNotFound
from sensors.tell_again import tell_again, untold

#: Nights with exposures that stay: 5 nights of 600 exposures x 32 CCDs are the 100,000 partitions Dagster is good for.
KEEP_NIGHTS = 5
_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
_UNFINISHED = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
#: Dagster keeps key-value pairs for its daemons; one for each night that somebody activated.
_ACTIVATED = "seechange/activated/{instrument}/{night}"


@dataclass(frozen=True, slots=True)
class Retired:
    """What `retire` did. Exposures ``left`` have runs or a backfill to come; sizes are those of Dagster's database."""

    n_exposures: int
    nights: tuple[str, ...]
    n_left: int
    n_runs: int
    n_events: int
    bytes_before: int
    bytes_after: int


def first_night_kept(database: Any, instrument: str, keep: int) -> str:
    """The oldest of the newest `keep` nights that have science exposures; empty if there are none."""
    known = list(window.nights(database, instrument))
    return known[-keep] if len(known) >= keep else (known[0] if known else "")


def to_retire(instance: dg.DagsterInstance, database: Any, instrument: str, before: str) -> dict[str, list[str]]:
    """Night -> exposures of nights before `before` that Dagster holds partitions of."""
    held = set(instance.get_dynamic_partitions(partitions.EXPOSURE))
    by_night = window.nights(database, instrument)
    found = {night: [key for key in keys if key in held] for night, keys in by_night.items() if night < before}
    return {night: keys for night, keys in found.items() if keys}


def retire(
    instance: dg.DagsterInstance,
    database: Any,
    instrument: str,
    *,
    before: str,
    compact: bool = False,
    spare_activated: bool = False,
) -> Retired:
    """Take the nights before `before` out of Dagster. Products, rows and reports stay.

    Exposures that have unfinished runs, or that an unfinished backfill is going to make, stay too: Dagster fails a
    whole backfill when one of its partitions is gone.

    Parameters
    ----------
    before : night, ``YYYY-MM-DD``.
    compact : give the space back to the file system, if no run is at work; else it is kept for new events.
    spare_activated : leave nights that somebody has activated, and what came into the window within the last hour.
    """
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection, window.one_at_a_time(connection):
        found = to_retire(instance, database, instrument, before)
        spared = activated(instance, instrument, found) if spare_activated else set()
        found = {night: keys for night, keys in found.items() if night not in spared}
        bytes_before = window.database_size(connection)
        wanted = window.exposures_in_work(connection) | exposures_of_backfills(instance)
        wanted |= window.just_added(connection) if spare_activated else set()
        gone = {night: [key for key in keys if key not in wanted] for night, keys in found.items()}
        keys = [key for night in gone.values() for key in night]
        _mark(instance, instrument, found, "")
        for key in keys:
            instance.delete_dynamic_partition(partitions.EXPOSURE, key)
        pruned = _prune(instance, connection, keys)
        window.vacuum(connection, full=compact and not instance.get_run_ids(dg.RunsFilter(statuses=_AT_WORK), limit=1))
        bytes_after = window.database_size(connection)
    return Retired(
        n_exposures=len(keys),
        nights=tuple(night for night, of_night in gone.items() if of_night),
        n_left=sum(map(len, found.values())) - len(keys),
        n_runs=pruned.n_runs,
        n_events=pruned.n_events,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
    )


def _prune(instance: dg.DagsterInstance, connection: sa.Connection, keys: Sequence[str]) -> window.Pruned:
    assets = list(instance.all_asset_keys())
    retired = window.prune(connection, [key.to_string() for key in assets], keys)
    old = window.prune_old(connection)
    if retired.n_events:
        _forget_status(instance, assets)
    return window.Pruned(retired.n_runs + old.n_runs, retired.n_events + old.n_events)


def _forget_status(instance: dg.DagsterInstance, assets: Iterable[dg.AssetKey]) -> None:
    """Let Dagster count anew: it keeps what it once found materialized or failed, event or not."""
    storage: Any = instance.event_log_storage
    for key in assets:
        storage.wipe_asset_cached_status(key)


def exposures_of_backfills(instance: dg.DagsterInstance) -> set[str]:
    """Exposures that unfinished backfills are going to make, whoever submitted them."""
    found: set[str] = set()
    with partition_loading_context(dynamic_partitions_store=instance):
        for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED)):
            keys = set(backfill.partition_names or ())
            if backfill.asset_backfill_data is not None:
                for subset in backfill.asset_backfill_data.target_subset.partitions_subsets_by_asset_key.values():
                    keys |= set(map(str, subset.get_partition_keys()))
            found |= {key.rpartition("|")[2] for key in keys}  # "ccd|exposure"
    return found


def activated(instance: dg.DagsterInstance, instrument: str, nights: Iterable[str]) -> set[str]:
    """Those of the nights that somebody has activated, and nobody has retired by name since."""
    keys = {_ACTIVATED.format(instrument=instrument, night=night): night for night in nights}
    marks = instance.daemon_cursor_storage.get_cursor_values(set(keys))
    return {keys[key] for key, mark in marks.items() if mark}


def _mark(instance: dg.DagsterInstance, instrument: str, nights: Iterable[str], mark: str) -> None:
    pairs = {_ACTIVATED.format(instrument=instrument, night=night): mark for night in nights}
    if pairs:
        instance.daemon_cursor_storage.set_cursor_values(pairs)


def activate(instance: dg.DagsterInstance, database: Any, recipes: Any, instrument: str, nights: Sequence[str]) -> int:
    """Tell Dagster of these nights again, partitions and status; returns how many exposures came.

    They stay until somebody retires them by name.

    Raises
    ------
    ProductNotFound
        A night has no science exposures; nothing is activated then.
    """
    by_night = window.nights(database, instrument)
    for night in nights:
        if night not in by_night:
            raise ProductNotFound(f"night {night!r:.40} has no science exposures; see `seechange exposures`")
    _mark(instance, instrument, nights, "activated")
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection, window.one_at_a_time(connection):
        held = set(instance.get_dynamic_partitions(partitions.EXPOSURE))
        wanted = [key for night in sorted(set(nights)) for key in by_night[night]]
        in_part = set(untold(instance, database, recipes, [key for key in wanted if key in held]))
        keys = [key for key in wanted if key not in held or key in in_part]
        for _ in tell_again(instance, database, recipes, keys):
            pass
        if keys:
            _forget_status(instance, instance.all_asset_keys())
    return len(keys)


@dg.op(description="Takes all but the newest nights out of Dagster and prunes its log.")
def retire_old_nights(
    context: dg.OpExecutionContext, database: dg.ResourceParam[Any], instrument: dg.ResourceParam[Any]
) -> None:
    """What `seechange retire --older-than 5` does, without giving space back; nights that were activated stay."""
    before = first_night_kept(database, instrument.name, KEEP_NIGHTS)
    done = retire(context.instance, database, instrument.name, before=before, spare_activated=True)
    context.add_output_metadata({"exposures": done.n_exposures, "runs": done.n_runs, "events": done.n_events})


@dg.job(description="Retires all but the newest nights.")
def retire_window() -> None:
    """One step."""
    retire_old_nights()


nightly_retire = dg.ScheduleDefinition(
    name="nightly_retire",
    job=retire_window,
    cron_schedule="0 16 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every afternoon: all but the newest nights leave the window. Nights that were activated stay.",
)
