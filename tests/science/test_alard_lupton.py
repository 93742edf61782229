"""The fitted kernel of Gaussians: what it leaves of stars, its noise, and what it does when stars are few."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.science.alard_lupton import MIN_STARS, fit_gaussian_kernel
from seechange_assets.science.gaussian_basis import BASIS_DEGREES, gaussian_basis
from seechange_assets.science.matching_kernel import ImagePair, MatchingKernel, subtract_with_kernel
from seechange_assets.science.zogy import PsfPair, Subtraction
from tests.science.varying_pairs import Seeing, Truth, blank, varying_pair

SHAPE = (520, 480)
#: Seeing worse and better than that of the reference, alike, and far apart; both vary by 15 %, in opposite senses.
SEEINGS = [
    (Seeing(4.2, 0.15), Seeing(3.2, -0.15)),
    (Seeing(3.2, -0.15), Seeing(4.2, 0.15)),
    (Seeing(3.6, 0.05), Seeing(3.6, -0.05)),
    (Seeing(6.0, 0.1), Seeing(3.0)),
]


def _images(pair: ImagePair) -> tuple[NDArray[np.float32], ...]:
    return pair.new, pair.reference, pair.new_variance, pair.reference_variance


def _subtracted(pair: ImagePair, psfs: PsfPair, truth: Truth) -> tuple[Subtraction, MatchingKernel]:
    kernel = fit_gaussian_kernel(pair, psfs, truth.stars[:, :2])
    return subtract_with_kernel(*_images(pair), kernel, psfs, 32), kernel


def _at(image: NDArray[np.float32], sources: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(image[sources[:, 1].astype(int), sources[:, 0].astype(int)], float)


def test_all_kernels_but_the_first_move_light_only() -> None:
    basis = gaussian_basis(1.4, 1.9)
    sums = basis.kernels().sum(axis=(1, 2))
    assert sums[0] == pytest.approx(1.0)
    assert sums[1:] == pytest.approx(0.0, abs=1e-9)
    for degrees in BASIS_DEGREES:
        assert basis.subset(degrees)[0] == 0
    assert np.linalg.matrix_rank(basis.kernels().reshape(len(sums), -1)) == len(sums)


@pytest.mark.parametrize(("new", "reference"), SEEINGS)
def test_unit_noise_and_no_stars_where_psfs_vary(new: Seeing, reference: Seeing) -> None:
    left, spread = [], []
    for seed in range(3):
        pair, psfs, truth = varying_pair(seed, SHAPE, new, reference, n_stars=80)
        result, _ = _subtracted(pair, psfs, truth)
        score = result.flux / np.sqrt(result.flux_variance)
        spread.append(score[blank(SHAPE, truth, 3.5 * new.fwhm_px)].std())
        left += list(_at(result.flux, truth.stars[:10]) / truth.stars[:10, 2])
    assert np.mean(spread) == pytest.approx(1.0, abs=0.03)
    # The ten brightest stars have S/N of several hundred.
    assert np.median(np.abs(left)) < 0.01
    assert np.max(np.abs(left)) < 0.05


@pytest.mark.parametrize(("new", "reference"), SEEINGS)
def test_fluxes_of_transients_are_true(new: Seeing, reference: Seeing) -> None:
    """The PSFs vary over this one tile as they do over a tile of a CCD; the kernel follows, the filter is one."""
    gentle = [replace(seeing, change=seeing.change / 4) for seeing in (new, reference)]
    ratios: list[float] = []
    for seed in range(3):
        pair, psfs, truth = varying_pair(seed, SHAPE, *gentle, n_stars=80, n_transients=8)
        result, _ = _subtracted(pair, psfs, truth)
        ratios += list(_at(result.flux, truth.transients) / truth.transients[:, 2])
    # S/N of a transient is 50 to 90: the median of 24 is known to 0.4 %.
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)


def test_noise_of_the_convolved_image_does_not_shrink_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference four times as noisy as usual: plain least squares loses half a per cent, most of it comes back."""
    pairs = [
        varying_pair(seed, SHAPE, Seeing(4.0), Seeing(3.2), n_stars=60, sky_rms=(10.0, 80.0), faintest=1e4)
        for seed in range(12)
    ]

    def mean_sum() -> float:
        kernels = [fit_gaussian_kernel(pair, psfs, truth.stars[:, :2]) for pair, psfs, truth in pairs]
        return float(np.mean([kernel.flux_scale(200, 200) for kernel in kernels]))

    corrected = mean_sum()
    monkeypatch.setattr("seechange_assets.science.alard_lupton._LEAST_SIGNAL", 1.0)
    plain = mean_sum()
    # The mean of 12 is known to 0.1 %; what the correction changes, on the same images, much better.
    assert corrected == pytest.approx(1.0, abs=0.005)
    assert corrected - plain > 0.001


