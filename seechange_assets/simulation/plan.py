"""The observing plan of a simulated survey, and its streams of random numbers."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from seechange_assets.instruments.headers import MJD_ZERO
from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.simulation.scene import Conditions

POINTING_DEG = (52.5, -27.5)
CALIBRATION_NIGHT = datetime(2026, 11, 1, 20, tzinfo=UTC)
FIRST_REFERENCE = datetime(2026, 11, 2, 3, tzinfo=UTC)
FIRST_SCIENCE = datetime(2026, 11, 20, 2, 30, tzinfo=UTC)
#: Science exposures fall on at most this many nights.
SCIENCE_NIGHTS = 8
#: Rms of dither and pointing error [arcsec], rotation error [deg], radial distortion [1/deg^2].
DITHER_ARCSEC, POINTING_ERROR_ARCSEC, ROTATION_ERROR_DEG, DISTORTION = 6.0, 2.5, 0.01, 6e-5
REFERENCE_SEEING_ARCSEC, SCIENCE_SEEING_ARCSEC = (1.4, 1.8), (1.5, 2.2)

#: First number of a random stream: what it is for.
STREAM_SKY, STREAM_DETECTOR, STREAM_CONDITIONS, STREAM_FRAME, STREAM_CATALOG, STREAM_DARK = range(6)
#: Exposure times of the calibrations [s].
BIAS_S, DARK_S, FLAT_S = 0.0, 120.0, 5.0


@dataclass(frozen=True, slots=True)
class Exposure:
    """One line of the observing plan; ``index`` names its random streams."""

    index: int
    kind: str
    project: str
    conditions: Conditions
    pointing_deg: tuple[float, float] = POINTING_DEG
    true_pointing_deg: tuple[float, float] = POINTING_DEG
    rotation_deg: float = 0.0
    airmass: float = 1.0


@dataclass(slots=True)
class Simulator:
    """The seed and the camera; everything else follows from them."""

    seed: int
    instrument: Ls4
    transients_per_ccd: int
    reference_epochs: int
    streaks: int
    dark_e_s: float = 0.0
    fringe_fraction: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    trails: list[dict[str, Any]] = field(default_factory=list)

    def rng(self, *stream: int) -> np.random.Generator:
        """The stream of random numbers of that name."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))

    def number(self, ccd: str) -> int:
        """Place of a CCD among the camera's, for the names of streams."""
        return self.instrument.ccds.index(ccd)


def plan_survey(
    simulator: Simulator, exposures: int, references: int, biases: int, flats: int, darks: int = 0
) -> list[Exposure]:
    """The observing plan, in order of time."""
    plan: list[Exposure] = []
    for kind, count, exptime_s in (("bias", biases, BIAS_S), ("flat", flats, FLAT_S), ("dark", darks, DARK_S)):
        for _ in range(count):
            start = CALIBRATION_NIGHT + timedelta(minutes=3 * len(plan) if kind == "dark" else len(plan))
            plan.append(Exposure(len(plan), kind, "calibration", Conditions(mjd_of(start), exptime_s, float("nan"))))
    nights = (FIRST_REFERENCE + timedelta(days=i) for i in range(references))
    plan += [_science(simulator, "reference", night, REFERENCE_SEEING_ARCSEC) for night in nights]
    per_night = max(2, -(-exposures // SCIENCE_NIGHTS))
    spacing = min(timedelta(minutes=75), timedelta(minutes=360) / per_night)
    for i in range(exposures):
        night, turn = divmod(i, per_night)
        start = FIRST_SCIENCE + timedelta(days=night) + turn * spacing
        plan.append(_science(simulator, "survey", start, SCIENCE_SEEING_ARCSEC))
    return plan


def _science(simulator: Simulator, project: str, start: datetime, seeing_arcsec: tuple[float, float]) -> Exposure:
    # The stream is named by project and time, so that more biases or references leave later exposures as they are.
    rng = simulator.rng(STREAM_CONDITIONS, int(start.timestamp()))
    ra, dec = POINTING_DEG
    dither, error = rng.normal(0, DITHER_ARCSEC / 3600, 2), rng.normal(0, POINTING_ERROR_ARCSEC / 3600, 2)
    dither, error = np.clip(dither, -8 / 3600, 8 / 3600), np.clip(error, -6 / 3600, 6 / 3600)
    stretch = np.cos(np.radians(dec))
    pointing = (ra + dither[0] / stretch, dec + dither[1])
    airmass = float(rng.uniform(1.0, 1.4))
    conditions = Conditions(
        mjd_of(start), simulator.instrument.exptime_s, float(rng.uniform(*seeing_arcsec)),
        sky_factor=float(rng.uniform(0.9, 1.3)), gradient=tuple(rng.normal(0, 0.02, 2)),
        transparency=float(10 ** (-0.4 * 0.12 * (airmass - 1)) * rng.uniform(0.92, 1.0)),
    )  # fmt: skip
    return Exposure(
        int(start.timestamp()), "science", project, conditions, pointing,
        (pointing[0] + error[0] / stretch, pointing[1] + error[1]), float(rng.normal(0, ROTATION_ERROR_DEG)), airmass,
    )  # fmt: skip


def mjd_of(moment: datetime) -> float:
    """A moment as MJD."""
    return (moment - MJD_ZERO) / timedelta(days=1)
