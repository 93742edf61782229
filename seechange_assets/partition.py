"""The name of one partition of a CCD-wise asset; it needs no Dagster."""

from dataclasses import dataclass
from typing import Any


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
