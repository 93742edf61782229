"""Which detections are the same thing on the sky: nearest matches and groups within a radius."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def match_nearest(
    ra: FloatArray, dec: FloatArray, object_ra: FloatArray, object_dec: FloatArray, radius_arcsec: float
) -> tuple[NDArray[np.intp], FloatArray]:
    """The nearest object of each position.

    Distances are chords between unit vectors, so right ascension 0h and the poles need no care.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Positions [deg].
    object_ra, object_dec : ndarray, shape (m,)
        Objects [deg].
    radius_arcsec : float
        Farthest match.

    Returns
    -------
    index : ndarray, shape (n,)
        Row of the object, -1 where none is within the radius.
    separation_arcsec : ndarray, shape (n,)
        NaN where there is no match.
    """
    index = np.full(len(ra), -1, np.intp)
    separation = np.full(len(ra), np.nan)
    if len(ra) and len(object_ra):
        from scipy.spatial import cKDTree

        chord, found = cKDTree(unit_vectors(object_ra, object_dec)).query(unit_vectors(ra, dec))
        angle = chord_to_arcsec(chord)
        matched = angle <= radius_arcsec
        index[matched], separation[matched] = found[matched], angle[matched]
    return index, separation


def leaders(ra: FloatArray, dec: FloatArray, radius_arcsec: float) -> NDArray[np.intp]:
    """Rows that become objects when no two objects may lie within the radius of each other.

    Positions come in order of preference; each becomes a leader unless an earlier leader
    is within the radius. Every position then has a leader within the radius.
    """
    if len(ra) == 0:
        return np.empty(0, np.intp)
    from scipy.spatial import cKDTree

    pairs = cKDTree(unit_vectors(ra, dec)).query_pairs(2 * np.sin(np.deg2rad(radius_arcsec / 3600.0) / 2))
    earlier: dict[int, list[int]] = {}
    for i, j in pairs:
        earlier.setdefault(max(i, j), []).append(min(i, j))
    is_leader = np.ones(len(ra), bool)
    for row in sorted(earlier):
        is_leader[row] = not is_leader[earlier[row]].any()
    return np.flatnonzero(is_leader)


def unit_vectors(ra: FloatArray, dec: FloatArray) -> FloatArray:
    """Cartesian unit vectors of positions in degrees, shape (n, 3)."""
    alpha, delta = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.column_stack([np.cos(delta) * np.cos(alpha), np.cos(delta) * np.sin(alpha), np.sin(delta)])


def chord_to_arcsec(chord: FloatArray) -> FloatArray:
    """Angle [arcsec] between two unit vectors from the length of their difference."""
    angle: FloatArray = np.rad2deg(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600.0
    return angle


def letters(number: int) -> str:
    """1 is a, 26 is z, 27 is aa, 28 is ab: the letters in which transients are counted.

    Raises
    ------
    ValueError
        For a number below 1.
    """
    if number < 1:
        raise ValueError(f"names are counted from 1, got {number}")
    text = ""
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(ord("a") + digit) + text
    return text
