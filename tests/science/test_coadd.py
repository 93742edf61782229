"""Coadds: depth, blemishes, masks, and that stars keep flux and shape."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.errors import ParameterError, ReferenceUnusable
from seechange_assets.products import CalibratedImage, Flag
from seechange_assets.science.coadd import METHODS, build_reference, coadd
from seechange_assets.science.psf import effective_area, render
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources
from tests.science.pairs import Observation, Scene, observe, rotated_wcs, star_field

SHAPE = (300, 320)
BIG = (600, 620)
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("amplitude", "slope"), [(3000.0, 1.0), (400.0, 1.0), (400.0, 0.37), (50.0, 0.6)])
def test_streak_and_cosmic_rays_leave_no_trace(method: str, amplitude: float, slope: float) -> None:
    """Peak surface brightness from 150 to 2.5 times the noise of a pixel."""
    clean = _inputs(5)
    dirty = list(clean)
    yy, xx = np.indices(SHAPE)
    across = (yy - 20 - slope * xx) / np.hypot(1, slope)
    streak = amplitude * np.exp(-0.5 * (across / (3.8 / 2.355)) ** 2)
    data = clean[2].image.data + streak.astype(np.float32)
    data[50:53, 200] += 5000.0
    dirty[2] = replace(clean[2], image=replace(clean[2].image, data=data))
    reference, result = coadd(clean, method=method), coadd(dirty, method=method)
    blank = (result.n_inputs > 1) & _away_from_stars(clean[1])
    noise = np.sqrt(np.where(blank, result.variance, 1))
    sky, change = result.data / noise, (result.data - reference.data) / noise
    # The grid of the coadd is that of input 1.
    dx, dy = SHIFTS[1][0] - SHIFTS[2][0], SHIFTS[1][1] - SHIFTS[2][1]
    distance = np.abs((yy - dy - 20 - slope * (xx - dx)) / np.hypot(1, slope))
    hit = np.hypot(xx - 200 - dx, yy - 51 - dy) < 4
    for where in (distance < 2, (distance > 3) & (distance < 8)):  # the line, and where its wings were
        assert sky[blank & where].std() == pytest.approx(sky[blank & (distance > 20)].std(), rel=0.12)
        # Its mean is known to 0.04 sigma; one streak in five was at least 0.5 sigma, averaged over the line.
        assert abs(change[blank & where].mean()) < 0.12
    assert np.abs(sky[blank & ((distance < 12) | hit)]).max() < 5
    assert (result.n_inputs < reference.n_inputs).sum() > SHAPE[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "seed", [11, pytest.param(12, marks=pytest.mark.slow), pytest.param(13, marks=pytest.mark.slow)]
)
def test_fluxes_and_positions_through_warp_and_coadd(method: str, seed: int) -> None:
    """Stars of S/N > 2000 in apertures of 5 FWHM: what is left is what warp and coadd do to them."""
    scene, inputs = _dithered(seed, 6, n_stars=30, flux_range=(2e5, 1e6), sky_rms=2.0)
    result = coadd(inputs, method=method)
    truth = scene.flux * 10 ** (0.4 * (result.zp - 25))
    x, y = inputs[result.base].wcs.astropy().all_world2pix(scene.ra, scene.dec, 0)
    rows = [i for i in range(len(x)) if _is_alone(x, y, i, 45)]
    assert len(rows) >= 5
    measured = np.array([_moments(result.data, x[i], y[i], 17) for i in rows])
    assert np.abs(measured[:, 0] / truth[rows] - 1).max() < 1e-3
    assert np.hypot(measured[:, 1] - x[rows], measured[:, 2] - y[rows]).max() < 0.02


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "seed", [21, pytest.param(22, marks=pytest.mark.slow), pytest.param(23, marks=pytest.mark.slow)]
)
def test_depth_grows_as_the_root_of_n_and_the_noise_map_is_right(method: str, seed: int) -> None:
    """On the scale of the PSF, where stars are measured; alike inputs."""
    n = 9
    scene, inputs = _dithered(seed, n, n_stars=60, fwhm_px=[3.5] * n, zp_scatter=0.0)
    result = coadd(inputs, method=method)
    blank = _blank(scene, inputs[result.base])
    flux, expected = _psf_fluxes(result.data, result.variance, result.psf)
    single = _psf_fluxes(inputs[0].image.data - 1000, np.full(BIG, 400.0, np.float32), result.psf)[0]
    ratio = single[blank].std() * 10 ** (0.4 * (result.zp - inputs[0].zp.zp)) / flux[blank].std()
    assert ratio == pytest.approx(np.sqrt(n), rel=0.05)
    # 200,000 pixels make some 10,000 independent PSFs: the scatter is known to 0.7 %.
    assert (flux / expected)[blank].std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    "seed", [31, pytest.param(32, marks=pytest.mark.slow), pytest.param(33, marks=pytest.mark.slow)]
)
def test_the_proper_coadd_loses_nothing(seed: int) -> None:
    """With seeing from 2.8 to 5 px it is as deep as theory allows, and deeper than the mean."""
    fwhm = [2.8, 3.2, 3.6, 4.0, 4.5, 5.0]
    scene, inputs = _dithered(seed, 6, n_stars=60, fwhm_px=fwhm)
    noise = {}
    for method in METHODS:
        result = coadd(inputs, method=method)
        flux, _ = _psf_fluxes(result.data, result.variance, result.psf)
        noise[method] = flux[_blank(scene, inputs[result.base])].std()
    scale = np.array([10 ** (0.4 * (result.zp - item.zp.zp)) for item in inputs])
    single = 20 * np.sqrt(4 * np.pi) * np.array(fwhm) / 2.355 * scale
    ideal = np.sum(single**-2.0) ** -0.5
    assert noise["proper"] == pytest.approx(ideal, rel=0.02)
    assert noise["proper"] < noise["clipped_mean"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "seed", [41, pytest.param(42, marks=pytest.mark.slow), pytest.param(43, marks=pytest.mark.slow)]
)
def test_psf_of_the_coadd(method: str, seed: int) -> None:
    """PSF fluxes with the PSF measured on the coadd are those of the stars; it is the one that theory predicts."""
    scene, inputs = _dithered(seed, 6, n_stars=150, flux_range=(3e3, 3e5))
    built = build_reference(inputs, name="deep", extract=extract_sources, model_psf=build_psf, method=method)
    predicted = coadd(inputs, method=method).psf
    center = [(n - 1) / 2 for n in BIG]
    measured = render(built.psf, center[1], center[0], predicted.shape[0])[0]
    assert effective_area(measured) == pytest.approx(effective_area(predicted), rel=0.03)
    truth = scene.flux * 10 ** (0.4 * (built.zp.zp - 25))
    x, y = built.wcs.astropy().all_world2pix(scene.ra, scene.dec, 0)
    table, flux = built.sources.table, np.asarray(built.psf.photometry["flux_psf"])
    ratio = []
    for i in range(len(x)):
        distance = np.hypot(table["x"] - x[i], table["y"] - y[i])
        if _is_alone(x, y, i, 18) and distance.min() < 1 and table["snr"][distance.argmin()] > 100:
            ratio.append(flux[distance.argmin()] / truth[i])
    assert len(ratio) > 20
    assert np.median(ratio) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("method", METHODS)
def test_strips_do_not_show(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(6)
    whole = coadd(inputs, method=method)
    monkeypatch.setattr("seechange_assets.science.coadd._STRIP_BYTES", 0.0)
    strips = coadd(inputs, method=method)
    for name in ("variance", "flags", "n_inputs"):
        assert np.array_equal(getattr(whole, name), getattr(strips, name)), name
    if method == "clipped_mean":
        assert np.array_equal(whole.data, strips.data)
    else:
        # The filter's tails reach beyond the margin, by a few hundredths of the noise.
        np.testing.assert_allclose(strips.data, whole.data, atol=0.05 * np.sqrt(np.median(whole.variance)))


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are asked for one by one; strips and scratch file bound the rest."""
    import tracemalloc

    monkeypatch.setattr("seechange_assets.science.coadd._STRIP_BYTES", 2e6)
    monkeypatch.setattr("seechange_assets.science.coadd._STRIP_ROWS", (8, 512))  # the images are small
    few = _inputs(7)
    many = [few[k % 5] for k in range(40)]
    for inputs in (many[:10], many):
        coadd(inputs)  # compiles
    # As in a process of its own: after many tests Python looks for circles so seldom that what they hold adds up.
    gc.collect()
    gc.freeze()
    peaks = []
    for inputs in (many[:10], many):
        gc.collect()
        tracemalloc.start()
        coadd(inputs)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    gc.unfreeze()
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 40 * 8 * SHAPE[0] * SHAPE[1] / 2  # half of what the whole stack takes


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
    with pytest.raises(ParameterError, match="expected one of clipped_mean, proper"):
        coadd(inputs, method="median")


