"""Cones find everything inside them, also over RA 0 and at the poles; polygons overlap rightly."""

import numpy as np
import pytest
import sqlalchemy as sa

from sql.sky import cone_condition, healpix_of, overlap_fraction, separation_deg


@pytest.mark.parametrize("centre", [(0.0, 0.0), (359.999, -30.0), (120.0, 89.99), (10.0, -90.0)])
@pytest.mark.parametrize("radius_deg", [1 / 3600, 0.05, 1.0])
def test_cone_misses_nothing(centre, radius_deg):
    rng = np.random.default_rng(5)
    angle, distance = rng.uniform(0, 2 * np.pi, 500), radius_deg * rng.uniform(0, 3, 500)
    dec = np.clip(centre[1] + distance * np.sin(angle), -90, 90)
    ra = centre[0] + distance * np.cos(angle) / np.maximum(np.cos(np.deg2rad(dec)), 1e-9)
    inside = separation_deg(*centre, ra, dec) <= radius_deg
    column = sa.column("healpix", sa.BigInteger)
    condition = cone_condition(column, *centre, radius_deg)
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(sa.text("create table t (healpix integer, n integer)"))
        rows = [{"h": int(h), "n": i} for i, h in enumerate(healpix_of(ra, dec))]
        connection.execute(sa.text("insert into t values (:h, :n)"), rows)
        found = set(connection.scalars(sa.select(sa.column("n")).select_from(sa.table("t")).where(condition)))
    assert set(np.flatnonzero(inside)) <= found


def square(ra, dec, side):
    half = side / 2
    width = half / np.cos(np.deg2rad(dec))
    return {
        "ra": [ra - width, ra + width, ra + width, ra - width],
        "dec": [dec - half, dec - half, dec + half, dec + half],
    }


@pytest.mark.parametrize("ra", [0.0, 180.0, 359.9])
@pytest.mark.parametrize("dec", [-70.0, 0.0, 45.0])
def test_overlap_of_shifted_squares(ra, dec):
    assert overlap_fraction(square(ra, dec, 0.5), square(ra, dec, 0.5)) == pytest.approx(1.0, abs=1e-9)
    shifted = square(ra, dec + 0.25, 0.5)
    assert overlap_fraction(square(ra, dec, 0.5), shifted) == pytest.approx(0.5, abs=0.02)  # the sky is curved
    assert overlap_fraction(square(ra, dec, 0.5), square(ra, dec + 1.0, 0.5)) == 0.0
    assert overlap_fraction(square(ra, dec, 0.5), square(ra + 180, -dec, 0.5)) == 0.0


def test_overlap_does_not_depend_on_the_order_of_corners():
    a, b = square(10, 5, 1.0), square(10.2, 5.1, 1.0)
    mirrored = {key: value[::-1] for key, value in b.items()}
    assert overlap_fraction(a, b) == pytest.approx(overlap_fraction(a, mirrored))
