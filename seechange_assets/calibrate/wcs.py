"""Astrometric solution of an image against Gaia."""

from typing import ClassVar

from seechange_assets.assess.checks import ASTROMETRIC_RESIDUAL
from seechange_assets.parameters import Field, Parameters
from seechange_assets.ports import Resource, SkyCatalogSource
from seechange_assets.process import data_product
from seechange_assets.products import Image, ImageInfo, Sources, Wcs


class WcsParameters(Parameters):
    """How the astrometric solution is found, and what it must reach."""

    process: ClassVar[str] = "wcs"
    algorithm_version: ClassVar[str] = "3"
    max_catalog_mag: float = Field(22.0, ge=5, le=25, description="Faintest catalogue star used [G mag].")
    catalog_range_mag: float = Field(12.0, gt=0, le=30, description="Magnitudes used, counted from the faintest [mag].")
    min_catalog_stars: int = Field(10, ge=4, description="Fewer usable catalogue stars are an error of the catalogue.")
    max_stars: int = Field(2000, ge=10, description="Brightest sources used.")
    match_radius_arcsec: float = Field(2.0, gt=0, le=60, description="Largest distance of a matched pair [arcsec].")
    min_matched: int = Field(10, ge=6, description="Fewest stars in the fit.")
    min_fraction_matched: float = Field(0.1, ge=0, le=1, description="Fewest stars, as a fraction of the shorter list.")
    max_residual_arcsec: float = Field(0.15, gt=0, description="Largest robust scatter, mean of the two axes [arcsec].")
    max_offset_arcsec: float = Field(60.0, gt=0, le=600, description="Largest pointing error of the header [arcsec].")
    max_rotation_deg: float = Field(0.5, ge=0, le=5, description="Largest rotation error of the header [deg].")
    max_scale_error: float = Field(0.01, ge=0, le=0.1, description="Largest scale error of the header (fraction).")
    max_log10_chance: float = Field(-8.0, le=-3, description="Largest log10 probability that the match is chance.")
    max_degree: int = Field(3, ge=1, le=4, description="Highest degree of the distortion polynomial.")
    error_floor_mas: float = Field(10.0, ge=0, description="Added in quadrature to every position error [mas].")
    clip_sigma: float = Field(4.0, ge=2, le=10, description="Robust deviations beyond which a star leaves the fit.")


@data_product(WcsParameters, checks=[ASTROMETRIC_RESIDUAL])
def wcs(image: Image, sources: Sources, parameters: WcsParameters, sky: Resource[SkyCatalogSource]) -> Wcs:
    """Astrometric solution against Gaia."""
    return solve_on_sky(sources, image.info, image.data.shape, sky, parameters)


def solve_on_sky(
    sources: Sources, info: ImageInfo, shape: tuple[int, int], sky: SkyCatalogSource, parameters: WcsParameters
) -> Wcs:
    """Fetch the stars around an image and solve it."""
    from seechange_assets.science.astrometry import catalog_cone, solve_wcs

    ra_deg, dec_deg, radius_deg = catalog_cone(info, shape, parameters.max_offset_arcsec)
    catalog = sky.cone(ra_deg, dec_deg, radius_deg, max_mag=parameters.max_catalog_mag)
    return solve_wcs(sources, info, shape, catalog, **parameters.arguments())
