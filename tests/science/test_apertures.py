"""Aperture sums against those of SEP, which are exact for circles."""

import numpy as np
import pytest

from seechange_assets.science.apertures import aperture_sums, kron_radii
from tests.kernels import ambiguous_kernels

SHAPE = (200, 240)


@pytest.fixture(scope="module")
def planes():
    rng = np.random.default_rng(1)
    y, x = np.indices(SHAPE)
    data = rng.normal(0, 1, SHAPE) + 300 * np.exp(-np.hypot(x - 120.3, y - 90.8) / 6.0)
    masked = rng.random(SHAPE) < 0.01
    return np.where(masked, 0, data).astype(np.float32), np.full(SHAPE, 1.3, np.float32), masked


@pytest.mark.parametrize(("radius_px", "tolerance"), [(0.8, 2e-3), (1.2, 1e-3), (2.0, 1e-3), (4.0, 1e-3), (11.3, 2e-4)])
def test_circles(planes, radius_px, tolerance):
    import sep

    data, rms, _ = planes
    clear = np.zeros(SHAPE, bool)
    rng = np.random.default_rng(2)
    x, y = 120.3 + rng.uniform(-3, 3, 200), 90.8 + rng.uniform(-3, 3, 200)
    exact, exact_err, _ = sep.sum_circle(data, x, y, radius_px, err=rms, gain=2.0, subpix=0)
    flux, error, cut = aperture_sums(data, rms, clear, x, y, (radius_px, radius_px, 0.0), gain=2.0)
    assert flux == pytest.approx(exact, rel=tolerance)
    assert error == pytest.approx(exact_err, rel=tolerance)
    assert not cut.any()


def test_ellipses_masks_and_borders(planes):
    import sep

    data, rms, masked = planes
    rng = np.random.default_rng(3)
    x, y, theta = 120.3 + rng.uniform(-3, 3, 100), 90.8 + rng.uniform(-3, 3, 100), rng.uniform(-1.5, 1.5, 100)
    major, minor = rng.uniform(6, 14, 100), rng.uniform(3, 6, 100)
    theirs, theirs_err, _ = sep.sum_ellipse(
        data, x, y, major, minor, theta, 1.0, err=rms, gain=2.0, mask=masked, subpix=31
    )
    flux, error, _ = aperture_sums(data, rms, masked, x, y, (major, minor, theta), gain=2.0)
    assert flux == pytest.approx(theirs, rel=3e-3)
    assert error == pytest.approx(theirs_err, rel=3e-3)
    radii, _ = sep.kron_radius(data, x, y, major / 3, minor / 3, theta, 5.0, mask=masked)
    assert kron_radii(data, masked, x, y, (major / 3, minor / 3, theta), 5.0) == pytest.approx(radii, rel=1e-6)
    border = np.array([1.0, 120.0, 236.0]), np.array([90.0, 90.0, 90.0])
    assert aperture_sums(data, rms, masked, *border, (5.0, 5.0, 0.0), gain=2.0)[2].tolist() == [True, False, True]


def test_nothing_usable_is_not_a_number(planes):
    data, rms, _ = planes
    flux, error, _ = aperture_sums(
        data, rms, np.ones(SHAPE, bool), np.array([50.0]), np.array([50.0]), (3.0, 3.0, 0.0), gain=2.0
    )
    assert np.isnan(flux).all()
    assert np.isnan(error).all()


def test_one_compiled_form_for_every_way_to_call():
    """What was compiled first must not decide about the last digit: numba uses a strided form for whole arrays too."""
    data, rms, masked = np.ones((30, 30), np.float32), np.ones((30, 30), np.float32), np.zeros((30, 30), bool)
    x = np.full(4, 15.0)
    for part in (3.0, np.full(4, 3.0), np.full(8, 3.0)[::2], np.broadcast_to(3.0, 4)):
        aperture_sums(data, rms, masked, x, x, (part, part, 0.0), gain=1.0)
        kron_radii(data, masked, x, x, (np.broadcast_to(part, 4),) * 3, 5.0)
    aperture_sums(data, rms, masked, x[:1], x[:1], (3.0, 3.0, 0.0), gain=1.0)
    assert ambiguous_kernels("seechange_assets.science.apertures") == []
