"""Spatial index without a server extension: HEALPix nested cells and footprint polygons.

A position carries its nested index at order 29 (bigint); a cone is a set of index
ranges, so an ordinary B-tree answers it. Footprints are compared as polygons on the
tangent plane, which is exact for one CCD.
"""

from typing import TYPE_CHECKING, Any

import hpgeom
import numpy as np
import sqlalchemy as sa

if TYPE_CHECKING:
    from astropy.wcs import WCS

ORDER = 29
NSIDE = 2**ORDER


def healpix_of(ra_deg: Any, dec_deg: Any) -> Any:
    """Nested HEALPix index at order 29 of positions in degrees."""
    index = hpgeom.angle_to_pixel(NSIDE, np.asarray(ra_deg) % 360.0, dec_deg, nest=True, lonlat=True, degrees=True)
    return int(index) if np.ndim(ra_deg) == 0 else np.asarray(index, np.int64)


def cone_condition(column: Any, ra_deg: float, dec_deg: float, radius_deg: float) -> sa.ColumnElement[bool]:
    """SQL condition that holds for every position within the cone (and some just outside)."""
    order = int(np.clip(np.floor(np.log2(58.6 / max(radius_deg, 1e-4))) + 2, 0, 20))
    nside = 2**order
    cells = hpgeom.query_circle(
        nside, ra_deg % 360.0, dec_deg, radius_deg, inclusive=True, nest=True, lonlat=True, degrees=True
    )
    shift = 2 * (ORDER - order)
    cells = np.sort(np.asarray(cells, np.int64))
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 2) != 1)
    ends = np.append(starts[1:], len(cells)) - 1
    ranges = [
        column.between(int(cells[s]) << shift, ((int(cells[e]) + 1) << shift) - 1)
        for s, e in zip(starts, ends, strict=True)
    ]
    return sa.or_(*ranges)


def separation_deg(ra1: Any, dec1: Any, ra2: Any, dec2: Any) -> Any:
    """Angle between positions in degrees (haversine, exact at small angles)."""
    ra1, dec1, ra2, dec2 = (np.deg2rad(np.asarray(v, float)) for v in (ra1, dec1, ra2, dec2))
    half = np.sin((dec2 - dec1) / 2) ** 2 + np.cos(dec1) * np.cos(dec2) * np.sin((ra2 - ra1) / 2) ** 2
    return np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))


def polygon_of(wcs: "WCS", shape: tuple[int, int]) -> tuple[float, float, tuple[list[float], list[float]]]:
    """(ra, dec) of the centre and the four corners of an image of `shape` (ny, nx)."""
    ny, nx = shape
    x = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5, (nx - 1) / 2])
    y = np.array([-0.5, -0.5, ny - 0.5, ny - 0.5, (ny - 1) / 2])
    ra, dec = wcs.all_pix2world(x, y, 0)
    return float(ra[4]), float(dec[4]), (ra[:4].tolist(), dec[:4].tolist())


def overlap_fraction(corners: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """Fraction of the first footprint that the second one covers.

    Both polygons are projected gnomonically around the first one's centre and
    intersected (Sutherland-Hodgman); footprints on opposite sides of the sky give 0.
    """
    ra0, dec0 = _mean_direction(corners)
    ra1, dec1 = _mean_direction(other)
    if separation_deg(ra0, dec0, ra1, dec1) > 20:
        return 0.0
    subject, clip = _project(corners, ra0, dec0), _project(other, ra0, dec0)
    area = abs(_area(subject))
    return abs(_area(_clip(subject, clip))) / area if area > 0 else 0.0


def is_inside(corners: dict[str, list[float]], ra_deg: float, dec_deg: float) -> bool:
    """Whether a position near a footprint lies in it, or on its edge."""
    polygon = _project(corners, *_mean_direction(corners))
    point = _project({"ra": [ra_deg], "dec": [dec_deg]}, *_mean_direction(corners))
    side = np.roll(polygon, -1, axis=0) - polygon
    across = side[:, 0] * (point[:, 1] - polygon[:, 1]) - side[:, 1] * (point[:, 0] - polygon[:, 0])
    return bool((across >= 0).all() or (across <= 0).all())


def footprint_positions(corners: dict[str, list[float]], fraction: float = 0.8) -> list[tuple[float, float]]:
    """(ra, dec) of a footprint's centre and of eight positions at a fraction of the way to its corners and sides."""
    ra0, dec0 = _mean_direction(corners)
    ra = ra0 + (np.asarray(corners["ra"]) - ra0 + 180) % 360 - 180
    dec = np.asarray(corners["dec"])
    edge = [(ra, dec), ((ra + np.roll(ra, -1)) / 2, (dec + np.roll(dec, -1)) / 2)]
    outer = [
        (ra0 + fraction * (r - ra0), dec0 + fraction * (d - dec0)) for part in edge for r, d in zip(*part, strict=True)
    ]
    return [(float(r), float(d)) for r, d in [(ra0, dec0), *outer]]


def _mean_direction(corners: dict[str, list[float]]) -> tuple[float, float]:
    ra, dec = np.deg2rad(corners["ra"]), np.deg2rad(corners["dec"])
    x, y, z = (np.cos(dec) * np.cos(ra)).sum(), (np.cos(dec) * np.sin(ra)).sum(), np.sin(dec).sum()
    return float(np.rad2deg(np.arctan2(y, x))), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


def _project(corners: dict[str, list[float]], ra0: float, dec0: float) -> np.ndarray:
    ra, dec = np.deg2rad(np.asarray(corners["ra"]) - ra0), np.deg2rad(corners["dec"])
    d0 = np.deg2rad(dec0)
    cosine = np.sin(d0) * np.sin(dec) + np.cos(d0) * np.cos(dec) * np.cos(ra)
    x = np.cos(dec) * np.sin(ra) / cosine
    y = (np.cos(d0) * np.sin(dec) - np.sin(d0) * np.cos(dec) * np.cos(ra)) / cosine
    return np.column_stack([x, y])


def _area(polygon: np.ndarray) -> float:
    if len(polygon) < 3:
        return 0.0
    x, y = polygon.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def _clip(subject: np.ndarray, clip: np.ndarray) -> np.ndarray:
    if _area(clip) < 0:
        clip = clip[::-1]
    for a, b in zip(clip, np.roll(clip, -1, axis=0), strict=True):
        if len(subject) == 0:
            break
        side = (b[0] - a[0]) * (subject[:, 1] - a[1]) - (b[1] - a[1]) * (subject[:, 0] - a[0])
        kept = []
        for i, (p, s) in enumerate(zip(subject, side, strict=True)):
            q, t = subject[i - 1], side[i - 1]
            if (s >= 0) != (t >= 0):
                kept.append(q + (p - q) * (t / (t - s)))
            if s >= 0:
                kept.append(p)
        subject = np.array(kept)
    return subject
