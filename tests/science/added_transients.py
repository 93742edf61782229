"""Hundreds of transients drawn into a calibrated image, for errors that a pair's own few cannot show."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import CalibratedImage, Difference, Reference
from seechange_assets.science.cutouts import make_cutouts
from seechange_assets.science.detections import detect
from seechange_assets.science.difference import subtract
from seechange_assets.science.measurements import measure
from seechange_assets.science.subtract_pair import as_reference, calibrate
from tests.science.skies import GAIN
from tests.science.truth_pairs import N_VARIABLE, Scenario, Truth, draw_pair, light_of_new, zero_point_ratio

FloatArray = NDArray[np.float64]
# Apart by this, the light of the transients does not pass for the noise of the sky between them.
SPACING_PX = 110
MIN_SNR = 20.0


@dataclass(frozen=True)
class Photometry:
    """Transients of S/N > 20, in any order: flux over truth, and flux and position errors in units of what is given."""

    flux_ratio: FloatArray
    flux_pull: FloatArray
    position_pull: FloatArray
    snr: FloatArray

    def bias(self) -> float:
        """Mean relative error of the flux, weighted by the information of each."""
        return float(np.average(self.flux_ratio, weights=self.snr**2) - 1)


def measure_added(scenario: Scenario, seed: int, side: int, method: str, rounds: int) -> Photometry:
    """One pair, subtracted `rounds` times with other transients in the new image, all after its calibration.

    Fluxes are compared on the scale of the image's own stars, which is what its zero point takes out.
    """
    rng = np.random.default_rng(seed)
    truth, new, old = draw_pair(scenario, rng, side)
    calibrated, reference = calibrate(new, None), as_reference(calibrate(old, None))
    unit = zero_point_ratio(truth, calibrated)
    parts = []
    for _ in range(rounds):
        x, y = _places(rng, truth, side)
        flux = 10 ** rng.uniform(3.5, 4.6, x.size)
        light = light_of_new(scenario, x, y, flux, side)
        data = calibrated.image.data + (rng.poisson(light * GAIN) / GAIN).astype(np.float32)
        c = replace(calibrated, image=replace(calibrated.image, data=data))
        difference = subtract(c.image, c.background, c.psf, c.wcs, c.zp, c.sources, reference, method=method)
        parts.append(_compared(difference, c, reference, x, y, flux, unit))
    return Photometry(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _places(rng: np.random.Generator, truth: Truth, side: int) -> tuple[FloatArray, FloatArray]:
    """Places on a shifted, roughened grid, away from everything else that changes."""
    from scipy.spatial import cKDTree

    axis = np.arange(40 + rng.uniform(0, SPACING_PX - 20), side - 40, SPACING_PX)
    x, y = (part.ravel() + rng.uniform(-8, 8, part.size) for part in np.meshgrid(axis, axis))
    changed = np.stack([
        np.r_[truth.transient_x, truth.x[:N_VARIABLE]], np.r_[truth.transient_y, truth.y[:N_VARIABLE]]
    ], axis=1)  # fmt: skip
    far = cKDTree(changed).query(np.stack([x, y], axis=1))[0] > 25
    return x[far], y[far]


def _compared(
    difference: Difference,
    calibrated: CalibratedImage,
    reference: Reference,
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    unit: float,
) -> tuple[FloatArray, ...]:
    """Columns of `Photometry` from one subtraction."""
    from scipy.spatial import cKDTree

    detections = detect(difference)
    cutouts = make_cutouts(detections, difference, calibrated.image, calibrated.background, reference)
    table = measure(detections, cutouts, difference, reference).table
    distance, row = cKDTree(np.stack([table["x"], table["y"]], axis=1)).query(np.stack([x, y], axis=1))
    column, line = np.rint(x).astype(int), np.rint(y).astype(int)
    snr = flux / difference.flux_err[line, column]
    good = (snr > MIN_SNR) & (difference.flags[line, column] == 0) & (distance < 3)
    rows = table[row[good]]
    measured, error = np.asarray(rows["flux_psf"]) / unit, np.asarray(rows["flux_psf_err"])
    positions = [(rows["x"] - x[good]) / rows["x_err"], (rows["y"] - y[good]) / rows["y_err"]]
    pull = (measured - flux[good]) / error
    return measured / flux[good], pull, np.concatenate([np.asarray(p) for p in positions]), snr[good]
