"""Master calibration frames of a calibration run: a night, or one filter of it (``night.filter``)."""

from typing import ClassVar, Literal

from seechange_assets.errors import MasterNotFound
from seechange_assets.instruments.base import Instrument, RawCcd
from seechange_assets.parameters import Field, Parameters
from seechange_assets.partition import Partition
from seechange_assets.ports import Resource, Store
from seechange_assets.process import data_product
from seechange_assets.products import Image, Master

MasterSet = Literal["any", "nightly", "external"]
SkyStep = Literal["overscan", "bias", "linearity", "dark", "flat"]


class MasterBiasParameters(Parameters):
    """How bias frames are stacked."""

    process: ClassVar[str] = "master_bias"
    algorithm_version: ClassVar[str] = "2"
    clip_sigma: float = Field(4.0, ge=2.0, le=20.0, description="Clipping about the median of a pixel [sigma].")
    min_frames: int = Field(3, ge=1, le=255, description="Fewest usable frames.")
    max_level_deviation: float = Field(
        10.0, gt=0.0, description="A frame whose level differs more from the others' is left out [ADU]."
    )
    validity_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="Validity before the first and after the last frame [day]."
    )


class MasterDarkParameters(Parameters):
    """How dark frames are stacked."""

    process: ClassVar[str] = "master_dark"
    clip_sigma: float = Field(4.0, ge=2.0, le=20.0, description="Clipping about the median of a pixel [sigma].")
    min_frames: int = Field(3, ge=1, le=255, description="Fewest usable frames.")
    min_exptime_s: float = Field(10.0, gt=0.0, description="Shorter frames are left out [s].")
    max_level_deviation: float = Field(
        10.0, gt=0.0, description="A frame whose level differs more from the others' is left out [ADU]."
    )
    validity_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="Validity before the first and after the last frame [day]."
    )
    master_set: MasterSet = Field("any", description="Where the master bias comes from.")


class MasterFlatParameters(Parameters):
    """How flat fields are stacked."""

    process: ClassVar[str] = "master_flat"
    algorithm_version: ClassVar[str] = "2"
    flat_types: tuple[Literal["dome", "twilight", "sky", ""], ...] = Field(
        ("twilight", "dome", "sky", ""),
        description="Types of flat, best first; the first with enough frames in a night is stacked ('': not said).",
    )
    clip_sigma: float = Field(4.0, ge=2.0, le=20.0, description="Clipping about the median of a pixel [sigma].")
    min_frames: int = Field(3, ge=1, le=255, description="Fewest usable frames.")
    min_level_adu: float = Field(2000.0, ge=0.0, description="Frames with a lower median level are left out [ADU].")
    max_saturated_fraction: float = Field(
        0.01, ge=0.0, le=1.0, description="Frames with a larger fraction of saturated pixels are left out."
    )
    validity_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="Validity before the first and after the last frame [day]."
    )
    master_set: MasterSet = Field("any", description="Where the master bias comes from.")


class MasterFringeParameters(Parameters):
    """How the fringe pattern is found in exposures of the sky."""

    process: ClassVar[str] = "master_fringe"
    algorithm_version: ClassVar[str] = "2"
    steps: tuple[SkyStep, ...] = Field(
        ("overscan", "bias", "linearity", "flat"),
        description="Steps that the exposures get first; dark among them wherever images have it.",
    )
    clip_sigma: float = Field(3.0, ge=2.0, le=20.0, description="Clipping about the median of a pixel [sigma].")
    min_frames: int = Field(5, ge=1, le=255, description="Fewest usable exposures.")
    max_frames: int = Field(10, ge=1, le=255, description="Most exposures of a night, spread over it (for memory).")
    smooth_px: float = Field(1.5, ge=0.0, le=20.0, description="Sigma of the smoothing of the pattern [pixel].")
    box_size_px: int = Field(256, ge=32, le=1024, description="Boxes of the sky taken out of an exposure [pixel].")
    validity_days: float = Field(
        90.0, gt=0.0, le=3650.0, description="Validity before the first and after the last exposure [day]."
    )
    master_set: MasterSet = Field("any", description="Where the master bias and flat come from.")


