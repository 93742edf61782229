"""How products are partitioned."""

from collections.abc import Sequence

import dagster as dg

from seechange_assets.partition import CALIBRATION, EXPOSURE, FIELD_FILTER, NIGHT
from seechange_assets.partition import Partition as Partition  # noqa: PLC0414  (one place to import from)

exposure = dg.DynamicPartitionsDefinition(name=EXPOSURE)
calibration = dg.DynamicPartitionsDefinition(name=CALIBRATION)
field_filter = dg.DynamicPartitionsDefinition(name=FIELD_FILTER)
night = dg.DynamicPartitionsDefinition(name=NIGHT)


def by_ccd(other: dg.PartitionsDefinition, dimension: str, ccds: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """`other` x ccd."""
    return dg.MultiPartitionsDefinition({dimension: other, "ccd": dg.StaticPartitionsDefinition(list(ccds))})
