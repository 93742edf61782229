"""Minor planets and a fast star drawn on frames, which go through the real subtraction, detection and measurement."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from resources.minor_planets import read_orbits
from seechange_assets.instruments.base import RawCcd, get_instrument
from seechange_assets.publish.associations import associate_measurements
from seechange_assets.publish.solar_system import identify, predicted
from seechange_assets.science.cutouts import make_cutouts
from seechange_assets.science.detections import detect
from seechange_assets.science.difference import subtract
from seechange_assets.science.measurements import measure
from seechange_assets.science.minor_planets import integrate
from seechange_assets.science.subtract_pair import as_reference, calibrate
from seechange_assets.simulation.ccd import FIELD_DEG, MJD, simulate_ccd
from seechange_assets.simulation.scene import Conditions
from seechange_assets.simulation.sky import Transients
from sql.object_records import IdentificationRow
from sql.objects import MeasurementRow
from sql.sky import separation_deg
from tests.publish.sky import PROVENANCES, scores
from tests.publish.test_associations import objects
from tests.science.orbits import elements_of, state_at, write_orbits

INSTRUMENT = get_instrument("ls4")
SHAPE, HALF_EXPOSURE_DAY = (512, 512), 22.5 / 86400
#: Two frames of one night, then one a month: a star as fast as Barnard's goes on by 0.9 arcsec each.
EPOCHS = (0.0, 0.03, 30.0, 60.0)
MOTION_MAS_YR, MAG = 10400.0, 18.0
#: The transient that is none of these: offsets of its place from the field's centre [arcsec].
TRANSIENT = (31.0, -57.0)


@pytest.fixture
def orbits(tmp_path):
    """Three minor planets on the CCD at the time of each frame (both of the first night), and others elsewhere."""
    rng = np.random.default_rng(31)
    entries = []
    for number, day in enumerate((0.0, 30.0, 60.0)):
        mjd = np.floor(MJD + day)
        for k, (x, y) in enumerate([(-120, 90), (100, -140), (150, 130), (9000, 0)]):
            place = FIELD_DEG[0] + x / 3600 / np.cos(np.deg2rad(FIELD_DEG[1])), FIELD_DEG[1] + y / 3600
            r, v = state_at(*place, MJD + day, rng.uniform(1.5, 2.5), rng)
            (r,), (v,) = integrate(r[None], v[None], MJD + day, mjd)  # epochs of orbits are whole days
            entries.append((f"2026 F{number}{k}", elements_of(r, v, mjd), 13.0))
    return read_orbits(write_orbits(tmp_path / "MPCORB.DAT", entries))


def a_sky_with_a_fast_star(seed):
    """The sky, and which of its stars is as fast as Barnard's: one of middle brightness and alone."""
    sky = simulate_ccd(np.random.default_rng(seed), SHAPE, transients=0, noise=False).sky
    stars = sky.stars
    cos = np.cos(np.deg2rad(FIELD_DEG[1]))
    x, y = 3600 * cos * (stars.ra - FIELD_DEG[0]), 3600 * (stars.dec - FIELD_DEG[1])
    mag = stars.magnitude(INSTRUMENT, "r")
    crowd = [np.min(np.hypot(x - x[k], y - y[k])[(mag < 20) & (np.arange(len(x)) != k)]) for k in range(len(x))]
    good = (mag > 15.5) & (mag < 17.5) & (np.abs(x) < 190) & (np.abs(y) < 190)
    fast = int(np.argmax(np.where(good, crowd, 0.0)))
    years = Conditions(MJD, 45.0, 1.8).epoch_yr - 2016.0
    ra, pm_ra = stars.ra.copy(), stars.pm_ra.copy()
    ra[fast] -= MOTION_MAS_YR * years / 3.6e6 / cos  # where it is now it is alone
    pm_ra[fast] = MOTION_MAS_YR
    return replace(sky, stars=replace(stars, ra=ra, pm_ra=pm_ra)), fast


def shining(places):
    n = len(places)
    ra, dec = np.array(places, float).reshape(-1, 2).T
    zero, one = np.zeros(n), np.ones(n)
    return Transients(
        np.arange(n).astype(str), np.full(n, "hostless"), ra, dec, MAG * one, zero, np.full(n, -1), zero, one, MJD
    )


def frame(sky, places, mjd, seed, name):
    made = simulate_ccd(
        np.random.default_rng(seed), SHAPE, mjd=mjd, sky=replace(sky, transients=shining(places)),
        with_transients=bool(places), dither_px=(3.3, -1.2) if places else (0.0, 0.0), seeing_px=1.8,
    )  # fmt: skip
    info = replace(made.image.info, exposure=name)
    return RawCcd(info, made.image.data, flags=made.image.flags), made.catalog