@data_product(MasterBiasParameters)
def master_bias(
    partition: Partition,
    parameters: MasterBiasParameters,
    store: Resource[Store],
    instrument: Resource[Instrument],
) -> Master:
    """Clipped mean of a night's bias frames of one CCD."""
    from seechange_assets.science.masters import build_bias

    frames = _frames(partition, "bias", store, instrument)
    return build_bias(frames, calibration=partition.key, **parameters.arguments())


@data_product(MasterDarkParameters, deps=["master_bias"])
def master_dark(
    partition: Partition,
    parameters: MasterDarkParameters,
    store: Resource[Store],
    instrument: Resource[Instrument],
) -> Master:
    """Dark rate of one CCD from a night's dark frames."""
    from seechange_assets.science.masters import build_dark

    frames = _frames(partition, "dark", store, instrument)
    _, bias = store.master("bias", frames[0].info, parameters.master_set)
    return build_dark(frames, bias, calibration=partition.key, **parameters.arguments_without("master_set"))


@data_product(MasterFlatParameters, deps=["master_bias"])
def master_flat(
    partition: Partition,
    parameters: MasterFlatParameters,
    store: Resource[Store],
    instrument: Resource[Instrument],
) -> Master:
    """Clipped mean of a night's flat frames of one CCD and type, normalised to median 1."""
    from seechange_assets.science.masters import build_flat

    flat_type = _best_flat_type(partition, parameters, store)
    frames = _frames(partition, "flat", store, instrument, flat_type)
    _, bias = store.master("bias", frames[0].info, parameters.master_set)
    arguments = parameters.arguments_without("flat_types", "master_set")
    return build_flat(frames, bias, calibration=partition.key, flat_type=flat_type, **arguments)


@data_product(MasterFringeParameters, deps=["master_bias", "master_dark", "master_flat"])
def master_fringe(
    partition: Partition,
    parameters: MasterFringeParameters,
    store: Resource[Store],
    instrument: Resource[Instrument],
) -> Master:
    """Fringe pattern of one CCD from a night's exposures of the sky."""
    from seechange_assets.science.fringe_master import build_fringe

    keys = store.calibration_frames(partition.key, "science", partition.ccd)
    step = max(1, -(-len(keys) // parameters.max_frames))
    images = [_sky_image(key, partition.ccd, parameters, store, instrument) for key in keys[::step]]
    arguments = parameters.arguments_without("max_frames", "master_set", "steps")
    return build_fringe(images, calibration=partition.key, **arguments)


def _best_flat_type(partition: Partition, parameters: MasterFlatParameters, store: Store) -> str:
    """The first wanted type of flat that has enough frames; raises MasterNotFound."""
    counts = {
        kind: len(store.calibration_frames(partition.key, "flat", partition.ccd, kind))
        for kind in parameters.flat_types
    }
    for kind, count in counts.items():
        if count >= parameters.min_frames:
            return kind
    found = ", ".join(f"{count} {kind or 'of no type'}" for kind, count in counts.items())
    raise MasterNotFound(
        f"calibration run {partition.key} CCD {partition.ccd}: {parameters.min_frames} flats of one type are needed, "
        f"found {found}: take more or see master_flat.flat_types"
    )


def _sky_image(
    exposure: str, ccd: str, parameters: MasterFringeParameters, store: Store, instrument: Instrument
) -> Image:
    """An exposure calibrated through the flat."""
    from seechange_assets.science.detrend import detrend, kinds_of_masters, plan_steps

    with store.exposure_file(exposure) as path:
        raw = instrument.read_ccd(path, ccd)
    kinds = kinds_of_masters(plan_steps(raw.info, parameters.steps))
    masters = {kind: store.master(kind, raw.info, parameters.master_set)[1] for kind in kinds}
    bad_pixels = instrument.bad_pixels(ccd)
    return detrend(raw, masters, bad_pixels, steps=parameters.steps, cosmic_rays=False, trails=False)


def _frames(
    partition: Partition, kind: str, store: Store, instrument: Instrument, flat_type: str | None = None
) -> list[RawCcd]:
    """The raw frames of a kind; raises MasterNotFound when the run has none."""
    frames = []
    for exposure in store.calibration_frames(partition.key, kind, partition.ccd, flat_type):
        with store.exposure_file(exposure) as path:
            frames.append(instrument.read_ccd(path, partition.ccd))
    if not frames:
        raise MasterNotFound(f"calibration run {partition.key} has no {kind} frames")
    return frames
