"""New image minus reference."""

from typing import ClassVar, Literal

from seechange_assets.parameters import Field, Parameters


class DiffParameters(Parameters):
    """How a reference is subtracted; every field is an argument of `science.difference.subtract`."""

    process: ClassVar[str] = "diff"
    method: Literal["zogy", "direct"] = Field(
        "zogy", description="zogy: proper image subtraction; direct: plain difference, for comparison."
    )
    match_radius_arcsec: float = Field(2.0, gt=0, le=60, description="Search radius of the registration [arcsec].")
    min_stars_linear: int = Field(10, ge=4, description="Stars from which a full linear registration is fitted.")
    min_overlap: float = Field(0.1, ge=0, le=1, description="Least part of the image the reference must cover.")
    max_masked: float = Field(0.9, gt=0, le=1, description="Part of the reference from which on it counts as masked.")
    grow_fwhm: float = Field(1.0, ge=0, le=5, description="Growth of the flags in the difference [FWHM].")
    psf_error: float = Field(0.002, ge=0, le=0.1, description="Least relative error of the PSF models.")