class Survey:
    """A reference a year old, four frames with what moves on them, and their measurements."""

    def __init__(self, orbits, seed):
        self.orbits = orbits
        self.sky, self.fast = a_sky_with_a_fast_star(seed)
        ra, dec = FIELD_DEG
        self.transient = ra + TRANSIENT[0] / 3600 / np.cos(np.deg2rad(dec)), dec + TRANSIENT[1] / 3600
        raw, self.catalog = frame(self.sky, [], MJD - 365.25, seed + 1, "old")
        self.reference = as_reference(self.calibrated(raw))
        self.planets, self.frames = [], []
        for number, day in enumerate(EPOCHS):
            mjd = MJD + day
            truth = predicted(orbits, mjd + HALF_EXPOSURE_DAY, FIELD_DEG, 0.065, INSTRUMENT.site)
            self.planets.append(truth)
            places = [*zip(truth.ra, truth.dec, strict=True), self.transient]
            raw, _ = frame(self.sky, places, mjd, seed + 2 + number, f"ls4_{number}")
            self.frames.append(self.measured(self.calibrated(raw)))

    def calibrated(self, raw):
        return calibrate(raw, self.catalog, gaia_magnitude=INSTRUMENT.gaia_magnitude)

    def measured(self, c):
        difference = subtract(c.image, c.background, c.psf, c.wcs, c.zp, c.sources, self.reference)
        detections = detect(difference)
        cutouts = make_cutouts(detections, difference, c.image, c.background, self.reference)
        return difference, measure(detections, cutouts, difference, self.reference)

    def cone(self, *_place):
        return self.catalog

    def associate(self, database, orbits, catalog=None):
        """All frames, in their order."""
        self.catalog = catalog or self.catalog
        for difference, found in self.frames:
            known = identify(difference, found, self.reference, INSTRUMENT, self, orbits)
            associate_measurements(
                database, difference.info, found, scores(len(found.table)),
                provenance_id=PROVENANCES["associations"], identifications=known,
            )  # fmt: skip

    def fast_star(self, mjd):
        ra, dec = self.sky.stars.position(Conditions(mjd, 45.0, 1.8).epoch_yr)
        return ra[self.fast], dec[self.fast]


def near(items, ra, dec, radius_arcsec=4.0):
    return [item for item in items if 3600 * separation_deg(item.ra, item.dec, ra, dec) < radius_arcsec]


def labels(database):
    query = sa.select(IdentificationRow, MeasurementRow.exposure).join(
        MeasurementRow, MeasurementRow.id == IdentificationRow.measurement_id
    )
    with database.session() as session:
        return [(row.kind, row.name, exposure) for row, exposure in session.execute(query)]


def forget(database):
    with database.session() as session:
        session.execute(sa.text("truncate measurements, objects, object_name_max_used cascade"))


@pytest.mark.parametrize(
    "seed", [11, pytest.param(12, marks=pytest.mark.slow), pytest.param(13, marks=pytest.mark.slow)]
)
def test_what_moves_is_labelled_and_makes_no_object(database, orbits, seed):
    """Every planet on every frame; without orbits, or with a catalogue that knows no motion, they do make objects."""
    survey = Survey(orbits, seed)
    survey.associate(database, orbits)
    expected = {(str(name), f"ls4_{k}") for k, truth in enumerate(survey.planets) for name in truth.name}
    assert len(expected) == 12
    told = labels(database)
    assert {(name, exposure) for kind, name, exposure in told if kind == "minor_planet"} == expected
    made = objects(database)
    (item,) = near(made, *survey.transient)
    assert item.n_detections == len(EPOCHS)
    for truth in survey.planets:
        assert not [near(made, *place) for place in zip(truth.ra, truth.dec, strict=True) if near(made, *place)]
    stars = [survey.fast_star(MJD + day) for day in (-365.25, *EPOCHS)]
    assert not [place for place in stars if near(made, *place)]
    assert {exposure for kind, _, exposure in told if kind == "moving_star"} >= {f"ls4_{k}" for k in range(len(EPOCHS))}

    forget(database)
    still = survey.catalog.table.copy()
    still["pm_ra"] = 0.0
    survey.associate(database, None, replace(survey.catalog, table=still))
    made = objects(database)
    n_planets = sum(
        len(near(made, ra, dec, 2.0)) > 0 for t in survey.planets for ra, dec in zip(t.ra, t.dec, strict=True)
    )
    assert n_planets == 12
    assert near(made, *stars[1])
