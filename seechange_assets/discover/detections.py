"""Peaks of the score image."""

import dataclasses
from typing import Any, ClassVar

from seechange_assets.assess.checks import DETECTION_COUNT
from seechange_assets.parameters import Field, FieldParameters
from seechange_assets.process import data_product
from seechange_assets.products import Detections, Difference, Sources


class DetectionsParameters(FieldParameters):
    """What counts as a detection, in the two kinds of fields."""

    process: ClassVar[str] = "detections"
    algorithm_version: ClassVar[str] = "3"
    threshold: float = Field(5.0, ge=2.0, le=100.0, description="Least |S/N| of a peak of the score image.")
    separation_fwhm: float = Field(1.0, gt=0.0, le=10.0, description="Peaks closer than this are one [FWHM].")
    edge_fwhm: float = Field(2.0, ge=0.0, le=20.0, description="Border left out, of image and overlap [FWHM].")
    streak_length_fwhm: float = Field(4.5, gt=1.0, description="Longer connected, thin regions are streaks [FWHM].")
    star_residual_fraction: float = Field(
        0.03, ge=0.0, le=1.0, description="Peaks below this fraction of the star underneath are star residuals."
    )
    max_detections: int = Field(5000, ge=1, description="More than this is a failed subtraction: an error.")
    galactic: dict[str, Any] = Field({"threshold": 10.0}, description="Values that differ in galactic fields.")


@data_product(DetectionsParameters, checks=[DETECTION_COUNT])
def detections(diff: Difference, sources: Sources, parameters: DetectionsParameters) -> Detections:
    """Peaks of |score| over the threshold, both signs."""
    from seechange_assets.science.detections import detect

    found = detect(diff, **parameters.arguments(sources.field_kind))
    return dataclasses.replace(found, field_kind=sources.field_kind)
