"""Simulated triplets of known kind, to train and to test the real/bogus classifier.

Each batch is one mosaic of cells under one pair of PSFs, with one object per cell, subtracted by
the project's own ZOGY and measured by its own code, so stamps and features look as they do in
the pipeline. What differs from batch to batch: seeing (FWHM 1.4 to 5.5 px, so 1 arcsec pixels as
well as finely sampled ones), PSF profile and its error, depth of the reference, sky noise.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from seechange_assets.products import Cutouts, Detections, Difference, ImageInfo, Measurements, Psf, Wcs
from seechange_assets.science.cutouts import cut_stamps, stamp_corners
from seechange_assets.science.measurements import DELETION_THRESHOLDS, measure
from seechange_assets.science.psf import analytic_psf, oversampling_for, raw_stamps

FloatArray = NDArray[np.float64]

REAL_KINDS = ("hostless", "on_host", "near_star")
BOGUS_KINDS = ("cosmic_ray", "hot_pixel", "dipole", "star_residual", "bad_column", "streak", "noise")
KINDS = REAL_KINDS + BOGUS_KINDS
CELL_PX, N_CELLS = 64, 9
STAMP_PX = 41
GAIN = 1.5
MIN_SCORE = 4.5


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


@dataclass(slots=True)
class _Scene:
    """A mosaic under construction: noiseless images and what each cell holds."""

    rng: np.random.Generator
    new_psf: Psf
    reference_psf: Psf
    new_sky: float
    reference_sky: float
    new: FloatArray = field(init=False)
    reference: FloatArray = field(init=False)
    extra_noise: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        side = CELL_PX * N_CELLS
        self.new, self.reference = np.zeros((side, side)), np.zeros((side, side))
        self.extra_noise = np.ones((side, side))

    @property
    def fwhm(self) -> float:
        return self.new_psf.fwhm_px

    @property
    def flux_unit(self) -> float:
        """Flux of a point source of S/N 1 on the sky of both images."""
        stamp = raw_stamps(self.new_psf, [0.0], [0.0], 41)[0]
        return float(np.hypot(self.new_sky, self.reference_sky) / np.sqrt((stamp**2).sum()))

    def draw(
        self, image: FloatArray, psf: Psf, x: FloatArray | float, y: FloatArray | float, flux: FloatArray | float
    ) -> None:
        """Add point sources to an image; all lie far enough from its edge or are cut off."""
        x, y, flux = np.atleast_1d(x), np.atleast_1d(y), np.atleast_1d(flux)
        half = 20
        stamps = raw_stamps(psf, x, y, 2 * half + 1) * flux[:, None, None]
        side = image.shape[0]
        for stamp, column, row in zip(
            stamps, np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int), strict=True
        ):
            y0, y1, x0, x1 = (
                max(row - half, 0),
                min(row + half + 1, side),
                max(column - half, 0),
                min(column + half + 1, side),
            )
            if y0 < y1 and x0 < x1:
                image[y0:y1, x0:x1] += stamp[y0 - row + half : y1 - row + half, x0 - column + half : x1 - column + half]

    def draw_static(
        self, x: FloatArray, y: FloatArray, flux: FloatArray, shift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """The same sources in both images, the reference's displaced by `shift`."""
        self.draw(self.new, self.new_psf, x, y, flux)
        self.draw(self.reference, self.reference_psf, np.asarray(x) + shift[0], np.asarray(y) + shift[1], flux)

    def one_image(self, in_reference: float) -> tuple[FloatArray, Psf]:
        """The image something happens in; with the given probability the reference (a negative detection)."""
        if self.rng.random() < in_reference:
            return self.reference, self.reference_psf
        return self.new, self.new_psf


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
    model_new = _random_psf(rng, fwhm)
    model_reference = _random_psf(rng, max(1.3, fwhm * rng.uniform(0.75, 1.3)))
    scene = _Scene(
        rng, _perturbed(rng, model_new), _perturbed(rng, model_reference), 10.0, 10.0 * rng.uniform(0.25, 1.1)
    )
    center = CELL_PX * (np.arange(N_CELLS) + 0.5)
    x, y = (grid.ravel() + rng.uniform(-4, 4, N_CELLS**2) for grid in np.meshgrid(center, center))
    kind = _random_kinds(rng, kinds, x.size)
    for column, row, k in zip(x, y, kind, strict=True):
        _PAINTERS[KINDS[k]](scene, column, row)
        _neighbours(scene, column, row, KINDS[k])
    difference = _subtracted(scene, model_new.psf, model_reference.psf)
    return _found(scene, difference, x, y, kind)


