"""Raw frames of a simulated survey through the chain to the zero point, and the truth of it."""

from pathlib import Path

import numpy as np

from resources.sky_catalog import open_sky_catalog
from seechange_assets.instruments.base import Instrument, get_instrument
from seechange_assets.instruments.headers import exposure_key
from seechange_assets.products import CalibratedImage, Image, Master, SkyCatalog
from seechange_assets.science.astrometry import solve_wcs
from seechange_assets.science.background import measure_background
from seechange_assets.science.detrend import detrend
from seechange_assets.science.masters import build_bias, build_flat
from seechange_assets.science.photometric_calibration import calibrate_photometry
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources
from seechange_assets.simulation import SimulatedSurvey
from seechange_assets.simulation.plan import POINTING_DEG, Simulator, plan_survey


def calibrate_frame(image: Image, catalog: SkyCatalog, camera: Instrument) -> CalibratedImage:
    """Background to zero point of a calibrated image."""
    background = measure_background(image)
    sources = extract_sources(image, background)
    psf = build_psf(image, background, sources)
    wcs = solve_wcs(sources, image.info, image.data.shape, catalog)
    zp = calibrate_photometry(image.info, sources, psf, background, wcs, camera.gaia_magnitude)
    return CalibratedImage(image, background, sources, psf, wcs, zp)


def calibrated(survey: SimulatedSurvey, path: Path, ccd: str) -> CalibratedImage:
    """One CCD of a raw file, with masters from the frames of its survey."""
    camera = get_instrument(survey.instrument)
    image = detrend(camera.read_ccd(path, ccd), _masters(survey, ccd), camera.bad_pixels(ccd))
    catalog = open_sky_catalog(str(survey.catalog)).cone(*POINTING_DEG, 6.0)
    return calibrate_frame(image, catalog, camera)


def _masters(survey: SimulatedSurvey, ccd: str) -> dict[str, Master]:
    camera = get_instrument(survey.instrument)
    bias = build_bias([camera.read_ccd(path, ccd) for path in survey.biases])
    return {"bias": bias, "flat": build_flat([camera.read_ccd(path, ccd) for path in survey.flats], bias)}


def true_zero_point(survey: SimulatedSurvey, seed: int, path: Path, ccd: str) -> float:
    """Magnitude that gives one ADU in this exposure."""
    camera = get_instrument(survey.instrument)
    simulator = Simulator(seed, camera, 0, max(len(survey.references), 1), 0)
    plan = plan_survey(
        simulator, len(survey.science), len(survey.references), len(survey.biases), len(survey.flats)
    )  # fmt: skip
    exposure = next(e for e in plan if exposure_key(camera.name, e.conditions.mjd) == survey.keys[path])
    zero_point_e = exposure.conditions.zero_point_e(camera.default_filter(ccd))
    return float(zero_point_e - 2.5 * np.log10(np.mean(camera.gains)))
