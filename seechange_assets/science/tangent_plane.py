"""Unit vectors on the sky and the gnomonic (TAN) plane, exact at the poles and across RA 0.

Paper: Calabretta & Greisen 2002, A&A 395, 1077, sec. 5.1.3. Planes are in arcsec, x to the
east and y to the north at the tangent point.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Vectors = FloatArray

ARCSEC_PER_RADIAN = 180.0 * 3600.0 / np.pi
MAS_PER_RADIAN = 1000.0 * ARCSEC_PER_RADIAN


def unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Vectors:
    """Positions [deg] as unit vectors, shape ``(..., 3)``."""
    ra, dec = np.radians(np.asarray(ra_deg, float)), np.radians(np.asarray(dec_deg, float))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def sky_position(vectors: Vectors) -> tuple[FloatArray, FloatArray]:
    """Unit vectors as right ascension in [0, 360) and declination [deg]."""
    ra = np.degrees(np.arctan2(vectors[..., 1], vectors[..., 0])) % 360.0
    dec = np.degrees(np.arctan2(vectors[..., 2], np.hypot(vectors[..., 0], vectors[..., 1])))
    return np.where(ra >= 360.0, 0.0, ra), dec


def east_north(ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[Vectors, Vectors]:
    """Unit vectors towards increasing right ascension and declination, shape ``(..., 3)``."""
    ra, dec = np.radians(np.asarray(ra_deg, float)), np.radians(np.asarray(dec_deg, float))
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    return east, north


def moved(ra_deg: FloatArray, dec_deg: FloatArray, pm_ra: FloatArray, pm_dec: FloatArray, years: float) -> Vectors:
    """Unit vectors after `years` of proper motion [mas/yr, RA times cos dec]; NaN motions count as zero.

    Straight motion in space, no parallax and no perspective acceleration.
    """
    east, north = east_north(ra_deg, dec_deg)
    step = years / MAS_PER_RADIAN
    shift = np.nan_to_num(pm_ra)[..., None] * east + np.nan_to_num(pm_dec)[..., None] * north
    vectors = unit_vectors(ra_deg, dec_deg) + step * shift
    return _normalised(vectors)


def _normalised(vectors: Vectors) -> Vectors:
    length: Vectors = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / length


@dataclass(frozen=True, slots=True)
class TangentPlane:
    """Gnomonic plane that touches the sky at (`ra_deg`, `dec_deg`)."""

    ra_deg: float
    dec_deg: float

    def project(self, vectors: Vectors) -> NDArray[np.float64]:
        """Plane coordinates [arcsec], shape ``(..., 2)``; NaN on the far hemisphere."""
        east, north = east_north(self.ra_deg, self.dec_deg)
        depth = vectors @ unit_vectors(self.ra_deg, self.dec_deg)
        depth = np.where(depth > 0.0, depth, np.nan)
        return ARCSEC_PER_RADIAN * np.stack([vectors @ east / depth, vectors @ north / depth], axis=-1)

    def deproject(self, points: ArrayLike) -> Vectors:
        """The inverse: unit vectors of plane points [arcsec]."""
        east, north = east_north(self.ra_deg, self.dec_deg)
        radians = np.asarray(points, float) / ARCSEC_PER_RADIAN
        vectors = unit_vectors(self.ra_deg, self.dec_deg) + radians[..., :1] * east + radians[..., 1:] * north
        return _normalised(vectors)
