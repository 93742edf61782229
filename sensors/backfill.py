"""Stale partitions to Dagster: one backfill for what is to be computed, old events again for what exists.

Private names of Dagster are used here (its minor version is pinned): a backfill with other partitions for each asset
has no public constructor.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._serdes import deserialize_value

from io_managers.staleness import Known, Work
from seechange_assets.partitions import Partition

#: Live data (10 and more) goes first.
BACKFILL_PRIORITY = "-10"
#: Tag of our backfills and their runs; the value is the provenance tag.
BACKFILL_TAG = "seechange/backfill"
_UNFINISHED = [BulkActionStatus.REQUESTED]
_CHUNK = 2000

_NEWEST = sa.text(r"""
    select distinct on (partition) partition, substring(event from '"dagster/code_version": "([^"]*)"') as version
    from event_logs where asset_key = :asset and dagster_event_type = 'ASSET_MATERIALIZATION'
    and partition = any(:partitions) order by partition, id desc
""")
_MADE_BY = sa.text("""
    select distinct on (partition) partition, event from event_logs
    where asset_key = :asset and dagster_event_type = 'ASSET_MATERIALIZATION' and partition = any(:partitions)
    and event like :version order by partition, id desc
""")


def partition_key(asset: str, partition: Partition) -> dg.MultiPartitionKey:
    """Dagster's key of a partition of an asset."""
    return dg.MultiPartitionKey({Work(partition, None, (asset,)).dimension: partition.key, "ccd": partition.ccd})


def without_unfinished(instance: dg.DagsterInstance, work: Iterable[Work], tag: str) -> list[Work]:
    """What no unfinished backfill of ours is going to make already."""
    requested: dict[str, set[str]] = defaultdict(set)
    for backfill in unfinished_backfills(instance, tag):
        data = backfill.asset_backfill_data
        if data is not None:
            for asset in data.target_subset.asset_keys:
                subset = data.target_subset.get_partitions_subset(asset)
                requested[asset.path[-1]] |= set(subset.get_partition_keys())
    if not requested:
        return list(work)
    left = []
    for item in work:
        assets = tuple(a for a in item.assets if str(partition_key(a, item.partition)) not in requested[a])
        if assets:
            left.append(Work(item.partition, item.night, assets))
    return left


def unfinished_backfills(instance: dg.DagsterInstance, tag: str) -> Sequence[PartitionBackfill]:
    """Backfills of this tag that Dagster is still working on."""
    return instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED, tags={BACKFILL_TAG: tag}))


def submit(instance: dg.DagsterInstance, graph: BaseAssetGraph, work: Sequence[Work], *, tag: str, title: str) -> str:
    """Hand the work to Dagster as one backfill; one run for each partition. Returns the backfill's id."""
    by_asset: dict[str, list[str]] = defaultdict(list)
    for item in work:
        for asset in item.assets:
            by_asset[asset].append(partition_key(asset, item.partition))
    with partition_loading_context(dynamic_partitions_store=instance):
        subsets = {
            dg.AssetKey(asset): graph.get(dg.AssetKey(asset)).partitions_def.subset_with_partition_keys(keys)
            for asset, keys in by_asset.items()
        }
        backfill = PartitionBackfill.from_asset_graph_subset(
            backfill_id=uuid.uuid4().hex[:8],
            backfill_timestamp=time.time(),
            tags={BACKFILL_TAG: tag, "dagster/priority": BACKFILL_PRIORITY},
            dynamic_partitions_store=instance,
            asset_graph_subset=AssetGraphSubset(subsets, set()),  # type: ignore[call-arg]
            title=title,
            description=None,
            run_config=None,
        )
        instance.add_backfill(backfill)
    return backfill.backfill_id


def recognise(instance: dg.DagsterInstance, store: Any, found: Mapping[str, Sequence[Known]]) -> int:
    """Tell Dagster of products that the current recipes made before another version came; nothing is computed.

    Each materialization is the one it was then, so what it was made of is known too. Where Dagster's log does not
    have it any more, the partition is left to a run, which recognises its products by their rows.

    Returns
    -------
    int
        How many were told.
    """
    n_told = 0
    for asset, rows in found.items():
        for start in range(0, len(rows), _CHUNK):
            n_told += _recognise(instance, store, asset, rows[start : start + _CHUNK])
    return n_told


def _recognise(instance: dg.DagsterInstance, store: Any, asset: str, rows: Sequence[Known]) -> int:
    by_key = {str(partition_key(asset, row.partition)): row for row in rows}
    version = store.recipes[asset].id
    arguments = {"asset": dg.AssetKey(asset).to_string(), "partitions": list(by_key)}
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        newest = {key: value for key, value in connection.execute(_NEWEST, arguments)}  # noqa: C416
        outdated = [key for key in by_key if newest.get(key) not in (None, version)]
        like = {"version": f'%"dagster/code_version": "{version}"%', "partitions": outdated}
        events = {key: event for key, event in connection.execute(_MADE_BY, arguments | like)} if outdated else {}  # noqa: C416
    for key in sorted(events):
        materialization = deserialize_value(events[key], EventLogEntry).asset_materialization
        if materialization is not None:
            instance.report_runless_asset_event(materialization)
    settled = [row for key, row in by_key.items() if key in events or key not in outdated]
    store.materialized(asset, [row.id for row in settled])
    return len(events)
