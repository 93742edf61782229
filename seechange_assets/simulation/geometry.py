"""Where the sky falls on a simulated CCD."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Geometry:
    """A gnomonic projection with cubic radial distortion about the boresight, and a CCD in it.

    A direction at tangent-plane radius r [deg] is imaged at ``r (1 + distortion r^2)``. Pixels
    run west in x and north in y; the CCD centre lies at (`east_deg`, `north_deg`) from the boresight.

    Parameters
    ----------
    ra_deg, dec_deg : float
        Where the boresight truly points.
    rotation_deg : float
        Rotation of the camera, east of north.
    distortion : float
        Per square degree.
    """

    ra_deg: float
    dec_deg: float
    shape: tuple[int, int]
    scale_arcsec: float
    east_deg: float = 0.0
    north_deg: float = 0.0
    rotation_deg: float = 0.0
    distortion: float = 0.0

    def sky_to_pixel(self, ra_deg: NDArray, dec_deg: NDArray) -> tuple[NDArray, NDArray]:
        """Pixel positions (x, y), 0-based, of sky positions (within 90 degrees of the boresight)."""
        east, north = sky_to_plane(ra_deg, dec_deg, self.ra_deg, self.dec_deg)
        stretch = 1 + self.distortion * (east**2 + north**2)
        cos, sin = np.cos(np.radians(self.rotation_deg)), np.sin(np.radians(self.rotation_deg))
        focal_east = stretch * (cos * east - sin * north)
        focal_north = stretch * (sin * east + cos * north)
        scale = self.scale_arcsec / 3600
        x = (self.shape[1] - 1) / 2 - (focal_east - self.east_deg) / scale
        y = (self.shape[0] - 1) / 2 + (focal_north - self.north_deg) / scale
        return x, y

    def pixel_to_sky(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        """Sky positions (ra, dec) in degrees of 0-based pixel positions."""
        scale = self.scale_arcsec / 3600
        focal_east = self.east_deg - (np.asarray(x) - (self.shape[1] - 1) / 2) * scale
        focal_north = self.north_deg + (np.asarray(y) - (self.shape[0] - 1) / 2) * scale
        squared = focal_east**2 + focal_north**2
        stretch = np.ones_like(squared)
        # Fixed point of r = R / (1 + k r^2); the contraction factor is 2 k r^2 < 0.01, so six steps are plenty.
        for _ in range(6):
            stretch = 1 + self.distortion * squared / stretch**2
        cos, sin = np.cos(np.radians(self.rotation_deg)), np.sin(np.radians(self.rotation_deg))
        east = (cos * focal_east + sin * focal_north) / stretch
        north = (-sin * focal_east + cos * focal_north) / stretch
        return plane_to_sky(east, north, self.ra_deg, self.dec_deg)


def sky_to_plane(ra_deg: NDArray, dec_deg: NDArray, ra0_deg: float, dec0_deg: float) -> tuple[NDArray, NDArray]:
    """Gnomonic projection: offsets (east, north) in degrees about a tangent point."""
    ra, dec, ra0, dec0 = (np.radians(v) for v in (ra_deg, dec_deg, ra0_deg, dec0_deg))
    depth = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(ra - ra0)
    east = np.cos(dec) * np.sin(ra - ra0) / depth
    north = (np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(ra - ra0)) / depth
    return np.degrees(east), np.degrees(north)


def plane_to_sky(east_deg: NDArray, north_deg: NDArray, ra0_deg: float, dec0_deg: float) -> tuple[NDArray, NDArray]:
    """The inverse of `sky_to_plane`."""
    east, north, ra0, dec0 = (np.radians(v) for v in (east_deg, north_deg, ra0_deg, dec0_deg))
    across = np.cos(dec0) - north * np.sin(dec0)
    ra = ra0 + np.arctan2(east, across)
    dec = np.arctan2(np.sin(dec0) + north * np.cos(dec0), np.hypot(east, across))
    return np.degrees(ra) % 360.0, np.degrees(dec)
