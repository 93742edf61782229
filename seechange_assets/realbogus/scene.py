"""The mosaic of simulated triplets: its point spread functions, depths and pixels under construction."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf
from seechange_assets.science.psf import analytic_psf, oversampling_for, raw_stamps

FloatArray = NDArray[np.float64]

CELL_PX, N_CELLS = 64, 9


@dataclass(slots=True)
class Scene:
    """A mosaic under construction: noiseless images, and what is wrong with their noise.

    Where ``extra_noise`` is above 1 the variance is not what the pipeline believes; ``noise_peaks`` (row, column,
    score) are places at which the noise is to reach that score by chance.
    """

    rng: np.random.Generator
    new_psf: Psf
    reference_psf: Psf
    new_sky: float
    reference_sky: float
    gain: float
    new: FloatArray = field(init=False)
    reference: FloatArray = field(init=False)
    extra_noise: FloatArray = field(init=False)
    noise_peaks: list[tuple[int, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        side = CELL_PX * N_CELLS
        self.new, self.reference = np.zeros((side, side)), np.zeros((side, side))
        self.extra_noise = np.ones((side, side))

    @property
    def fwhm(self) -> float:
        """FWHM [pixel] of the new image."""
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


@dataclass(frozen=True, slots=True)
class Profile:
    """An elliptical Moffat PSF and the numbers it was made from."""

    psf: Psf
    fwhm: float
    beta: float
    e1: float
    e2: float


def random_psf(rng: np.random.Generator, fwhm: float) -> Profile:
    """A Moffat PSF of that FWHM [pixel] with random wings and ellipticity."""
    return profile(fwhm, rng.uniform(2.4, 6.0), *rng.normal(0, 0.03, 2))


def perturbed(rng: np.random.Generator, model: Profile) -> Psf:
    """The true PSF: the model is wrong by about a per cent in size and shape."""
    return profile(
        model.fwhm * (1 + rng.normal(0, 0.007)),
        model.beta,
        model.e1 + rng.normal(0, 0.006),
        model.e2 + rng.normal(0, 0.006),
    ).psf


def profile(fwhm: float, beta: float, e1: float, e2: float) -> Profile:
    """An elliptical Moffat PSF tabulated finely enough for its FWHM."""
    oversampling = oversampling_for(fwhm)
    half = int(np.ceil(min(4 * fwhm, 20))) * oversampling
    v, u = np.mgrid[-half : half + 1, -half : half + 1] / oversampling
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    r2 = (1 - e1) * u**2 - 2 * e2 * u * v + (1 + e1) * v**2
    table = (1 + r2 / alpha**2) ** -beta
    side = CELL_PX * N_CELLS
    return Profile(analytic_psf(table, (side, side), fwhm, oversampling, "moffat"), fwhm, beta, e1, e2)


def random_snr(rng: np.random.Generator, low: float = 4.5, high: float = 100.0) -> float:
    """A log-uniform S/N."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
