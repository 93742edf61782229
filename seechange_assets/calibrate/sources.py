"""Catalogue of the sources of an image."""

import dataclasses
from typing import Any, ClassVar

from seechange_assets.parameters import Field, FieldParameters
from seechange_assets.ports import Resource, SkyCatalogSource
from seechange_assets.process import data_product
from seechange_assets.products import Background, Image, Sources


class SourcesParameters(FieldParameters):
    """How sources are detected and measured, in the two kinds of fields."""

    process: ClassVar[str] = "sources"
    algorithm_version: ClassVar[str] = "7"
    threshold: float = Field(4.0, ge=1.5, le=100.0, description="S/N of a matched-filtered pixel that makes a source.")
    aperture_radii_fwhm: tuple[float, ...] = Field(
        (1.0, 2.0, 3.0, 5.0), min_length=1, description="Radii of the apertures [seeing FWHM]."
    )
    min_area_px: int = Field(3, ge=1, le=100, description="Connected pixels over the threshold [pixel].")
    deblend_contrast: float = Field(
        0.005, ge=0.0, le=1.0, description="Share of the brighter one's light that parts two connected sources."
    )
    deblend_significance: float = Field(
        2.5, ge=0.5, le=20.0, description="S/N of the rise above the saddle that parts two sources."
    )
    star_score_min: float = Field(0.5, ge=0.0, le=1.0, description="A star has a star score above this.")
    max_sources: int = Field(
        20000,
        ge=100,
        description="Brightest detections that are measured, which bounds the time that crowds of stars take; the "
        "product also gives the number detected.",
    )

    galactic: dict[str, Any] = Field({"threshold": 10.0}, description="Values that differ in galactic fields.")
    galactic_density_deg2: float = Field(
        3e4, gt=0.0, description="More catalogue stars per square degree make a field galactic."
    )
    density_limit_mag: float = Field(20.0, ge=5.0, le=25.0, description="Faintest star that is counted [G mag].")

    @classmethod
    def _rule(cls) -> set[str]:
        return {"galactic", "galactic_density_deg2", "density_limit_mag"}


@data_product(SourcesParameters)
def sources(
    image: Image, background: Background, parameters: SourcesParameters, sky: Resource[SkyCatalogSource]
) -> Sources:
    """Catalogue of sources: positions, shapes, aperture fluxes, flags."""
    from seechange_assets.science.field_kind import star_density
    from seechange_assets.science.sources import extract_sources

    density = star_density(image.info, image.data.shape, sky.cone, limit_mag=parameters.density_limit_mag)
    kind = "galactic" if density > parameters.galactic_density_deg2 else "extragalactic"
    found = extract_sources(image, background, **parameters.arguments(kind))
    return dataclasses.replace(found, field_kind=kind, star_density_deg2=density)