def _dithered(
    seed: int,
    n: int,
    *,
    n_stars: int,
    fwhm_px: list[float] | None = None,
    flux_range: tuple[float, float] = (500, 5e4),
    sky_rms: float = 20.0,
    zp_scatter: float = 0.1,
) -> tuple[Scene, list[CalibratedImage]]:
    """Exposures with random dithers, small rotations, seeing and zero points."""
    rng = np.random.default_rng(seed)
    scene = star_field(rng, BIG, n_stars, flux_range)
    seeing = rng.uniform(3.0, 4.2, n) if fwhm_px is None else fwhm_px
    images = []
    for k in range(n):
        grid = rotated_wcs(BIG, rotation_deg=0.1 * rng.normal(), shift_px=tuple(rng.uniform(-8, 8, 2)))
        zp = 25 + zp_scatter * rng.normal()
        images.append(observe(rng, scene, grid, BIG, fwhm_px=seeing[k], zp=zp, sky_rms=sky_rms, exposure=f"sim_{k}"))
    return scene, [_input(image) for image in images]


def _is_alone(x: np.ndarray, y: np.ndarray, i: int, radius_px: float) -> bool:
    """No other star within the radius, and the border far enough."""
    distance = np.sort(np.hypot(x - x[i], y - y[i]))[1]
    inside = 25 < x[i] < BIG[1] - 25 and 25 < y[i] < BIG[0] - 25
    return bool(distance > radius_px and inside)


