"""Catalogue of the sources of an image."""

from typing import ClassVar

from seechange_assets.data_product import data_product
from seechange_assets.parameters import Field, Parameters
from seechange_assets.products import Background, Image, Sources


class SourcesParameters(Parameters):
    """How sources are detected and measured."""

    process: ClassVar[str] = "sources"
    threshold: float = Field(4.0, ge=1.5, le=100.0, description="S/N of a matched-filtered pixel that makes a source.")
    aperture_radii_fwhm: tuple[float, ...] = Field(
        (1.0, 2.0, 3.0, 5.0), min_length=1, description="Radii of the apertures [seeing FWHM]."
    )
    min_area_px: int = Field(3, ge=1, le=100, description="Connected pixels over the threshold [pixel].")
    deblend_levels: int = Field(32, ge=1, le=64, description="Levels at which blends are searched.")
    deblend_contrast: float = Field(0.005, ge=0.0, le=1.0, description="Flux share that makes a branch a source.")
    star_score_min: float = Field(0.5, ge=0.0, le=1.0, description="A star has a star score above this.")


@data_product(SourcesParameters)
def sources(image: Image, background: Background, parameters: SourcesParameters) -> Sources:
    """Catalogue of sources: positions, shapes, aperture fluxes, flags."""
    from seechange_assets.science.sources import extract_sources

    return extract_sources(image, background, **parameters.arguments())