def _random_kinds(rng: np.random.Generator, kinds: tuple[str, ...], n: int) -> NDArray[np.int64]:
    reals = [KINDS.index(k) for k in kinds if k in REAL_KINDS]
    bogus = [KINDS.index(k) for k in kinds if k in BOGUS_KINDS]
    share = 0.5 if reals and bogus else float(bool(reals))
    pick_real = rng.random(n) < share
    return np.where(pick_real, rng.choice(reals or [0], n), rng.choice(bogus or [0], n))


@dataclass(frozen=True, slots=True)
class _Profile:
    """An elliptical Moffat PSF and the numbers it was made from."""

    psf: Psf
    fwhm: float
    beta: float
    e1: float
    e2: float


def _random_psf(rng: np.random.Generator, fwhm: float) -> _Profile:
    return _profile(fwhm, rng.uniform(2.4, 6.0), *rng.normal(0, 0.03, 2))


def _perturbed(rng: np.random.Generator, model: _Profile) -> Psf:
    """The true PSF: the model is wrong by about a per cent in size and shape."""
    return _profile(
        model.fwhm * (1 + rng.normal(0, 0.007)),
        model.beta,
        model.e1 + rng.normal(0, 0.006),
        model.e2 + rng.normal(0, 0.006),
    ).psf


def _profile(fwhm: float, beta: float, e1: float, e2: float) -> _Profile:
    oversampling = oversampling_for(fwhm)
    half = int(np.ceil(min(4 * fwhm, 20))) * oversampling
    v, u = np.mgrid[-half : half + 1, -half : half + 1] / oversampling
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    r2 = (1 - e1) * u**2 - 2 * e2 * u * v + (1 + e1) * v**2
    table = (1 + r2 / alpha**2) ** -beta
    side = CELL_PX * N_CELLS
    return _Profile(analytic_psf(table, (side, side), fwhm, oversampling, "moffat"), fwhm, beta, e1, e2)


def _snr(rng: np.random.Generator, low: float = 4.5, high: float = 100.0) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _transient(scene: _Scene, x: float, y: float) -> None:
    image, psf = scene.one_image(0.2)
    scene.draw(image, psf, x, y, _snr(scene.rng) * scene.flux_unit)


def _galaxy(scene: _Scene, x: float, y: float, shift: tuple[float, float] = (0.0, 0.0)) -> None:
    """An inclined exponential disc as a cloud of points, the same in both images."""
    rng = scene.rng
    radius = rng.gamma(2.0, rng.uniform(0.2, 1.2) * scene.fwhm, 80)
    angle, tilt, turn = rng.uniform(0, 2 * np.pi, 80), rng.uniform(0.3, 1.0), rng.uniform(0, np.pi)
    a, b = radius * np.cos(angle), tilt * radius * np.sin(angle)
    flux = np.full(80, _snr(rng, 10, 1500) * scene.flux_unit / 80)
    scene.draw_static(x + a * np.cos(turn) - b * np.sin(turn), y + a * np.sin(turn) + b * np.cos(turn), flux, shift)


def _hostless(scene: _Scene, x: float, y: float) -> None:
    _transient(scene, x, y)


def _on_host(scene: _Scene, x: float, y: float) -> None:
    dx, dy = scene.rng.normal(0, scene.fwhm, 2)
    _galaxy(scene, x + dx, y + dy, tuple(scene.rng.normal(0, 0.02, 2)))
    _transient(scene, x, y)


def _near_star(scene: _Scene, x: float, y: float) -> None:
    angle, distance = scene.rng.uniform(0, 2 * np.pi), scene.fwhm * scene.rng.uniform(1.2, 5)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    flux = _snr(scene.rng, 20, 1000) * scene.flux_unit
    scene.draw_static(np.array([x + dx]), np.array([y + dy]), np.array([flux]), tuple(scene.rng.normal(0, 0.02, 2)))
    _transient(scene, x, y)


