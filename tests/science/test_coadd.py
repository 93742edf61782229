"""Coadds: depth, blemishes, masks, and that stars keep flux and shape."""

from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import CalibratedImage, Flag
from seechange_assets.science.coadd import build_reference, coadd
from tests.science.pairs import Observation, observe, rotated_wcs, star_field

SHAPE = (300, 320)
SHIFTS = [(0.0, 0.0), (4.3, -3.1), (-6.2, 2.7), (2.5, 7.9), (-3.4, -5.6)]


def _inputs(seed: int, n: int = 5, fwhm_px: tuple[float, ...] = (3.4, 3.1, 3.8, 4.2, 3.6)) -> list[CalibratedImage]:
    rng = np.random.default_rng(seed)
    scene = star_field(rng, SHAPE, 70)
    grids = [rotated_wcs(SHAPE, shift_px=shift) for shift in SHIFTS]
    observations = [
        observe(rng, scene, grids[k], SHAPE, fwhm_px=fwhm_px[k], zp=25 + 0.2 * k, exposure=f"sim_{k}") for k in range(n)
    ]
    return [_input(observation) for observation in observations]


def _input(o: Observation) -> CalibratedImage:
    return CalibratedImage(o.image, o.background, o.sources, o.psf, o.wcs, o.zp)


@pytest.mark.parametrize("seed", range(3))
def test_noise_falls_and_the_variance_says_so(seed: int) -> None:
    inputs = _inputs(seed)
    result = coadd(inputs)
    assert result.base == 1  # the sharpest
    blank = (result.flags == 0) & (result.n_inputs == 5) & _away_from_stars(inputs[1])
    # Resampling correlates neighbours; on 8 x 8 pixel sums the variance must hold again.
    sums, count = _block_sums(np.where(blank, result.data, np.nan), 8)
    expected = np.sqrt(np.median(result.variance[blank]) * 64)
    assert np.std(sums) == pytest.approx(expected, rel=4 / np.sqrt(2 * count))
    assert np.median(result.variance[blank]) < 0.35 * 20**2 * 10**0.16


def test_streak_and_cosmic_rays_leave_no_trace() -> None:
    clean = _inputs(5)
    dirty = list(clean)
    data = clean[2].image.data.copy()
    rows = np.arange(SHAPE[0])
    for width in (-1, 0, 1):
        data[rows, np.clip(rows + width, 0, SHAPE[1] - 1)] += 400.0
    data[50:53, 200] += 5000.0
    dirty[2] = replace(clean[2], image=replace(clean[2].image, data=data))
    reference, result = coadd(clean), coadd(dirty)
    # Near stars the clipping is lenient, because they differ by seeing.
    both = (reference.n_inputs > 3) & (result.n_inputs > 2) & _away_from_stars(clean[1])
    deviation = (result.data - reference.data)[both] / np.sqrt(result.variance[both])
    # Pixels beside the streak that stay below the clipping limit may carry up to 4 sigma of one in five.
    assert np.abs(deviation).max() < 3.0
    assert (result.n_inputs < reference.n_inputs).sum() > SHAPE[0]


def test_stars_keep_their_flux() -> None:
    inputs = _inputs(6)
    result = coadd(inputs)
    table = inputs[1].sources.table
    bright = [i for i in range(len(table)) if table["flux_auto"][i] > 1e4]
    ratios = []
    for i in bright:
        x, y = round(float(table["x"][i])), round(float(table["y"][i]))
        distance = np.hypot(table["x"] - x, table["y"] - y)
        if 20 < x < SHAPE[1] - 20 and 20 < y < SHAPE[0] - 20 and np.sort(distance)[1] > 25:
            ratios.append(result.data[y - 9 : y + 10, x - 9 : x + 10].sum() / table["flux_auto"][i])
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)


def test_no_data_where_no_input_knows() -> None:
    inputs = _inputs(7, n=3)
    flags = [np.array(item.image.flags) for item in inputs]
    for k, plane in enumerate(flags):
        dx, dy = (round(a - b) for a, b in zip(SHIFTS[k], SHIFTS[1], strict=True))
        plane[145 + dy : 160 + dy, 150 + dx : 165 + dx] = Flag.BAD
    inputs = [replace(i, image=replace(i.image, flags=f)) for i, f in zip(inputs, flags, strict=True)]
    result = coadd(inputs)
    assert result.flags[152, 157] & Flag.NO_DATA
    assert np.isinf(result.variance[152, 157])
    assert result.flags[30:100, 30:100].sum() == 0


def test_reference_product() -> None:
    inputs = _inputs(8, n=3)
    built = build_reference(
        inputs,
        name="deep",
        extract=lambda image, background: inputs[1].sources,
        model_psf=lambda image, background, sources: inputs[1].psf,
    )
    assert built.members == ("sim_0", "sim_1", "sim_2")
    assert built.zp.zp == inputs[1].zp.zp
    assert built.info.exptime_s == 180.0
    assert abs(np.median(built.data)) < 3.0


def test_refuses_mixed_filters_and_nothing() -> None:
    inputs = _inputs(9, n=2)
    other = replace(inputs[1], image=replace(inputs[1].image, info=replace(inputs[1].image.info, filter="g")))
    with pytest.raises(ReferenceUnusable, match="different filters"):
        coadd([inputs[0], other])
    with pytest.raises(ReferenceUnusable, match="no images"):
        coadd([])


def _away_from_stars(item: CalibratedImage) -> np.ndarray:
    """Pixels more than 15 px from any star, off the border behind which stars are not listed."""
    yy, xx = np.indices(SHAPE)
    away = np.zeros(SHAPE, bool)
    away[15:-15, 15:-15] = True
    for x, y in zip(item.sources.table["x"], item.sources.table["y"], strict=True):
        away &= (xx - x) ** 2 + (yy - y) ** 2 > 15**2
    return away


def _block_sums(data: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    ny, nx = (n // size * size for n in data.shape)
    sums = data[:ny, :nx].reshape(ny // size, size, nx // size, size).sum(axis=(1, 3))
    sums = sums[np.isfinite(sums)]
    return sums, sums.size
