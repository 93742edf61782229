"""Photometry, shape and artefact diagnostics of each detection, and the cuts on them."""

from typing import Any, ClassVar

import pydantic

from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import on_same_ccd
from seechange_assets.ports import Resource, Store
from seechange_assets.process import data_product
from seechange_assets.products import Cutouts, Detections, Difference, Measurements


class Thresholds(pydantic.BaseModel):
    """The value of each quantity from which a measurement fails; None disables the test."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    fit_failed: float | None = Field(1.0, description="1: no flux (too few pixels); 0.5: the position did not settle.")
    distance_px: float | None = Field(5.0, gt=0, description="PSF fit to detection [pixel].")
    centroid_distance_px: float | None = Field(5.0, gt=0, description="PSF fit to weighted centroid [pixel].")
    elongation: float | None = Field(3.0, ge=1, description="Major over minor axis.")
    width_ratio: float | None = Field(2.0, gt=0, description="FWHM over that of the PSF.")
    n_bad_pixels: float | None = Field(1.0, gt=0, description="Flagged pixels in the box.")
    negative_fraction: float | None = Field(
        0.3, ge=0, description="Pixels of the other sign over those of the source's."
    )
    negative_flux_fraction: float | None = Field(0.3, ge=0, description="The same by their sums.")
    dipole_score: float | None = Field(0.6, ge=0, le=1, description="Flux ratio of an adjacent negative source.")
    trail_score: float | None = Field(0.4, ge=0, le=1, description="Share of chi^2 only a trail explains.")
    cosmic_ray_score: float | None = Field(5.0, ge=0, description="Sigma by which single pixels beat the PSF.")
    dark_sigma: float | None = Field(
        2.5,
        ge=0,
        description="Sigma by which the image without the source (the new one where it faded) is darker than its sky: "
        "noise, as light is not negative. A true blank place reaches 2.5 in less than 1 of 150 cases.",
    )


class MeasurementsParameters(Parameters):
    """How detections are measured and which are dropped."""

    process: ClassVar[str] = "measurements"
    algorithm_version: ClassVar[str] = "4"
    aperture_radii_fwhm: tuple[float, ...] = Field((1.0, 2.0, 3.0, 5.0), description="Aperture radii [FWHM].")
    fit_size_fwhm: float = Field(2.0, ge=1.0, le=6.0, description="Half-width of the PSF fit [FWHM].")
    box_halfsize_fwhm: float = Field(2.0, ge=0.5, le=4.0, description="Half-width of the box for pixel counts [FWHM].")
    negatives_n_sigma: float = Field(
        3.0, ge=1.0, le=10.0, description="Pixels of the score image beyond this count as negative or positive."
    )
    bad_thresholds: Thresholds = Field(Thresholds(), description="Values from which a measurement is marked bad.")
    deletion_thresholds: Thresholds = Field(
        Thresholds(dipole_score=None, trail_score=None, cosmic_ray_score=None),
        description="Values from which a measurement is not kept.",
    )

    @pydantic.field_validator("deletion_thresholds", mode="before")
    @classmethod
    def _over_defaults(cls, value: object) -> object:
        """A partial mapping changes what it names and leaves the other deletion thresholds."""
        if not isinstance(value, dict):
            return value
        return {"dipole_score": None, "trail_score": None, "cosmic_ray_score": None} | value

    def arguments(self) -> dict[str, Any]:
        """As for every process, with the thresholds as plain mappings."""
        plain = super().arguments()
        return plain | {name: plain[name].model_dump() for name in ("bad_thresholds", "deletion_thresholds")}


@data_product(MeasurementsParameters, deps=on_same_ccd("reference"))
def measurements(
    detections: Detections,
    cutouts: Cutouts,
    diff: Difference,
    parameters: MeasurementsParameters,
    store: Resource[Store],
) -> Measurements:
    """Photometry, shape and artefact diagnostics of each detection."""
    from seechange_assets.science.measurements import measure

    return measure(detections, cutouts, diff, store.reference(diff.reference_id), **parameters.arguments())
