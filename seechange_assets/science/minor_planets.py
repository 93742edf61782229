"""Where minor planets are: from osculating elements to places on the sky.

All orbits are first followed as ellipses around the Sun, which is right to degrees within a year of their epoch and
tells which of them are near. Those are then integrated with the attraction of the planets (Newton, heliocentric;
e.g. Danby 1992, Fundamentals of Celestial Mechanics, eq. 9.1.5), seen from the observer's place on the Earth and
corrected for light time. Positions of the planets are those of ERFA (epv00; plan94, good to arcseconds, which is plenty
for what perturbs). Half a year from the epoch the result is good to 0.1 arcsec; relativity and the pull of the large
asteroids are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Gaussian gravitational constant squared: GM of the Sun [AU^3/day^2].
GM_SUN = 0.01720209895**2
#: Speed of light [AU/day], obliquity of J2000 [deg], radius of the Earth's equator [AU] and its flattening.
LIGHT_AU_DAY, OBLIQUITY_DEG, EARTH_RADIUS_AU, FLATTENING = 173.14463267, 84381.448 / 3600, 4.26352e-5, 1 / 298.257223563
#: Mass of the Sun over that of each planet with its moons (IAU 2009 system of constants).
_MASS_RATIOS = {
    "mercury": 6023600.0, "venus": 408523.719, "earth": 328900.5596, "mars": 3098703.59, "jupiter": 1047.348644,
    "saturn": 3497.9018, "uranus": 22902.98, "neptune": 19412.26,
}  # fmt: skip
#: TT - UTC [day] since 2017; a second more moves an asteroid by 0.01 arcsec.
TT_MINUS_UTC_DAY = 69.184 / 86400
_PLANET_STEP_DAY = 4.0
#: How far an ellipse may be off, within a year of the epoch, growing with the square of time [deg].
_ELLIPSE_MARGIN_DEG = 0.5


@dataclass(frozen=True, slots=True)
class Orbits:
    """Osculating elements (J2000 ecliptic), one row per minor planet.

    ``epoch_mjd`` (TT), angles in degrees, ``a`` in AU, ``h, g`` magnitude and slope; ``catalog`` names their source.
    """

    name: NDArray[np.str_]
    epoch_mjd: FloatArray
    mean_anomaly: FloatArray
    perihelion: FloatArray
    node: FloatArray
    inclination: FloatArray
    eccentricity: FloatArray
    a: FloatArray
    h: FloatArray
    g: FloatArray
    catalog: str

    def __getitem__(self, rows: NDArray[np.intp]) -> "Orbits":
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "catalog"})


@dataclass(frozen=True, slots=True)
class Predictions:
    """Minor planets near a place: names, astrometric positions [deg], V magnitudes."""

    name: NDArray[np.str_]
    ra: FloatArray
    dec: FloatArray
    mag: FloatArray
    catalog: str


def predict(
    orbits: Orbits, mjd_utc: float, ra_deg: float, dec_deg: float, radius_deg: float,
    site: tuple[float, float, float] | None,
) -> Predictions:  # fmt: skip
    """Minor planets within a cone at a time.

    Parameters
    ----------
    site : tuple of float, optional
        Longitude (east), latitude [deg] and height [m] of the observer; the centre of the Earth without it, which is
        wrong by 8.8 arcsec over the distance in AU.
    """
    mjd = mjd_utc + TT_MINUS_UTC_DAY
    observer = observer_position(mjd, site)
    near = orbits[_nearby(orbits, mjd, observer, ra_deg, dec_deg, radius_deg)]
    position, velocity = perturbed_states(near, mjd)
    ra, dec, distance = apparent(position, velocity, observer)
    inside = _separation_deg(ra, dec, ra_deg, dec_deg) <= radius_deg
    mag = magnitude(near.h, near.g, position, distance, observer)
    return Predictions(near.name[inside], ra[inside], dec[inside], mag[inside], orbits.catalog)


def _nearby(
    orbits: Orbits, mjd: float, observer: FloatArray, ra_deg: float, dec_deg: float, radius_deg: float
) -> NDArray[np.intp]:
    ra, dec, distance = apparent(*ellipse_states(orbits, mjd), observer)
    years = (mjd - orbits.epoch_mjd) / 365.25
    # What comes close to the Earth is seen farther off its ellipse.
    margin = _ELLIPSE_MARGIN_DEG * (1 + years**2) / np.minimum(distance, 1.0)
    return np.flatnonzero(_separation_deg(ra, dec, ra_deg, dec_deg) <= radius_deg + margin)


def ellipse_states(orbits: Orbits, mjd: float | FloatArray) -> tuple[FloatArray, FloatArray]:
    """Heliocentric positions and velocities, shape (n, 3), on unperturbed ellipses: ICRS axes, AU and AU/day."""
    e, a = orbits.eccentricity, orbits.a
    motion = np.sqrt(GM_SUN / a**3)
    mean = np.deg2rad(orbits.mean_anomaly) + motion * (mjd - orbits.epoch_mjd)
    eccentric = eccentric_anomaly(np.mod(mean + np.pi, 2 * np.pi) - np.pi, e)
    sin, cos, root = np.sin(eccentric), np.cos(eccentric), np.sqrt(1 - e**2)
    along, across = _orbital_axes(orbits)
    rate = motion / (1 - e * cos)
    position = (a * (cos - e))[:, None] * along + (a * root * sin)[:, None] * across
    velocity = (-a * rate * sin)[:, None] * along + (a * rate * root * cos)[:, None] * across
    return position, velocity


def eccentric_anomaly(mean: FloatArray, e: FloatArray) -> FloatArray:
    """Solution of Kepler's equation ``E - e sin E = M`` by Newton's method from Danby's start (1987, eq. 5)."""
    anomaly = mean + 0.85 * e * np.sign(mean)
    for _ in range(12):
        step = (anomaly - e * np.sin(anomaly) - mean) / (1 - e * np.cos(anomaly))
        anomaly = anomaly - np.clip(step, -1.0, 1.0)
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return anomaly


