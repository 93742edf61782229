"""The survey on disk: complete, reproducible, and true to its truth."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from seechange_assets.errors import ParameterError
from seechange_assets.instruments.base import get_instrument
from seechange_assets.products import wcs_from_text
from seechange_assets.simulation import simulate_survey
from tests.simulation.demo import demo_survey


def test_files_are_what_the_instrument_reads() -> None:
    survey, camera = demo_survey(), get_instrument("demo")
    exposures = [camera.read_exposure(path) for path in survey.raw]
    assert [e.key for e in exposures] == [survey.keys[path] for path in survey.raw]
    assert sorted(e.key for e in exposures) == [e.key for e in exposures]
    assert {e.project for e in exposures} == {"calibration", "reference", "survey"}
    assert {e.kind for e in exposures} == {"bias", "flat", "science"}


def test_same_seed_same_bytes_whatever_else_is_made(tmp_path: Path) -> None:
    survey = demo_survey()
    other = simulate_survey(
        tmp_path, seed=11, exposures=1, ccds=("01", "02"), instrument="demo", streaks=1, biases=1, flats=1
    )
    assert _digest(other.science[0]) == _digest(survey.science[0])
    different = simulate_survey(tmp_path, seed=12, exposures=1, ccds=("01", "02"), instrument="demo", biases=1, flats=1)
    assert _digest(different.science[0]) != _digest(survey.science[0])


def test_a_ccd_does_not_depend_on_the_others(tmp_path: Path) -> None:
    survey, camera = demo_survey(), get_instrument("demo")
    alone = simulate_survey(
        tmp_path, seed=11, exposures=1, ccds=("02",), instrument="demo", streaks=1, biases=1, flats=1
    )
    np.testing.assert_array_equal(
        camera.read_ccd(alone.science[0], "02").data, camera.read_ccd(survey.science[0], "02").data
    )


def test_truth_covers_the_range() -> None:
    truth = Table.read(demo_survey().truth)
    for ccd in ("01", "02"):
        rows = truth[truth["ccd"] == ccd]
        for key in set(rows["exposure"]):
            snr = rows["snr"][rows["exposure"] == key]
            assert ((snr > 3.5) & (snr < 120)).sum() >= 25
            assert snr.min() < 10 < 50 < snr.max()
    assert set(truth["kind"]) == {"hostless", "on_host", "variable"}
    assert truth["clean"].mean() > 0.6


def test_transients_shine_only_in_the_survey() -> None:
    """Aperture sums at the brightest hostless transients: there in the survey, nothing in the references."""
    survey, camera = demo_survey(), get_instrument("demo")
    truth = Table.read(survey.truth)
    rows = truth[(truth["exposure"] == survey.keys[survey.science[0]]) & (truth["ccd"] == "01")]
    rows = rows[rows["clean"] & (rows["kind"] == "hostless") & (rows["snr"] > 20)]
    new, ref = camera.read_ccd(survey.science[0], "01").data, camera.read_ccd(survey.references[0], "01").data
    assert len(rows) > 2
    for row in rows:
        ix, iy = round(row["x"]), round(row["y"])
        box, ring = (slice(iy - 3, iy + 4), slice(ix - 3, ix + 4)), (slice(iy - 9, iy + 10), slice(ix - 9, ix + 10))
        gained = (new[box] - np.median(new[ring])).sum() - (ref[box] - np.median(ref[ring])).sum()
        # The reference is dithered by some pixels: other stars may enter the box, the transient must not leave it.
        assert gained > 0.5 * row["flux"]


def test_catalog_matches_the_frame() -> None:
    """Catalogue stars land on bright pixels through the telescope's WCS, after its pointing error is taken out."""
    survey, camera = demo_survey(), get_instrument("demo")
    catalog = Table.read(survey.catalog)
    assert catalog.meta["EPOCH"] == 2016.0
    raw = camera.read_ccd(survey.science[0], "01")
    frame = raw.data[:, :512] - np.median(raw.data)
    bright = catalog[(catalog["mag_g"] < 18) & (catalog["mag_g"] > 14)]
    x, y = wcs_from_text(raw.info.wcs_guess).all_world2pix(bright["ra"], bright["dec"], 0)
    inside = (x > 20) & (x < 490) & (y > 20) & (y < 490)
    assert inside.sum() > 10
    shifts = range(-9, 10)
    sums = {
        (dx, dy): np.median(frame[np.rint(y[inside]).astype(int) + dy, np.rint(x[inside]).astype(int) + dx])
        for dx in shifts
        for dy in shifts
    }
    assert max(sums.values()) > 10 * np.median(list(sums.values())) + 100


def test_enough_stars_to_solve() -> None:
    survey, camera = demo_survey(), get_instrument("demo")
    catalog = Table.read(survey.catalog)
    for ccd in survey.ccds:
        guess = wcs_from_text(camera.read_ccd(survey.science[0], ccd).info.wcs_guess)
        x, y = guess.all_world2pix(catalog["ra"], catalog["dec"], 0)
        assert ((x > 0) & (x < 511) & (y > 0) & (y < 511)).sum() >= 60


@pytest.mark.parametrize("ccds", [("07",), ()])
def test_unknown_ccd(tmp_path: Path, ccds: tuple[str, ...]) -> None:
    with pytest.raises(ParameterError, match="unknown CCD"):
        simulate_survey(tmp_path, seed=1, exposures=1, ccds=ccds, instrument="demo")


def test_instrument_without_simulator(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no simulator"):
        simulate_survey(tmp_path, seed=1, exposures=1, ccds=("N1",), instrument="decam")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
