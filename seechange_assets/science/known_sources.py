"""Which sources of a difference are known things that move: minor planets, and stars of high proper motion."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seechange_assets.science.association import match_nearest

if TYPE_CHECKING:
    from seechange_assets.products import SkyCatalog
    from seechange_assets.science.minor_planets import Predictions

FloatArray = NDArray[np.float64]

#: Least proper motion that is believed [mas/yr]: a hundred times the errors of bright stars.
_MIN_MOTION_MAS_YR = 5.0


class Explanation(NamedTuple):
    """The known thing at the place of a source: kind, name, place [deg], distance, magnitude and catalogue."""

    kind: str
    name: str
    ra: float
    dec: float
    separation_arcsec: float
    mag: float
    catalog: str


def match_minor_planets(
    ra: FloatArray, dec: FloatArray, planets: "Predictions", radius_arcsec: float, faintest_mag: float
) -> dict[int, Explanation]:
    """Source (row) -> the nearest predicted minor planet within the radius that is bright enough to be seen."""
    bright = planets.mag <= faintest_mag
    index, separation = match_nearest(ra, dec, planets.ra[bright], planets.dec[bright], radius_arcsec)
    chosen = np.flatnonzero(bright)[index] if bright.any() else index
    return {
        int(row): Explanation(
            "minor_planet", str(planets.name[p]), float(planets.ra[p]), float(planets.dec[p]),
            float(separation[row]), float(planets.mag[p]), planets.catalog,
        )
        for row, p in enumerate(chosen) if index[row] >= 0
    }  # fmt: skip


def match_moving_stars(
    ra: FloatArray, dec: FloatArray, mag: FloatArray, stars: "SkyCatalog", star_mag: FloatArray,
    epoch_yr: float, reference_epoch_yr: float, fwhm_arcsec: float, radius_arcsec: float, flux_ratio: float,
) -> dict[int, Explanation]:  # fmt: skip
    """Source (row) -> the star whose motion since the reference explains it.

    A star moved by d leaves ``P(x - d) - P(x)``. Seen through the PSF (a Gaussian of width s) the best point source on
    it has ``min(1, d / s / sqrt(2 e))`` of the star's flux: the steepest slope of the PSF convolved with itself
    for small d, all of the star for large d. A source within the radius of where the star is or was is explained if it
    is at most `flux_ratio` times as bright: real variability of a star that hardly moves stays.

    Parameters
    ----------
    mag, star_mag : ndarray
        Magnitudes of the sources (of their absolute flux) and, in the same filter, of the stars.
    epoch_yr, reference_epoch_yr : float
        Julian years of the new image and of the reference.
    """
    table = stars.table
    motion = np.hypot(np.asarray(table["pm_ra"], float), np.asarray(table["pm_dec"], float))
    moved_arcsec = motion * abs(epoch_yr - reference_epoch_yr) / 1000.0
    share = np.minimum(1.0, moved_arcsec / (fwhm_arcsec / 2.3548) / np.sqrt(2 * np.e))
    with np.errstate(divide="ignore", invalid="ignore"):
        left_mag = star_mag - 2.5 * np.log10(share * flux_ratio)
    moving = np.flatnonzero((motion >= _MIN_MOTION_MAS_YR) & np.isfinite(left_mag))
    explained: dict[int, Explanation] = {}
    for year in (reference_epoch_yr, epoch_yr):  # where it is now goes before where it was
        star_ra, star_dec = moved_to(stars, year, moving)
        for row, star, distance in _pairs(ra, dec, star_ra, star_dec, radius_arcsec):
            if mag[row] >= left_mag[moving[star]]:
                name = f"{star_ra[star]:.6f}{star_dec[star]:+.6f}"
                explained[row] = Explanation(
                    "moving_star", name, float(star_ra[star]), float(star_dec[star]), distance,
                    float(star_mag[moving[star]]), stars.name,
                )  # fmt: skip
    return explained


def moved_to(
    stars: "SkyCatalog", epoch_yr: float, rows: NDArray[np.intp] | slice = slice(None)
) -> tuple[FloatArray, FloatArray]:
    """Positions [deg] of stars at a Julian year; unknown motions count as none."""
    table, years = stars.table[rows], epoch_yr - stars.epoch_yr
    ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    d_ra, d_dec = (np.nan_to_num(np.asarray(table[name], float)) * years / 3.6e6 for name in ("pm_ra", "pm_dec"))
    return (ra + d_ra / np.maximum(np.cos(np.deg2rad(dec)), 1e-9)) % 360.0, np.clip(dec + d_dec, -90, 90)


def _pairs(
    ra: FloatArray, dec: FloatArray, star_ra: FloatArray, star_dec: FloatArray, radius_arcsec: float
) -> list[tuple[int, int, float]]:
    index, separation = match_nearest(ra, dec, star_ra, star_dec, radius_arcsec)
    return [(row, int(star), float(separation[row])) for row, star in enumerate(index) if star >= 0]
