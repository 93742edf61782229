"""Dagster's window in SQL: which exposures belong to it, and what its log can do without once they have left.

A retired partition keeps its materializations, so that `activate` brings its status, numbers and previews back at
once. What goes are the other events of its runs (three quarters of the bytes) and the rows of runs that succeeded. A
run that failed stays: a partition that failed shows as failed again. What the survey itself tells of an attempt is in
`reports`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from resources.database import Database
from sql.models import ExposureRow

#: Tag that Dagster gives every run of an exposure's partition.
EXPOSURE_TAG = "dagster/partition/exposure"
TABLES = ("event_logs", "asset_event_tags", "asset_check_executions", "run_tags", "runs")
#: Only the step timeline of a run that failed needs these.
_NOISE = (
    "STEP_START", "STEP_SUCCESS", "STEP_OUTPUT", "STEP_INPUT", "HANDLED_OUTPUT", "LOADED_INPUT", "ENGINE_EVENT",
    "RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "LOGS_CAPTURED",
)  # fmt: skip
#: Runs of one statement: some tens of thousands of events.
_CHUNK = 500
#: A table that somebody else has locked for so long is left as it is.
_LOCK_TIMEOUT = "5s"

_SUCCEEDED = sa.text("""
    select r.run_id from runs r join run_tags t on t.run_id = r.run_id and t.key = :tag
    where r.status = 'SUCCESS' and not exists (
        select 1 from dynamic_partitions p where p.partitions_def_name = 'exposure' and p.partition = t.value
    ) limit :chunk
""")
_STOPPED = sa.text("""
    select r.run_id from runs r join run_tags t on t.run_id = r.run_id and t.key = :tag
    where r.status in ('FAILURE', 'CANCELED') and t.value = any(:exposures)
""")
_UNFINISHED = sa.text("""
    select distinct t.value from runs r join run_tags t on t.run_id = r.run_id and t.key = :tag
    where r.status not in ('SUCCESS', 'FAILURE', 'CANCELED')
""")
_TAGS = sa.text("""
    delete from asset_event_tags where event_id in (
        select id from event_logs where run_id = any(:runs) and dagster_event_type <> 'ASSET_MATERIALIZATION'
    )
""")
_EVENTS = sa.text("""
    delete from event_logs where run_id = any(:runs)
    and (dagster_event_type is null or dagster_event_type <> 'ASSET_MATERIALIZATION')
""")
_NOISE_EVENTS = sa.text("""
    delete from event_logs where run_id = any(:runs)
    and (dagster_event_type is null or dagster_event_type = any(:noise))
""")
_CHECKS = sa.text("delete from asset_check_executions where run_id = any(:runs)")
_RUNS = (
    sa.text("delete from run_tags where run_id = any(:runs)"),
    sa.text("delete from runs where run_id = any(:runs)"),
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows of Dagster's log are gone."""

    n_runs: int = 0
    n_events: int = 0


def nights(database: Database, instrument: str) -> dict[str, list[str]]:
    """Night -> keys of its science exposures, oldest first."""
    query = (
        sa.select(ExposureRow.night, sa.func.array_agg(sa.text("key order by mjd")))
        .where(ExposureRow.instrument == instrument, ExposureRow.kind == "science")
        .group_by(ExposureRow.night)
        .order_by(ExposureRow.night)
    )
    with database.session() as session:
        return {night: list(keys) for night, keys in session.execute(query)}


def exposures_in_work(connection: sa.Connection) -> set[str]:
    """Exposures that have a run that is queued or at work."""
    return set(connection.scalars(_UNFINISHED, {"tag": EXPOSURE_TAG}))


def prune(connection: sa.Connection, retired: Sequence[str]) -> Pruned:
    """Forget the successful runs of all exposures outside the window, and the noise of the failed ones of `retired`.

    Parameters
    ----------
    connection : of Dagster's database, in autocommit.
    retired : exposures that have just left the window.
    """
    n_runs = n_events = 0
    for runs in _chunks(connection):
        connection.execute(_TAGS, {"runs": runs})
        n_events += connection.execute(_EVENTS, {"runs": runs}).rowcount
        connection.execute(_CHECKS, {"runs": runs})
        for statement in _RUNS:  # last: what was interrupted is found again
            connection.execute(statement, {"runs": runs})
        n_runs += len(runs)
    stopped = list(connection.scalars(_STOPPED, {"tag": EXPOSURE_TAG, "exposures": list(retired)}))
    n_events += connection.execute(_NOISE_EVENTS, {"runs": stopped, "noise": list(_NOISE)}).rowcount
    return Pruned(n_runs, n_events)


def _chunks(connection: sa.Connection) -> Iterator[list[Any]]:
    while runs := list(connection.scalars(_SUCCEEDED, {"tag": EXPOSURE_TAG, "chunk": _CHUNK})):
        yield runs


def vacuum(connection: sa.Connection, *, full: bool) -> None:
    """Make the space of what was deleted free for new rows; with `full` give it back to the file system.

    ``VACUUM FULL`` locks each table while it is rewritten: seconds per gigabyte, in which no event can be stored.
    """
    connection.execute(sa.text(f"set lock_timeout = '{_LOCK_TIMEOUT}'"))
    try:
        for table in TABLES:
            connection.execute(sa.text(f"vacuum ({'full, ' if full else ''}analyze) {table}"))
    finally:
        connection.execute(sa.text("reset lock_timeout"))


def database_size(connection: sa.Connection) -> int:
    """Bytes of Dagster's database."""
    return int(connection.scalar(sa.text("select pg_database_size(current_database())")) or 0)
