"""Stamps around each detection."""

from typing import ClassVar

import pydantic

from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import on_same_ccd
from seechange_assets.ports import Resource, Store
from seechange_assets.process import data_product
from seechange_assets.products import Background, Cutouts, Detections, Difference, Image


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


@data_product(CutoutsParameters, deps=on_same_ccd("reference"))
def cutouts(
    detections: Detections,
    diff: Difference,
    image: Image,
    background: Background,
    parameters: CutoutsParameters,
    store: Resource[Store],
) -> Cutouts:
    """Stamps of new, reference and difference around each detection, on one flux scale."""
    from seechange_assets.science.cutouts import make_cutouts

    reference = store.reference(diff.reference_id)
    return make_cutouts(detections, diff, image, background, reference, **parameters.arguments())
