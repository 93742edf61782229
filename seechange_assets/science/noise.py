"""The noise of a calibrated image, derived from its background, gain and flags.

Nothing here is stored: the same three inputs always give the identical array.
"""

import numpy as np

from seechange_assets.products import Background, FloatImage, Image
from seechange_assets.science.background import level_map, rms_map

#: Signal above the sky counts as a source's, with photons of its own, from this many sky rms.
SOURCE_SIGMA = 3.0


def variance_map(image: Image, background: Background) -> FloatImage:
    """Variance of each pixel [ADU²], float32; infinite where a flag is set or the value is not finite.

    ``rms² + (data - level) / gain``: the measured sky noise plus, in pixels above `SOURCE_SIGMA`, the photon noise
    of sources.
    """
    variance = rms_map(background)
    above = image.data - level_map(background)
    # Below, it is noise itself: a blank pixel that happens to be bright is no noisier than its neighbours.
    above[above < SOURCE_SIGMA * variance] = 0.0
    np.square(variance, out=variance)
    above *= np.float32(1.0 / image.info.gain)
    variance += above
    variance[(image.flags != 0) | ~np.isfinite(variance)] = np.inf
    return variance


def weight_map(image: Image, background: Background) -> FloatImage:
    """Inverse variance of each pixel [ADU⁻²], float32; zero where `variance_map` is infinite."""
    with np.errstate(divide="ignore"):
        return (np.float32(1.0) / variance_map(image, background)).astype(np.float32, copy=False)
