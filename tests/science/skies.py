"""Synthetic images of stars and galaxies with truth, drawn without the code under test."""

from dataclasses import dataclass

import numpy as np

from seechange_assets.products import Image, ImageInfo

SKY, GAIN, READ_NOISE, SATURATION = 500.0, 1.6, 6.0, 60000.0


@dataclass
class Sky:
    """An image and what was put into it."""

    image: Image
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    is_star: np.ndarray


def as_image(data, flags=None) -> Image:
    """An `Image` of these pixels."""
    info = ImageInfo(
        exposure="test_20261122T031502", ccd="1", instrument="test", field="f", filter="r", mjd=61000.0,
        exptime_s=60.0, airmass=1.0, target="", project="", gain=GAIN, read_noise=READ_NOISE,
        saturation=SATURATION, pixel_scale_arcsec=1.0,
    )  # fmt: skip
    data = np.asarray(data, np.float32)
    return Image(info, data, np.zeros(data.shape, np.uint16) if flags is None else flags)


def moffat_stamps(x, y, fwhm_px, ellipticity, half, beta=3.0, subpixels=5):
    """Pixel-integrated Moffat stars of flux 1 around ``floor(x + 0.5)``; `fwhm_px` is that before the pixels."""
    offsets = (np.arange(subpixels) + 0.5) / subpixels - 0.5
    axis = (np.arange(-half, half + 1)[:, None] + offsets).ravel()
    stamps = np.empty((len(x), 2 * half + 1, 2 * half + 1))
    for k in range(len(x)):
        alpha2 = (fwhm_px[k] / 2) ** 2 / (2 ** (1 / beta) - 1)
        dx = (axis - (x[k] - np.floor(x[k] + 0.5))) / (1 + ellipticity[k])
        dy = (axis - (y[k] - np.floor(y[k] + 0.5))) * (1 + ellipticity[k])
        fine = (1 + (dx[None, :] ** 2 + dy[:, None] ** 2) / alpha2) ** -beta * (beta - 1) / np.pi / alpha2
        stamps[k] = fine.reshape(2 * half + 1, subpixels, 2 * half + 1, subpixels).mean(axis=(1, 3))
    return stamps


def make_sky(
    seed,
    shape=(600, 600),
    fwhm_px=3.0,
    n_stars=200,
    n_galaxies=0,
    flux=None,
    variation=0.1,
    ellipticity=0.05,
    positions=None,
) -> Sky:
    """Stars whose FWHM and ellipticity vary over the image, and galaxies twice as wide, on a noisy sky."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    n = n_stars + n_galaxies
    x, y = (rng.uniform(8, nx - 9, n), rng.uniform(8, ny - 9, n)) if positions is None else positions
    flux = np.minimum(400.0 * (1 - rng.uniform(size=n)) ** -1.4, 4e5) if flux is None else np.broadcast_to(flux, n)
    u, v = 2 * x / nx - 1, 2 * y / ny - 1
    is_star = np.arange(n) < n_stars
    width = fwhm_px * (1 + variation * (u**2 + v) / 2) * np.where(is_star, 1.0, 2.0)
    half = int(np.ceil(5 * fwhm_px)) + 2
    stamps = moffat_stamps(x, y, width, ellipticity * u, half)
    padded = np.full((ny + 2 * half, nx + 2 * half), SKY)
    for stamp, f, column, row in zip(stamps, flux, np.floor(x + 0.5), np.floor(y + 0.5), strict=True):
        padded[int(row) : int(row) + 2 * half + 1, int(column) : int(column) + 2 * half + 1] += f * stamp
    expected = padded[half:-half, half:-half]
    data = rng.poisson(expected * GAIN) / GAIN + rng.normal(0, READ_NOISE / GAIN, shape)
    flags = np.where(data >= SATURATION, 4, 0).astype(np.uint16)
    return Sky(as_image(data, flags), x, y, np.array(flux), is_star)


def grid_positions(shape, spacing, seed):
    """Positions on a grid with random pixel phases, so that no two sources touch."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[spacing // 2 : shape[0] - spacing // 2 : spacing, spacing // 2 : shape[1] - spacing // 2 : spacing]
    return u.ravel() + rng.uniform(-0.5, 0.5, u.size), v.ravel() + rng.uniform(-0.5, 0.5, u.size)


def matched(sky, sources, radius_px=1.5):
    """Rows of the sources with a true counterpart, and its index."""
    from scipy.spatial import cKDTree

    distance, truth = cKDTree(np.stack([sky.x, sky.y], 1)).query(
        np.stack([sources.table["x"], sources.table["y"]], 1), distance_upper_bound=radius_px
    )
    rows = np.flatnonzero(np.isfinite(distance))
    return rows, truth[rows]


def robust_std(values) -> float:
    """1.4826 times the median absolute deviation."""
    values = np.asarray(values)
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
