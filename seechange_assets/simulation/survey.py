"""A whole small survey on disk: calibration frames, reference epochs, science exposures, truth.

Every random number comes from a stream named by what it is for (stage, exposure, CCD), so a
file does not depend on which others are made, nor in which order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError
from seechange_assets.instruments.base import get_instrument
from seechange_assets.instruments.headers import exposure_key
from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.simulation.detector import Detector, add_dark_and_fringes, add_streak, expose, make_detector
from seechange_assets.simulation.geometry import Geometry
from seechange_assets.simulation.plan import (
    DISTORTION,
    FIRST_SCIENCE,
    POINTING_DEG,
    STREAM_CATALOG,
    STREAM_DARK,
    STREAM_DETECTOR,
    STREAM_FRAME,
    STREAM_SKY,
    Exposure,
    Simulator,
    mjd_of,
    plan_survey,
)
from seechange_assets.simulation.raw_file import write_raw
from seechange_assets.simulation.render import MoffatField
from seechange_assets.simulation.scene import TYPICAL_SEEING_ARCSEC, Conditions, magnitude_at_snr, render_scene
from seechange_assets.simulation.sky import Sky, draw_galaxies, draw_stars, draw_transients, measure_catalog
from seechange_assets.simulation.truth import note_truth, truth_table

FLAT_LEVEL_E = 38000.0
STREAK_SURFACE_E = 400.0


@dataclass(frozen=True, slots=True)
class SimulatedSurvey:
    """What `simulate_survey` wrote: files in order of time, keys of the exposures, catalogue and truth."""

    out: Path
    instrument: str
    ccds: tuple[str, ...]
    biases: tuple[Path, ...]
    flats: tuple[Path, ...]
    references: tuple[Path, ...]
    science: tuple[Path, ...]
    keys: dict[Path, str]
    catalog: Path
    truth: Path
    darks: tuple[Path, ...] = ()

    @property
    def raw(self) -> tuple[Path, ...]:
        """Every raw file."""
        return self.biases + self.flats + self.darks + self.references + self.science


def simulate_survey(
    out: Path,
    *,
    seed: int,
    exposures: int,
    ccds: Sequence[str],
    reference_epochs: int = 3,
    biases: int = 5,
    flats: int = 5,
    darks: int = 0,
    dark_e_s: float = 0.0,
    fringe_fraction: float = 0.0,
    transients_per_ccd: int = 30,
    streaks: int = 0,
    instrument: str = "ls4",
    progress: Callable[[str, float], None] | None = None,
) -> SimulatedSurvey:
    """Write a survey: ``raw/*.fits``, ``catalog/gaia.fits``, ``truth.ecsv`` (and ``streaks.ecsv``).

    Parameters
    ----------
    out : Path
        Folder, created; files of the same name are replaced.
    seed : int
        Same seed, same bytes.
    exposures : int
        Science exposures (``PROJECT`` is ``survey``), on at most eight nights from 2026-11-20.
    ccds : sequence of str
        CCDs to render; the files hold these alone and say so in ``NCCD`` and ``CCDLIST``.
    reference_epochs : int
        Exposures without transients, from 2026-11-02 (``PROJECT`` is ``reference``).
    darks : int
        Dark frames.
    dark_e_s, fringe_fraction : float
        Dark current [e-/s] and rms of the fringes (fraction of the sky) in every frame; see `add_dark_and_fringes`.
    streaks : int
        Satellite trails per science exposure and CCD.
    instrument : str
        ``ls4``, or ``demo`` for small CCDs.
    progress : callable, optional
        Called with a message and the fraction done, before each file.

    Returns
    -------
    SimulatedSurvey

    Raises
    ------
    ParameterError
        For an unknown CCD or an instrument without simulator.
    """
    camera = get_instrument(instrument)
    if not isinstance(camera, Ls4):
        raise ParameterError(f"simulate: instrument {instrument!r} has no simulator: use ls4 or demo")
    unknown = [ccd for ccd in ccds if ccd not in camera.ccds]
    if unknown or not ccds:
        raise ParameterError(
            f"simulate: unknown CCD {unknown[:1]}: use names from {camera.ccds[0]} to {camera.ccds[-1]}"
        )
    chosen = tuple(ccd for ccd in camera.ccds if ccd in ccds)
    simulator = Simulator(
        seed, camera, transients_per_ccd, max(reference_epochs, 1), streaks, dark_e_s, fringe_fraction
    )
    plan = plan_survey(simulator, exposures, reference_epochs, biases, flats, darks)
    skies = {ccd: _draw_sky(simulator, ccd) for ccd in chosen}
    detectors = lru_cache(maxsize=4)(lambda ccd: _detector(simulator, ccd))
    (out / "raw").mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Path]] = {"bias": [], "flat": [], "dark": [], "reference": [], "survey": []}
    keys = {}
    for i, exposure in enumerate(plan):
        key = exposure_key(camera.name, exposure.conditions.mjd)
        if progress is not None:
            progress(f"{exposure.project} {key}", i / len(plan))
        path = out / "raw" / f"{key}.fits"
        frames = {ccd: _frame(simulator, exposure, key, ccd, skies[ccd], detectors(ccd)) for ccd in chosen}
        write_raw(path, simulator, exposure, frames)
        written[exposure.project if exposure.kind == "science" else exposure.kind].append(path)
        keys[path] = key
    catalog, truth = out / "catalog" / "gaia.fits", out / "truth.ecsv"
    _write_tables(simulator, [skies[ccd] for ccd in chosen], catalog, truth)
    if progress is not None:
        progress("done", 1.0)
    files = {name: tuple(paths) for name, paths in written.items()}
    return SimulatedSurvey(
        out,
        camera.name,
        chosen,
        files["bias"],
        files["flat"],
        files["reference"],
        files["survey"],
        keys,
        catalog,
        truth,
        files["dark"],
    )


def _draw_sky(simulator: Simulator, ccd: str) -> Sky:
    """The sky in the cell of a CCD (with half the gap around it), independent of the other CCDs."""
    camera = simulator.instrument
    rng = simulator.rng(STREAM_SKY, simulator.number(ccd))
    east, north = camera.ccd_offset_deg(ccd)
    shape = (camera.ccd_shape[0] + camera.gap_px, camera.ccd_shape[1] + camera.gap_px)
    cell = Geometry(*POINTING_DEG, shape, camera.pixel_scale_arcsec, east, north)
    stars, galaxies = draw_stars(rng, cell), draw_galaxies(rng, cell)
    name, read_noise = camera.default_filter(ccd), float(np.mean(camera.read_noises))
    typical = Conditions(mjd_of(FIRST_SCIENCE), camera.exptime_s, TYPICAL_SEEING_ARCSEC)
    transients = draw_transients(
        rng, cell, stars, stars.magnitude(camera, name), galaxies, count=simulator.transients_per_ccd,
        t0_mjd=typical.mjd, label=f"T{ccd}_", margin_px=camera.gap_px / 2 + 40,
        mag_at_snr=magnitude_at_snr(
            camera, name, typical, read_noise_e=read_noise, n_reference=simulator.reference_epochs
        ),
    )  # fmt: skip
    return Sky(stars, galaxies, transients)


def _detector(simulator: Simulator, ccd: str) -> Detector:
    camera = simulator.instrument
    east, north = camera.ccd_offset_deg(ccd)
    detector = make_detector(
        simulator.rng(STREAM_DETECTOR, simulator.number(ccd)), camera.amplifiers(), camera.raw_shape, camera.ccd_shape,
        edge_distance=(east / 3.0, north / 3.0),
    )  # fmt: skip
    return add_dark_and_fringes(
        simulator.rng(STREAM_DARK, simulator.number(ccd)), detector, dark_e_s=simulator.dark_e_s,
        fringe_fraction=simulator.fringe_fraction,
    )  # fmt: skip


def _frame(
    simulator: Simulator, exposure: Exposure, key: str, ccd: str, sky: Sky, detector: Detector
) -> NDArray[np.uint16]:
    """The raw frame of one CCD; truth rows of science exposures are noted on the way."""
    camera = simulator.instrument
    rng = simulator.rng(STREAM_FRAME, exposure.index, simulator.number(ccd))
    exptime_s = exposure.conditions.exptime_s
    if exposure.kind != "science":
        level = FLAT_LEVEL_E if exposure.kind == "flat" else 0.0
        return expose(rng, np.full(camera.ccd_shape, level, np.float32), detector, exptime_s=exptime_s)
    east, north = camera.ccd_offset_deg(ccd)
    geometry = Geometry(
        *exposure.true_pointing_deg, camera.ccd_shape, camera.pixel_scale_arcsec, east, north, exposure.rotation_deg,
        DISTORTION,
    )  # fmt: skip
    psf = MoffatField(exposure.conditions.seeing_arcsec / camera.pixel_scale_arcsec, camera.ccd_shape)
    is_survey = exposure.project == "survey"
    name = camera.default_filter(ccd)
    scene = render_scene(sky, camera, name, geometry, psf, exposure.conditions, with_transients=is_survey)
    for _ in range(simulator.streaks if is_survey else 0):
        ends = add_streak(rng, scene.electrons, psf.fwhm_px, STREAK_SURFACE_E)
        simulator.trails.append({"exposure": key, "ccd": ccd} | dict(zip(("x1", "y1", "x2", "y2"), ends, strict=True)))
    if is_survey:
        note_truth(simulator, exposure, key, ccd, sky, scene, psf, detector)
    sky_e = exposure.conditions.sky_e(name, camera.pixel_scale_arcsec)
    return expose(rng, scene.electrons, detector, exptime_s=exptime_s, sky_e=sky_e)


def _write_tables(simulator: Simulator, skies: list[Sky], catalog: Path, truth: Path) -> None:
    stars = measure_catalog(simulator.rng(STREAM_CATALOG), [sky.stars for sky in skies])
    catalog.parent.mkdir(parents=True, exist_ok=True)
    stars.table.meta.update({"EPOCH": stars.epoch_yr, "CATNAME": stars.name})
    stars.table.write(catalog, overwrite=True)
    truth_table(simulator.rows).write(truth, format="ascii.ecsv", overwrite=True)
    if simulator.trails:
        from astropy.table import Table

        Table(simulator.trails).write(truth.with_name("streaks.ecsv"), format="ascii.ecsv", overwrite=True)
