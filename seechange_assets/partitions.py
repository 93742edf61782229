"""How products are partitioned, and which partitions of one asset feed another."""

from collections.abc import Sequence

import dagster as dg

from seechange_assets.partition import Partition as Partition  # noqa: PLC0414  (one place to import from)

EXPOSURE, CALIBRATION, FIELD_FILTER, NIGHT = "exposure", "calibration", "field_filter", "night"

exposure = dg.DynamicPartitionsDefinition(name=EXPOSURE)
calibration = dg.DynamicPartitionsDefinition(name=CALIBRATION)
field_filter = dg.DynamicPartitionsDefinition(name=FIELD_FILTER)
night = dg.DynamicPartitionsDefinition(name=NIGHT)


def by_ccd(other: dg.PartitionsDefinition, dimension: str, ccds: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """`other` x ccd."""
    return dg.MultiPartitionsDefinition({dimension: other, "ccd": dg.StaticPartitionsDefinition(list(ccds))})


def on_same_ccd(*assets: str) -> list[dg.AssetDep]:
    """Dependencies on assets partitioned otherwise: the data decide which of their partitions is used.

    The lineage shows them. Dagster is not told of a partition, because to it all of the CCD's would be inputs: the
    masters of every new night would make all images stale, and every new image all references.
    """
    chosen_by_data = dg.SpecificPartitionsPartitionMapping([])
    return [dg.AssetDep(asset, partition_mapping=chosen_by_data) for asset in assets]
