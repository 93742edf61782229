"""The raw exposure: where everything begins.

No run makes it: `seechange ingest` or the drop-directory sensor registers a file and
reports it to Dagster as a materialization.
"""

from typing import Any, ClassVar

from seechange_assets.parameters import Field, Parameters
from seechange_assets.process import PARAMETER_MODELS, DataProduct


class ExposureParameters(Parameters):
    """The camera, with every constant that can change a product made from its pixels.

    The composition root fills both in; they make the recipes of two cameras differ in everything.
    """

    process: ClassVar[str] = "exposure"
    instrument: str = Field("", description="Name of the instrument.")
    constants: dict[str, Any] = Field(default_factory=dict, description="`Instrument.constants`.")


PARAMETER_MODELS["exposure"] = ExposureParameters

exposure = DataProduct("exposure", "A raw exposure, registered with its checksum and kept in the archive.")
