"""Completeness and purity of the whole chain, from two frames to scores, on pairs drawn by another simulator."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.spatial import cKDTree

from seechange_assets.discover.scores import ScoresParameters
from seechange_assets.realbogus.scores import score
from seechange_assets.science.cutouts import make_cutouts
from seechange_assets.science.detections import detect
from seechange_assets.science.difference import subtract
from seechange_assets.science.measurements import measure
from seechange_assets.science.subtract_pair import as_reference, calibrate
from tests.science.skies import moffat_stamps
from tests.science.truth_pairs import N_VARIABLE, SCENARIOS, Scenario, draw_pair

MATCH_PX = 4.0
FAINT_FLUX = (950.0, 1700.0)  # S/N 5 to 9 in these frames
# Not more, or they lie in rows (streaks to the detection) and on each other's stamps.
FAINT_PER_MEGAPIXEL = 25


@dataclass(frozen=True)
class Found:
    """S/N of the injected transients, whether each was scored real, and |score| of the kept that are nothing."""

    snr: np.ndarray
    is_found: np.ndarray
    kept_snr: np.ndarray
    bogus_snr: np.ndarray


def through_the_chain(scenario: Scenario, seed: int, side: int) -> Found:
    """A pair with its own bright transients and some faint ones, calibrated, subtracted, measured, scored."""
    rng = np.random.default_rng(seed)
    truth, new, reference = draw_pair(scenario, rng, side)
    n = int(FAINT_PER_MEGAPIXEL * side**2 / 1e6)
    x, y = rng.uniform(30, side - 30, (2, n))
    flux = rng.uniform(*FAINT_FLUX, n)
    _inject(new.data, scenario, x, y, flux)
    x, y = np.r_[truth.transient_x, x], np.r_[truth.transient_y, y]
    flux = np.r_[truth.transient_flux, flux]
    c, old = calibrate(new, None), as_reference(calibrate(reference, None))
    difference = subtract(c.image, c.background, c.psf, c.wcs, c.zp, c.sources, old)
    detections = detect(difference)
    cutouts = make_cutouts(detections, difference, c.image, c.background, old)
    measurements = measure(detections, cutouts, difference, old)
    is_real = np.asarray(score(cutouts, measurements, **ScoresParameters().arguments()).table["is_real"])
    kept = measurements.table[is_real]
    places = np.stack([kept["x"], kept["y"]], axis=1)
    changed = np.stack([np.r_[x, truth.x[:N_VARIABLE]], np.r_[y, truth.y[:N_VARIABLE]]], axis=1)
    is_nothing = cKDTree(changed).query(places)[0] > MATCH_PX
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    # What another transient's light covers is no test of the classifier.
    alone = cKDTree(changed).query(np.stack([x, y], axis=1), k=2)[0][:, 1] > 3.5 * scenario.fwhm_new
    usable = alone & (difference.flags[row, column] == 0)
    found = cKDTree(places).query(np.stack([x, y], axis=1))[0] < MATCH_PX
    kept_snr = np.abs(np.asarray(kept["score"]))
    snr = flux / difference.flux_err[row, column]
    return Found(snr[usable], found[usable], kept_snr[~is_nothing], kept_snr[is_nothing])


def _inject(data, scenario, x, y, flux):
    """Add point sources to a frame of `draw_pair`; their own photon noise is nothing beside the sky's."""
    side, half = data.shape[0], 20
    u, v = 2 * x / side - 1, 2 * y / side - 1
    width = scenario.fwhm_new * (1 + 0.075 * (np.cos(0.3) * u + np.sin(0.3) * v))
    stamps = moffat_stamps(x, y, width, np.zeros(x.size), half) * flux[:, None, None]
    for column, row, stamp in zip(np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int), stamps, strict=True):
        data[row - half : row + half + 1, column - half : column + half + 1] += stamp


def _check(name: str, found: list[Found], n_sigma: float) -> None:
    snr, is_found, kept, bogus = (
        np.concatenate([getattr(f, name) for f in found]) for name in ("snr", "is_found", "kept_snr", "bogus_snr")
    )
    clear = snr >= 6
    completeness = is_found[clear].mean()
    purity = (kept >= 6).sum() / max((kept >= 6).sum() + (bogus >= 6).sum(), 1)
    near = {name: is_found[(snr >= a) & (snr < b)] for name, a, b in (("5.5-6.5", 5.5, 6.5), ("6-7", 6, 7))}
    lines = [f"S/N {name}: {values.mean():.3f} of {values.size}" for name, values in near.items() if values.size]
    sys.stdout.write(
        f"\n{len(found)} pairs: {clear.sum()} transients of S/N > 6, completeness {completeness:.3f}, "
        f"purity {purity:.4f}, bogus per image {bogus.size / len(found):.2f}; {'; '.join(lines)}\n"
    )
    assert completeness >= 0.90 - n_sigma * np.sqrt(0.9 * 0.1 / clear.sum())
    assert purity >= 0.95
    # Half a bogus per image is asked for on ordinary pairs; these are made hard on purpose, but for the first.
    allowed = (0.5 if name == "reference sharper" else 2.0) * len(found)
    assert bogus.size <= allowed + n_sigma * np.sqrt(allowed)


@pytest.mark.parametrize("name", SCENARIOS)
def test_completeness_and_purity(name):
    _check(name, [through_the_chain(SCENARIOS[name], 61, 900)], 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_completeness_and_purity_over_seeds(name):
    _check(name, [through_the_chain(SCENARIOS[name], seed, 1400) for seed in (71, 72, 73)], 0.0)
