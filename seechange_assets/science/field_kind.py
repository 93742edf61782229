"""How crowded with stars a field is, from a catalogue."""

from collections.abc import Callable

import numpy as np

from seechange_assets.products import ImageInfo, SkyCatalog
from seechange_assets.science.astrometry import catalog_cone

#: ``(ra_deg, dec_deg, radius_deg, max_mag) -> SkyCatalog``, as `SkyCatalogSource.cone`.
Cone = Callable[..., SkyCatalog]


def star_density(info: ImageInfo, shape: tuple[int, int], cone: Cone, *, limit_mag: float) -> float:
    """Catalogue stars per square degree in the circle around an image.

    Parameters
    ----------
    info : ImageInfo
        Where the header says the image lies: arcminutes of error do not matter.
    shape : tuple of int
        ``(ny, nx)``.
    cone : callable
        Gives the stars.
    limit_mag : float
        Faintest G magnitude counted.

    Returns
    -------
    float
        NaN for an image whose header has no WCS.

    Raises
    ------
    CatalogError
        The catalogue has no stars there.
    """
    if not info.wcs_guess:
        return float("nan")
    ra_deg, dec_deg, radius_deg = catalog_cone(info, shape, 0.0)
    stars = cone(ra_deg, dec_deg, radius_deg, max_mag=limit_mag)
    area_deg2 = 2.0 * np.pi * (1.0 - np.cos(np.radians(radius_deg))) * np.degrees(1.0) ** 2
    return float(len(stars.table) / area_deg2)