def _neighbours(scene: _Scene, x: float, y: float, kind: str) -> None:
    """Often a static star elsewhere on the stamp, now and then another transient or variable star.

    That one stays away from where an artefact of the cell may peak, or it would be found under its name.
    """
    rng = scene.rng
    nearest = np.array(
        [max(7, 3 * scene.fwhm), max(7, 2.2 * scene.fwhm) if kind in REAL_KINDS else max(14, 3.5 * scene.fwhm)]
    )
    angle, distance = rng.uniform(0, 2 * np.pi, 2), rng.uniform(nearest, 26)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    if rng.random() < 0.4:
        flux = np.array([_snr(rng, 5, 300) * scene.flux_unit])
        scene.draw_static(x + dx[:1], y + dy[:1], flux, tuple(rng.normal(0, 0.01, 2)))
    if rng.random() < 0.1 and kind != "noise":
        _transient(scene, x + dx[1], y + dy[1])


def _cosmic_ray(scene: _Scene, x: float, y: float) -> None:
    """A straight track one pixel wide, with charge that varies along it and a little diffusion."""
    rng, (image, _) = scene.rng, scene.one_image(0.15)
    length = rng.choice([0.0, 0.5, 1.0, 1.5, 2.5, 4.0, 8.0])
    angle = rng.uniform(0, np.pi)
    step = np.linspace(-0.5, 0.5, 21) * length
    columns, rows = np.rint(x + step * np.cos(angle)).astype(int), np.rint(y + step * np.sin(angle)).astype(int)
    track = np.zeros((41, 41))
    np.add.at(track, (rows - int(y) + 20, columns - int(x) + 20), rng.uniform(0.5, 1.5, 21))
    diffusion = rng.choice([0.0, 0.0, 0.04, 0.08])
    side = sum(np.roll(track, s, axis=a) for s in (1, -1) for a in (0, 1))
    track = (1 - 4 * diffusion) * track + diffusion * side
    track *= _snr(rng, 6, 200) * scene.new_sky / np.sqrt((track**2).sum())
    image[int(y) - 20 : int(y) + 21, int(x) - 20 : int(x) + 21] += track


def _hot_pixel(scene: _Scene, x: float, y: float) -> None:
    image, _ = scene.one_image(0.3)
    image[int(y), int(x)] += _snr(scene.rng, 6, 200) * scene.new_sky
    if scene.rng.random() < 0.3:
        image[int(y), int(x) + 1] += _snr(scene.rng, 3, 100) * scene.new_sky


def _dipole(scene: _Scene, x: float, y: float) -> None:
    """A star or galaxy that the alignment misses by 0.1 to 1 pixel."""
    angle, distance = scene.rng.uniform(0, 2 * np.pi), scene.rng.uniform(0.1, 1.0)
    shift = (distance * np.cos(angle), distance * np.sin(angle))
    if scene.rng.random() < 0.3:
        _galaxy(scene, x, y, shift)
        return
    flux = min(_snr(scene.rng, 10, 60) * scene.fwhm / distance, 5000) * scene.flux_unit
    scene.draw_static(np.array([x]), np.array([y]), np.array([flux]), shift)


def _star_residual(scene: _Scene, x: float, y: float) -> None:
    """A bright star whose PSF is not that of the model, with a small shift."""
    rng = scene.rng
    flux = _snr(rng, 150, 6000) * scene.flux_unit
    wrong = _profile(scene.fwhm * (1 + rng.normal(0, 0.05)), rng.uniform(2.4, 6.0), *rng.normal(0, 0.05, 2)).psf
    scene.draw(scene.new, wrong, x, y, flux * (1 + rng.normal(0, 0.01)))
    dx, dy = rng.normal(0, 0.05, 2)
    scene.draw(scene.reference, scene.reference_psf, x + dx, y + dy, flux)


def _bad_column(scene: _Scene, x: float, y: float) -> None:
    rng, (image, _) = scene.rng, scene.one_image(0.4)
    before, after = rng.integers(0, 28, 2)
    rows = slice(int(y) - before, int(y) + max(after, 4))
    level = rng.choice([-1, 1]) * _snr(rng, 2, 60) * scene.new_sky
    column = int(x)
    if rng.random() < 0.5:
        image[rows, column] += level
    else:
        columns = slice(column - before, column + max(after, 4))
        image[int(y), columns] += level


