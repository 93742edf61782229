"""Resampling: flux, position, windows, flags and the accuracy of the coarse map."""

import numpy as np
import pytest

from seechange_assets.products import Flag
from seechange_assets.science.warp import MAX_MAP_ERROR_PX, pixel_map, warp_image, warp_stamps
from tests.science.pairs import gaussian_star, rotated_wcs

SHAPE = (200, 240)


def _flat(value: float = 1.0) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def _no_flags() -> np.ndarray:
    return np.zeros(SHAPE, np.uint16)


@pytest.mark.parametrize("rotation_deg", [0.0, 0.3, 12.0])
def test_stars_keep_flux_and_land_where_the_sky_says(rotation_deg: float) -> None:
    source = rotated_wcs(SHAPE, rotation_deg=rotation_deg, shift_px=(3.3, -2.7))
    target = rotated_wcs(SHAPE)
    x, y = 120.4, 97.7
    image = gaussian_star(SHAPE, x, y, flux=1e4, sigma_px=1.6)
    data, _, _ = warp_image(image, _flat(), _no_flags(), source, target, SHAPE)
    expected = target.all_world2pix(*source.all_pix2world(x, y, 0), 0)
    yy, xx = np.indices(SHAPE)
    found = np.array([np.sum(data * xx), np.sum(data * yy)]) / data.sum()
    # Lanczos-3 keeps a star of FWHM 3.8 px to better than 1e-3 in flux and 0.01 px in position.
    assert data.sum() == pytest.approx(1e4, rel=1e-3)
    assert found == pytest.approx(np.array(expected, float).ravel(), abs=0.01)


def _sampled_stars(x: np.ndarray, y: np.ndarray, fwhm_px: float) -> np.ndarray:
    """Gaussian stars of flux 1e4 integrated over the pixels."""
    from scipy.special import erf

    edges_x, edges_y = np.arange(SHAPE[1] + 1) - 0.5, np.arange(SHAPE[0] + 1) - 0.5
    scale = np.sqrt(4 * np.log(2)) / fwhm_px
    along_x, along_y = (np.diff(erf(scale * (e - p[:, None]))) / 2 for e, p in ((edges_x, x), (edges_y, y)))
    return (1e4 * along_y.T @ along_x).astype(np.float32)


@pytest.mark.parametrize("fwhm_px", [1.6, 2.0, 2.5, 3.0])
def test_stars_of_any_sampling_keep_flux_and_place(fwhm_px: float) -> None:
    """Every phase of the pixel, a rotation and a shift: fluxes to 0.1 %, positions to 0.02 px."""
    rng = np.random.default_rng(3)
    x, y = (axis.ravel() + rng.uniform(-0.5, 0.5, axis.size) for axis in np.mgrid[40:210:28.0, 40:170:28.0])
    source, target = rotated_wcs(SHAPE, rotation_deg=0.4, shift_px=(3.3, -2.7)), rotated_wcs(SHAPE)
    data, _, _ = warp_image(_sampled_stars(x, y, fwhm_px), _flat(), _no_flags(), source, target, SHAPE)
    places = np.stack(target.all_world2pix(*source.all_pix2world(x, y, 0), 0), axis=1)
    offset = np.arange(-13, 14)
    for place in places:
        column, row = np.rint(place).astype(int)
        box = data[row - 13 : row + 14, column - 13 : column + 14].astype(float)
        assert box.sum() == pytest.approx(1e4, rel=1e-3)
        found = np.array([box.sum(axis=0) @ offset, box.sum(axis=1) @ offset]) / box.sum() + (column, row)
        assert found == pytest.approx(place, abs=0.02)


