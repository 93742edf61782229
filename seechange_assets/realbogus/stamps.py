"""Simulated triplets of known kind, to train and to test the real/bogus classifier.

Each batch is one mosaic of cells under one pair of PSFs, with one object per cell, subtracted by
the project's own ZOGY and measured by its own code, so stamps and features look as they do in
the pipeline. What differs from batch to batch: seeing (FWHM 1.4 to 5.5 px, so 1 arcsec pixels as
well as finely sampled ones), PSF profile and its error, depth of the reference, gain.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from seechange_assets.products import Cutouts, Detections, Difference, Flag, ImageInfo, Measurements, Psf, Wcs
from seechange_assets.realbogus.painters import BOGUS_KINDS, KINDS, MIN_SCORE, REAL_KINDS, paint
from seechange_assets.realbogus.scene import CELL_PX, N_CELLS, FloatArray, Scene, perturbed, random_psf
from seechange_assets.science.cutouts import cut_stamps, stamp_corners
from seechange_assets.science.measurements import DELETION_THRESHOLDS, measure
from seechange_assets.science.psf import analytic_psf, raw_stamps

STAMP_PX = 41
#: Electrons per count, for a sky noise of 10 counts: from sky-limited images to such where every star adds its noise.
GAINS = (0.5, 6.0)
#: Share of chance peaks relative to the other artefacts. It decides what a source of S/N 5 is worth: with this one
#: there are between S/N 5 and 5.5 about twice as many chance peaks as transients.
NOISE_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Triplets:
    """Stamps, their measurements (same order, none deleted) and their kind (index in `KINDS`)."""

    cutouts: Cutouts
    measurements: Measurements
    kind: NDArray[np.int64]

    @property
    def is_real(self) -> NDArray[np.bool_]:
        """True for injected transients."""
        return self.kind < len(REAL_KINDS)


def simulate(rng: np.random.Generator, *, fwhm_px: float | None = None, kinds: tuple[str, ...] = KINDS) -> Triplets:
    """One batch of up to 81 triplets; cells in which nothing is detected are left out.

    Parameters
    ----------
    rng : numpy.random.Generator
    fwhm_px : float, optional
        Seeing of the new image; log-uniform from 1.4 to 5.5 px by default.
    kinds : tuple of str
        What to simulate: reals take half of the cells if present.
    """
    fwhm = float(fwhm_px or np.exp(rng.uniform(np.log(1.4), np.log(5.5))))
    model_new = random_psf(rng, fwhm)
    model_reference = random_psf(rng, max(1.3, fwhm * rng.uniform(0.75, 1.3)))
    scene = Scene(
        rng,
        perturbed(rng, model_new),
        perturbed(rng, model_reference),
        new_sky=10.0,
        reference_sky=10.0 * rng.uniform(0.25, 1.1),
        gain=float(np.exp(rng.uniform(*np.log(GAINS)))),
    )
    center = CELL_PX * (np.arange(N_CELLS) + 0.5)
    x, y = (grid.ravel() + rng.uniform(-4, 4, N_CELLS**2) for grid in np.meshgrid(center, center))
    kind = _random_kinds(rng, kinds, x.size)
    for column, row, k in zip(x, y, kind, strict=True):
        paint(scene, KINDS[k], column, row)
    difference = _subtracted(scene, model_new.psf, model_reference.psf)
    return _found(scene, difference, x, y, kind)


def _random_kinds(rng: np.random.Generator, kinds: tuple[str, ...], n: int) -> NDArray[np.int64]:
    reals = [KINDS.index(k) for k in kinds if k in REAL_KINDS]
    bogus = [KINDS.index(k) for k in kinds if k in BOGUS_KINDS]
    share = 0.5 if reals and bogus else float(bool(reals))
    pick_real = rng.random(n) < share
    weight = np.array([NOISE_WEIGHT if KINDS[k] == "noise" else 1.0 for k in bogus] or [1.0])
    return np.where(pick_real, rng.choice(reals or [0], n), rng.choice(bogus or [0], n, p=weight / weight.sum()))


def _subtracted(scene: Scene, new_psf: Psf, reference_psf: Psf) -> tuple[Difference, FloatArray, FloatArray]:
    """Noise on the scene, and the proper subtraction (Zackay et al. 2016, eqs 13-17) with the *model* PSFs."""
    rng = scene.rng
    skies = (scene.new_sky, scene.reference_sky)
    variances = [
        sky**2 + np.maximum(image, 0) / scene.gain
        for image, sky in zip((scene.new, scene.reference), skies, strict=True)
    ]
    new = scene.new + rng.normal(0, 1, scene.new.shape) * np.sqrt(variances[0]) * scene.extra_noise
    reference = scene.reference + rng.normal(0, 1, scene.new.shape) * np.sqrt(variances[1])
    p_n, p_r = (_transform(raw_stamps(psf, [0.0], [0.0], 41)[0], new.shape) for psf in (new_psf, reference_psf))
    denominator = skies[0] ** 2 * np.abs(p_r) ** 2 + skies[1] ** 2 * np.abs(p_n) ** 2
    whiten = np.sqrt((skies[0] ** 2 + skies[1] ** 2) / denominator)
    score_n, score_r = np.conj(p_n) * np.abs(p_r) ** 2 / denominator, np.conj(p_r) * np.abs(p_n) ** 2 / denominator
    variance = _filtered(variances[0], _squared(score_n, new.shape)) + _filtered(
        variances[1], _squared(score_r, new.shape)
    )
    _raise_noise(scene, (new, reference), variances, (score_n, score_r), variance)
    data = _filtered(new, p_r * whiten) - _filtered(reference, p_n * whiten)
    from_new, from_reference = _filtered(new, score_n), _filtered(reference, score_r)
    response = float(fft.irfft2(np.abs(p_n) ** 2 * np.abs(p_r) ** 2 / denominator, s=new.shape)[0, 0])
    # The pipeline knows its PSF error from the bright stars and adds it to the noise of the score.
    sigma = np.sqrt(np.maximum(variance, 1e-30) + (0.005 * from_reference) ** 2)
    difference = Difference(
        info=_info(scene.gain),
        data=data.astype(np.float32),
        noise=np.sqrt(variances[0] + variances[1]).astype(np.float32),
        score=((from_new - from_reference) / sigma).astype(np.float32),
        flux=((from_new - from_reference) / response).astype(np.float32),
        flux_err=(sigma / response).astype(np.float32),
        flags=np.zeros(new.shape, np.uint16),
        psf=_difference_psf(new_psf, p_r * whiten),
        wcs=_wcs(),
        zp=25.0,
        zp_err=0.0,
        limiting_magnitude=25.0,
        method="zogy",
        flux_scale=1.0,
        reference_wcs=_wcs().header,
    )
    return difference, new, reference


def _transform(stamp: FloatArray, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Transform of a centred stamp of sum 1, with a core of 1e-4 so that no frequency vanishes."""
    frame = np.zeros(shape)
    half = stamp.shape[0] // 2
    frame[: stamp.shape[0], : stamp.shape[0]] = stamp / stamp.sum()
    frame[half, half] += 1e-4
    return fft.rfft2(np.roll(frame, (-half, -half), axis=(0, 1)) / 1.0001)


