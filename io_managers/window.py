"""Dagster's window in SQL: which exposures belong to it, and what its log keeps of those that do not.

Of a retired exposure nothing stays in Dagster: its status is in our rows, from which `activate` tells Dagster again.
The materialization of the asset `exposure` goes last: as long as it is there, an interrupted retirement is found and
completed by the next. Of what is not made for an exposure (masters, references, reports of nights) the runs are
forgotten by age; the newest materialization of each partition stays.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from resources.database import Database
from sql.models import ExposureRow

#: Tag that Dagster gives every run and every materialization of an exposure's partition.
EXPOSURE_TAG = "dagster/partition/exposure"
TABLES = ("event_logs", "asset_event_tags", "asset_check_executions", "run_tags", "runs")
#: Successful runs that belong to no exposure are forgotten after this [days].
KEEP_DAYS = 30
#: What was told of so recently may still be on its way into the window [s].
_ON_ITS_WAY_S = 3600.0
#: Runs of one statement, some tens of thousands of events; exposures of one statement.
_CHUNK, _EXPOSURES = 500, 20
#: A table that somebody else has locked for so long is left as it is.
_LOCK_TIMEOUT = "5s"
#: Advisory lock of who retires or activates.
_WINDOW_LOCK = 7320

_RUNS_OUTSIDE = sa.text("""
    select r.run_id from runs r join run_tags t on t.run_id = r.run_id and t.key = :tag
    where r.status in ('SUCCESS', 'FAILURE', 'CANCELED') and not exists (
        select from dynamic_partitions p where p.partitions_def_name = 'exposure' and p.partition = t.value
    ) limit :chunk
""")
_UNFINISHED = sa.text("""
    select distinct t.value from runs r join run_tags t on t.run_id = r.run_id and t.key = :tag
    where r.status not in ('SUCCESS', 'FAILURE', 'CANCELED')
""")
_JUST_ADDED = sa.text("""
    select partition from dynamic_partitions where partitions_def_name = 'exposure'
    and create_timestamp > localtimestamp - make_interval(secs => :seconds)
""")
_LEFT = sa.text("""
    select distinct e.partition from event_logs e where e.asset_key = '["exposure"]'
    and e.dagster_event_type = 'ASSET_MATERIALIZATION' and e.partition is not null
    and e.timestamp < to_timestamp(:before) at time zone 'utc' and not exists (
        select from dynamic_partitions p where p.partitions_def_name = 'exposure' and p.partition = e.partition
    )
""")
#: Each is one statement, so a tag never outlives its event nor an event its tag.
_FORGET = """
    with gone as (delete from event_logs e where {which} returning e.id),
    tags as (delete from asset_event_tags t where t.event_id in (select id from gone))
    select count(*) from gone
"""
_OF_RUNS = sa.text(_FORGET.format(which="e.run_id = any(:runs)"))
_OF_EXPOSURES = sa.text(
    _FORGET.format(
        which="""e.id in (
            select event_id from asset_event_tags where asset_key = any(:assets) and key = :tag and value = any(:keys)
        )"""
    )
)
_THEMSELVES = sa.text(_FORGET.format(which="e.asset_key = '[\"exposure\"]' and e.partition = any(:keys)"))
_NEWER = """
    select from event_logs n where n.asset_key = e.asset_key and n.dagster_event_type = e.dagster_event_type
    and n.id > e.id and n.partition
"""
_SUPERSEDED = sa.text(
    _FORGET.format(
        which=f"""e.run_id = any(:runs) and (
            e.dagster_event_type is distinct from 'ASSET_MATERIALIZATION' or exists ({_NEWER} = e.partition)
            or (e.partition is null and exists ({_NEWER} is null))
        )"""
    )
)
_OLD_RUNS = sa.text("""
    select r.run_id from runs r
    where r.status = 'SUCCESS' and coalesce(r.end_time, extract(epoch from r.update_timestamp)) < :before
    and not exists (select from run_tags t where t.run_id = r.run_id and t.key = :tag) limit :chunk
""")
_CHECKS = sa.text("delete from asset_check_executions where run_id = any(:runs)")
_OLD_CHECKS = sa.text("""
    delete from asset_check_executions c where (c.run_id = any(:runs) or c.run_id = '')
    and c.evaluation_event_timestamp < to_timestamp(:before) at time zone 'utc' and exists (
        select from asset_check_executions n
        where n.asset_key = c.asset_key and n.check_name = c.check_name and n.id > c.id
    )
""")
_OLD_CHECK_EVENTS = sa.text("""
    delete from event_logs where run_id = '' and dagster_event_type = 'ASSET_CHECK_EVALUATION'
    and timestamp < to_timestamp(:before) at time zone 'utc'
