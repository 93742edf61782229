"""A whole small survey on disk: calibration frames, reference epochs, science exposures, truth.

Every random number comes from a stream named by what it is for (stage, exposure, CCD), so a
file does not depend on which others are made, nor in which order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError
from seechange_assets.instruments.base import get_instrument
from seechange_assets.instruments.headers import MJD_ZERO, exposure_key
from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.simulation.detector import Detector, add_streak, expose, make_detector
from seechange_assets.simulation.geometry import Geometry
from seechange_assets.simulation.render import MoffatField
from seechange_assets.simulation.scene import (
    TYPICAL_SEEING_ARCSEC,
    Conditions,
    expected_snr,
    magnitude_at_snr,
    render_scene,
)
from seechange_assets.simulation.sky import Sky, draw_galaxies, draw_stars, draw_transients, measure_catalog

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import Table

POINTING_DEG = (52.5, -27.5)
FIELD = "sim01"
CALIBRATION_NIGHT = datetime(2026, 11, 1, 20, tzinfo=UTC)
FIRST_REFERENCE = datetime(2026, 11, 2, 3, tzinfo=UTC)
FIRST_SCIENCE = datetime(2026, 11, 20, 2, 30, tzinfo=UTC)
#: Science exposures fall on at most this many nights.
SCIENCE_NIGHTS = 8
FLAT_LEVEL_E = 38000.0
#: Rms of dither and pointing error [arcsec], rotation error [deg], radial distortion [1/deg^2].
DITHER_ARCSEC, POINTING_ERROR_ARCSEC, ROTATION_ERROR_DEG, DISTORTION = 6.0, 2.5, 0.01, 6e-5
REFERENCE_SEEING_ARCSEC, SCIENCE_SEEING_ARCSEC = (1.4, 1.8), (1.5, 2.2)
STREAK_SURFACE_E = 400.0

_SKY, _DETECTOR, _CONDITIONS, _FRAME, _CATALOG = range(5)


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

    @property
    def raw(self) -> tuple[Path, ...]:
        """Every raw file."""
        return self.biases + self.flats + self.references + self.science


@dataclass(frozen=True, slots=True)
class _Exposure:
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
class _Simulator:
    """The seed and the camera; everything else follows from them."""

    seed: int
    instrument: Ls4
    transients_per_ccd: int
    reference_epochs: int
    streaks: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    trails: list[dict[str, Any]] = field(default_factory=list)

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))

    def number(self, ccd: str) -> int:
        return self.instrument.ccds.index(ccd)


def simulate_survey(
    out: Path,
    *,
    seed: int,
    exposures: int,
    ccds: Sequence[str],
    reference_epochs: int = 3,
    biases: int = 5,
    flats: int = 5,
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
    simulator = _Simulator(seed, camera, transients_per_ccd, max(reference_epochs, 1), streaks)
    plan = _plan(simulator, exposures, reference_epochs, biases, flats)
    skies = {ccd: _draw_sky(simulator, ccd) for ccd in chosen}
    detectors = lru_cache(maxsize=4)(lambda ccd: _detector(simulator, ccd))
    (out / "raw").mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Path]] = {"bias": [], "flat": [], "reference": [], "survey": []}
    keys = {}
    for i, exposure in enumerate(plan):
        key = exposure_key(camera.name, exposure.conditions.mjd)
        if progress is not None:
            progress(f"{exposure.project} {key}", i / len(plan))
        path = out / "raw" / f"{key}.fits"
        frames = {ccd: _frame(simulator, exposure, key, ccd, skies[ccd], detectors(ccd)) for ccd in chosen}
        _write_raw(path, simulator, exposure, frames)
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
    )


def truth_table(rows: list[dict[str, Any]]) -> "Table":
    """The truth as a table; its columns are described in the metadata."""
    from astropy.table import Table

    columns = {
        "exposure": "U80", "ccd": "U8", "id": "U32", "kind": "U10", "ra": "f8", "dec": "f8", "x": "f8", "y": "f8",
        "mag": "f8", "flux": "f8", "snr": "f8", "clean": "?",
    }  # fmt: skip
    table = Table({name: np.array([row[name] for row in rows], dtype=kind) for name, kind in columns.items()})
    table.meta["description"] = (
        "flux [ADU] that the new image has and the references lack (negative: a variable below its mean); mag of its"
        " absolute value [AB]; snr of an optimal PSF fit on the difference; clean: no bad column, saturated star, edge or other transient near"
    )
    return table


def _plan(simulator: _Simulator, exposures: int, references: int, biases: int, flats: int) -> list[_Exposure]:
    """The observing plan, in order of time."""
    plan: list[_Exposure] = []
    for kind, count in (("bias", biases), ("flat", flats)):
        for _ in range(count):
            start = CALIBRATION_NIGHT + timedelta(minutes=len(plan))
            exptime_s = 0.0 if kind == "bias" else 5.0
            plan.append(_Exposure(len(plan), kind, "calibration", Conditions(_mjd(start), exptime_s, float("nan"))))
    for i in range(references):
        plan.append(
            _science(simulator, len(plan), "reference", FIRST_REFERENCE + timedelta(days=i), REFERENCE_SEEING_ARCSEC)
        )
    per_night = max(2, -(-exposures // SCIENCE_NIGHTS))
    spacing = min(timedelta(minutes=75), timedelta(minutes=360) / per_night)
    for i in range(exposures):
        night, turn = divmod(i, per_night)
        start = FIRST_SCIENCE + timedelta(days=night) + turn * spacing
        plan.append(_science(simulator, len(plan), "survey", start, SCIENCE_SEEING_ARCSEC))
    return plan


def _science(
    simulator: _Simulator, index: int, project: str, start: datetime, seeing_arcsec: tuple[float, float]
) -> _Exposure:
    # The stream is named by project and time, so that more biases or references leave later exposures as they are.
    rng = simulator.rng(_CONDITIONS, int(start.timestamp()))
    ra, dec = POINTING_DEG
    dither, error = rng.normal(0, DITHER_ARCSEC / 3600, 2), rng.normal(0, POINTING_ERROR_ARCSEC / 3600, 2)
    dither, error = np.clip(dither, -8 / 3600, 8 / 3600), np.clip(error, -6 / 3600, 6 / 3600)
    stretch = np.cos(np.radians(dec))
    pointing = (ra + dither[0] / stretch, dec + dither[1])
    airmass = float(rng.uniform(1.0, 1.4))
    conditions = Conditions(
        _mjd(start), simulator.instrument.exptime_s, float(rng.uniform(*seeing_arcsec)),
        sky_factor=float(rng.uniform(0.9, 1.3)), gradient=tuple(rng.normal(0, 0.02, 2)),
        transparency=float(10 ** (-0.4 * 0.12 * (airmass - 1)) * rng.uniform(0.92, 1.0)),
    )  # fmt: skip
    return _Exposure(
        int(start.timestamp()), "science", project, conditions, pointing,
        (pointing[0] + error[0] / stretch, pointing[1] + error[1]), float(rng.normal(0, ROTATION_ERROR_DEG)), airmass,
    )  # fmt: skip


def _draw_sky(simulator: _Simulator, ccd: str) -> Sky:
    """The sky in the cell of a CCD (with half the gap around it), independent of the other CCDs."""
    camera = simulator.instrument
    rng = simulator.rng(_SKY, simulator.number(ccd))
    east, north = camera.ccd_offset_deg(ccd)
    shape = (camera.ccd_shape[0] + camera.gap_px, camera.ccd_shape[1] + camera.gap_px)
    cell = Geometry(*POINTING_DEG, shape, camera.pixel_scale_arcsec, east, north)
    stars, galaxies = draw_stars(rng, cell), draw_galaxies(rng, cell)
    name, read_noise = camera.default_filter(ccd), float(np.mean(camera.read_noises))
    typical = Conditions(_mjd(FIRST_SCIENCE), camera.exptime_s, TYPICAL_SEEING_ARCSEC)
    transients = draw_transients(
        rng, cell, stars, stars.magnitude(camera, name), galaxies, count=simulator.transients_per_ccd,
        t0_mjd=typical.mjd, label=f"T{ccd}_", margin_px=camera.gap_px / 2 + 40,
        mag_at_snr=magnitude_at_snr(
            camera, name, typical, read_noise_e=read_noise, n_reference=simulator.reference_epochs
        ),
    )  # fmt: skip
    return Sky(stars, galaxies, transients)


def _detector(simulator: _Simulator, ccd: str) -> Detector:
    camera = simulator.instrument
    east, north = camera.ccd_offset_deg(ccd)
    return make_detector(
        simulator.rng(_DETECTOR, simulator.number(ccd)), camera.amplifiers(), camera.raw_shape, camera.ccd_shape,
        edge_distance=(east / 3.0, north / 3.0),
    )  # fmt: skip


def _frame(
    simulator: _Simulator, exposure: _Exposure, key: str, ccd: str, sky: Sky, detector: Detector
) -> NDArray[np.uint16]:
    """The raw frame of one CCD; truth rows of science exposures are noted on the way."""
    camera = simulator.instrument
    rng = simulator.rng(_FRAME, exposure.index, simulator.number(ccd))
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
        _note_truth(simulator, exposure, key, ccd, sky, scene, psf, detector)
    return expose(rng, scene.electrons, detector, exptime_s=exptime_s)


def _note_truth(simulator, exposure, key, ccd, sky, scene, psf, detector) -> None:  # type: ignore[no-untyped-def]
    """One row per transient on the CCD."""
    camera, transients = simulator.instrument, sky.transients
    gain = float(np.mean(camera.gains))
    zero_point = exposure.conditions.zero_point_e(camera.default_filter(ccd))
    snr = expected_snr(
        scene,
        psf,
        detector.flat,
        read_noise_e=float(np.mean(camera.read_noises)),
        n_reference=simulator.reference_epochs,
    )
    ra, dec = transients.ra.copy(), transients.dec.copy()
    stars = transients.star >= 0
    moved_ra, moved_dec = sky.stars.position(exposure.conditions.epoch_yr)
    ra[stars], dec[stars] = moved_ra[transients.star[stars]], moved_dec[transients.star[stars]]
    clean = _is_clean(scene.x, scene.y, detector, scene.electrons) & _is_alone(scene.x, scene.y)
    for i in np.flatnonzero(snr > 0):
        simulator.rows.append(
            {
                "exposure": key, "ccd": ccd, "id": transients.name[i], "kind": transients.kind[i], "ra": ra[i],
                "dec": dec[i], "x": scene.x[i], "y": scene.y[i], "mag": zero_point - 2.5 * np.log10(abs(scene.flux_e[i])),
                "flux": scene.flux_e[i] / gain, "snr": snr[i], "clean": clean[i],
            }
        )  # fmt: skip


def _is_clean(x: NDArray, y: NDArray, detector: Detector, electrons: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether nothing spoils a 13 pixel box: no bad column, no saturated pixel, no edge."""
    r, (ny, nx) = 6, electrons.shape
    limit = 0.9 * detector.amplifiers[0].saturation * min(amp.gain for amp in detector.amplifiers)
    clean = np.zeros(len(x), bool)
    for i, (ix, iy) in enumerate(zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)):
        if r <= ix < nx - r and r <= iy < ny - r:
            box = slice(iy - r, iy + r + 1), slice(ix - r, ix + r + 1)
            # Charge bleeds along columns, so a saturated star far up or down the column counts too.
            column = electrons[max(0, iy - 60) : iy + 61, ix - 2 : ix + 3]
            clean[i] = not detector.bad[box].any() and electrons[box].max() < limit and column.max() < limit
    return clean


