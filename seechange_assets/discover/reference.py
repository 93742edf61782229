"""Deep references to subtract from new images."""

from typing import ClassVar

from seechange_assets.parameters import Field, Parameters


class ReferenceParameters(Parameters):
    """How a reference is built and which exposures may enter it."""

    process: ClassVar[str] = "reference"
    min_images: int = Field(3, ge=1, le=100, description="Fewest images of a reference; three let clipping work.")
    max_images: int = Field(15, ge=1, le=100, description="Most images of a reference; the best are taken.")
    max_seeing_arcsec: float = Field(4.0, gt=0, description="Worst seeing (FWHM) of an input [arcsec].")
    min_limiting_magnitude: float = Field(0.0, description="Shallowest 5 sigma depth of an input [mag].")
    min_overlap: float = Field(0.85, gt=0, le=1, description="Least part of the base image an input must cover.")
    clip_sigma: float = Field(4.0, ge=2, le=20, description="A pixel this far from the inputs' median is left out [sigma].")
    clip_star_fraction: float = Field(0.1, ge=0, le=1, description="Extra allowance at stars, relative to the peak.")
    match_radius_arcsec: float = Field(2.0, gt=0, le=60, description="Search radius of the registration [arcsec].")
    min_stars_linear: int = Field(10, ge=4, description="Stars from which a full linear registration is fitted.")
    box_size_px: int = Field(256, ge=16, le=1024, description="Side of a box of the coadd's background mesh [pixel].")


#: Fields that `science.coadd.build_reference` takes; the others select its inputs.
BUILD_FIELDS = ("clip_sigma", "clip_star_fraction", "match_radius_arcsec", "min_stars_linear", "box_size_px")
