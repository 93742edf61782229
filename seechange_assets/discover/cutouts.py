"""Stamps around each detection."""

from typing import ClassVar

from seechange_assets.parameters import Field, Parameters


class CutoutsParameters(Parameters):
    """How stamps are cut."""

    process: ClassVar[str] = "cutouts"
    size: int = Field(41, ge=11, le=201, multiple_of=1, description="Odd side of a stamp [pixel].")