""")
_RUNS = (
    sa.text("delete from run_tags where run_id = any(:runs)"),
    sa.text("delete from runs where run_id = any(:runs)"),
)
_TOLD = sa.text("""
    select e.asset_key, e.partition, max(e.id) from event_logs e where e.dagster_event_type = 'ASSET_MATERIALIZATION'
    and e.id in (
        select event_id from asset_event_tags where asset_key = any(:assets) and key = :tag and value = any(:keys)
    ) group by e.asset_key, e.partition
""")
_TOLD_EXPOSURES = sa.text("""
    select partition, max(id) from event_logs where asset_key = '["exposure"]' and partition = any(:keys)
    and dagster_event_type = 'ASSET_MATERIALIZATION' group by partition
""")


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


def just_added(connection: sa.Connection) -> set[str]:
    """Exposures that have come into the window so recently that their runs may not be requested yet."""
    return set(connection.scalars(_JUST_ADDED, {"seconds": _ON_ITS_WAY_S}))


@contextmanager
def one_at_a_time(connection: sa.Connection) -> Iterator[None]:
    """Wait until nobody else retires or activates, and keep others waiting until the end."""
    connection.execute(sa.select(sa.func.pg_advisory_lock(_WINDOW_LOCK)))
    try:
        yield
    finally:
        connection.execute(sa.select(sa.func.pg_advisory_unlock(_WINDOW_LOCK)))


def told(connection: sa.Connection, assets: Sequence[str], exposures: Sequence[str]) -> dict[tuple[str, str], int]:
    """(asset, partition) -> newest materialization, of what Dagster's log has of these exposures."""
    arguments = {"assets": list(assets), "tag": EXPOSURE_TAG, "keys": list(exposures)}
    return {(asset, partition): event_id for asset, partition, event_id in connection.execute(_TOLD, arguments)}


def told_exposures(connection: sa.Connection, exposures: Sequence[str]) -> dict[str, int]:
    """Exposure -> the newest event that tells of its raw file."""
    return {key: event_id for key, event_id in connection.execute(_TOLD_EXPOSURES, {"keys": list(exposures)})}  # noqa: C416


def prune(connection: sa.Connection, assets: Sequence[str], retired: Sequence[str]) -> Pruned:
    """Forget all runs and events of exposures outside the window.

    Parameters
    ----------
    connection : of Dagster's database, in autocommit.
    assets : keys of all assets, as the log writes them.
    retired : exposures that have just left the window; what an earlier retirement has left is found by itself.
    """
    n_runs = n_events = 0
    while runs := list(connection.scalars(_RUNS_OUTSIDE, {"tag": EXPOSURE_TAG, "chunk": _CHUNK})):
        n_events += connection.scalar(_OF_RUNS, {"runs": runs}) or 0
        connection.execute(_CHECKS, {"runs": runs})
        n_runs += _forget_runs(connection, runs)
    left = connection.scalars(_LEFT, {"before": time.time() - _ON_ITS_WAY_S})
    gone = sorted({*retired, *left})
    for start in range(0, len(gone), _EXPOSURES):
        arguments: dict[str, Any] = {"keys": gone[start : start + _EXPOSURES]}
        n_events += connection.scalar(_OF_EXPOSURES, arguments | {"assets": list(assets), "tag": EXPOSURE_TAG}) or 0
        n_events += connection.scalar(_THEMSELVES, arguments) or 0
    return Pruned(n_runs, n_events)


def prune_old(connection: sa.Connection, days: float = KEEP_DAYS) -> Pruned:
    """Forget successful runs that belong to no exposure and are older than this, and old answers of checks.

    The newest materialization of each partition stays, and the newest answer of each check.
    """
    n_runs = n_events = 0
    before = time.time() - days * 86400
    while runs := list(connection.scalars(_OLD_RUNS, {"tag": EXPOSURE_TAG, "before": before, "chunk": _CHUNK})):
        n_events += connection.scalar(_SUPERSEDED, {"runs": runs}) or 0
        connection.execute(_OLD_CHECKS, {"runs": runs, "before": before})
        n_runs += _forget_runs(connection, runs)
    connection.execute(_OLD_CHECKS, {"runs": [], "before": before})
    n_events += connection.execute(_OLD_CHECK_EVENTS, {"before": before}).rowcount
    return Pruned(n_runs, n_events)


def _forget_runs(connection: sa.Connection, runs: Sequence[str]) -> int:
    for statement in _RUNS:  # after their events: what was interrupted is found again
        connection.execute(statement, {"runs": list(runs)})
    return len(runs)


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
