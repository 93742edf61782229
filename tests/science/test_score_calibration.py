"""Noise of a subtraction where faint sources crowd, and the error of a flux that the PSF model makes."""

import numpy as np
import pytest

from seechange_assets.science.background import measure_background
from seechange_assets.science.matching_kernel import ImagePair
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.psf_photometry import unit_stamps
from seechange_assets.science.score_calibration import calibrated
from seechange_assets.science.sources import extract_sources
from seechange_assets.science.star_match import shape_noise
from seechange_assets.science.zogy import subtract_tiles
from tests.science.skies import make_sky, moffat_stamps
from tests.science.varying_pairs import stamp

SHAPE = (420, 400)
RMS = (20.0, 14.0)


def _crowded(seed: int, n_stars: int) -> ImagePair:
    """Stars of 0.5 to 5 sigma on pixels without photon noise of their own."""
    from scipy.signal import fftconvolve

    rng = np.random.default_rng(seed)
    light = np.zeros(SHAPE)
    flux_sigma = RMS[0] * np.sqrt(4 * np.pi) * 1.8
    np.add.at(light, tuple(rng.integers(0, n, n_stars) for n in SHAPE), flux_sigma * rng.uniform(0.5, 5, n_stars))
    images = [
        (fftconvolve(light, stamp(1.8), mode="same") + rng.normal(0, rms, SHAPE)).astype(np.float32) for rms in RMS
    ]
    variances = [np.full(SHAPE, rms**2, np.float32) for rms in RMS]
    return ImagePair(*images, *variances, np.zeros(SHAPE, np.uint16))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_stars", [0, 4000])
def test_faint_sources_do_not_make_the_sky_look_quiet(seed: int, n_stars: int) -> None:
    """Where both images have sources below any limit, the noise that is measured is that of the difference."""
    pair = _crowded(seed, n_stars)
    images = pair.new, pair.reference, pair.new_variance.copy(), pair.reference_variance.copy()
    raw = subtract_tiles(*images, lambda _x, _y: (stamp(1.8), stamp(1.8)), 32)
    score = calibrated(raw, pair, pair.flags, 0.0, 0.0, 1.0)["score"][20:-20, 20:-20]
    # Stars subtract exactly, so every pixel is blank; 3,000 independent ones leave 1.3 %.
    assert score.std() == pytest.approx(1.0, abs=0.03)


def test_the_error_of_fluxes_from_the_psf_model_is_known() -> None:
    """Noiseless stars measured with a PSF of noisy ones."""
    claimed, true = [], []
    side = np.arange(40, 660, 41.3)
    x, y = (axis.ravel() for axis in np.meshgrid(side, side))
    stars = moffat_stamps(x, y, np.full(x.size, 3.4), np.zeros(x.size), 20)[:, 11:30, 11:30]
    for seed in range(3):
        sky = make_sky(seed, shape=(700, 700), fwhm_px=3.4, n_stars=180, variation=0.0, ellipticity=0.0)
        background = measure_background(sky.image)
        sources = extract_sources(sky.image, background)
        psf = build_psf(sky.image, background, sources)
        model = unit_stamps(psf, x, y, 19, (np.floor(x + 0.5), np.floor(y + 0.5)))
        claimed.append(shape_noise(psf, sources))
        true.append(((stars * model).sum(axis=(1, 2)) / (model**2).sum(axis=(1, 2))).std())
    # A PSF has a handful of independent errors. Here it does not vary, and the model leans to that: the errors are
    # smaller than those of a free polynomial, by a factor of two.
    assert 0.7 < np.sqrt(np.mean(np.square(claimed)) / np.mean(np.square(true))) < 3.0
