"""Simulated LS4 raw frames to calibrated images: noise, flatness, cosmic rays, saturation, over several seeds."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.products import Flag
from seechange_assets.science.background import measure_background
from seechange_assets.science.detrend import detrend
from seechange_assets.science.noise import variance_map
from tests.science.raw_scenes import GAIN, READ_NOISE, RawScene, SmallLs4, raw_scene

CASES = [(1, "g", 1.55), (2, "r", 1.7), (3, "i", 1.85), (4, "z", 2.2)]


@dataclass
class Figures:
    """What is asked of one image."""

    pull: float
    flat_residual: float
    rays_found: int
    rays: int
    cores_wrong: int
    cores: int
    saturated_flagged: float


def figures(scene: RawScene, camera: Ls4) -> Figures:
    image = detrend(scene.raw, scene.masters, camera.bad_pixels("01"))
    truth, sky = scene.electrons / GAIN, scene.sky_e / GAIN
    noise_e = np.sqrt(scene.electrons + READ_NOISE**2)
    blank = (np.abs(truth - sky) < 0.03 * sky) & (scene.cosmic_rays < 0.1 * noise_e) & (image.flags == 0)
    blank &= ~binary_dilation(truth > 1.1 * sky, iterations=3)
    pull = ((image.data - truth) / np.sqrt(variance_map(image, measure_background(image))))[blank]
    flagged = (image.flags & Flag.COSMIC_RAY) > 0
    usable = (image.flags & ~np.uint16(Flag.COSMIC_RAY)) == 0
    strong = (scene.cosmic_rays > 10 * noise_e) & usable
    cores = star_cores(scene) & ~binary_dilation(scene.cosmic_rays > 0.5 * noise_e, iterations=2)
    cores &= (image.flags & Flag.BAD) == 0
    saturated = np.zeros(image.data.shape, bool)
    for amp in scene.raw.amplifiers:
        saturated[amp.ccd] = scene.raw.data[amp.raw_data] >= amp.saturation
    return Figures(
        float(pull.std()), flat_residual(image.data / truth - 1, blank), int((flagged & strong).sum()),
        int(strong.sum()), int((flagged & cores).sum()), int(cores.sum()),
        float(((image.flags & Flag.SATURATED) > 0)[saturated].mean()) if saturated.any() else 1.0,
    )  # fmt: skip


def star_cores(scene: RawScene) -> np.ndarray:
    """Pixels within half the FWHM of stars of S/N 10 and more."""
    snr = scene.star_e / np.sqrt(scene.star_e + (scene.sky_e + READ_NOISE**2) * 2 * scene.seeing_px**2)
    ny, nx = scene.electrons.shape
    cores = np.zeros((ny, nx), bool)
    for x, y in zip(scene.x[snr > 10], scene.y[snr > 10], strict=True):
        ix, iy = round(float(x)), round(float(y))
        if 2 <= ix < nx - 2 and 2 <= iy < ny - 2:
            v, u = np.mgrid[iy - 2 : iy + 3, ix - 2 : ix + 3]
            near = np.hypot(u - x, v - y) <= max(scene.seeing_px / 2, 0.71)
            cores[iy - 2 : iy + 3, ix - 2 : ix + 3] |= near
    return cores


def flat_residual(residual: np.ndarray, blank: np.ndarray, side: int = 32) -> float:
    """Rms of the relative residual over blocks of 32 pixels, mean sky level apart, photon noise of the blocks out."""
    ny, nx = (n // side for n in residual.shape)

    def total(values: np.ndarray) -> np.ndarray:
        return values[: ny * side, : nx * side].reshape(ny, side, nx, side).sum(axis=(1, 3))

    count = total(blank.astype(float))
    mean = total(np.where(blank, residual, 0)) / np.maximum(count, 1)
    variance = float(np.mean(residual[blank] ** 2)) / np.maximum(count, 1)
    enough = count > side**2 / 4
    return float(np.sqrt(max(np.var(mean[enough]) - np.mean(variance[enough]), 0)))


def judge(results: list[Figures]) -> None:
    assert all(abs(r.pull - 1) <= 0.02 for r in results), [r.pull for r in results]
    assert all(r.flat_residual <= 0.003 for r in results), [r.flat_residual for r in results]
    assert all(r.saturated_flagged == 1.0 for r in results)
    # On every CCD, not only on average.
    assert all(r.rays_found >= 0.95 * r.rays for r in results), [r.rays_found / r.rays for r in results]
    assert sum(r.cores_wrong for r in results) <= 0.001 * sum(r.cores for r in results) + 2


def test_small_frames() -> None:
    judge([figures(raw_scene(seed, SmallLs4(), filter_name=f, seeing_px=s), SmallLs4()) for seed, f, s in CASES])


@pytest.mark.slow
def test_full_frames() -> None:
    """Eight full CCDs; the figures are printed with -s."""
    results = []
    for seed in range(11, 19):
        name, seeing = "griz"[seed % 4], (1.5, 1.7, 1.9, 2.1, 2.3)[seed % 5]
        results.append(figures(raw_scene(seed, Ls4(), filter_name=name, seeing_px=seeing, tracks=80), Ls4()))
        print(seed, name, seeing, results[-1])  # noqa: T201 (the figures are of interest)
    judge(results)
    assert all(r.cores_wrong <= 0.001 * r.cores for r in results), [r.cores_wrong / r.cores for r in results]
