"""Aperture fluxes agree with an independent implementation."""

import numpy as np
import pytest

from seechange_assets.science.background import level_map, measure_background
from seechange_assets.science.sources import extract_sources
from seechange_assets.simulation import simulate_ccd


@pytest.mark.parametrize("seed", [1, 2])
def test_aperture_fluxes(seed):
    photutils = pytest.importorskip("photutils.aperture")
    image = simulate_ccd(np.random.default_rng(seed), (512, 512), cosmic_rays=0).image
    background = measure_background(image)
    sources = extract_sources(image, background)
    clean = np.asarray(sources.table["image_flags"]) == 0
    clean &= (np.asarray(sources.table["extraction_flags"]) == 0) & (np.asarray(sources.table["snr"]) > 20)
    table = sources.table[clean]
    apertures = photutils.CircularAperture(np.column_stack([table["x"], table["y"]]), r=sources.aperture_radii_px[0])
    expected = apertures.do_photometry(image.data - level_map(background), method="exact")[0]
    # sep samples the edge pixels on a 5 x 5 grid, photutils computes their overlap exactly.
    assert np.median(table["flux_aper"][:, 0] / expected) == pytest.approx(1.0, abs=0.002)
    assert np.std(table["flux_aper"][:, 0] / expected) < 0.01
