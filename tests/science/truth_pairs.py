"""Pairs of exposures with truth for judging a subtraction: drawn and judged without the code under test."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seechange_assets.instruments.base import RawCcd
from seechange_assets.products import CalibratedImage, Detections, Difference, Measurements
from seechange_assets.science.cutouts import make_cutouts
from seechange_assets.science.detections import detect
from seechange_assets.science.difference import subtract
from seechange_assets.science.measurements import measure
from seechange_assets.science.subtract_pair import as_reference, calibrate
from tests.science.pairs import rotated_wcs, wcs_text
from tests.science.skies import GAIN, READ_NOISE, as_image, moffat_stamps

FloatArray = NDArray[np.float64]
STARS_PER_MEGAPIXEL = 480
N_VARIABLE = 5
GALAXY_PARTS = 15
NEW_PHASE = 0.3  # direction in which the stars of the new image widen


@dataclass(frozen=True)
class Scenario:
    """Seeing of both [pixel], error of the reference's WCS [pixel], gradient of the sky, density of stars."""

    fwhm_new: float = 4.4
    fwhm_reference: float = 3.6
    misregistration_px: float = 0.0
    gradient: float = 0.03
    density: float = 1.0


SCENARIOS = {
    "reference sharper": Scenario(),
    "reference blurred": Scenario(3.6, 4.6),
    "misregistered": Scenario(misregistration_px=0.3),
    "gradients": Scenario(gradient=0.3),
    "crowded": Scenario(density=10.0),
}


@dataclass(frozen=True)
class Truth:
    """Static sources and transients: positions on the new image [pixel] and counts there."""

    x: FloatArray
    y: FloatArray
    flux: FloatArray
    is_star: NDArray[np.bool_]
    transient_x: FloatArray
    transient_y: FloatArray
    transient_flux: FloatArray


@dataclass(frozen=True)
class Judged:
    """What a subtraction made of a pair.

    ``sky`` are scores on blank sky, ``flux_pull``, ``flux_ratio`` and ``position_pull`` those of isolated transients
    of S/N > 20; ``missed`` counts transients of S/N > 8 that were not kept, ``bogus`` kept rows that are nothing.
    """

    sky: FloatArray
    flux_pull: FloatArray
    flux_ratio: FloatArray
    position_pull: FloatArray
    missed: int
    bogus: int
    n_clear: int


def judge_pair(scenario: Scenario, seed: int, side: int, method: str) -> Judged:
    """Draw a pair, subtract it, and compare with the truth."""
    truth, new, reference = draw_pair(scenario, np.random.default_rng(seed), side)
    calibrated, old = calibrate(new, None), as_reference(calibrate(reference, None))
    c = calibrated
    difference = subtract(c.image, c.background, c.psf, c.wcs, c.zp, c.sources, old, method=method)
    detections = detect(difference)
    cutouts = make_cutouts(detections, difference, c.image, c.background, old)
    return _judged(scenario, truth, c, difference, detections, measure(detections, cutouts, difference, old))


def draw_pair(scenario: Scenario, rng: np.random.Generator, side: int) -> tuple[Truth, RawCcd, RawCcd]:
    """A new image with transients and a reference twice as deep in flux, rotated and shifted."""
    n = int(STARS_PER_MEGAPIXEL * scenario.density * side**2 / 1e6)
    n_galaxies = int(120 * side**2 / 1e6)
    n_transients = max(12, int(55 * side**2 / 1e6))
    x, y = rng.uniform(-15, side + 15, (2, n + n_galaxies))
    flux = np.minimum(300.0 * (1 - rng.uniform(size=x.size)) ** -1.4, 2.5e5)
    # A galaxy is a clump of unresolved parts, so that it looks alike in any seeing.
    x, y, flux = (np.r_[axis[:n], np.repeat(axis[n:], GALAXY_PARTS)] for axis in (x, y, flux))
    is_star = np.arange(x.size) < n
    parts = ~is_star
    x[parts], y[parts] = x[parts] + rng.normal(0, 2.0, parts.sum()), y[parts] + rng.normal(0, 1.2, parts.sum())
    flux[parts] /= GALAXY_PARTS
    place = rng.uniform(30, side - 30, (2, n_transients))
    truth = Truth(x, y, flux, is_star, *place, 10 ** rng.uniform(3.2, 4.6, n_transients))
    grid = rotated_wcs((side, side))
    turned = rotated_wcs((side, side), rotation_deg=0.2, shift_px=(7.3, -4.7))
    new = _draw(scenario, rng, truth, (x, y, flux), scenario.fwhm_new, NEW_PHASE, side)
    x_old, y_old = turned.all_world2pix(*grid.all_pix2world(x, y, 0), 0)
    varied = 2.0 * flux * np.where(np.arange(x.size) < N_VARIABLE, 1.2, 1.0)
    shift = scenario.misregistration_px
    old = (x_old + 0.8 * shift, y_old - 0.6 * shift, varied)
    reference = _draw(scenario, rng, None, old, scenario.fwhm_reference, 1.7, side)
    return truth, _raw(new, wcs_text(grid)), _raw(reference, wcs_text(turned))


