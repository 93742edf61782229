"""Master calibration frames: stacked biases and flats."""

from typing import ClassVar

import dagster as dg

from seechange_assets.data_product import data_product
from seechange_assets.errors import MasterNotFound
from seechange_assets.instruments.base import Instrument, RawCcd
from seechange_assets.parameters import Field, Parameters
from seechange_assets.partitions import Partition
from seechange_assets.ports import Store
from seechange_assets.products import Master


class MasterBiasParameters(Parameters):
    """How bias frames are stacked."""

    process: ClassVar[str] = "master_bias"
    clip_sigma: float = Field(4.0, ge=2.0, le=20.0, description="Clipping about the median of a pixel [sigma].")
    min_frames: int = Field(3, ge=1, le=255, description="Fewest usable frames.")
    max_level_deviation: float = Field(
        10.0, gt=0.0, description="A frame whose level differs more from the others' is left out [ADU]."
    )
    validity_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="Validity before the first and after the last frame [day]."
    )


class MasterFlatParameters(Parameters):
    """How flat fields are stacked."""

    process: ClassVar[str] = "master_flat"
    clip_sigma: float = Field(4.0, ge=2.0, le=20.0, description="Clipping about the median of a pixel [sigma].")
    min_frames: int = Field(3, ge=1, le=255, description="Fewest usable frames.")
    min_level_adu: float = Field(2000.0, ge=0.0, description="Frames with a lower median level are left out [ADU].")
    max_saturated_fraction: float = Field(
        0.01, ge=0.0, le=1.0, description="Frames with a larger fraction of saturated pixels are left out."
    )
    validity_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="Validity before the first and after the last frame [day]."
    )


@data_product(MasterBiasParameters)
def master_bias(
    partition: Partition,
    parameters: MasterBiasParameters,
    store: dg.ResourceParam[Store],
    instrument: dg.ResourceParam[Instrument],
) -> Master:
    """Clipped mean of a night's bias frames of one CCD."""
    from seechange_assets.science.masters import build_bias

    frames = _frames(partition, "bias", store, instrument)
    return build_bias(frames, calibration=partition.key, **parameters.arguments())


@data_product(MasterFlatParameters, deps=["master_bias"])
def master_flat(
    partition: Partition,
    parameters: MasterFlatParameters,
    store: dg.ResourceParam[Store],
    instrument: dg.ResourceParam[Instrument],
) -> Master:
    """Clipped mean of a night's flat frames of one CCD, normalised to median 1."""
    from seechange_assets.science.masters import build_flat

    frames = _frames(partition, "flat", store, instrument)
    _, bias = store.master("bias", frames[0].info)
    return build_flat(frames, bias, calibration=partition.key, **parameters.arguments())


def _frames(partition: Partition, kind: str, store: Store, instrument: Instrument) -> list[RawCcd]:
    """The raw frames of a kind; raises MasterNotFound when the run has none."""
    frames = []
    for exposure in store.calibration_frames(partition.key, kind):
        with store.exposure_file(exposure) as path:
            frames.append(instrument.read_ccd(path, partition.ccd))
    if not frames:
        raise MasterNotFound(f"calibration run {partition.key} has no {kind} frames")
    return frames
