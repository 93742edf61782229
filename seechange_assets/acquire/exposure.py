"""The raw exposure: where everything begins.

No run makes it: `seechange ingest` or the drop-directory sensor registers a file and
reports it to Dagster as a materialization.
"""

from typing import ClassVar

import dagster as dg

from seechange_assets.data_product import PARAMETER_MODELS
from seechange_assets.parameters import Parameters


class ExposureParameters(Parameters):
    """Registration has no parameters: the bytes are kept as they came."""

    process: ClassVar[str] = "exposure"


PARAMETER_MODELS["exposure"] = ExposureParameters

exposure = dg.AssetSpec(
    "exposure",
    description="A raw exposure, registered with its checksum and kept in the archive.",
    group_name="acquire",
)
