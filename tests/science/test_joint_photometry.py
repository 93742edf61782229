"""PSF photometry of many sources together, and the sources that it finds beside them."""

import numpy as np
import pytest

from seechange_assets.science.joint_photometry import Frame, joint_photometry
from seechange_assets.science.psf import moffat_psf, native_size, render
from seechange_assets.science.unseen_sources import unseen_sources

SHAPE, NOISE, GAIN = (300, 320), 10.0, 2.0


def crowd(seed, n=400, fwhm_px=2.5, masked=0.0):
    """A frame of stars drawn with the PSF itself, some of them over the border; PSF, positions, fluxes."""
    rng = np.random.default_rng(seed)
    psf = moffat_psf(fwhm_px, 3.0, SHAPE)
    x, y = rng.uniform(-2, SHAPE[1] + 1, n), rng.uniform(-2, SHAPE[0] + 1, n)
    flux = 10 ** rng.uniform(3.3, 5.5, n)
    half = native_size(psf) // 2
    data = np.zeros((SHAPE[0] + 4 * half, SHAPE[1] + 4 * half))
    for stamp, f, row, column in zip(render(psf, x, y), flux, np.floor(y + 0.5), np.floor(x + 0.5), strict=True):
        low_y, low_x = int(row) + half, int(column) + half
        data[low_y : low_y + 2 * half + 1, low_x : low_x + 2 * half + 1] += f * stamp
    data = data[2 * half : -2 * half, 2 * half : -2 * half]
    data = (data + rng.normal(0, np.sqrt(NOISE**2 + data / GAIN))).astype(np.float32)
    usable = rng.random(SHAPE) >= masked
    rms = np.full(SHAPE, NOISE, np.float32)
    weight = np.where(usable, 1.0 / rms**2, 0.0).astype(np.float32)
    return Frame(np.where(usable, data, 0.0).astype(np.float32), rms, weight, usable, GAIN, 64), psf, x, y, flux


@pytest.mark.parametrize("masked", [0.0, 0.05])
def test_fluxes_in_a_crowd(masked):
    frame, psf, x, y, flux = crowd(1, masked=masked)
    fit = joint_photometry(psf, frame, x, y, sweeps=10)
    inside = (x > 3) & (x < SHAPE[1] - 4) & (y > 3) & (y < SHAPE[0] - 4) & np.isfinite(fit.flux)
    pulls = (fit.flux - flux)[inside] / fit.flux_err[inside]
    # The errors are those of single stars; the fluxes of close pairs scatter more.
    assert 0.9 < 1.4826 * np.median(np.abs(pulls)) < 1.3
    assert abs(np.median(pulls)) < 0.2
    assert np.median(fit.chi2[inside]) == pytest.approx(1.0, abs=0.1)


def test_going_on_from_an_earlier_fit_ends_at_the_same_fluxes():
    frame, psf, x, y, _ = crowd(2)
    some = joint_photometry(psf, frame, x[:300], y[:300])
    warm = joint_photometry(psf, frame, x, y, sweeps=30, start=some)
    cold = joint_photometry(psf, frame, x, y, sweeps=30)
    known = np.isfinite(cold.flux)
    assert (known == np.isfinite(warm.flux)).all()
    # Sweeps share the light of two stars in one place among them as they start.
    apart = known & (np.sort(np.hypot(x[:, None] - x, y[:, None] - y), axis=1)[:, 1] > psf.fwhm_px)
    assert np.abs(warm.flux - cold.flux)[apart].max() < 0.1 * np.nanmin(cold.flux_err)
    assert (warm.stamps == cold.stamps).all()


def test_unseen_sources_are_found_only_where_they_are_wanted():
    frame, psf, x, y, flux = crowd(3, n=200)
    hidden = np.flatnonzero((flux > 2e4) & (x > 20) & (x < 300) & (y > 20) & (y < 280))[:20]
    known = np.setdiff1d(np.arange(x.size), hidden)
    fit = joint_photometry(psf, frame, x[known], y[known])
    found = np.stack(unseen_sources(psf, frame, fit, x[known], y[known]), axis=1)
    distance = np.hypot(*(found[:, None] - np.stack([x[hidden], y[hidden]], axis=1)[None]).T)
    # Some lie too close to a known star to be told apart.
    assert (distance.min(axis=1) < 0.5).mean() > 0.75
    near = np.stack(unseen_sources(psf, frame, fit, x[known], y[known], (x[hidden[:1]], y[hidden[:1]])), axis=1)
    assert 0 < len(near) < len(found)
    assert np.abs(near - [x[hidden[0]], y[hidden[0]]]).max() < native_size(psf) + 1
