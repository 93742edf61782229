"""A kernel that varies over the field: its algebra, its convolution, and the subtraction made with it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from seechange_assets.science.matching_kernel import (
    MatchingKernel,
    convolve,
    kernels_at,
    sharper_side,
    subtract_with_kernel,
)
from seechange_assets.science.psf import polynomial_terms
from seechange_assets.science.zogy import response_stamp
from tests.science.varying_pairs import Seeing, blank, stamp, varying_pair

SHAPE = (300, 260)
SIDES = [(Seeing(4.4), Seeing(3.0)), (Seeing(3.0), Seeing(4.4))]


def _kernel(shape: tuple[int, int], side: str = "reference", sky: float = 0.0) -> MatchingKernel:
    """Sum 1.5 + 0.3 x' and a shape that follows y'."""
    basis = np.stack([stamp(1.2, 7), stamp(1.2, 7) - stamp(2.0, 7)])
    coefficients = np.array([[1.5, 0.3, 0.0], [0.1, 0.0, 0.4]])
    return MatchingKernel(side, basis, coefficients, 1, shape, np.array([sky, 0.0, 2.0]), 1)


def _exact(new: Seeing, reference: Seeing) -> MatchingKernel:
    """The kernel between two constant Gaussians."""
    width = np.sqrt(abs(new.fwhm_px**2 - reference.fwhm_px**2)) / np.sqrt(8 * np.log(2))
    side = "reference" if reference.fwhm_px < new.fwhm_px else "new"
    return MatchingKernel(side, stamp(width, 10)[None], np.ones((1, 1)), 0, SHAPE, np.zeros(1), 0)


def test_the_kernel_of_a_place() -> None:
    kernel = _kernel(SHAPE)
    terms = polynomial_terms(40.0, 200.0, 1, SHAPE)[0]
    expected = np.tensordot(terms, kernel.term_kernels(), axes=1)
    assert kernel.at(40, 200) == pytest.approx(expected, abs=1e-15)
    assert kernel.flux_scale(0, 50) == pytest.approx(1.2, abs=1e-9)
    assert kernel.flux_scale(SHAPE[1] - 1, 50) == pytest.approx(1.8, abs=1e-9)
    assert kernel.size == 15


def test_convolution_draws_the_kernel_of_each_place_and_the_sky() -> None:
    shape = (700, 130)  # two tiles
    image = np.zeros(shape, np.float32)
    places = [(20, 30), (100, 340), (64, 352), (30, 680)]
    for x, y in places:
        image[y, x] = 1000.0
    kernel = _kernel(shape, sky=5.0)
    result = convolve(image, kernel)
    yy, xx = np.indices(shape)
    terms = polynomial_terms(xx.ravel(), yy.ravel(), 1, shape)
    expected = (terms @ kernel.sky).reshape(shape)
    for x, y in places:
        window = np.s_[y - 7 : y + 8, x - 7 : x + 8]
        # Light lands where the kernel of the receiving pixel takes it from.
        for j, i in np.ndindex(15, 15):
            expected[window][j, i] += 1000 * kernel.at(x + i - 7, y + j - 7)[j, i]
    assert result.dtype == np.float32
    assert result == pytest.approx(expected, abs=2e-3)


def test_the_sharper_side_is_convolved() -> None:
    for new, reference in SIDES:
        _, psfs, _ = varying_pair(0, SHAPE, new, reference, n_stars=1)
        assert sharper_side(psfs, SHAPE) == ("reference" if reference.fwhm_px < new.fwhm_px else "new")


@pytest.mark.parametrize(("new", "reference"), SIDES)
def test_noise_and_fluxes_with_the_true_kernel(new: Seeing, reference: Seeing) -> None:
    ratios, pulls = [], []
    for seed in range(6):
        pair, psfs, truth = varying_pair(seed, SHAPE, new, reference, n_stars=20, n_transients=6)
        images = pair.new, pair.reference, pair.new_variance, pair.reference_variance
        result = subtract_with_kernel(*images, _exact(new, reference), psfs, 32)
        sky = blank(SHAPE, truth, 14)
        score = result.flux / np.sqrt(result.flux_variance)
        # About 1500 independent pixels: 2 % is one sigma.
        assert score[sky].std() == pytest.approx(1.0, abs=0.06)
        assert np.abs(score[20:-20, 20:-20][_far(truth.transients)[20:-20, 20:-20]]).max() < 5.5
        x, y, flux = truth.transients.T
        at = y.astype(int), x.astype(int)
        ratios.append(np.mean(result.flux[at] / flux))
        pulls += list((result.flux[at] - flux) / np.sqrt(result.flux_variance[at]))
    # S/N is about 100, so the mean of 36 is known to 0.2 %.
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.006)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.35)


def _far(transients: NDArray[np.float64]) -> NDArray[np.bool_]:
    yy, xx = np.indices(SHAPE)
    return np.all([(xx - x) ** 2 + (yy - y) ** 2 > 14.0**2 for x, y, _ in transients], axis=0)


@pytest.mark.parametrize(("new", "reference"), SIDES)
def test_the_difference_is_white_and_has_the_psf_that_is_told(new: Seeing, reference: Seeing) -> None:
    pair, psfs, _ = varying_pair(3, SHAPE, new, reference, n_stars=0)
    kernel = _exact(new, reference)
    images = pair.new, pair.reference, pair.new_variance, pair.reference_variance
    difference = subtract_with_kernel(*images, kernel, psfs, 32).difference
    neighbours = [np.mean(difference[:, k:] * difference[:, :-k]) / difference.var() for k in (1, 2)]
    assert np.abs(neighbours).max() < 0.02
    assert difference.std() == pytest.approx(np.hypot(20, 10), rel=0.02)
    one = np.zeros(SHAPE, np.float32)
    profile = stamp(new.fwhm_px / np.sqrt(8 * np.log(2)))
    one[135:166, 115:146] = 1e4 * profile
    seen = subtract_with_kernel(one, 0 * one, pair.new_variance, pair.reference_variance, kernel, psfs, 32).difference
    told = response_stamp(kernels_at(kernel, psfs), 130, 150, (400.0, 100.0), profile)
    assert told.sum() == pytest.approx(1.0, abs=2e-3)
    assert seen[135:166, 115:146] / 1e4 == pytest.approx(told, abs=3e-4)


def test_fluxes_are_those_of_the_new_image_where_the_kernel_changes_the_scale() -> None:
    new, reference = Seeing(3.0), Seeing(4.4)
    pair, psfs, _ = varying_pair(1, SHAPE, new, reference, n_stars=20, n_transients=6)
    exact = _exact(new, reference)
    twice = MatchingKernel("new", exact.basis, 2 * exact.coefficients, 0, SHAPE, exact.sky, 0)
    plain = subtract_with_kernel(pair.new, pair.reference, pair.new_variance, pair.reference_variance, exact, psfs, 32)
    scaled = subtract_with_kernel(
        pair.new, 2 * pair.reference, pair.new_variance, 4 * pair.reference_variance, twice, psfs, 32
    )
    for name in ("difference", "flux", "flux_new", "flux_variance"):
        first, second = getattr(plain, name), getattr(scaled, name)
        assert second == pytest.approx(first, abs=2e-4 * float(np.abs(first).max())), name
