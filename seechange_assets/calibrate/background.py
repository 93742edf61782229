"""Sky level and rms of an image."""

from typing import ClassVar

import dagster as dg

from seechange_assets.materialize import materialized
from seechange_assets.parameters import Field, Parameters
from seechange_assets.products import Background, Image
from seechange_assets.provenance import Recipes


class BackgroundParameters(Parameters):
    """How the sky is measured."""

    process: ClassVar[str] = "background"
    box_size_px: int = Field(256, ge=16, le=1024, description="Side of a box of the mesh [pixel].")


@dg.asset(io_manager_key="archive")
def background(image: Image, recipes: dg.ResourceParam[Recipes]) -> dg.MaterializeResult[Background]:
    """Sky level and rms on a mesh of boxes."""
    from seechange_assets.science.background import measure_background

    return materialized(measure_background(image, **recipes.parameters("background").arguments()))