def _is_alone(x: NDArray, y: NDArray, distance_px: float = 10.0) -> NDArray[np.bool_]:
    """Whether no other transient is near."""
    separation = np.hypot(x[:, None] - x[None, :], y[:, None] - y[None, :])
    np.fill_diagonal(separation, np.inf)
    return separation.min(axis=1, initial=np.inf) > distance_px


def _write_raw(path: Path, simulator: _Simulator, exposure: _Exposure, frames: dict[str, NDArray[np.uint16]]) -> None:
    """The file an LS4 exposure would come in."""
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU(header=_primary_header(simulator, exposure, tuple(frames)))])
    for ccd, frame in frames.items():
        hdus.append(fits.ImageHDU(frame, header=_ccd_header(simulator, exposure, ccd)))
    hdus.writeto(path, overwrite=True, output_verify="exception")


def _primary_header(simulator: _Simulator, exposure: _Exposure, ccds: tuple[str, ...]) -> "Header":
    from astropy.io.fits import Header

    conditions, camera = exposure.conditions, simulator.instrument
    start = MJD_ZERO + timedelta(days=conditions.mjd)
    header = Header()
    header["INSTRUME"], header["TELESCOP"] = camera.name, camera.telescope
    header["IMAGETYP"] = "object" if exposure.kind == "science" else exposure.kind
    header["DATE-OBS"] = (f"{start.replace(tzinfo=None):%Y-%m-%dT%H:%M:%S.%f}"[:-3], "start of the exposure, UTC")
    header["MJD-OBS"], header["EXPTIME"] = conditions.mjd, conditions.exptime_s
    header["PROJECT"], header["OBJECT"] = exposure.project, FIELD if exposure.kind == "science" else exposure.kind
    header["NCCD"], header["CCDLIST"] = len(ccds), ",".join(ccds)
    if exposure.kind == "science":
        header["FIELD"] = FIELD
        header["RA"], header["DEC"] = exposure.pointing_deg
        header["AIRMASS"] = exposure.airmass
    return header


