"""Two images of one sky on one grid whose PSFs vary over the field, drawn analytically, with truth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seechange_assets.science.matching_kernel import ImagePair
from seechange_assets.science.zogy import PsfPair

FWHM = np.sqrt(8 * np.log(2))
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Seeing:
    """FWHM [pixel] in the middle of the field and its relative change from there to a corner."""

    fwhm_px: float
    change: float = 0.0

    def sigma(self, x: Array | float, y: Array | float, shape: tuple[int, int]) -> Array:
        u, v = 2 * np.asarray(x) / (shape[1] - 1) - 1, 2 * np.asarray(y) / (shape[0] - 1) - 1
        return self.fwhm_px / FWHM * (1 + self.change * (u + v) / 2)


@dataclass(frozen=True)
class Truth:
    """Stars (brightest first) and transients of a pair: columns x, y, flux."""

    stars: Array
    transients: Array


def varying_pair(
    seed: int,
    shape: tuple[int, int],
    new: Seeing,
    reference: Seeing,
    *,
    n_stars: int = 100,
    n_transients: int = 0,
    variable: float = 0.0,
    sky_rms: tuple[float, float] = (20.0, 10.0),
    faintest: float = 3e3,
) -> tuple[ImagePair, PsfPair, Truth]:
    """A noisy pair; the brightest star is brighter by the fraction `variable` in the new image."""
    rng = np.random.default_rng(seed)
    stars = _places(rng, shape, n_stars, np.sort(10 ** rng.uniform(np.log10(faintest), 5.3, n_stars))[::-1])
    transients = _places(rng, shape, n_transients, np.full(n_transients, 2e4))
    changed = stars.copy()
    changed[:1, 2] *= 1 + variable
    images, variances = [], []
    for seeing, rms, sources in zip(
        (new, reference), sky_rms, (np.concatenate([changed, transients]), stars), strict=True
    ):
        light = _drawn(sources, seeing, shape)
        variance = rms**2 + light / 2.0
        images.append((light + rng.normal(size=shape) * np.sqrt(variance)).astype(np.float32))
        variances.append(variance.astype(np.float32))

    def psfs(x: float, y: float) -> tuple[Array, Array]:
        return stamp(float(new.sigma(x, y, shape))), stamp(float(reference.sigma(x, y, shape)))

    return ImagePair(*images, *variances, np.zeros(shape, np.uint16)), psfs, Truth(stars, transients)


def stamp(sigma: float, half: int = 15) -> Array:
    """A centred Gaussian of sum 1."""
    axis = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    table = np.outer(axis, axis)
    return np.asarray(table / table.sum())


def blank(shape: tuple[int, int], truth: Truth, radius_px: float) -> NDArray[np.bool_]:
    """Pixels farther than that from every source, and from the border."""
    from scipy.ndimage import distance_transform_edt

    empty = np.ones(shape, bool)
    for sources in (truth.stars, truth.transients):
        empty[sources[:, 1].astype(int), sources[:, 0].astype(int)] = False
    sky = distance_transform_edt(empty) > radius_px
    border = np.ones(shape, bool)
    border[12:-12, 12:-12] = False
    return np.asarray(sky & ~border)


def _places(rng: np.random.Generator, shape: tuple[int, int], n: int, flux: Array) -> Array:
    """Whole pixels, so that maps can be read at a source without interpolation."""
    ny, nx = shape
    return np.stack([rng.integers(25, nx - 25, n), rng.integers(25, ny - 25, n), flux], axis=1).astype(float)


def _drawn(sources: Array, seeing: Seeing, shape: tuple[int, int]) -> Array:
    light = np.zeros(shape)
    for x, y, flux in sources:
        column, row = int(x), int(y)
        light[row - 15 : row + 16, column - 15 : column + 16] += flux * stamp(float(seeing.sigma(x, y, shape)))
    return light
