"""The calibrated CCD image."""

import dataclasses
from typing import ClassVar, Literal

from seechange_assets.instruments.base import Instrument
from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import Partition, on_same_ccd
from seechange_assets.ports import Resource, Store
from seechange_assets.process import data_product
from seechange_assets.products import Image

Step = Literal["overscan", "bias", "linearity", "dark", "flat", "fringe", "illumination"]


class ImageParameters(Parameters):
    """How raw pixels become a calibrated image."""

    process: ClassVar[str] = "image"
    algorithm_version: ClassVar[str] = "4"
    steps: tuple[Step, ...] = Field(
        ("overscan", "bias", "linearity", "flat"), description="Wanted steps; those the file has behind it are skipped."
    )
    skip_by_filter: dict[str, tuple[Step, ...]] = Field(
        default_factory=dict,
        description="Wanted steps left out in a filter; a filter that is not named follows the instrument.",
    )
    master_set: Literal["any", "nightly", "external"] = Field(
        "any", description="Where masters come from: built from exposures, supplied as files, or whichever there is."
    )
    flat_type: Literal["any", "dome", "twilight", "sky"] = Field("any", description="Type of master flat that is used.")
    cosmic_rays: bool = Field(True, description="Flag cosmic rays.")
    cosmic_ray_sigma: float = Field(
        4.2, ge=2.0, le=100.0, description="Significance of the excess over starlight that starts a cosmic ray."
    )
    cosmic_ray_neighbor_fraction: float = Field(
        0.4, gt=0.0, le=1.0, description="Neighbours of a cosmic ray need only this fraction of the significance."
    )
    cosmic_ray_sharpness_margin: float = Field(
        1.1, ge=1.0, le=3.0, description="Stars may be sharper than those of the image's sharpest zone by this factor."
    )
    trails: bool = Field(True, description="Flag satellite trails.")
    trail_min_length_px: int = Field(400, ge=100, description="Shorter trails are not looked for [pixel].")
    bleed_length_px: int = Field(8, ge=1, description="Longer saturated runs along a column are bleed trails [pixel].")
    max_saturated_fraction: float = Field(0.5, gt=0.0, le=1.0, description="More saturated pixels make a CCD useless.")


@data_product(
    ImageParameters,
    deps=["exposure", *on_same_ccd("master_bias", "master_dark", "master_flat", "master_fringe")],
    may_wait=True,
)
def image(
    partition: Partition,
    parameters: ImageParameters,
    store: Resource[Store],
    instrument: Resource[Instrument],
) -> Image:
    """Calibrated image: raw pixels without the marks of the camera, flags and the masters used."""
    from seechange_assets.science.detrend import detrend, kinds_of_masters, plan_steps

    with store.exposure_file(partition.key) as path:
        raw = instrument.read_ccd(path, partition.ccd)
    skip_by_filter = instrument.skip_by_filter | parameters.skip_by_filter
    kinds = kinds_of_masters(plan_steps(raw.info, parameters.steps, skip_by_filter))
    found = {kind: store.master(kind, raw.info, parameters.master_set, parameters.flat_type) for kind in kinds}
    masters = {kind: master for kind, (_, master) in found.items()}
    arguments = parameters.arguments_without("master_set", "flat_type") | {"skip_by_filter": skip_by_filter}
    calibrated = detrend(raw, masters, instrument.bad_pixels(partition.ccd), **arguments)
    return dataclasses.replace(calibrated, masters={kind: identifier for kind, (identifier, _) in found.items()})
