"""Sky level and rms of an image."""

from typing import ClassVar, Literal

from seechange_assets.parameters import Field, Parameters
from seechange_assets.process import data_product
from seechange_assets.products import Background, Image


class BackgroundParameters(Parameters):
    """How the sky is measured."""

    process: ClassVar[str] = "background"
    algorithm_version: ClassVar[str] = "4"
    box_size_px: int = Field(256, ge=16, le=1024, description="Side of a box of the mesh [pixel].")
    form: Literal["map", "polynomial", "scalar"] = Field("map", description="How the level varies over the image.")
    polynomial_degree: int = Field(2, ge=0, le=4, description="Degree of the polynomial form.")
    mask_passes: int = Field(1, ge=0, le=5, description="Rounds of masking sources and measuring again.")


@data_product(BackgroundParameters)
def background(image: Image, parameters: BackgroundParameters) -> Background:
    """Sky level and rms on a mesh of boxes."""
    from seechange_assets.science.background import measure_background

    return measure_background(image, **parameters.arguments())
