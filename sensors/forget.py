"""Let Dagster forget materializations of products that are deleted.

Its own wipe of single partitions does not exist for this storage (dagster 1.13), so the events go in SQL, as in
`io_managers.window`. Where an older version of a product stays, its materialization is the newest again.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import dagster as dg
import sqlalchemy as sa

from io_managers.deletion import Gone
from io_managers.window import exposures_in_work
from seechange_assets.errors import InWork
from sensors.backfill import partition_key

_CHUNK = 2000
_TAGS = sa.text("""
    delete from asset_event_tags where event_id in (
        select id from event_logs where asset_key = any(:assets) and partition = any(:partitions)
        and dagster_event_type = 'ASSET_MATERIALIZATION' and event like :version
    )
""")
_MADE = sa.text("""
    delete from event_logs where asset_key = any(:assets) and partition = any(:partitions)
    and dagster_event_type = 'ASSET_MATERIALIZATION' and event like :version
""")
_PLANNED = sa.text("""
    delete from event_logs p where asset_key = any(:assets) and partition = any(:partitions)
    and dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED' and not exists (
        select 1 from event_logs m where m.partition = p.partition and m.asset_key = p.asset_key
        and m.dagster_event_type = 'ASSET_MATERIALIZATION'
    )
""")


def check_no_work(instance: dg.DagsterInstance, gone: Sequence[Gone]) -> None:
    """Raise `InWork` if a run of one of these partitions is queued or at work."""
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        busy = exposures_in_work(connection) & {one.partition.key for one in gone}
    if busy:
        listed = ", ".join(sorted(busy)[:3])
        raise InWork(
            f"runs of {listed}{' ...' if len(busy) > 3 else ''} are not finished: wait for them, or cancel them"
        )


def forget(instance: dg.DagsterInstance, gone: Sequence[Gone]) -> int:
    """Forget the materializations of these products, those of experiments too; returns how many there were."""
    by_version: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in gone:
        by_version[one.product, one.provenance_id].append(str(partition_key(one.product, one.partition)))
    keys: dict[str, list[dg.AssetKey]] = defaultdict(list)
    for key in instance.all_asset_keys():
        keys[key.path[-1]].append(key)  # an experiment has its tag before the name
    storage: Any = instance.event_log_storage
    n_forgotten = 0
    with storage.index_connection() as connection:
        for (asset, version), partitions in by_version.items():
            for start in range(0, len(partitions), _CHUNK):
                assets = [key.to_string() for key in keys[asset]]
                arguments = {"assets": assets, "partitions": partitions[start : start + _CHUNK]}
                made = arguments | {"version": f'%"dagster/code_version": "{version}"%'}
                connection.execute(_TAGS, made)
                n_forgotten += connection.execute(_MADE, made).rowcount
                connection.execute(_PLANNED, arguments)
    for key in {key for asset, _ in by_version for key in keys[asset]}:
        storage.wipe_asset_cached_status(key)
    return n_forgotten