def _orbital_axes(orbits: Orbits) -> tuple[FloatArray, FloatArray]:
    """Unit vectors to perihelion and 90 degrees further in the orbit, on equatorial axes, shape (n, 3)."""
    w, o, i = (np.deg2rad(angle) for angle in (orbits.perihelion, orbits.node, orbits.inclination))
    cw, sw, co, so, ci, si = np.cos(w), np.sin(w), np.cos(o), np.sin(o), np.cos(i), np.sin(i)
    along = np.stack([cw * co - sw * so * ci, cw * so + sw * co * ci, sw * si])
    across = np.stack([-sw * co - cw * so * ci, -sw * so + cw * co * ci, cw * si])
    c, s = np.cos(np.deg2rad(OBLIQUITY_DEG)), np.sin(np.deg2rad(OBLIQUITY_DEG))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return (turn @ along).T, (turn @ across).T


def perturbed_states(orbits: Orbits, mjd: float) -> tuple[FloatArray, FloatArray]:
    """As `ellipse_states`, with the attraction of the planets from each orbit's epoch to `mjd`."""
    position, velocity = ellipse_states(orbits, orbits.epoch_mjd)
    for epoch in np.unique(orbits.epoch_mjd):
        rows = np.flatnonzero(orbits.epoch_mjd == epoch)
        if epoch != mjd:
            position[rows], velocity[rows] = integrate(position[rows], velocity[rows], float(epoch), mjd)
    return position, velocity


