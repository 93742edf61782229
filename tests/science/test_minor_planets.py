"""Places of minor planets, against an independent ephemeris."""

import gzip

import numpy as np
import pytest
from astropy.coordinates import get_body_barycentric_posvel
from astropy.time import Time

from resources.minor_planets import MinorPlanets, read_orbits
from seechange_assets.errors import CatalogError
from seechange_assets.science import minor_planets
from seechange_assets.science.minor_planets import (
    Orbits,
    apparent,
    eccentric_anomaly,
    ellipse_states,
    integrate,
    observer_position,
    perturbed_states,
    predict,
)
from sql.sky import separation_deg
from tests.science.orbits import elements_of, packed_date, state_at, write_orbits

MJD = 61365.0
SITE = (-70.7346, -29.2543, 2347.0)


def orbits_of(entries, **columns):
    arrays = {name: np.array([e[name] for e in entries], float) for name in entries[0]}
    n = len(entries)
    given = {"name": np.array([f"P{k}" for k in range(n)]), "h": np.full(n, 15.0), "g": np.full(n, 0.15)} | columns
    return Orbits(**given, **arrays, catalog="test")


def earth_and_moon(mjd):
    """Heliocentric barycentre of Earth and Moon from the ephemeris of ERFA (epv00, 5 km; moon98)."""
    when = Time(mjd, format="mjd", scale="tdb")
    states = [get_body_barycentric_posvel(name, when, ephemeris="builtin") for name in ("earth", "moon", "sun")]
    position, velocity = (
        [part.xyz.to_value(unit) for part in parts]
        for parts, unit in zip(zip(*states, strict=True), ("au", "au/d"), strict=True)
    )
    share = 1 / (1 + 81.30057)
    return tuple(e * (1 - share) + m * share - s for e, m, s in (position, velocity))


@pytest.mark.parametrize(("days", "limit_arcsec"), [(30, 0.02), (100, 0.05), (-100, 0.05), (200, 0.15)])
def test_the_planets_pull_as_an_ephemeris_says(monkeypatch, days, limit_arcsec):
    """The barycentre of Earth and Moon as a minor planet, integrated; relativity, left out, is 0.02 arcsec."""
    ratios = dict(minor_planets._MASS_RATIOS)
    monkeypatch.setitem(minor_planets._MASS_RATIOS, "earth", 1e30)
    monkeypatch.setattr(minor_planets, "GM_SUN", minor_planets.GM_SUN * (1 + 1 / ratios["earth"]))
    position, velocity = earth_and_moon(MJD)
    (moved,), _ = integrate(position[None], velocity[None], MJD, MJD + days)
    truth, _ = earth_and_moon(MJD + days)
    assert 206265 * np.linalg.norm(moved - truth) < limit_arcsec


def test_an_ellipse_alone_would_miss_two_arcseconds():
    """So the planets are needed: the main belt 150 days after the epoch, with and without them."""
    rng = np.random.default_rng(1)
    entries = [elements_of(*state_at(ra, 10.0, MJD, 1.6, rng), MJD) for ra in np.arange(0, 360, 10.0)]
    orbits = orbits_of(entries)
    observer = observer_position(MJD + 150, None)
    ra, dec, _ = apparent(*perturbed_states(orbits, MJD + 150), observer)
    ra2, dec2, _ = apparent(*ellipse_states(orbits, MJD + 150), observer)
    off = 3600 * separation_deg(ra, dec, ra2, dec2)
    assert np.median(off) > 2
    assert off.max() < 1800 / 2  # within the margin in which candidates are looked for


def test_keplers_equation():
    rng = np.random.default_rng(2)
    mean, e = rng.uniform(-np.pi, np.pi, 20000), rng.uniform(0, 0.99, 20000)
    anomaly = eccentric_anomaly(mean, e)
    assert np.abs(anomaly - e * np.sin(anomaly) - mean).max() < 1e-10


def test_the_observers_place_matches_astropy():
    from astropy import units as u
    from astropy.coordinates import EarthLocation
    from astropy.utils import iers

    place = EarthLocation.from_geodetic(SITE[0] * u.deg, SITE[1] * u.deg, SITE[2] * u.m)
    with iers.conf.set_temp("auto_download", False):
        truth = place.get_gcrs_posvel(Time(60000.3, format="mjd", scale="utc"))[0].xyz.to_value("km")
    mine = minor_planets._geocentric(60000.3, SITE) * 149597870.7
    assert np.linalg.norm(mine - truth) < 60  # precession of the pole since 2000 included; 0.08 arcsec at 1 AU


def test_a_planet_is_predicted_where_it_is_and_parallax_counts(tmp_path):
    rng = np.random.default_rng(3)
    states = [state_at(52.5 + 0.05 * k, -27.5, MJD, 1.2, rng) for k in range(5)]
    far = [state_at(80.0, 5.0, MJD, 1.5, rng)]
    entries = [(f"2026 AA{k}", elements_of(*state, MJD), 14.0) for k, state in enumerate(states + far)]
    columns = read_orbits(write_orbits(tmp_path / "MPCORB.DAT", entries))
    orbits = Orbits(**columns)
    mjd_utc = MJD - minor_planets.TT_MINUS_UTC_DAY
    found = predict(orbits, mjd_utc, 52.6, -27.5, 0.3, None)
    assert list(found.name) == [f"2026 AA{k}" for k in range(5)]
    # The state was of MJD, its light of 1.2 AU earlier: up to a few arcseconds; the file has five decimals.
    expected = 52.5 + 0.05 * np.arange(5)
    assert (3600 * separation_deg(found.ra, found.dec, expected, -27.5) < 15).all()
    seen = predict(orbits, mjd_utc, 52.6, -27.5, 0.3, SITE)
    assert (3600 * separation_deg(found.ra, found.dec, seen.ra, seen.dec) > 0.5).all()
    assert len(predict(orbits, mjd_utc, 232.6, 27.5, 0.3, SITE).name) == 0
    assert np.isfinite(found.mag).all()
    assert (found.mag > 14).all()


def test_files_plain_and_gzipped_are_read_alike_and_others_refused(tmp_path):
    rng = np.random.default_rng(4)
    elements = elements_of(*state_at(10.0, 5.0, MJD, 1.5, rng), MJD)
    plain = write_orbits(tmp_path / "MPCORB.DAT", [("(1) Ceres", elements, 3.3)])
    zipped = tmp_path / "MPCORB.DAT.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = read_orbits(plain), read_orbits(zipped)
    assert first["name"][0] == second["name"][0] == "(1) Ceres"
    for name in ("mean_anomaly", "perihelion", "node", "inclination", "eccentricity", "a", "epoch_mjd"):
        assert first[name][0] == pytest.approx(elements[name], abs=1e-5)
    assert packed_date(61000) == "K25BL"
    (tmp_path / "other").write_text("no orbits here\n" * 10)
    with pytest.raises(CatalogError, match="no line is an orbit"):
        read_orbits(tmp_path / "other")
    with pytest.raises(CatalogError, match="cannot be read"):
        _ = MinorPlanets(tmp_path / "absent").orbits
    assert MinorPlanets(None).orbits is None
