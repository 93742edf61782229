"""What the cells of a simulated mosaic hold: the kinds of transients and of artefacts, painted into both images."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from seechange_assets.realbogus.scene import Scene, profile, random_snr

FloatArray = NDArray[np.float64]

REAL_KINDS = ("hostless", "on_host", "near_star", "variable")
BOGUS_KINDS = (
    "cosmic_ray", "hot_pixel", "dipole", "star_residual", "bad_column", "streak", "edge", "ghost", "noise",
    "excess_noise",
)  # fmt: skip
KINDS = REAL_KINDS + BOGUS_KINDS
#: |score| from which on the pipeline detects, and the simulation keeps.
MIN_SCORE = 5.0


def paint(scene: Scene, kind: str, x: float, y: float) -> None:
    """Draw an object of that kind, and what happens to lie around it."""
    _PAINTERS[kind](scene, x, y)
    _add_neighbours(scene, x, y, kind)


def _transient(scene: Scene, x: float, y: float) -> None:
    image, psf = scene.one_image(0.2)
    scene.draw(image, psf, x, y, random_snr(scene.rng) * scene.flux_unit)


def _galaxy(scene: Scene, x: float, y: float, shift: tuple[float, float] = (0.0, 0.0)) -> None:
    """An inclined exponential disc as a cloud of points, the same in both images."""
    rng = scene.rng
    radius = rng.gamma(2.0, rng.uniform(0.2, 1.2) * scene.fwhm, 80)
    angle, tilt, turn = rng.uniform(0, 2 * np.pi, 80), rng.uniform(0.3, 1.0), rng.uniform(0, np.pi)
    a, b = radius * np.cos(angle), tilt * radius * np.sin(angle)
    flux = np.full(80, random_snr(rng, 10, 1500) * scene.flux_unit / 80)
    scene.draw_static(x + a * np.cos(turn) - b * np.sin(turn), y + a * np.sin(turn) + b * np.cos(turn), flux, shift)


def _hostless(scene: Scene, x: float, y: float) -> None:
    _transient(scene, x, y)


def _on_host(scene: Scene, x: float, y: float) -> None:
    dx, dy = scene.rng.normal(0, scene.fwhm, 2)
    _galaxy(scene, x + dx, y + dy, tuple(scene.rng.normal(0, 0.02, 2)))
    _transient(scene, x, y)


def _near_star(scene: Scene, x: float, y: float) -> None:
    angle, distance = scene.rng.uniform(0, 2 * np.pi), scene.fwhm * scene.rng.uniform(1.2, 5)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    flux = random_snr(scene.rng, 20, 1000) * scene.flux_unit
    scene.draw_static(np.array([x + dx]), np.array([y + dy]), np.array([flux]), tuple(scene.rng.normal(0, 0.02, 2)))
    _transient(scene, x, y)


def _add_neighbours(scene: Scene, x: float, y: float, kind: str) -> None:
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
        flux = np.array([random_snr(rng, 5, 300) * scene.flux_unit])
        scene.draw_static(x + dx[:1], y + dy[:1], flux, tuple(rng.normal(0, 0.01, 2)))
    if rng.random() < 0.1 and kind not in ("noise", "excess_noise"):
        _transient(scene, x + dx[1], y + dy[1])


def _variable(scene: Scene, x: float, y: float) -> None:
    """A star whose flux changed by 5 % or more, up or down."""
    rng = scene.rng
    change = random_snr(rng) * scene.flux_unit
    flux = np.array([change / float(np.exp(rng.uniform(np.log(0.05), np.log(1.5))))])
    scene.draw_static(np.array([x]), np.array([y]), flux, tuple(rng.normal(0, 0.015, 2)))
    image, psf = scene.one_image(0.5)
    scene.draw(image, psf, x, y, change)


def _cosmic_ray(scene: Scene, x: float, y: float) -> None:
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
    track *= random_snr(rng, 6, 200) * scene.new_sky / np.sqrt((track**2).sum())
    image[int(y) - 20 : int(y) + 21, int(x) - 20 : int(x) + 21] += track


def _hot_pixel(scene: Scene, x: float, y: float) -> None:
    image, _ = scene.one_image(0.3)
    image[int(y), int(x)] += random_snr(scene.rng, 6, 200) * scene.new_sky
    if scene.rng.random() < 0.3:
        image[int(y), int(x) + 1] += random_snr(scene.rng, 3, 100) * scene.new_sky


def _dipole(scene: Scene, x: float, y: float) -> None:
    """A star or galaxy that the alignment misses by 0.1 to 1 pixel."""
    angle, distance = scene.rng.uniform(0, 2 * np.pi), scene.rng.uniform(0.1, 1.0)
    shift = (distance * np.cos(angle), distance * np.sin(angle))
    if scene.rng.random() < 0.3:
        _galaxy(scene, x, y, shift)
        return
    flux = min(random_snr(scene.rng, 10, 60) * scene.fwhm / distance, 5000) * scene.flux_unit
    scene.draw_static(np.array([x]), np.array([y]), np.array([flux]), shift)


def _star_residual(scene: Scene, x: float, y: float) -> None:
    """A bright star whose PSF is not that of the model, with a small shift."""
    rng = scene.rng
    flux = random_snr(rng, 150, 6000) * scene.flux_unit
    wrong = profile(scene.fwhm * (1 + rng.normal(0, 0.05)), rng.uniform(2.4, 6.0), *rng.normal(0, 0.05, 2)).psf
    scene.draw(scene.new, wrong, x, y, flux * (1 + rng.normal(0, 0.01)))
    dx, dy = rng.normal(0, 0.05, 2)
    scene.draw(scene.reference, scene.reference_psf, x + dx, y + dy, flux)


def _bad_column(scene: Scene, x: float, y: float) -> None:
    rng, (image, _) = scene.rng, scene.one_image(0.4)
    before, after = rng.integers(0, 28, 2)
    rows = slice(int(y) - before, int(y) + max(after, 4))
    level = rng.choice([-1, 1]) * random_snr(rng, 2, 60) * scene.new_sky
    column = int(x)
    if rng.random() < 0.5:
        image[rows, column] += level
    else:
        columns = slice(column - before, column + max(after, 4))
        image[int(y), columns] += level


def _streak(scene: Scene, x: float, y: float) -> None:
    """A piece of a satellite trail, one PSF wide, through or ending in the stamp."""
    rng, (image, psf) = scene.rng, scene.one_image(0.2)
    angle = rng.uniform(0, np.pi)
    low, high = -rng.uniform(1.5 * scene.fwhm, 28), rng.uniform(1.5 * scene.fwhm, 28)
    step = np.arange(low, high, 0.5 * scene.fwhm)
    flux = random_snr(rng, 2.5, 40) * scene.flux_unit * np.ones(step.size) / 2
    scene.draw(image, psf, x + step * np.cos(angle), y + step * np.sin(angle), flux)


def _edge(scene: Scene, x: float, y: float) -> None:
    """An unflagged edge of one image through a star: beyond it the sky's level is another and light is missing."""
    rng, (image, _) = scene.rng, scene.one_image(0.7)
    flux = np.array([random_snr(rng, 8, 500) * scene.flux_unit])
    scene.draw_static(np.array([x]), np.array([y]), flux)
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.7) * scene.fwhm
    box, dx, dy = _box(x, y)
    beyond = dx * np.cos(angle) + dy * np.sin(angle) > distance
    part = image[box]
    part[beyond] *= rng.uniform(0.0, 1.0)
    part[beyond] += rng.choice([-1, 1]) * random_snr(rng, 1.0, 20) * scene.new_sky