def integrate(position: FloatArray, velocity: FloatArray, start: float, end: float) -> tuple[FloatArray, FloatArray]:
    """Heliocentric motion under the Sun and the planets (Dormand-Prince of order 8), both shape (n, 3)."""
    from scipy.integrate import solve_ivp

    n = len(position)
    planets, gm = planet_positions(start, end), GM_SUN / np.array(list(_MASS_RATIOS.values()))

    def derivative(mjd: float, state: FloatArray) -> FloatArray:
        r = state[: 3 * n].reshape(n, 3)
        p = planets(mjd)
        # Both the attraction of the body and that of the Sun, on which the coordinates are centred.
        away = p[None] - r[:, None]
        pull = away / np.linalg.norm(away, axis=2)[..., None] ** 3 - p / np.linalg.norm(p, axis=1)[:, None] ** 3
        acceleration = -GM_SUN * r / np.linalg.norm(r, axis=1)[:, None] ** 3 + np.einsum("j,njk->nk", gm, pull)
        return np.concatenate([state[3 * n :], acceleration.ravel()])

    begin = np.concatenate([position.ravel(), velocity.ravel()])
    state = solve_ivp(derivative, (start, end), begin, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    return state[: 3 * n].reshape(n, 3), state[3 * n :].reshape(n, 3)


def planet_positions(start: float, end: float) -> Callable[[float], FloatArray]:
    """Heliocentric positions of the planets [AU], shape (8, 3), as a function of time (MJD, TT) between two dates."""
    from astropy.coordinates import get_body_barycentric_posvel
    from astropy.time import Time
    from scipy.interpolate import CubicHermiteSpline

    low, high = min(start, end), max(start, end)
    grid = np.linspace(low - 1, high + 1, max(int((high - low) / _PLANET_STEP_DAY) + 2, 3))
    when = Time(grid, format="mjd", scale="tdb")
    sun = _posvel(get_body_barycentric_posvel("sun", when, ephemeris="builtin"))
    bodies = [_posvel(get_body_barycentric_posvel(name, when, ephemeris="builtin")) for name in _MASS_RATIOS]
    position = np.stack([body[0] - sun[0] for body in bodies], axis=1)
    velocity = np.stack([body[1] - sun[1] for body in bodies], axis=1)
    return CubicHermiteSpline(grid, position, velocity)  # type: ignore[no-any-return]


def _posvel(pair: tuple[object, object]) -> tuple[FloatArray, FloatArray]:
    """(position [AU], velocity [AU/day]), shape (n, 3)."""
    position, velocity = pair
    return position.xyz.to_value("au").T, velocity.xyz.to_value("au/d").T  # type: ignore[attr-defined]


def observer_position(mjd: float, site: tuple[float, float, float] | None) -> FloatArray:
    """Heliocentric position of the observer [AU] at a time (MJD, TT)."""
    from astropy.coordinates import get_body_barycentric
    from astropy.time import Time

    when = Time(mjd, format="mjd", scale="tdb")
    earth, sun = (get_body_barycentric(name, when, ephemeris="builtin").xyz.to_value("au") for name in ("earth", "sun"))
    position: FloatArray = earth - sun
    return position if site is None else position + _geocentric(mjd - TT_MINUS_UTC_DAY, site)


def _geocentric(mjd_utc: float, site: tuple[float, float, float]) -> FloatArray:
    """From the Earth's centre to a site [AU]: turned by the Earth rotation angle (IERS 2010, eq. 5.15).

    UT1 - UTC, precession of the pole and polar motion are left out: together below 30 km, 0.04 arcsec at 1 AU.
    """
    longitude, latitude, height_m = site
    turn = 2 * np.pi * ((0.7790572732640 + 1.00273781191135448 * (mjd_utc - 51544.5)) % 1.0) + np.deg2rad(longitude)
    sin, cos = np.sin(np.deg2rad(latitude)), np.cos(np.deg2rad(latitude))
    square = (1 - FLATTENING) ** 2
    c = 1 / np.sqrt(cos**2 + square * sin**2)
    height = height_m / 6378137.0
    across, up = (c + height) * cos, (square * c + height) * sin
    return EARTH_RADIUS_AU * np.array([across * np.cos(turn), across * np.sin(turn), up])


def apparent(
    position: FloatArray, velocity: FloatArray, observer: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Astrometric (ra, dec) [deg] and distance [AU]: where the light that arrives now was sent."""
    seen = position - observer
    for _ in range(2):
        distance = np.linalg.norm(seen, axis=1)
        seen = position - velocity * (distance / LIGHT_AU_DAY)[:, None] - observer
    distance = np.linalg.norm(seen, axis=1)
    ra = np.rad2deg(np.arctan2(seen[:, 1], seen[:, 0])) % 360.0
    return ra, np.rad2deg(np.arcsin(np.clip(seen[:, 2] / distance, -1, 1))), distance


def magnitude(
    h: FloatArray, g: FloatArray, position: FloatArray, distance: FloatArray, observer: FloatArray
) -> FloatArray:
    """V magnitude in the H, G system (Bowell et al. 1989, Asteroids II, p. 524)."""
    r = np.linalg.norm(position, axis=1)
    cosine = (r**2 + distance**2 - observer @ observer) / (2 * r * distance)
    half = np.tan(np.arccos(np.clip(cosine, -1, 1)) / 2)
    phase = (1 - g) * np.exp(-3.33 * half**0.63) + g * np.exp(-1.87 * half**1.22)
    value: FloatArray = h + 5 * np.log10(r * distance) - 2.5 * np.log10(phase)
    return value


def _separation_deg(ra: FloatArray, dec: FloatArray, ra_deg: float, dec_deg: float) -> FloatArray:
    a, d, a0, d0 = np.deg2rad(ra), np.deg2rad(dec), np.deg2rad(ra_deg), np.deg2rad(dec_deg)
    half = np.sin((d - d0) / 2) ** 2 + np.cos(d) * np.cos(d0) * np.sin((a - a0) / 2) ** 2
    angle: FloatArray = np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
    return angle
