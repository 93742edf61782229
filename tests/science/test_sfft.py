"""The kernel of free pixels: exact sums, kernels recovered, what varies left out, both devices alike."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import Difference, Flag
from seechange_assets.science.difference import subtract
from seechange_assets.science.matching_kernel import ImagePair, MatchingKernel, convolve
from seechange_assets.science.psf import gaussian_psf, polynomial_terms, render
from seechange_assets.science.sfft import _Equations, fit_sfft
from seechange_assets.science.sfft_sums import Scene, correlate
from seechange_assets.science.zogy import PsfPair
from tests.science.pairs import Scene as Stars
from tests.science.pairs import as_reference, observe, rotated_wcs, star_field

torch = pytest.importorskip("torch")

SHARP_FWHM, BLURRED_FWHM = 3.2, 4.2
SKY = 3.0


def _gaussian(fwhm_px: float, half: int, shift: float = 0.0) -> NDArray[np.float64]:
    offset = np.arange(-half, half + 1)
    sigma = fwhm_px / np.sqrt(8 * np.log(2))
    profile = np.exp(-0.5 * ((offset - shift) / sigma) ** 2)
    stamp = np.outer(np.exp(-0.5 * (offset / sigma) ** 2), profile)
    return stamp / stamp.sum()


def _true_kernel(shape: tuple[int, int]) -> MatchingKernel:
    """A blur that grows towards the right and a shift of 0.2 px that grows towards the top; of sum 1 everywhere."""
    width = np.sqrt(BLURRED_FWHM**2 - SHARP_FWHM**2)
    basis = np.stack([_gaussian(width, 7), _gaussian(1.2 * width, 7), _gaussian(width, 7, 0.4)])
    coefficients = np.array([[0.5, -0.3, -0.2], [0.3, 0.3, 0.0], [0.2, 0.0, 0.2]])
    return MatchingKernel("reference", basis, coefficients, 1, shape, np.array([SKY]), 0)


def _psfs(new_fwhm: float = BLURRED_FWHM, reference_fwhm: float = SHARP_FWHM) -> PsfPair:
    stamps = _gaussian(new_fwhm, 12), _gaussian(reference_fwhm, 12)
    return lambda _x, _y: stamps


def _pair(
    seed: int, shape: tuple[int, int], *, noise: float = 1.0, n_changed: int = 0, swap: bool = False
) -> tuple[ImagePair, NDArray[np.float64], MatchingKernel]:
    """Stars, blurred by `_true_kernel` in one of the images; the first `n_changed` are 40 % brighter there."""
    rng = np.random.default_rng(seed)
    n = shape[0] * shape[1] // 1500
    stars = rng.uniform((0, 0), (shape[1] - 1, shape[0] - 1), (n, 2))
    flux = 10 ** rng.uniform(3.5, 5.3, n)
    psf = gaussian_psf(SHARP_FWHM, shape)
    sharp, changed = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for k, (stamp, (x, y)) in enumerate(zip(render(psf, *stars.T, 21), np.floor(stars + 0.5).astype(int), strict=True)):
        y0, x0, y1, x1 = max(y - 10, 0), max(x - 10, 0), y + 11, x + 11
        part = flux[k] * stamp[y0 - y + 10 :, x0 - x + 10 :]
        cut = sharp[y0:y1, x0:x1]
        cut += part[: cut.shape[0], : cut.shape[1]].astype(np.float32)
        if k < n_changed:
            changed[y0:y1, x0:x1] += 0.4 * part[: cut.shape[0], : cut.shape[1]].astype(np.float32)
    truth = _true_kernel(shape)
    blurred = convolve(sharp + changed, truth)
    variances = np.float32(400) + blurred / 2, np.float32(150) + sharp / 8
    images = [
        image + np.float32(noise) * rng.normal(size=shape).astype(np.float32) * np.sqrt(variance)
        for image, variance in zip((blurred, sharp), variances, strict=True)
    ]
    order = [1, 0] if swap else [0, 1]
    flags = np.zeros(shape, np.uint16)
    pair = ImagePair(*(images[k] for k in order), *(variances[k] for k in order), flags)
    return pair, stars[np.argsort(-flux)], truth


def _light_error(found: MatchingKernel, truth: MatchingKernel) -> float:
    """Largest error of a star's pixels, relative to its peak: kernels act on nothing finer than that."""
    from scipy.signal import convolve2d

    ny, nx = truth.shape
    psf, errors = _gaussian(SHARP_FWHM, 10), []
    for x, y in [(0.2 * nx, 0.2 * ny), (0.5 * nx, 0.5 * ny), (0.8 * nx, 0.3 * ny), (0.5 * nx, 0.8 * ny)]:
        half = max(found.size, truth.size) // 2
        stamps = [np.pad(k.at(x, y), half - k.size // 2) for k in (found, truth)]
        light = convolve2d(stamps[1], psf)
        errors.append(np.abs(convolve2d(stamps[0], psf) - light).max() / light.max())
    return max(errors)


def test_sums_are_those_of_least_squares() -> None:
    """Against a design matrix written out, on a frame that is zero near its border."""
    rng, (ny, nx), half = np.random.default_rng(0), (60, 44), 2
    image, target = rng.normal(size=(2, ny, nx)).astype(np.float32)
    weight = np.zeros((ny, nx), np.float32)
    weight[8:-8, 8:-8] = rng.uniform(0.5, 1, (ny - 16, nx - 16))
    sums = correlate(Scene(image, target, weight, half, 1, 1, "cpu"))
    y, x = np.indices((ny, nx))
    terms = polynomial_terms(x.ravel(), y.ravel(), 1, (ny, nx)).T.reshape(3, ny, nx)
    u = terms * image * weight
    shifts = [(j, i) for j in range(-half, half + 1) for i in range(-half, half + 1)]
    columns = [np.roll(part, shift, (0, 1)) for part in u for shift in shifts] + list(terms * weight)
    design = np.stack([column.ravel() for column in columns], axis=1)
    center = len(shifts) // 2
    for term in (1, 2):  # a term that varies only moves light: all its pixels against the central one
        block = slice(term * len(shifts), (term + 1) * len(shifts))
        design[:, block] -= design[:, [term * len(shifts) + center]]
    expected = np.linalg.lstsq(design, (target * weight).ravel().astype(float), rcond=1e-12)[0]
    kernels, sky = _Equations.of(sums).solution
    varying = kernels[1:].reshape(2, -1)
    assert kernels[0].ravel() == pytest.approx(expected[: len(shifts)], abs=1e-7)
    assert np.delete(varying, center, 1).ravel() == pytest.approx(
        np.delete(expected[len(shifts) : -3].reshape(2, -1), center, 1).ravel(), abs=1e-7
    )
    assert varying.sum(axis=1) == pytest.approx(0, abs=1e-12)
    assert sky == pytest.approx(expected[-3:], abs=1e-7)


def test_recovers_a_kernel_that_varies() -> None:
    pair, stars, truth = _pair(0, (420, 400), noise=0.02)
    kernel = fit_sfft(pair, _psfs(), stars, degree=1)
    assert kernel.convolves == "reference"
    assert _light_error(kernel, truth) < 2e-3  # of the peak; two steps leave so much of what the mask does
    assert kernel.flux_scale(200, 200) == pytest.approx(1.0, abs=1e-3)
    assert kernel.flux_scale(20, 380) == pytest.approx(kernel.flux_scale(380, 20), abs=2e-3)
    assert kernel.sky[0] == pytest.approx(SKY, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("swap", [False, True])
def test_stars_leave_only_noise(seed: int, swap: bool) -> None:
    pair, stars, _ = _pair(seed, (420, 400), swap=swap)
    kernel = fit_sfft(pair, _psfs(*((SHARP_FWHM, BLURRED_FWHM) if swap else ())), stars, degree=1)
    assert kernel.convolves == ("new" if swap else "reference")
    sharp, blurred = (pair.new, pair.reference) if swap else (pair.reference, pair.new)
    _, variance = (pair.new_variance, pair.reference_variance) if swap else (pair.reference_variance, pair.new_variance)
    residual = blurred - convolve(sharp, kernel)
    # The sharp image's noise is smoothed, so that the rest is between that of one image and of both.
    chi2 = [
        np.mean(residual[y - 4 : y + 5, x - 4 : x + 5] ** 2 / variance[y - 4 : y + 5, x - 4 : x + 5])
        for x, y in np.rint(stars[:60]).astype(int)
        if 20 <= x < 380 and 20 <= y < 400
    ]
    assert 0.95 < np.median(chi2) < 1.25
    assert kernel.flux_scale(200, 200) == pytest.approx(1.0, abs=4e-3)  # photon noise of 100 stars is 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_what_changes_does_not_drive_the_kernel(seed: int) -> None:
    """A tenth of the sources 40 % brighter, some of them the brightest of all."""
    shape = (420, 400)
    n = shape[0] * shape[1] // 1500
    still, stars, truth = _pair(seed, shape)
    changed, _, _ = _pair(seed, shape, n_changed=n // 10)
    kernels = [fit_sfft(pair, _psfs(), stars, degree=1) for pair in (still, changed)]
    assert kernels[1].flux_scale(200, 200) == pytest.approx(1.0, abs=5e-3)
    assert _light_error(kernels[1], truth) < 2 * _light_error(kernels[0], truth) + 5e-3


def test_flagged_pixels_do_not_count() -> None:
    pair, stars, truth = _pair(4, (480, 460), noise=0.1)
    pair.flags[100:104] = Flag.BAD
    pair.new[100:104] = 3e4
    kernel = fit_sfft(pair, _psfs(), stars, degree=1)
    assert _light_error(kernel, truth) < 1e-2


def test_few_sources_make_a_stiff_kernel_and_fewer_none() -> None:
    pair, stars, _ = _pair(5, (480, 480))
    inside = stars[((stars > 30) & (stars < 450)).all(axis=1)]
    assert len(inside) > 85
    assert fit_sfft(pair, _psfs(), inside, degree=2).degree == 1  # six terms want 150 sources, three want 75
    assert fit_sfft(pair, _psfs(), inside[:40], degree=2).degree == 0
    with pytest.raises(ReferenceUnusable, match="frame: 2 sources"):
        fit_sfft(pair, _psfs(), inside[:2], "frame")


def test_deterministic_and_without_a_trace_in_torch() -> None:
    pair, stars, _ = _pair(6, (256, 256))
    threads = torch.get_num_threads()
    first, second = (fit_sfft(pair, _psfs(), stars, degree=1, device="cpu") for _ in range(2))
    assert np.array_equal(first.coefficients, second.coefficients)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("present", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_used_if_there_is_one(present: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is stopped where the sums would begin: this machine may have no GPU."""
    devices = []

    def noted(scene: Scene) -> None:
        devices.append(scene.device)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr("seechange_assets.science.sfft.correlate", noted)
    pair, stars, _ = _pair(6, (256, 256))
    with pytest.raises(InterruptedError):
        fit_sfft(pair, _psfs(), stars, degree=1)
    assert devices == [expected]


def test_the_blocks_of_a_gpu_make_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks at a time, as on a GPU, here on the CPU."""
    from seechange_assets.science import sfft_sums

    pair, stars, _ = _pair(7, (420, 400))
    one = fit_sfft(pair, _psfs(), stars, degree=1, device="cpu")
    monkeypatch.setitem(sfft_sums._BATCH, "cpu", sfft_sums._BATCH["cuda"])
    many = fit_sfft(pair, _psfs(), stars, degree=1, device="cpu")
    assert many.coefficients == pytest.approx(one.coefficients, abs=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_both_devices_give_the_same_fluxes() -> None:
    pair, stars, _ = _pair(7, (1024, 1024))
    on_cpu, on_gpu = (convolve(pair.reference, fit_sfft(pair, _psfs(), stars, device=d)) for d in ("cpu", "cuda"))
    assert np.abs(on_gpu - on_cpu).max() < 1e-4 * np.abs(on_cpu).max()
    bright = on_cpu > 1000
    assert on_gpu[bright] == pytest.approx(on_cpu[bright], rel=1e-4)


def _difference(seed: int, shape: tuple[int, int], fwhm: tuple[float, float]) -> tuple[Difference, NDArray, NDArray]:
    """Two exposures subtracted; places (n, 2) and flux of its 16 new sources; pixels far from any source."""
    rng = np.random.default_rng(seed)
    stars = star_field(rng, shape, shape[0] * shape[1] // 1400)
    places = rng.uniform(40, np.array(shape[::-1]) - 40, (16, 2)).round()
    wcs = rotated_wcs(shape)
    born = Stars(*wcs.all_pix2world(*places.T, 0), np.full(16, 4e4))
    new = observe(rng, stars, wcs, shape, fwhm_px=fwhm[0], extra=born)
    turned = rotated_wcs(shape, rotation_deg=0.3, shift_px=(3.3, -2.2))
    old = observe(rng, stars, turned, shape, fwhm_px=fwhm[1], sky_rms=12, gain=8, zp=25.6)
    difference = subtract(*new.arguments(), as_reference(old), method="sfft")
    blank = difference.flags == 0
    table = new.sources.table
    for x, y in np.concatenate([np.stack([table["x"], table["y"]], axis=1), places]).round().astype(int):
        blank[max(y - 12, 0) : y + 13, max(x - 12, 0) : x + 13] = False
    blank[:10] = blank[-10:] = blank[:, :10] = blank[:, -10:] = False
    x, y = places.astype(int).T
    clean = difference.flags[y, x] == 0
    return difference, difference.flux[y, x][clean] / 4e4, blank


@pytest.mark.parametrize("fwhm", [(4.2, 3.2), (3.2, 4.2)])
def test_score_is_calibrated_and_new_sources_keep_their_flux(fwhm: tuple[float, float]) -> None:
    difference, ratio, blank = _difference(0, (420, 380), fwhm)
    assert difference.method == "sfft"
    assert difference.score[blank].std() == pytest.approx(1.0, abs=0.06)  # 1,000 independent places
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fwhm", [(4.2, 3.2), (3.2, 4.2)])
def test_score_is_calibrated_at_size(seed: int, fwhm: tuple[float, float]) -> None:
    difference, ratio, blank = _difference(seed, (1024, 1024), fwhm)
    assert difference.score[blank].std() == pytest.approx(1.0, abs=0.03)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)


def _peak_of_a_whole_ccd(queue: "multiprocessing.Queue[float]") -> None:
    pair, stars, _ = _pair(8, (4096, 2048))
    fit_sfft(*(small := _pair(8, (128, 128)))[:1], _psfs(), small[1], device="cpu")  # imports do not count as work
    Path("/proc/self/clear_refs").write_text("5")
    fit_sfft(pair, _psfs(), stars, device="cpu")
    status = Path("/proc/self/status").read_text().splitlines()
    queue.put(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_a_whole_ccd_fits_in_1_gb() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak_of_a_whole_ccd, args=(queue,))
    process.start()
    peak_mb = queue.get(timeout=110)
    process.join()
    assert peak_mb < 1000
