"""Orbits of invented minor planets that are at chosen places on the sky, and files of them."""

from datetime import date, timedelta

import numpy as np

from seechange_assets.science.minor_planets import GM_SUN, OBLIQUITY_DEG, observer_position

PACKED = "0123456789ABCDEFGHIJKLMNOPQRSTUV"


def elements_of(position, velocity, mjd):
    """Osculating elements of a heliocentric state on equatorial axes, angles in degrees (Vallado, algorithm 9)."""
    c, s = np.cos(np.deg2rad(OBLIQUITY_DEG)), np.sin(np.deg2rad(OBLIQUITY_DEG))
    turn = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    r, v = turn @ position, turn @ velocity
    distance, h = np.linalg.norm(r), np.cross(r, v)
    ecc = np.cross(v, h) / GM_SUN - r / distance
    e, a = np.linalg.norm(ecc), 1 / (2 / distance - v @ v / GM_SUN)
    node = np.array([-h[1], h[0], 0.0])
    o, i = np.arctan2(node[1], node[0]), np.arccos(h[2] / np.linalg.norm(h))
    across = np.cross(h / np.linalg.norm(h), node / np.linalg.norm(node))
    w = np.arctan2(ecc @ across, ecc @ node / np.linalg.norm(node))
    anomaly = np.arctan2(r @ v / np.sqrt(GM_SUN * a), 1 - distance / a)
    mean = anomaly - e * np.sin(anomaly)
    angles = {"mean_anomaly": mean, "perihelion": w, "node": o, "inclination": i}
    degrees = {name: np.rad2deg(value) % 360.0 for name, value in angles.items()}
    return degrees | {"eccentricity": e, "a": a, "epoch_mjd": mjd}


def state_at(ra_deg, dec_deg, mjd, distance, rng):
    """A heliocentric state, seen from the Earth's centre at a place, with the speed of a nearly circular orbit."""
    a, d = np.deg2rad(ra_deg), np.deg2rad(dec_deg)
    line = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    r = observer_position(mjd, None) + distance * line
    pole = np.array([0, -np.sin(np.deg2rad(OBLIQUITY_DEG)), np.cos(np.deg2rad(OBLIQUITY_DEG))])
    ahead = np.cross(pole + rng.normal(0, 0.1, 3), r)
    speed = np.sqrt(GM_SUN / np.linalg.norm(r)) * rng.uniform(0.95, 1.05)
    return r, speed * ahead / np.linalg.norm(ahead)


def packed_date(mjd):
    """``K25BL`` for 2025 November 21."""
    day = date(1858, 11, 17) + timedelta(days=int(mjd))
    return f"{PACKED[day.year // 100]}{day.year % 100:02d}{PACKED[day.month]}{PACKED[day.day]}"


def mpcorb_line(number, name, elements, h=15.0, g=0.15):
    """One line in the format of MPCORB.DAT."""
    motion = np.rad2deg(np.sqrt(GM_SUN / elements["a"] ** 3))
    line = (
        f"{number:05d}   {h:5.2f} {g:5.2f} {packed_date(elements['epoch_mjd'])} {elements['mean_anomaly']:9.5f}  "
        f"{elements['perihelion']:9.5f}  {elements['node']:9.5f}  {elements['inclination']:9.5f}  "
        f"{elements['eccentricity']:9.7f} {motion:11.8f} {elements['a']:11.7f}"
    )
    return f"{line:<166}{name:<28}"


def write_orbits(path, entries):
    """A file with a header as the Minor Planet Center's, of (name, elements, h)."""
    head = ["MINOR PLANET CENTER ORBIT DATABASE (MPCORB)", "", "Des'n     H     G   Epoch     M", "-" * 160]
    lines = [mpcorb_line(k + 1, name, elements, h) for k, (name, elements, h) in enumerate(entries)]
    path.write_text("\n".join(head + lines) + "\n")
    return path
