"""Tell Dagster again, from our own rows, of exposures whose events it has forgotten (`seechange retire`).

A row says what a materialization said that Dagster reasons with: code version (the recipe), data version (the hash of
the content), what it was made of. So partitions show the status they had, and are as fresh or stale as they were.
What is not told again are previews, times of single steps, checks, and runs: one run for each exposure in which
something had failed stands for those that did.

Private names of Dagster are used here (its minor version is pinned): nothing public takes many events at once.
"""

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterEventType as Type
from dagster import EventLogEntry
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, StepMaterializationData
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID
from dagster._core.storage.dagster_run import make_new_run_id
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from io_managers import window
from io_managers.staleness import SHARED
from seechange_assets import partitions
from seechange_assets.partitions import Partition
from seechange_assets.provenance import Recipes
from sensors.announce import materialization
from sensors.backfill import partition_key
from sql.base import ProductRow
from sql.models import PRODUCT_ROWS, ExposureRow, ProvenanceRow, ProvenanceTagRow, ProvenanceUpstreamRow, ReportRow

CHAIN = [name for name in PRODUCT_ROWS if name not in SHARED]
#: Exposures of one transaction: some thousand events of a camera with 32 CCDs.
_CHUNK = 8
#: A pointer to before all events: what was made of another content than its parent has now is stale.
_BEFORE_ALL = "1"
#: Tag of runs that stand for others.
STANDS_FOR = "seechange/stands_for"

#: Product, exposure, CCD and recipe of a row -> the event that tells of it, and the row.
Told = dict[tuple[str, str, str, str], tuple[int, Any]]


def tell_again(instance: dg.DagsterInstance, database: Any, recipes: Recipes, keys: Sequence[str]) -> Iterator[int]:
    """Tell of these exposures and give Dagster their partitions; yields how many events each transaction had.

    Nothing is told twice, and a partition comes after all that is known of it: who is interrupted calls it again.
    """
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        with database.session() as session:
            teller = _Teller(instance, session, recipes, chunk)
            n_events = teller.tell()
        instance.add_dynamic_partitions(partitions.EXPOSURE, list(chunk))
        yield n_events


def untold(instance: dg.DagsterInstance, database: Any, recipes: Recipes, keys: Sequence[str]) -> list[str]:
    """Those of the exposures that have products Dagster does not know of.

    So it is where `process` or `ingest` has brought one back into the window alone.
    """
    found: list[str] = []
    for start in range(0, len(keys), _CHUNK):
        with database.session() as session:
            found += _Teller(instance, session, recipes, keys[start : start + _CHUNK]).untold()
    return found


