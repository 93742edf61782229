"""A reference is built as soon as enough images qualify for it, and again when they go deeper."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from io_managers.reference_news import ReferenceNews
from seechange_assets import partitions
from seechange_assets.errors import ReferenceConflict
from seechange_assets.partitions import Partition
from sensors.runs import is_in_work


@dg.sensor(
    job_name="build_reference",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Builds the reference of a field, filter and CCD when enough images qualify, and a deeper one later.",
)
def new_references(
    context: dg.SensorEvaluationContext, store: dg.ResourceParam[Any], recipes: dg.ResourceParam[Any]
) -> dg.SensorResult | dg.SkipReason:
    """One tick: request every reference that is to be made, the first or a deeper one, and is not being built.

    A field that has one to be made is looked at in each tick until it is there.
    """
    requests: list[dg.RunRequest] = []
    open_fields: list[str] = []
    selection = recipes.parameters("reference")
    try:
        news = ReferenceNews(store, selection, context.cursor)
        for field in news.fields():
            wanted = store.references_to_build(selection, field)
            open_fields += [field] if wanted else []
            requests += _requests(context.instance, wanted, recipes)
    except ReferenceConflict as error:
        return dg.SkipReason(str(error))
    skipped = None if requests else dg.SkipReason("no reference to build")
    return dg.SensorResult(run_requests=requests, skip_reason=skipped, cursor=news.cursor(open_fields))


def _requests(
    instance: dg.DagsterInstance, wanted: Mapping[Partition, list[str]], recipes: Any
) -> Iterator[dg.RunRequest]:
    for partition, exposures in wanted.items():
        key = dg.MultiPartitionKey({"field_filter": partition.key, "ccd": partition.ccd})
        if not is_in_work(instance, key):
            instance.add_dynamic_partitions(partitions.FIELD_FILTER, [partition.key])
            yield _request(partition, exposures, recipes)


def _request(partition: Partition, exposures: list[str], recipes: Any) -> dg.RunRequest:
    members = hashlib.sha256(" ".join(sorted(exposures)).encode()).hexdigest()[:10]
    return dg.RunRequest(
        run_key=f"{partition.key}/{partition.ccd}/{members}/{recipes['reference'].short_id}",
        partition_key=dg.MultiPartitionKey({"field_filter": partition.key, "ccd": partition.ccd}),
        tags={"dagster/priority": "15"},
    )