def _ccd_header(simulator: _Simulator, exposure: _Exposure, ccd: str) -> "Header":
    from astropy.io.fits import Header

    camera = simulator.instrument
    header = camera.wcs_guess(*exposure.pointing_deg, ccd) if exposure.kind == "science" else Header()
    header["EXTNAME"], header["FILTER"] = f"CCD{ccd}", camera.default_filter(ccd)
    for amp in camera.amplifiers():
        header[f"GAIN{amp.name}"], header[f"RDNOISE{amp.name}"] = amp.gain, amp.read_noise
        header[f"SATURAT{amp.name}"], header[f"NONLIN{amp.name}"] = amp.saturation, amp.nonlinearity
        header[f"DATASEC{amp.name}"], header[f"BIASSEC{amp.name}"] = _section(amp.raw_data), _section(amp.raw_overscan)
    return header


def _section(slices: tuple[slice, slice]) -> str:
    rows, columns = slices
    return f"[{columns.start + 1}:{columns.stop},{rows.start + 1}:{rows.stop}]"


def _write_tables(simulator: _Simulator, skies: list[Sky], catalog: Path, truth: Path) -> None:
    stars = measure_catalog(simulator.rng(_CATALOG), [sky.stars for sky in skies])
    catalog.parent.mkdir(parents=True, exist_ok=True)
    stars.table.meta.update({"EPOCH": stars.epoch_yr, "CATNAME": stars.name})
    stars.table.write(catalog, overwrite=True)
    truth_table(simulator.rows).write(truth, format="ascii.ecsv", overwrite=True)
    if simulator.trails:
        from astropy.table import Table

        Table(simulator.trails).write(truth.with_name("streaks.ecsv"), format="ascii.ecsv", overwrite=True)


def _mjd(moment: datetime) -> float:
    return (moment - MJD_ZERO) / timedelta(days=1)
