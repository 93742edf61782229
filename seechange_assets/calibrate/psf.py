"""Spatially varying point spread function of an image."""

from typing import ClassVar

from seechange_assets.assess.checks import SEEING
from seechange_assets.parameters import Field, Parameters
from seechange_assets.process import data_product
from seechange_assets.products import Background, Image, Psf, Sources


class PsfParameters(Parameters):
    """How the PSF is modelled."""

    process: ClassVar[str] = "psf"
    algorithm_version: ClassVar[str] = "6"
    degree: int = Field(3, ge=0, le=3, description="Degree of the variation with position; fewer stars lower it.")
    oversampling: int = Field(0, ge=0, le=4, description="Table entries per pixel; 0 chooses from the seeing.")
    radius_fwhm: float = Field(3.0, ge=1.5, le=8.0, description="Radius of the model [seeing FWHM].")
    min_snr: float = Field(20.0, ge=5.0, description="Stars fainter than this S/N do not take part.")
    max_stars: int = Field(500, ge=10, le=5000, description="The brightest this many stars take part.")
    reserved_fraction: float = Field(0.15, ge=0.0, le=0.5, description="Share of the stars kept out, to test the fit.")


@data_product(PsfParameters, checks=[SEEING])
def psf(image: Image, background: Background, sources: Sources, parameters: PsfParameters) -> Psf:
    """Spatially varying point spread function, and PSF fluxes of all sources."""
    from seechange_assets.science.psf_fit import build_psf

    return build_psf(image, background, sources, **parameters.arguments())
