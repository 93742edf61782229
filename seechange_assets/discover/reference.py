"""Deep references to subtract from new images."""

from typing import Any, ClassVar, Literal

from seechange_assets.calibrate.wcs import solve_on_sky
from seechange_assets.instruments.base import Instrument
from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import Partition, on_same_ccd
from seechange_assets.ports import Resource, SkyCatalogSource, Store
from seechange_assets.process import data_product
from seechange_assets.products import Image, Reference, Sources, Wcs
from seechange_assets.provenance import Recipes


class ReferenceParameters(Parameters):
    """How a reference is built and which exposures may enter it."""

    process: ClassVar[str] = "reference"
    algorithm_version: ClassVar[str] = "3"
    name: str = Field("default", pattern=r"^[A-Za-z0-9_.-]{1,80}$", description="Name of the reference set.")
    min_images: int = Field(3, ge=1, le=100, description="Fewest images of a reference; three let clipping work.")
    max_images: int = Field(15, ge=1, le=100, description="Most images of a reference; the deepest are taken.")
    projects: tuple[str, ...] | None = Field(
        ("reference",), description="Only exposures of these projects (header PROJECT); empty takes all."
    )
    min_mjd: float | None = Field(None, description="Earliest exposure [MJD].")
    max_mjd: float | None = Field(None, description="Latest exposure [MJD].")
    min_fwhm_px: float | None = Field(None, gt=0, description="Best seeing (FWHM) of an input [pixel].")
    max_fwhm_px: float | None = Field(6.0, gt=0, description="Worst seeing (FWHM) of an input [pixel].")
    min_limiting_magnitude: float | None = Field(None, description="Shallowest 5 sigma depth of an input [mag].")
    max_limiting_magnitude: float | None = Field(None, description="Deepest 5 sigma depth of an input [mag].")
    min_exptime_s: float | None = Field(None, ge=0, description="Shortest exposure [s].")
    max_exptime_s: float | None = Field(None, ge=0, description="Longest exposure [s].")
    min_airmass: float | None = Field(None, ge=1, description="Lowest airmass; unknown ones do not pass.")
    max_airmass: float | None = Field(None, ge=1, description="Highest airmass; unknown ones do not pass.")
    min_background: float | None = Field(None, description="Darkest sky [ADU].")
    max_background: float | None = Field(None, description="Brightest sky [ADU].")
    min_overlap: float = Field(0.85, gt=0, le=1, description="Least part of the footprint an input must cover.")
    min_images_everywhere: int = Field(
        2, ge=1, le=100, description="Fewest images at each of nine positions over the footprint."
    )
    min_gain_mag: float = Field(0.25, gt=0, le=5, description="Expected gain in depth that makes a newer one [mag].")
    method: Literal["clipped_mean", "proper"] = Field(
        "clipped_mean", description="clipped_mean: inverse-variance weighted; proper: Zackay & Ofek (2017)."
    )
    clip_sigma: float = Field(4.0, ge=2, le=20, description="Pixels this far from the median are left out [sigma].")
    clip_star_fraction: float = Field(0.1, ge=0, le=1, description="Extra allowance at stars, relative to the peak.")
    match_radius_arcsec: float = Field(2.0, gt=0, le=60, description="Search radius of the registration [arcsec].")
    min_stars_linear: int = Field(10, ge=4, description="Stars from which a full linear registration is fitted.")
    box_size_px: int = Field(256, ge=16, le=1024, description="Side of a box of the coadd's background mesh [pixel].")


#: Fields that `science.coadd.build_reference` takes; the others select its inputs.
BUILD_FIELDS = (
    "method", "clip_sigma", "clip_star_fraction", "match_radius_arcsec", "min_stars_linear", "box_size_px",
)  # fmt: skip


@data_product(ReferenceParameters, deps=on_same_ccd("image", "background", "sources", "psf", "wcs", "zp"))
def reference(
    partition: Partition,
    parameters: ReferenceParameters,
    recipes: Resource[Recipes],
    store: Resource[Store],
    instrument: Resource[Instrument],
    sky: Resource[SkyCatalogSource],
) -> Reference:
    """Deep coadd of one field, filter and CCD, calibrated like any image."""
    from seechange_assets.science.coadd import build_reference

    members = store.reference_members(partition, parameters)
    building = {name: getattr(parameters, name) for name in BUILD_FIELDS}
    calibration = _calibration(recipes.references or recipes, instrument, sky)
    return build_reference(members, name=parameters.name, **calibration, **building)


def _calibration(recipes: Recipes, instrument: Instrument, sky: SkyCatalogSource) -> dict[str, Any]:
    """The steps that calibrate a coadd: those of single images, with the same parameters."""
    from seechange_assets.science.photometric_calibration import calibrate_photometry
    from seechange_assets.science.psf_fit import build_psf
    from seechange_assets.science.sources import extract_sources

    arguments = {name: recipes.parameters(name).arguments() for name in ("sources", "psf", "zp")}

    def solve(image: Image, sources: Sources) -> Wcs:
        return solve_on_sky(sources, image.info, image.data.shape, sky, recipes.parameters("wcs"))

    return {
        "extract": lambda image, background: extract_sources(image, background, **arguments["sources"]),
        "model_psf": lambda image, background, sources: build_psf(image, background, sources, **arguments["psf"]),
        "solve": solve,
        "calibrate": lambda image, background, sources, psf, wcs: calibrate_photometry(
            image.info, sources, psf, background, wcs, instrument.gaia_magnitude, **arguments["zp"]
        ),
    }