def _ghost(scene: Scene, x: float, y: float) -> None:
    """A disc or ring wider than the PSF: light reflected or induced by a bright star elsewhere."""
    rng, (image, _) = scene.rng, scene.one_image(0.3)
    box, dx, dy = _box(x, y)
    radius = rng.uniform(1.5 * scene.fwhm + 1, max(2.5 * scene.fwhm, 12))
    hole = rng.choice([0.0, 0.0, 0.5, 0.8]) * radius
    distance = np.hypot(dx, dy)
    softness = 0.3 * scene.fwhm + 0.3
    shape = 1 / (1 + np.exp((distance - radius) / softness))
    if hole > 0:
        shape -= 1 / (1 + np.exp((distance - hole) / softness))
    image[box] += rng.choice([-1, 1], p=[0.2, 0.8]) * random_snr(rng, 0.7, 15) * scene.new_sky * shape


def _box(x: float, y: float) -> tuple[tuple[slice, slice], FloatArray, FloatArray]:
    """The 41 pixels around a place, and their distance from it along x and y."""
    rows, columns = slice(int(y) - 20, int(y) + 21), slice(int(x) - 20, int(x) + 21)
    v, u = np.mgrid[rows, columns].astype(np.float64)
    return (rows, columns), u - x, v - y


def _noise(scene: Scene, x: float, y: float) -> None:
    """A peak of Gaussian noise, as high as chance makes them: their density falls as ``v exp(-v^2 / 2)``."""
    score = np.sqrt(MIN_SCORE**2 + 2 * scene.rng.exponential())
    scene.noise_peaks.append((int(y), int(x), float(scene.rng.choice([-1, 1]) * score)))


def _excess_noise(scene: Scene, x: float, y: float) -> None:
    """Noise larger than the variance says: a peak without an object."""
    cell = (slice(int(y) - 12, int(y) + 13), slice(int(x) - 12, int(x) + 13))
    scene.extra_noise[cell] *= scene.rng.uniform(1.4, 2.2)


_PAINTERS: dict[str, Callable[[Scene, float, float], None]] = {
    "hostless": _hostless,
    "on_host": _on_host,
    "near_star": _near_star,
    "variable": _variable,
    "cosmic_ray": _cosmic_ray,
    "hot_pixel": _hot_pixel,
    "dipole": _dipole,
    "star_residual": _star_residual,
    "bad_column": _bad_column,
    "streak": _streak,
    "edge": _edge,
    "ghost": _ghost,
    "noise": _noise,
    "excess_noise": _excess_noise,
}
