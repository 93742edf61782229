"""Proper subtraction of synthetic tiles: noise, photometry, optimality, tiling."""

import numpy as np
import pytest
from numpy.typing import NDArray

from seechange_assets.science.psf import gaussian_psf, render
from seechange_assets.science.zogy import FFT_SIZE, kernels_of, response_stamp, subtract_tile, subtract_tiles, tiles

SHAPE = (300, 260)


def _stamp(fwhm_px: float) -> NDArray[np.float64]:
    return render(gaussian_psf(fwhm_px, SHAPE, 31), 100.0, 100.0, 31)[0]


def _sky(rng: np.random.Generator, x: NDArray, y: NDArray, flux: NDArray, stamp: NDArray, rms: float, gain: float):
    """Noisy image and its variance, stars on pixel centres."""
    image = np.zeros(SHAPE)
    for xs, ys, f in zip(x, y, flux, strict=True):
        image[ys - 15 : ys + 16, xs - 15 : xs + 16] += f * stamp
    variance = rms**2 + image / gain
    return (image + rng.normal(size=SHAPE) * np.sqrt(variance)).astype(np.float32), variance.astype(np.float32)


def _pair(seed: int, n: int = 40, transient: float = 0.0, fwhm: tuple[float, float] = (4.2, 3.0)):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(20, SHAPE[1] - 20, n), rng.integers(20, SHAPE[0] - 20, n)
    x[0], y[0] = 130, 150
    flux = 10 ** rng.uniform(3, 5.5, n)
    p_n, p_r = _stamp(fwhm[0]), _stamp(fwhm[1])
    flux[0] = transient
    new, new_variance = _sky(rng, x, y, flux, p_n, 20.0, 1.5)
    flux[0] = 0.0
    reference, reference_variance = _sky(rng, x, y, flux, p_r, 8.0, 8.0)
    return (new, reference, new_variance, reference_variance, p_n, p_r), (x, y, flux)


@pytest.mark.parametrize("fwhm", [(4.2, 3.0), (2.8, 4.0), (3.3, 3.3), (2.0, 2.4)])
@pytest.mark.parametrize("seed", range(3))
def test_score_has_unit_noise_on_sky_and_on_stars(seed: int, fwhm: tuple[float, float]) -> None:
    arguments, (x, y, _) = _pair(seed, fwhm=fwhm)
    result = subtract_tile(*arguments)
    score = result.flux / np.sqrt(result.flux_variance)
    # 78000 pixels, about 3000 independent: the scatter of the scatter is 1.3 %.
    assert score.std() == pytest.approx(1.0, abs=0.05)
    assert abs(score.mean()) < 0.1
    assert score[y, x].std() == pytest.approx(1.0, abs=0.4)
    assert np.abs(score).max() < 5.5


def test_difference_is_white_with_the_sum_of_the_noises() -> None:
    arguments, _ = _pair(1, n=1)
    difference = subtract_tile(*arguments).difference
    assert difference.std() == pytest.approx(np.hypot(20, 8), rel=0.02)
    neighbours = np.mean(difference[:, 1:] * difference[:, :-1]) / difference.var()
    assert abs(neighbours) < 0.02


def test_transient_flux_and_significance() -> None:
    pulls, scores = [], []
    for seed in range(12):
        arguments, _ = _pair(seed, n=15, transient=5000.0)
        result = subtract_tile(*arguments)
        flux, error = result.flux[150, 130], np.sqrt(result.flux_variance[150, 130])
        pulls.append((flux - 5000.0) / error)
        scores.append(flux / error)
    stamp = _stamp(4.2)
    # The best any filter can do with a perfect reference, for this flux and noise.
    ideal = 1 / np.sqrt(np.sum(stamp**2 / (20.0**2 + 8.0**2)) ** -1 + 5000 / 1.5)
    assert np.mean(pulls) == pytest.approx(0.0, abs=3 / np.sqrt(12))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.6)
    assert np.mean(scores) == pytest.approx(5000 * ideal, rel=0.2)


def test_difference_psf_is_that_of_a_noiseless_transient() -> None:
    p_n, p_r = _stamp(4.2), _stamp(3.0)
    empty, flat = np.zeros((96, 96), np.float32), np.ones((96, 96), np.float32)
    new = empty.copy()
    new[33:64, 33:64] = 1000 * p_n
    difference = subtract_tile(new, empty, 400 * flat, 64 * flat, p_n, p_r).difference
    model = response_stamp(kernels_of("zogy", lambda _x, _y: (p_n, p_r)), 0.0, 0.0, (400.0, 64.0), p_n)
    assert model.sum() == pytest.approx(1.0, abs=1e-3)
    assert difference[33:64, 33:64] / 1000 == pytest.approx(model, abs=2e-4)


def test_tiles_cover_every_pixel_once() -> None:
    covered = np.zeros((1500, 700), int)
    for tile in tiles(covered.shape, 40):
        covered[tile.inner] += 1
        assert tile.outer[0].stop - tile.outer[0].start <= FFT_SIZE
    assert (covered == 1).all()


def test_tiled_equals_whole() -> None:
    arguments, _ = _pair(2)
    arrays, (p_n, p_r) = arguments[:4], arguments[4:]
    tiled = subtract_tiles(*arrays, lambda x, y: (p_n, p_r), 32)
    whole = subtract_tile(*arrays, p_n, p_r)
    inside = np.s_[40:-40, 40:-40]
    assert tiled.flux[inside] == pytest.approx(whole.flux[inside], abs=0.5)  # noise of a flux is about 130


def test_mirrored_edges_subtract_stars_on_the_border() -> None:
    flat, p_n, p_r = np.ones(SHAPE, np.float32), _stamp(4.2), _stamp(3.0)
    yy, xx = np.indices(SHAPE)

    def star(fwhm: float) -> NDArray[np.float32]:
        s = fwhm / 2.3548
        return (1e5 / (2 * np.pi * s**2) * np.exp(-0.5 * ((xx + 0.5) ** 2 + (yy - 150) ** 2) / s**2)).astype(np.float32)

    result = subtract_tiles(star(4.2), star(3.0), 400 * flat, 64 * flat, lambda x, y: (p_n, p_r), 32)
    assert np.abs(result.flux).max() < 300  # of 1e5


def test_direct_leaves_rings_that_zogy_does_not() -> None:
    arguments, _ = _pair(3)
    direct, proper = subtract_tile(*arguments, method="direct"), subtract_tile(*arguments)
    ratio = [np.abs(r.flux / np.sqrt(r.flux_variance)).max() for r in (direct, proper)]
    assert ratio[0] > 5 * ratio[1]