def _filtered(image: FloatArray, kernel: NDArray[np.complex128]) -> FloatArray:
    return fft.irfft2(fft.rfft2(image) * kernel, s=image.shape)


def _squared(kernel: NDArray[np.complex128], shape: tuple[int, ...]) -> NDArray[np.complex128]:
    return fft.rfft2(fft.irfft2(kernel, s=shape) ** 2)


def _difference_psf(new_psf: Psf, kernel: NDArray[np.complex128]) -> Psf:
    """PSF of the difference, tabulated at the sub-pixel phases of the new image's."""
    n, size = new_psf.oversampling, 41
    side = 2 * (size // 2) * n + 1
    table = np.zeros((side, side))
    for j, i in np.ndindex(n, n):
        frame = np.zeros(new_psf.shape)
        frame[:size, :size] = raw_stamps(new_psf, [0.0], [0.0], size, center=([i / n], [j / n]))[0]
        part = table[j::n, i::n]
        part[:] = _filtered(frame, kernel)[: part.shape[0], : part.shape[1]]
    sharpness = np.sqrt(_area(table, n) / _area(new_psf.coefficients[0], new_psf.oversampling))
    return analytic_psf(table, new_psf.shape, float(new_psf.fwhm_px * sharpness), n, "pixels")


def _area(table: FloatArray, oversampling: int) -> float:
    """Effective area [pixel^2] of a tabulated PSF."""
    return float(table.sum() ** 2 / (table**2).sum() / oversampling**2)


def _raise_noise(
    scene: Scene,
    images: tuple[FloatArray, FloatArray],
    variances: list[FloatArray],
    kernels: tuple[NDArray[np.complex128], NDArray[np.complex128]],
    variance: FloatArray,
) -> None:
    """Condition the noise, in place, on the peaks that the scene asks for.

    A Gaussian field given its score at one pixel is the free one plus a fixed pattern: the covariance of each pixel
    with that score. A chance peak so has its share in either image, light in one and a hole in the other.
    """
    if not scene.noise_peaks:
        return
    statistic = _filtered(images[0], kernels[0]) - _filtered(images[1], kernels[1])
    needed = np.zeros(statistic.shape)
    for row, column, score in scene.noise_peaks:
        sigma = np.sqrt(variance[row, column])
        needed[row, column] = (score * sigma - statistic[row, column]) / sigma**2
    for k, sign in enumerate((1, -1)):
        images[k][:] += sign * variances[k] * _filtered(needed, np.conj(kernels[k]))


def _found(scene: Scene, images: tuple, x: FloatArray, y: FloatArray, kind: NDArray[np.int64]) -> Triplets:
    """The strongest peak of |score| near each object, cut out and measured."""
    from astropy.table import Table

    difference, new, reference = images
    found_x, found_y, found = _peaks(difference.score, x, y, kind, scene.fwhm)
    kind = kind[found]
    rows = np.rint(found_y[found]).astype(int), np.rint(found_x[found]).astype(int)
    table = Table(
        {
            "x": found_x[found],
            "y": found_y[found],
            "score": difference.score[rows],
            "kind": ["point"] * int(found.sum()),
        }
    )
    detections = Detections(table, MIN_SCORE)
    corner = stamp_corners(found_x[found], found_y[found], STAMP_PX)
    flags = _random_flags(scene, len(table))
    stamps = [
        np.where(
            flags & Flag.OUT_OF_BOUNDS,
            np.float32(np.nan),
            cut_stamps(image.astype(np.float32), difference.flags, corner, STAMP_PX)[0],
        )
        for image in (new, reference, difference.data)
    ]
    cutouts = Cutouts(stamps[0], stamps[1], stamps[2], flags, flags, flags, corner, STAMP_PX)
    measurements = measure(detections, cutouts, difference, deletion_thresholds=dict.fromkeys(DELETION_THRESHOLDS))
    return Triplets(cutouts, measurements, kind)


def _peaks(
    score: NDArray[np.float32], x: FloatArray, y: FloatArray, kind: NDArray[np.int64], fwhm: float
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Sub-pixel peaks of |score| near each object and whether they are significant.

    A real must be found within half a FWHM (at least 1 px); a bogus detection may be anywhere on its object.
    """
    from seechange_assets.science.detections import subpixel_peak

    reach = np.where(kind < len(REAL_KINDS), max(1, round(fwhm / 2)), max(3, round(2 * fwhm)))
    reach[kind == KINDS.index("excess_noise")] = 12
    column, row = np.zeros(x.size, np.int64), np.zeros(x.size, np.int64)
    for k, r in enumerate(reach):
        y0, x0 = int(y[k] + 0.5) - r, int(x[k] + 0.5) - r
        box = np.abs(score[y0 : y0 + 2 * r + 1, x0 : x0 + 2 * r + 1])
        dy, dx = np.unravel_index(box.argmax(), box.shape)
        row[k], column[k] = y0 + dy, x0 + dx
    value = np.abs(score[row, column])
    around = np.stack([np.abs(score[row + dy, column + dx]) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    fine_x, fine_y = subpixel_peak(score, column, row)
    return fine_x, fine_y, (value > MIN_SCORE) & (value >= around.max(axis=0))


def _random_flags(scene: Scene, n: int) -> NDArray[np.uint16]:
    """Flags as stamps have them: one in eight lies at the border of the image, one in eight near a masked star."""
    rng = scene.rng
    flags = np.zeros((n, STAMP_PX, STAMP_PX), np.uint16)
    v, u = np.mgrid[:STAMP_PX, :STAMP_PX] - STAMP_PX // 2
    nearest = 2 * scene.fwhm + 1
    for stamp in flags:
        chance, angle = rng.random(), rng.uniform(0, 2 * np.pi)
        if chance < 0.125:
            axis = rng.choice([-1, 1]) * (u if angle < np.pi else v)
            stamp[axis > rng.uniform(nearest, STAMP_PX // 2)] = Flag.OUT_OF_BOUNDS
        elif chance < 0.25:
            radius = rng.uniform(1, 8)
            distance = nearest + radius + rng.uniform(0, 10)
            disc = np.hypot(u - distance * np.cos(angle), v - distance * np.sin(angle)) < radius
            stamp[disc] = Flag.SATURATED
    return flags


def _info(gain: float) -> ImageInfo:
    return ImageInfo("simulated", "c", "simulated", "", "r", 60000.0, 60.0, 1.0, "", "", gain, 5.0, 6e4, 1.0)


def _wcs() -> Wcs:
    from astropy.table import Table

    header = "\n".join(
        f"{key:8s}= {value}"
        for key, value in {
            "CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--TAN'", "CRVAL1": 0.0, "CRVAL2": 0.0, "CRPIX1": 1.0, "CRPIX2": 1.0,
            "CDELT1": -1 / 3600, "CDELT2": 1 / 3600,
        }.items()
    )  # fmt: skip
    return Wcs(header, 1, 0, 0, 0.0, 0.0, 0.0, 0.0, "none", Table())