def test_flux_is_conserved_on_a_finer_grid() -> None:
    source, target = rotated_wcs(SHAPE), rotated_wcs(SHAPE, scale_arcsec=0.7)
    image = gaussian_star(SHAPE, 119.3, 100.2, flux=5e3, sigma_px=2.0)
    data, variance, _ = warp_image(image, _flat(4.0), _no_flags(), source, target, SHAPE)
    assert data.sum() == pytest.approx(5e3, rel=2e-3)
    assert variance[100, 120] == pytest.approx(4.0 * 0.49, rel=1e-3)


def test_windows_are_bit_identical_to_the_whole() -> None:
    rng = np.random.default_rng(5)
    source, target = rotated_wcs(SHAPE, rotation_deg=1.0, shift_px=(5.0, 4.0)), rotated_wcs(SHAPE)
    image = rng.normal(size=SHAPE).astype(np.float32)
    flags = (rng.random(SHAPE) < 0.02).astype(np.uint16)
    image[flags > 0] = np.nan
    whole = warp_image(image, _flat(), flags, source, target, SHAPE)
    corners = [(50, 60), (-7, 10), (230, 190)]
    stamps = warp_stamps(image, _flat(), flags, source, target, SHAPE, corners, 21)
    for plane, windows in zip(whole, stamps, strict=True):
        assert np.array_equal(windows[0], plane[60:81, 50:71])
        assert np.array_equal(windows[1][:, 7:], plane[10:31, :14])
        assert np.array_equal(windows[2][:10, :10], plane[190:, 230:])
    assert np.all(stamps[2][1][:, :7] & Flag.NO_DATA)


def test_flags_spread_to_the_pixels_they_touch_and_values_stay_sane() -> None:
    source, target = rotated_wcs(SHAPE, shift_px=(0.5, 0.5)), rotated_wcs(SHAPE)
    image, flags = _flat(10.0), _no_flags()
    image[80, 90], flags[80, 90] = np.nan, Flag.BAD
    data, _, warped = warp_image(image, _flat(), flags, source, target, SHAPE)
    touched = np.argwhere(warped[5:-5, 5:-5] & Flag.BAD)
    assert 4 <= len(touched) <= 16
    assert data[5:-5, 5:-5] == pytest.approx(10.0, abs=1e-4)


def test_outside_is_flagged_without_data() -> None:
    target = rotated_wcs(SHAPE)
    source = rotated_wcs(SHAPE, shift_px=(40.0, 0.0))
    data, variance, flags = warp_image(_flat(), _flat(), _no_flags(), source, target, SHAPE)
    outside = (flags & Flag.OUT_OF_BOUNDS) != 0
    assert outside.mean() == pytest.approx(40 / SHAPE[1], abs=1 / SHAPE[1])
    assert np.isinf(variance[outside]).all()
    assert not data[outside].any()


def test_identity_returns_the_image() -> None:
    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    wcs = rotated_wcs(SHAPE)
    data, _, flags = warp_image(image, _flat(), _no_flags(), wcs, wcs, SHAPE)
    assert data == pytest.approx(image, abs=2e-3)  # the phase is rounded to 1/4096 px
    assert not flags.any()


def test_map_of_a_distorted_wcs_is_accurate() -> None:
    source, target = rotated_wcs(SHAPE, sip=2e-6), rotated_wcs(SHAPE, rotation_deg=0.5)
    mapping = pixel_map(source, target, SHAPE)
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, SHAPE[1] - 1, 200), rng.uniform(0, SHAPE[0] - 1, 200)
    truth = np.stack(source.all_world2pix(*target.all_pix2world(x, y, 0), 0), axis=1)
    u, v = x / mapping.step_px, y / mapping.step_px
    i, j = u.astype(int), v.astype(int)
    fu, fv = (u - i)[:, None], (v - j)[:, None]
    nodes = mapping.nodes[..., :2]
    found = (1 - fv) * ((1 - fu) * nodes[j, i] + fu * nodes[j, i + 1])
    found += fv * ((1 - fu) * nodes[j + 1, i] + fu * nodes[j + 1, i + 1])
    assert np.abs(found - truth).max() < 2 * MAX_MAP_ERROR_PX