class _Teller:
    """Tells of some exposures in one transaction of Dagster's log."""

    def __init__(self, instance: dg.DagsterInstance, session: Session, recipes: Recipes, keys: Sequence[str]) -> None:
        self._instance, self._session, self._recipes, self._keys = instance, session, recipes, list(keys)
        self._log: Any = instance.event_log_storage
        self._told: Told = {}
        self._foreign = _of_experiments(instance, session, recipes)

    def tell(self) -> int:
        """Tell everything; returns the number of events."""
        products = {name: self._rows(PRODUCT_ROWS[name]) for name in CHAIN}
        self._feeds = self._upstreams({row.provenance_id for rows in products.values() for row in rows})
        failed = self._failed(products)
        runs = self._runs(failed)  # before the events that name them: without any they are found and forgotten
        known = self._known()
        with self._log.together():
            n_events = self._exposures()
            for name, rows in products.items():
                n_events += self._products(name, rows, known)
            return n_events + self._failures(failed, runs)

    def untold(self) -> list[str]:
        """Exposures with a product that Dagster does not know of."""
        known = self._known()
        rows = {name: self._rows(PRODUCT_ROWS[name]) for name in CHAIN}
        found = {row.partition for name in CHAIN for row in rows[name] if _place(name, row) not in known}
        return [key for key in self._keys if key in found]

    def _known(self) -> Mapping[tuple[str, str], int]:
        """(asset, partition) -> the event that tells of it."""
        assets = [dg.AssetKey(name).to_string() for name in CHAIN]
        with self._log.index_connection() as connection:
            known: Mapping[tuple[str, str], int] = window.told(connection, assets, self._keys)
        return known

    def _exposures(self) -> int:
        rows = self._session.scalars(sa.select(ExposureRow).where(ExposureRow.key.in_(self._keys)).order_by("mjd"))
        with self._log.index_connection() as connection:
            known = window.told_exposures(connection, self._keys)
        all_rows = list(rows)
        new = [row for row in all_rows if row.key not in known]
        ids = self._log.store_many([_entry(materialization(row, self._recipes)) for row in new])
        known |= {row.key: event_id for row, event_id in zip(new, ids, strict=True)}
        for row in all_rows:
            self._told["exposure", row.key, "", row.provenance_id] = known[row.key], row
        return len(new)

    def _rows(self, table: type[ProductRow]) -> list[Any]:
        """All versions of a product, in the order in which Dagster was told of them."""
        columns = [c for c in sa.inspect(table).columns if not isinstance(c.type, JSONB) or c.name == "summary"]
        query = (
            sa.select(*columns)
            .where(table.partition.in_(self._keys), table.provenance_id.not_in(self._foreign))
            .order_by(table.materialized_at, table.id)
        )
        return list(self._session.execute(query))

    def _upstreams(self, ids: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
        """Recipe -> (process, recipe) of all that fed it."""
        links = ProvenanceUpstreamRow
        query = sa.select(links.downstream_id, ProvenanceRow.process, links.upstream_id).join(
            ProvenanceRow, ProvenanceRow.id == links.upstream_id
        )
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for below, process, above in self._session.execute(query.where(links.downstream_id.in_(list(ids)))):
            found[below].append((process, above))
        return found

    def _products(self, name: str, rows: Sequence[Any], known: Mapping[tuple[str, str], int]) -> int:
        new = [row for row in rows if _place(name, row) not in known]
        events = [_entry(_materialization(name, _key(name, row), row, self._made_of(row))) for row in new]
        ids = {row.id: event_id for row, event_id in zip(new, self._log.store_many(events), strict=True)}
        for row in rows:
            event_id = ids[row.id] if row.id in ids else known[_place(name, row)]
            self._told[name, row.partition, row.ccd, row.provenance_id] = event_id, row
        return len(new)

    def _made_of(self, row: Any) -> Iterator[tuple[str, str, str]]:
        """(asset, data version, event) of what a product was made of, as far as it belongs to its exposure."""
        for process, recipe in self._feeds.get(row.provenance_id, ()):
            if process == "exposure":
                event_id, exposure = self._told.get((process, row.partition, "", recipe), (0, None))
                if exposure is not None:
                    yield process, exposure.sha256, str(event_id)
            elif found := self._told.get((process, row.partition, row.ccd, recipe)):
                event_id, parent = found
                is_older = parent.updated_at <= row.materialized_at
                yield process, parent.content_hash, str(event_id) if is_older else _BEFORE_ALL

    def _failed(self, products: Mapping[str, Sequence[Any]]) -> dict[str, set[tuple[str, str]]]:
        """Exposure -> (asset, CCD) of what failed or was not reached, and has not been made since."""
        made = {(name, row.partition, row.ccd): row.materialized_at for name, rows in products.items() for row in rows}
        query = sa.select(ReportRow).where(
            ReportRow.partition.in_(self._keys),
            ReportRow.outcome == "failed",
            ReportRow.step.in_(CHAIN),
            ReportRow.provenance_id.not_in(self._foreign),
        )
        found: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for report in self._session.scalars(query):
            for name in (report.step, *self._recipes.descendants(report.step)):
                made_at = made.get((name, report.partition, report.ccd))
                if name in CHAIN and (made_at is None or made_at < report.updated_at):
                    found[report.partition].add((name, report.ccd))
        return found

    def _runs(self, failed: Mapping[str, Any]) -> dict[str, str]:
        """Exposure -> a run that failed, for each of these."""
        return {key: self._run(key) for key in failed}

    def _run(self, exposure: str) -> str:
        tags = {window.EXPOSURE_TAG: exposure, STANDS_FOR: "runs that failed before the night was retired"}
        run_id = make_new_run_id()
        self._instance.add_run(dg.DagsterRun("process_ccd", run_id, status=dg.DagsterRunStatus.FAILURE, tags=tags))
        return run_id

    def _failures(self, failed: Mapping[str, Iterable[tuple[str, str]]], runs: Mapping[str, str]) -> int:
        """To Dagster a partition has failed that a failed run was going to make."""
        events = [
            _planned(name, partition_key(name, Partition(exposure, ccd)), runs[exposure])
            for exposure, places in failed.items()
            for name, ccd in sorted(places)
        ]
        return len(self._log.store_many(events))


def _of_experiments(instance: dg.DagsterInstance, session: Session, recipes: Recipes) -> set[str]:
    """Recipes that experiments alone use: their assets have the tag before their name."""
    tags = {key.path[0] for key in instance.all_asset_keys() if len(key.path) > 1}
    named = session.scalars(sa.select(ProvenanceTagRow.provenance_id).where(ProvenanceTagRow.tag.in_(tags)))
    return set(named) - {recipe.id for recipe in recipes.values()}


def _key(name: str, row: Any) -> Any:
    """The partition of a row in Dagster."""
    return partition_key(name, Partition(row.partition, row.ccd))


def _place(name: str, row: Any) -> tuple[str, str]:
    """(asset, partition) of a row, as Dagster's tables have them."""
    return dg.AssetKey(name).to_string(), str(_key(name, row))


def _materialization(
    name: str, key: dg.MultiPartitionKey, row: Any, made_of: Iterable[tuple[str, str, str]]
) -> dg.AssetMaterialization:
    tags = {
        "dagster/code_version": row.provenance_id,
        "dagster/data_version": row.content_hash,
        "dagster/data_version_is_user_provided": "true",
        **{f"dagster/partition/{dimension}": value for dimension, value in key.keys_by_dimension.items()},
    }
    for parent, version, event in made_of:
        # As Dagster writes it: the hash of the versions of all partitions, of which there is one.
        tags[f"dagster/input_data_version/{parent}"] = hashlib.sha256(version.encode()).hexdigest()
        tags[f"dagster/input_event_pointer/{parent}"] = event
    metadata = {  # few entries: each is objects of Dagster's, which take most of the time of an event
        "materialized_at": dg.MetadataValue.timestamp(row.materialized_at),
        "file": row.filepath,
        "numbers": dg.MetadataValue.json(row.summary),
    }
    return dg.AssetMaterialization(name, partition=key, metadata=metadata, tags=tags)


def _entry(told: dg.AssetMaterialization) -> EventLogEntry:
    event = DagsterEvent(
        Type.ASSET_MATERIALIZATION.value, RUNLESS_JOB_NAME, event_specific_data=StepMaterializationData(told)
    )
    return _logged(event, RUNLESS_RUN_ID)


def _planned(name: str, key: str, run_id: str) -> EventLogEntry:
    data = AssetMaterializationPlannedData(dg.AssetKey(name), partition=key)
    return _logged(DagsterEvent.build_asset_materialization_planned_event("process_ccd", name, data), run_id)


def _logged(event: DagsterEvent, run_id: str) -> EventLogEntry:
    return EventLogEntry(
        error_info=None,
        level=logging.INFO,
        user_message="",
        run_id=run_id,
        timestamp=time.time(),
        step_key=event.step_key,
        job_name=event.job_name,
        dagster_event=event,
    )
