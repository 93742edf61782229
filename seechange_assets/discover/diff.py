"""New image minus reference."""

from typing import ClassVar, Literal

from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import on_same_ccd
from seechange_assets.ports import Resource, Store
from seechange_assets.process import data_product
from seechange_assets.products import Background, Difference, Image, Psf, Sources, Wcs, ZeroPoint


class DiffParameters(Parameters):
    """How a reference is subtracted; every field is an argument of `science.difference.subtract`."""

    process: ClassVar[str] = "diff"
    algorithm_version: ClassVar[str] = "6"
    method: Literal["zogy", "alard_lupton", "sfft", "direct"] = Field(
        "zogy",
        description="zogy: proper image subtraction; alard_lupton: kernel of Gaussians fitted to stars; "
        "sfft: kernel of free pixels, solved in Fourier space; "
        "direct: plain difference, for comparison.",
    )
    match_radius_arcsec: float = Field(2.0, gt=0, le=60, description="Search radius of the registration [arcsec].")
    min_stars_linear: int = Field(10, ge=4, description="Stars from which a full linear registration is fitted.")
    min_overlap: float = Field(0.85, ge=0, le=1, description="Least part of the image the reference must cover.")
    max_masked: float = Field(0.9, gt=0, le=1, description="Part of the reference from which on it counts as masked.")
    grow_fwhm: float = Field(1.0, ge=0, le=5, description="Growth of the flags in the difference [FWHM].")
    psf_error: float = Field(0.002, ge=0, le=0.1, description="Least relative error of the PSF models.")


@data_product(DiffParameters, deps=on_same_ccd("reference"), may_wait=True)
def diff(
    image: Image,
    background: Background,
    sources: Sources,
    psf: Psf,
    wcs: Wcs,
    zp: ZeroPoint,
    parameters: DiffParameters,
    store: Resource[Store],
) -> Difference:
    """New minus reference, with its score image; waits where no reference covers the image yet."""
    from seechange_assets.science.difference import subtract

    reference_id, reference = store.find_reference(image.info, wcs, image.data.shape, parameters.min_overlap)
    return subtract(
        image, background, psf, wcs, zp, sources, reference, reference_id=reference_id, **parameters.arguments()
    )
