"""The rolling window: Dagster holds some nights, Postgres and the archive hold everything for ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import dagster as dg
import sqlalchemy as sa

from io_managers import window
from seechange_assets import partitions
from seechange_assets.errors import ParameterError, ProductNotFound
from sensors.announce import announce
from sql.models import ExposureRow

#: Nights with exposures that stay: 5 nights of 600 exposures x 32 CCDs are the 100,000 partitions Dagster is good for.
KEEP_NIGHTS = 5
_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


@dataclass(frozen=True, slots=True)
class Retired:
    """What `retire` did. Exposures ``left`` have runs that are not finished; sizes are those of Dagster's database."""

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
    instance: dg.DagsterInstance, database: Any, instrument: str, *, before: str, compact: bool = False
) -> Retired:
    """Take the nights before `before` out of Dagster. Products, rows and reports stay.

    Parameters
    ----------
    before : night, ``YYYY-MM-DD``.
    compact : give the space back to the file system, if no run is at work; else it is kept for new events.
    """
    found = to_retire(instance, database, instrument, before)
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        bytes_before = window.database_size(connection)
        in_work = window.exposures_in_work(connection)
        gone = {night: [key for key in keys if key not in in_work] for night, keys in found.items()}
        keys = [key for night in gone.values() for key in night]
        for key in keys:
            instance.delete_dynamic_partition(partitions.EXPOSURE, key)
        pruned = window.prune(connection, keys)
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


def activate(instance: dg.DagsterInstance, database: Any, recipes: Any, instrument: str, nights: Sequence[str]) -> int:
    """Give Dagster the partitions of these nights again; their status is back. Returns how many exposures came.

    Raises
    ------
    ProductNotFound
        A night has no science exposures; nothing is activated then.
    """
    by_night = window.nights(database, instrument)
    for night in nights:
        if night not in by_night:
            raise ProductNotFound(f"night {night!r:.40} has no science exposures; see `seechange exposures`")
    held = set(instance.get_dynamic_partitions(partitions.EXPOSURE))
    keys = [key for night in sorted(set(nights)) for key in by_night[night] if key not in held]
    told = instance.event_log_storage.get_materialized_partitions(dg.AssetKey(partitions.EXPOSURE))
    instance.add_dynamic_partitions(partitions.EXPOSURE, [key for key in keys if key in told])
    announce(instance, _rows(database, [key for key in keys if key not in told]), recipes)
    return len(keys)


def checked_night(text: str) -> str:
    """`text`, if it is a date ``YYYY-MM-DD``.

    Raises
    ------
    ParameterError
        It is none.
    """
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ParameterError(f"{text!r:.40} is no night: expected YYYY-MM-DD") from None


def _rows(database: Any, keys: Sequence[str]) -> list[Any]:
    with database.session() as session:
        return list(session.scalars(sa.select(ExposureRow).where(ExposureRow.key.in_(keys)).order_by(ExposureRow.mjd)))


@dg.op(description="Takes all but the newest nights out of Dagster and prunes its log.")
def retire_old_nights(
    context: dg.OpExecutionContext, database: dg.ResourceParam[Any], instrument: dg.ResourceParam[Any]
) -> None:
    """What `seechange retire --older-than 5` does, without giving space back."""
    before = first_night_kept(database, instrument.name, KEEP_NIGHTS)
    done = retire(context.instance, database, instrument.name, before=before)
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
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every afternoon, once somebody turns it on: all but the newest nights leave the window.",
)
