"""How products are partitioned, and which partitions of one asset feed another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

EXPOSURE, CALIBRATION, FIELD_FILTER, NIGHT = "exposure", "calibration", "field_filter", "night"

exposure = dg.DynamicPartitionsDefinition(name=EXPOSURE)
calibration = dg.DynamicPartitionsDefinition(name=CALIBRATION)
field_filter = dg.DynamicPartitionsDefinition(name=FIELD_FILTER)
night = dg.DynamicPartitionsDefinition(name=NIGHT)


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a CCD-wise asset.

    ``key`` is the exposure, the calibration run (a night) or ``field.filter``.
    """

    key: str
    ccd: str

    @classmethod
    def of(cls, context: Any) -> "Partition":
        """The partition of a running step or of an IO manager's context."""
        partition_key = context.partition_key
        keys = dict(partition_key.keys_by_dimension)
        return cls(ccd=keys.pop("ccd"), key=keys.popitem()[1])


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
