"""A reference is built as soon as enough images qualify for it, and again when they go deeper."""

import hashlib
from typing import Any

import dagster as dg

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
    """One tick: request every reference that is to be made, the first or a deeper one, and is not being built."""
    requests = []
    try:
        wanted = store.references_to_build(recipes.parameters("reference"))
    except ReferenceConflict as error:
        return dg.SkipReason(str(error))
    for partition, exposures in wanted.items():
        key = dg.MultiPartitionKey({"field_filter": partition.key, "ccd": partition.ccd})
        if not is_in_work(context.instance, key):
            context.instance.add_dynamic_partitions(partitions.FIELD_FILTER, [partition.key])
            requests.append(_request(partition, exposures, recipes))
    return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("no reference to build")


def _request(partition: Partition, exposures: list[str], recipes: Any) -> dg.RunRequest:
    members = hashlib.sha256(" ".join(sorted(exposures)).encode()).hexdigest()[:10]
    return dg.RunRequest(
        run_key=f"{partition.key}/{partition.ccd}/{members}/{recipes['reference'].short_id}",
        partition_key=dg.MultiPartitionKey({"field_filter": partition.key, "ccd": partition.ccd}),
        tags={"dagster/priority": "15"},
    )