def _streak(scene: _Scene, x: float, y: float) -> None:
    """A piece of a satellite trail, one PSF wide, through or ending in the stamp."""
    rng, (image, psf) = scene.rng, scene.one_image(0.2)
    angle = rng.uniform(0, np.pi)
    low, high = -rng.uniform(1.5 * scene.fwhm, 28), rng.uniform(1.5 * scene.fwhm, 28)
    step = np.arange(low, high, 0.5 * scene.fwhm)
    flux = _snr(rng, 2.5, 40) * scene.flux_unit * np.ones(step.size) / 2
    scene.draw(image, psf, x + step * np.cos(angle), y + step * np.sin(angle), flux)


def _noise(scene: _Scene, x: float, y: float) -> None:
    """Noise larger than the variance says: a peak without an object."""
    cell = (slice(int(y) - 12, int(y) + 13), slice(int(x) - 12, int(x) + 13))
    scene.extra_noise[cell] *= scene.rng.uniform(1.4, 2.2)


_PAINTERS = {
    "hostless": _hostless,
    "on_host": _on_host,
    "near_star": _near_star,
    "cosmic_ray": _cosmic_ray,
    "hot_pixel": _hot_pixel,
    "dipole": _dipole,
    "star_residual": _star_residual,
    "bad_column": _bad_column,
    "streak": _streak,
    "noise": _noise,
}


def _subtracted(scene: _Scene, new_psf: Psf, reference_psf: Psf) -> tuple[Difference, FloatArray, FloatArray]:
    """Noise on the scene, and the proper subtraction (Zackay et al. 2016, eqs 13-17) with the *model* PSFs."""
    rng = scene.rng
    skies = (scene.new_sky, scene.reference_sky)
    variances = [
        sky**2 + np.maximum(image, 0) / GAIN for image, sky in zip((scene.new, scene.reference), skies, strict=True)
    ]
    new = scene.new + rng.normal(0, 1, scene.new.shape) * np.sqrt(variances[0]) * scene.extra_noise
    reference = scene.reference + rng.normal(0, 1, scene.new.shape) * np.sqrt(variances[1])
    p_n, p_r = (_transform(raw_stamps(psf, [0.0], [0.0], 41)[0], new.shape) for psf in (new_psf, reference_psf))
    denominator = skies[0] ** 2 * np.abs(p_r) ** 2 + skies[1] ** 2 * np.abs(p_n) ** 2
    whiten = np.sqrt((skies[0] ** 2 + skies[1] ** 2) / denominator)
    data = _filtered(new, p_r * whiten) - _filtered(reference, p_n * whiten)
    score_n, score_r = np.conj(p_n) * np.abs(p_r) ** 2 / denominator, np.conj(p_r) * np.abs(p_n) ** 2 / denominator
    from_new, from_reference = _filtered(new, score_n), _filtered(reference, score_r)
    variance = _filtered(variances[0], _squared(score_n, new.shape)) + _filtered(
        variances[1], _squared(score_r, new.shape)
    )
    response = float(fft.irfft2(np.abs(p_n) ** 2 * np.abs(p_r) ** 2 / denominator, s=new.shape)[0, 0])
    # The pipeline knows its PSF error from the bright stars and adds it to the noise of the score.
    sigma = np.sqrt(np.maximum(variance, 1e-30) + (0.005 * from_reference) ** 2)
    difference = Difference(
        info=_info(),
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


def _found(scene: _Scene, images: tuple, x: FloatArray, y: FloatArray, kind: NDArray[np.int64]) -> Triplets:
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
    stamps = [
        cut_stamps(image.astype(np.float32), difference.flags, corner, STAMP_PX)
        for image in (new, reference, difference.data)
    ]
    flags = stamps[0][1]
    cutouts = Cutouts(stamps[0][0], stamps[1][0], stamps[2][0], flags, flags, flags, corner, STAMP_PX)
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
    reach[kind == KINDS.index("noise")] = 12
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


def _info() -> ImageInfo:
    return ImageInfo("simulated", "c", "simulated", "", "r", 60000.0, 60.0, 1.0, "", "", GAIN, 5.0, 6e4, 1.0)


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
