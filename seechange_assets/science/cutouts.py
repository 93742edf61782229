"""Cutouts: new, reference and difference stamps around each detection, on one flux scale."""

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import (
    Background,
    Cutouts,
    Detections,
    Difference,
    Flag,
    Image,
    Reference,
    wcs_from_text,
)
from seechange_assets.science.background import level_map
from seechange_assets.science.warp import warp_stamps

_OUTSIDE = np.uint16(Flag.NO_DATA | Flag.OUT_OF_BOUNDS)


def make_cutouts(
    detections: Detections,
    difference: Difference,
    image: Image,
    background: Background,
    reference: Reference,
    *,
    size: int = 41,
) -> Cutouts:
    """Stamps of `size` pixels with the detection's nearest pixel in the centre.

    The new image has its background subtracted; the reference is warped with the WCS the subtraction
    used and brought to the counts of the new image. Where an image ends, values are NaN and flagged.

    Parameters
    ----------
    detections : Detections
    difference : Difference
        Gives ``sub``, the refined WCS of the reference and its flux scale.
    image : Image
        The new image.
    background : Background
        Of the new image.
    reference : Reference
    size : int
        Odd side of the stamps [pixel].

    Returns
    -------
    Cutouts
        One stamp of each kind per row of `detections`, in the same order.

    Raises
    ------
    ValueError
        If `size` is even or not positive.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"cutouts: size must be odd, got {size}: a stamp has a central pixel")
    x, y = np.asarray(detections.table["x"], float), np.asarray(detections.table["y"], float)
    corner = stamp_corners(x, y, size)
    new, new_flags = cut_stamps(image.data, image.flags, corner, size)
    new -= cut_stamps(level_map(background), image.flags, corner, size)[0]
    sub, sub_flags = cut_stamps(difference.data, difference.flags, corner, size)
    ref, ref_flags = _reference_stamps(reference, difference, corner, size)
    return Cutouts(new, ref, sub, new_flags, ref_flags, sub_flags, corner, size)


def stamp_corners(x: NDArray[np.float64], y: NDArray[np.float64], size: int) -> NDArray[np.int32]:
    """First pixel (x, y) of the stamps centred on the pixels that hold the positions, ``(n, 2)``."""
    return (np.floor(np.stack([x, y], axis=1) + 0.5) - size // 2).astype(np.int32)


def cut_stamps(
    data: NDArray[np.float32], flags: NDArray[np.uint16], corner: NDArray[np.int32], size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Stamps of an image and of its flags, ``(n, size, size)``; NaN and flagged outside."""
    ny, nx = data.shape
    offset = np.arange(size)
    rows = (corner[:, 1, None] + offset)[:, :, None]
    columns = (corner[:, 0, None] + offset)[:, None, :]
    inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    index = np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)
    return np.where(inside, data[index], np.float32(np.nan)), np.where(inside, flags[index], _OUTSIDE)


def _reference_stamps(
    reference: Reference, difference: Difference, corner: NDArray[np.int32], size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    if len(corner) == 0:
        return np.empty((0, size, size), np.float32), np.empty((0, size, size), np.uint16)
    stamps, _, flags = warp_stamps(
        reference.data,
        reference.variance,
        reference.flags,
        wcs_from_text(difference.reference_wcs),
        difference.wcs.astropy(),
        difference.data.shape,
        corner,
        size,
    )
    return np.where(flags & Flag.NO_DATA, np.float32(np.nan), stamps * np.float32(difference.flux_scale)), flags