def _moments(data: np.ndarray, x: float, y: float, radius_px: float) -> tuple[float, float, float]:
    """Flux and centroid in a round aperture."""
    yy, xx = np.indices(data.shape)
    pixels = np.where((xx - x) ** 2 + (yy - y) ** 2 < radius_px**2, data, 0).astype(float)
    flux = pixels.sum()
    return flux, (pixels * xx).sum() / flux, (pixels * yy).sum() / flux


def _psf_fluxes(data: np.ndarray, variance: np.ndarray, psf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best flux of a point source at each pixel, and its error by the variance map."""
    from scipy.signal import fftconvolve

    filtered = (psf / np.sum(psf**2))[::-1, ::-1]
    flux = fftconvolve(data, filtered, mode="same")
    error = fftconvolve(np.where(np.isfinite(variance), variance, 0), filtered**2, mode="same")
    return flux, np.sqrt(np.maximum(error, 0))


def _blank(scene: Scene, item: CalibratedImage) -> np.ndarray:
    """Pixels more than 22 px from any star and 25 from the border."""
    blank = np.zeros(BIG, bool)
    blank[25:-25, 25:-25] = True
    for x, y in np.transpose(item.wcs.astropy().all_world2pix(scene.ra, scene.dec, 0)):
        blank[max(round(y) - 22, 0) : max(round(y) + 23, 0), max(round(x) - 22, 0) : max(round(x) + 23, 0)] = False
    return blank


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
