"""The noise of a calibrated image, derived from its background, gain and flags.

Nothing here is stored: the same three inputs always give the identical array.
"""

import numpy as np

from seechange_assets.products import Background, FloatImage, Image
from seechange_assets.science.background import level_map, rms_map

#: Above this many sky rms the photon noise of a pixel is that of its own signal, below that of its surroundings.
SOURCE_SIGMA = 3.0
#: Side of those surroundings [pixel]: about a star, so that light is not lost, and 25 pixels, so that noise is.
_SURROUNDINGS_PX = 5


def variance_map(image: Image, background: Background) -> FloatImage:
    """Variance of each pixel [ADU²], float32; infinite where a flag is set or the value is not finite.

    ``rms² + light / gain``: the measured sky noise plus the photon noise of sources. What stands out of the noise is
    light as it is. Below, a pixel that happens to be bright is no noisier than its neighbours, but wings and
    stars too faint to be seen have photons, too: there the light is the mean of the surrounding pixels.
    """
    from scipy.ndimage import uniform_filter

    variance = rms_map(background)
    above = image.data - level_map(background)
    above[(image.flags != 0) | ~np.isfinite(above)] = 0.0
    limit = np.float32(SOURCE_SIGMA) * variance
    # Symmetric, so that where there is no light noise adds up to none; sources count in their surroundings as faint.
    light = uniform_filter(np.clip(above, -limit, limit), _SURROUNDINGS_PX, mode="nearest")
    np.copyto(light, above, where=above > limit)
    np.maximum(light, 0, out=light)
    np.square(variance, out=variance)
    light *= np.float32(1.0 / image.info.gain)
    variance += light
    variance[(image.flags != 0) | ~np.isfinite(image.data) | ~np.isfinite(variance)] = np.inf
    return variance