def test_a_variable_star_is_left_out() -> None:
    """The brightest star, 30 % brighter in one image, stays in the difference at its full change."""
    pair, psfs, truth = varying_pair(5, SHAPE, *SEEINGS[0], n_stars=60, variable=0.3)
    result, kernel = _subtracted(pair, psfs, truth)
    assert kernel.flux_scale(200, 200) == pytest.approx(1.0, abs=0.02)
    assert _at(result.flux, truth.stars[:1])[0] / truth.stars[0, 2] == pytest.approx(0.3, abs=0.02)


def test_sky_between_the_images_is_fitted() -> None:
    pair, psfs, truth = varying_pair(6, SHAPE, *SEEINGS[0], n_stars=60)
    lifted = replace(pair, new=pair.new + np.float32(7))
    plain, raised = (fit_gaussian_kernel(p, psfs, truth.stars[:, :2]) for p in (pair, lifted))
    assert raised.sky[0] - plain.sky[0] == pytest.approx(7.0, abs=1e-2)
    assert raised.coefficients == pytest.approx(plain.coefficients, abs=1e-3)


def test_few_stars_make_a_stiff_kernel() -> None:
    pair, psfs, truth = varying_pair(7, SHAPE, *SEEINGS[0], n_stars=80)
    many, few, least = (fit_gaussian_kernel(pair, psfs, truth.stars[:n, :2]) for n in (80, 10, MIN_STARS))
    assert many.degree >= 1
    assert few.degree == least.degree == 0
    assert few.coefficients.size < many.coefficients.size
    for kernel in (few, least):
        assert kernel.flux_scale(200, 200) == pytest.approx(1.0, abs=0.03)


def test_masked_and_cut_stars_do_not_count() -> None:
    pair, psfs, truth = varying_pair(8, SHAPE, *SEEINGS[0], n_stars=60)
    x, y = truth.stars[0, :2].astype(int)
    new, flags = pair.new.copy(), pair.flags.copy()
    new[y - 2 : y + 3, x - 2 : x + 3], flags[y - 2 : y + 3, x - 2 : x + 3] = 6e4, 4
    damaged = replace(pair, new=new, flags=flags)
    beyond = np.concatenate([[[0.0, 0.0], [-30.0, 5.0], [1e6, 1e6]], truth.stars[:, :2]])
    kernel = fit_gaussian_kernel(damaged, psfs, beyond)
    without = fit_gaussian_kernel(pair, psfs, truth.stars[1:, :2])
    assert kernel.flux_scale(200, 200) == pytest.approx(without.flux_scale(200, 200), abs=0.002)


def test_refuses_what_cannot_be_matched() -> None:
    pair, psfs, truth = varying_pair(9, SHAPE, *SEEINGS[0], n_stars=30)
    places = truth.stars[:, :2]
    with pytest.raises(ReferenceUnusable, match="frame 7: 2 sources"):
        fit_gaussian_kernel(pair, psfs, places[: MIN_STARS - 1], "frame 7")
    with pytest.raises(ReferenceUnusable, match="0 sources"):
        fit_gaussian_kernel(replace(pair, flags=np.ones(SHAPE, np.uint16)), psfs, places)
    empty = np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
    with pytest.raises(ReferenceUnusable, match="do not show the same sources"):
        fit_gaussian_kernel(replace(pair, new=empty), psfs, places)


def test_same_input_same_kernel() -> None:
    pair, psfs, truth = varying_pair(10, SHAPE, *SEEINGS[1], n_stars=60)
    first, second = (fit_gaussian_kernel(pair, psfs, truth.stars[:, :2]) for _ in range(2))
    assert np.array_equal(first.coefficients, second.coefficients)
    assert np.array_equal(first.sky, second.sky)


@pytest.mark.slow
@pytest.mark.parametrize(("new", "reference"), SEEINGS)
def test_large_field_with_many_stars(new: Seeing, reference: Seeing) -> None:
    """2 million pixels, ten times the stars: no degradation where fields are crowded."""
    shape = (1400, 1400)
    for seed in (100, 101, 102):
        pair, psfs, truth = varying_pair(seed, shape, new, reference, n_stars=2500, n_transients=40)
        result, _ = _subtracted(pair, psfs, truth)
        score = result.flux / np.sqrt(result.flux_variance)
        assert score[blank(shape, truth, 2 * new.fwhm_px)].std() == pytest.approx(1.0, abs=0.03)
        ratio = _at(result.flux, truth.transients) / truth.transients[:, 2]
        # S/N of at least 50: the median of 40 is known to 0.4 %.
        assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
        left = _at(result.flux, truth.stars[:100]) / truth.stars[:100, 2]
        assert np.median(np.abs(left)) < 0.01
