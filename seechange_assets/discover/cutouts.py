"""Stamps around each detection."""

from typing import ClassVar

import pydantic

from seechange_assets.parameters import Field, Parameters


class CutoutsParameters(Parameters):
    """How stamps are cut."""

    process: ClassVar[str] = "cutouts"
    size: int = Field(41, ge=11, le=201, description="Odd side of a stamp [pixel]; the classifier sees the central 33.")

    @pydantic.field_validator("size")
    @classmethod
    def _is_odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("a stamp has a central pixel: its side must be odd")
        return size
