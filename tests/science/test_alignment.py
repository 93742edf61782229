"""Registration star to star: accuracy, few stars, outliers, equal headers."""

import numpy as np
import pytest
from astropy.wcs import WCS

from seechange_assets.products import Sources, wcs_from_text
from seechange_assets.science.alignment import align
from tests.science.pairs import observe, rotated_wcs, star_field, wcs_text

SHAPE = (400, 500)


def _error_px(header: str, truth: WCS) -> float:
    """Largest distance between a WCS and the truth over the frame [pixel]."""
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, SHAPE[1], 8), np.linspace(0, SHAPE[0], 8)))
    found = truth.all_world2pix(*wcs_from_text(header).all_pix2world(x, y, 0), 0)
    return float(np.hypot(found[0] - x, found[1] - y).max())


def _wrong(wcs: WCS, shift: tuple[float, float], rotation_deg: float = 0.0) -> str:
    """The header of `wcs` with an error of pointing and angle."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = moved.wcs.crpix + np.array(shift)
    c, s = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    moved.wcs.cd = moved.wcs.cd @ np.array([[c, -s], [s, c]])
    return wcs_text(moved)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sip", [0.0, 1e-6])
def test_recovers_a_linear_error(seed: int, sip: float) -> None:
    rng = np.random.default_rng(seed)
    scene = star_field(rng, SHAPE, 150)
    truth = rotated_wcs(SHAPE, rotation_deg=0.2, shift_px=(9.0, -5.0), sip=sip)
    new = observe(rng, scene, rotated_wcs(SHAPE), SHAPE)
    reference = observe(rng, scene, truth, SHAPE)
    result = align(reference.sources, _wrong(truth, (0.8, -0.6), 0.03), new.sources, new.wcs.header)
    assert result.n_stars > 80
    # 100 stars of 0.02-0.2 px each leave about 0.01 px, somewhat more in the corners.
    assert _error_px(result.header, truth) < 0.05
    assert result.noise_px < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_few_stars_give_a_shift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = star_field(rng, SHAPE, 6, (2e4, 5e4))
    truth = rotated_wcs(SHAPE)
    new, reference = (observe(rng, scene, truth, SHAPE) for _ in range(2))
    result = align(reference.sources, _wrong(truth, (0.7, 0.4)), new.sources, new.wcs.header)
    assert 3 <= result.n_stars <= 6
    assert _error_px(result.header, truth) < 0.1


def test_equal_headers_need_no_correction() -> None:
    rng = np.random.default_rng(4)
    scene, truth = star_field(rng, SHAPE, 60), rotated_wcs(SHAPE)
    new, reference = (observe(rng, scene, truth, SHAPE) for _ in range(2))
    result = align(reference.sources, reference.wcs.header, new.sources, new.wcs.header)
    assert _error_px(result.header, truth) < 0.05


def test_no_common_stars_keeps_the_header() -> None:
    rng = np.random.default_rng(4)
    truth = rotated_wcs(SHAPE)
    new = observe(rng, star_field(rng, SHAPE, 30), truth, SHAPE)
    empty = Sources(new.sources.table[:0], (), 3.5)
    result = align(empty, wcs_text(truth), new.sources, new.wcs.header)
    assert result.header == wcs_text(truth)
    assert result.n_stars == 0
    assert np.isnan(result.noise_px)


def test_moved_stars_do_not_pull_the_fit() -> None:
    rng = np.random.default_rng(7)
    scene, truth = star_field(rng, SHAPE, 120), rotated_wcs(SHAPE)
    new, reference = (observe(rng, scene, truth, SHAPE) for _ in range(2))
    reference.sources.table["x"][::10] += 1.2
    result = align(reference.sources, reference.wcs.header, new.sources, new.wcs.header)
    assert _error_px(result.header, truth) < 0.05
