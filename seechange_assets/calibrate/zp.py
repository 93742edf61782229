"""Photometric calibration of an image against Gaia."""

from typing import ClassVar

from seechange_assets.assess.checks import ZERO_POINT_SCATTER
from seechange_assets.instruments.base import Instrument
from seechange_assets.parameters import Field, Parameters
from seechange_assets.ports import Resource
from seechange_assets.process import data_product
from seechange_assets.products import Background, Image, Psf, Sources, Wcs, ZeroPoint


class ZeroPointParameters(Parameters):
    """How the zero point is fitted."""

    process: ClassVar[str] = "zp"
    algorithm_version: ClassVar[str] = "5"
    min_stars: int = Field(10, ge=3, description="Fewest stars in the fit.")
    match_radius_arcsec: float = Field(
        1.0, gt=0, le=60, description="Largest distance from the catalogue entry [arcsec]."
    )
    min_snr: float = Field(10.0, ge=3, description="Lowest signal-to-noise of a PSF flux.")
    preferred_snr: float = Field(30.0, ge=3, description="Fainter stars stay out where enough reach this S/N.")
    preferred_stars: int = Field(50, ge=3, description="Stars over preferred_snr that are enough.")
    bright_snr: float = Field(100.0, ge=3, description="As preferred_snr, in fields with very many stars.")
    bright_stars: int = Field(200, ge=3, description="Stars over bright_snr that are enough.")
    brightest_snr: float = Field(200.0, ge=3, description="As bright_snr once more: unseen neighbours add less yet.")
    brightest_stars: int = Field(100, ge=3, description="Stars over brightest_snr that are enough.")
    well_fitted_stars: int = Field(
        100, ge=3, description="In crowded fields the half of the stars with the better PSF fits; at least so many."
    )
    min_color: float = Field(0.5, description="Bluest BP-RP for which the colour transform holds [mag].")
    max_color: float = Field(3.0, description="Reddest BP-RP for which the colour transform holds [mag].")
    fit_color_term: bool = Field(False, description="Fit a term linear in BP-RP on top of the instrument's transform.")
    color_pivot: float = Field(0.8, description="BP-RP at which the zero point holds if a colour term is fitted [mag].")
    clip_sigma: float = Field(4.0, ge=2, le=10, description="Robust deviations beyond which a star leaves the fit.")
    error_floor_mag: float = Field(0.0005, ge=0, description="Error of the catalogue's own zero point [mag].")
    min_aperture_snr: float = Field(50.0, ge=3, description="Lowest signal-to-noise for aperture corrections.")
    limit_sigma: float = Field(5.0, gt=0, le=50, description="Significance at which the limiting magnitude is given.")
    residual_box_px: int = Field(512, ge=32, description="Side of the boxes of the residual map [pixel].")
    min_box_stars: int = Field(5, ge=1, description="Fewest stars in a box of the residual map.")


@data_product(ZeroPointParameters, checks=[ZERO_POINT_SCATTER])
def zp(
    image: Image,
    background: Background,
    sources: Sources,
    psf: Psf,
    wcs: Wcs,
    parameters: ZeroPointParameters,
    instrument: Resource[Instrument],
) -> ZeroPoint:
    """Zero point, aperture corrections and limiting magnitude."""
    from seechange_assets.science.photometric_calibration import calibrate_photometry

    color = instrument.gaia_magnitude
    return calibrate_photometry(image.info, sources, psf, background, wcs, color, **parameters.arguments())