def _draw(
    scenario: Scenario,
    rng: np.random.Generator,
    truth: Truth | None,
    sources: tuple[FloatArray, FloatArray, FloatArray],
    fwhm_px: float,
    phase: float,
    side: int,
) -> NDArray[np.float32]:
    """Noisy pixels."""
    x, y, flux = sources
    if truth is not None:
        x, y, flux = np.r_[x, truth.transient_x], np.r_[y, truth.transient_y], np.r_[flux, truth.transient_flux]
    clean = _light(x, y, flux, fwhm_px, phase, side)
    slope = np.linspace(-0.5, 0.5, side)
    sky = 700.0 * (1 + scenario.gradient * (slope[None, :] - 0.7 * slope[:, None]))
    noisy = rng.poisson((clean + sky) * GAIN) / GAIN + rng.normal(0, READ_NOISE / GAIN, clean.shape)
    return noisy.astype(np.float32)


def light_of_new(scenario: Scenario, x: FloatArray, y: FloatArray, flux: FloatArray, side: int) -> FloatArray:
    """Noiseless light [ADU] of stars in the new image of a scenario."""
    return _light(x, y, flux, scenario.fwhm_new, NEW_PHASE, side)


def _light(x: FloatArray, y: FloatArray, flux: FloatArray, fwhm_px: float, phase: float, side: int) -> FloatArray:
    """Stars whose FWHM changes by 15 % from one side to the other."""
    u, v = 2 * x / side - 1, 2 * y / side - 1
    width = fwhm_px * (1 + 0.075 * (np.cos(phase) * u + np.sin(phase) * v))
    half = int(np.ceil(6 * fwhm_px))
    padded = np.zeros((side + 2 * half + 40, side + 2 * half + 40))
    corner_x, corner_y = (np.floor(axis + 0.5).astype(int) + 20 for axis in (x, y))
    inside = (corner_x >= 0) & (corner_y >= 0) & (corner_x < side + 40) & (corner_y < side + 40)
    for k in np.flatnonzero(inside):
        stamp = moffat_stamps(x[k : k + 1], y[k : k + 1], width[k : k + 1], np.zeros(1), half)[0]
        padded[corner_y[k] : corner_y[k] + 2 * half + 1, corner_x[k] : corner_x[k] + 2 * half + 1] += flux[k] * stamp
    low = half + 20
    return padded[low : low + side, low : low + side]


def _raw(data: NDArray[np.float32], wcs: str) -> RawCcd:
    from dataclasses import replace

    return RawCcd(replace(as_image(data).info, wcs_guess=wcs), data)


def _judged(
    scenario: Scenario,
    truth: Truth,
    calibrated: CalibratedImage,
    difference: Difference,
    detections: Detections,
    measurements: Measurements,
) -> Judged:
    from scipy.spatial import cKDTree

    fwhm = max(scenario.fwhm_new, scenario.fwhm_reference)
    changed = np.stack([
        np.r_[truth.transient_x, truth.x[:N_VARIABLE]], np.r_[truth.transient_y, truth.y[:N_VARIABLE]]
    ], axis=1)  # fmt: skip
    table = measurements.table[~np.asarray(measurements.table["is_bad"])]
    found = np.stack([table["x"], table["y"]], axis=1)
    places = changed[: truth.transient_x.size]
    distance, row = cKDTree(found).query(places)
    column, line = np.rint(places).astype(int).T
    snr = truth.transient_flux / difference.flux_err[line, column]
    alone = cKDTree(changed).query(places, k=2)[0][:, 1] > 3.5 * fwhm
    good = (snr > 20) & alone & (distance < 3) & (difference.flags[line, column] == 0)
    rows, flux = table[row[good]], truth.transient_flux[good]
    error = np.asarray(rows["flux_psf_err"])
    measured = np.asarray(rows["flux_psf"]) / zero_point_ratio(truth, calibrated)
    positions = [(rows[axis] - places[good, k]) / rows[f"{axis}_err"] for k, axis in enumerate(("x", "y"))]
    return Judged(
        sky=_blank_sky(truth, difference, changed, 2.5 * fwhm),
        flux_pull=(measured - flux) / error,
        flux_ratio=measured / flux,
        position_pull=np.concatenate([np.asarray(p) for p in positions]),
        missed=int(((snr > 8) & alone & (distance > 4)).sum()),
        bogus=int((cKDTree(changed).query(found)[0] > 4).sum()) if len(found) else 0,
        n_clear=int(((snr > 8) & alone).sum()),
    )


def zero_point_ratio(truth: Truth, calibrated: CalibratedImage) -> float:
    """PSF fluxes of the image's stars over the truth: what a zero point takes out of every flux."""
    from scipy.spatial import cKDTree

    table, flux = calibrated.sources.table, np.asarray(calibrated.psf.photometry["flux_psf"])
    stars = np.flatnonzero(truth.is_star)
    distance, row = cKDTree(np.stack([truth.x[stars], truth.y[stars]], 1)).query(np.stack([table["x"], table["y"]], 1))
    used = (distance < 1) & np.asarray(table["is_star"]) & (np.asarray(table["snr"]) > 30)
    return float(np.median((flux / truth.flux[stars[row]])[used]))


def _blank_sky(truth: Truth, difference: Difference, changed: FloatArray, radius_px: float) -> FloatArray:
    """Scores of unflagged pixels (every second) farther from every true source than the radius."""
    from scipy.spatial import cKDTree

    yy, xx = (axis[::2, ::2] for axis in np.indices(difference.score.shape))
    sources = np.concatenate([np.stack([truth.x, truth.y], axis=1), changed])
    distance = cKDTree(sources).query(np.stack([xx.ravel(), yy.ravel()], axis=1))[0].reshape(xx.shape)
    score = difference.score[::2, ::2]
    return np.asarray(score[(distance > radius_px) & (difference.flags[::2, ::2] == 0)], np.float64)
