"""The noise of a calibrated image, derived from its background, gain and flags.

Nothing here is stored: the same three inputs always give the identical array.
"""

import numpy as np

from seechange_assets.products import Background, FloatImage, Image
from seechange_assets.science.background import level_map, rms_map


def variance_map(image: Image, background: Background) -> FloatImage:
    """Variance of each pixel [ADU²], float32; infinite where a flag is set or the value is not finite.

    ``rms² + max(data - level, 0) / gain``: the measured sky noise plus the photon noise of sources.
    """
    variance = rms_map(background)
    np.square(variance, out=variance)
    above = image.data - level_map(background)
    np.maximum(above, 0.0, out=above)
    above *= np.float32(1.0 / image.info.gain)
    variance += above
    variance[(image.flags != 0) | ~np.isfinite(variance)] = np.inf
    return variance


def weight_map(image: Image, background: Background) -> FloatImage:
    """Inverse variance of each pixel [ADU⁻²], float32; zero where `variance_map` is infinite."""
    with np.errstate(divide="ignore"):
        return (np.float32(1.0) / variance_map(image, background)).astype(np.float32, copy=False)
