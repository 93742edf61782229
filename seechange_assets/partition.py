"""The name of one partition of a CCD-wise asset, and which partitions of one asset feed another; without Dagster."""

from dataclasses import dataclass
from typing import Any

#: Names of the dimensions that grow.
EXPOSURE, CALIBRATION, FIELD_FILTER, NIGHT = "exposure", "calibration", "field_filter", "night"


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


class ChosenByData(str):
    """Name of an asset partitioned otherwise, of which the data decide which partition is used."""

    __slots__ = ()


def on_same_ccd(*assets: str) -> list[ChosenByData]:
    """Dependencies on assets partitioned otherwise: the data decide which of their partitions is used.

    The lineage shows them. Dagster is not told of a partition, because to it all of the CCD's would be inputs: the
    masters of every new night would make all images stale, and every new image all references.
    """
    return [ChosenByData(asset) for asset in assets]
