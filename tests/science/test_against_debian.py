"""Sources against SExtractor and the PSF against PSFEx, on the same pixels."""

import numpy as np
import pytest

from seechange_assets.science.background import level_map, measure_background
from seechange_assets.science.psf import render
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources
from seechange_assets.simulation import simulate_ccd
from tests.science.debian_tools import psfex, source_extractor
from tests.science.fields import moffat_field, show
from tests.science.skies import grid_positions, make_sky


def compared(image, folder, *, own_sky):
    """Distance [pixel] and ratios ours / SExtractor's (auto, apertures) of unblended sources of S/N over 20."""
    from scipy.spatial import cKDTree

    background = measure_background(image)
    sources = extract_sources(image, background)
    data = image.data - level_map(background) if own_sky else image.data
    sky = {"BACK_TYPE": "MANUAL", "BACK_VALUE": 0} if own_sky else {}
    theirs = source_extractor(
        data, folder, gain=image.info.gain, apertures_px=sources.aperture_radii_px, **sky
    )  # fmt: skip
    table = sources.table
    distance, row = cKDTree(np.stack([theirs["XWIN_IMAGE"], theirs["YWIN_IMAGE"]], 1) - 1).query(
        np.stack([table["x"], table["y"]], 1)
    )
    good = np.asarray(table["is_good"]) & (np.asarray(table["extraction_flags"]) == 0) & (table["snr"] > 20)
    assert np.mean(distance[good] < 1.0) > 0.97
    good &= (distance < 1.0) & (theirs["FLAGS"][row] == 0)
    apertures = np.nanmedian(table["flux_aper"][good] / theirs["FLUX_APER"][row[good]], axis=0)
    return distance[good], float(np.median(table["flux_auto"][good] / theirs["FLUX_AUTO"][row[good]])), apertures


@pytest.mark.parametrize("seed", [401, 403])
@pytest.mark.parametrize("kind", ["simulated", "wide"])
def test_fluxes_and_positions_of_sextractor(tmp_path, seed, kind):
    if kind == "simulated":
        image = simulate_ccd(np.random.default_rng(seed), (1024, 1024)).image
    else:
        image = moffat_field(seed).image
    distance, auto, apertures = compared(image, tmp_path, own_sky=True)
    show(f"{kind} {seed}: median {np.median(distance):.4f} px, auto {auto:.4f}, apertures {np.round(apertures, 4)}")
    assert np.median(distance) < 0.1
    # The largest aperture holds neighbours and 2000 pixels of sky; all see the same pixels.
    assert apertures == pytest.approx(1.0, abs=0.01)
    assert auto == pytest.approx(1.0, abs=0.01)
    # With its own sky, which the faint sources lift by 0.02 sigma, only small apertures can agree.
    _, _, apertures = compared(image, tmp_path, own_sky=False)
    assert apertures[0] == pytest.approx(1.0, abs=0.01)


def reduced_chi2(image, background, stamps, x, y, radius_px):
    """Of each star within a radius, flux free, photon noise of the model."""
    data, half, values = image.data - level_map(background), stamps.shape[-1] // 2, []
    row, column = np.indices(stamps.shape[1:]) - half
    inside = np.hypot(row, column) <= radius_px
    for stamp, px, py in zip(stamps, np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int), strict=True):
        pixels = data[py - half : py + half + 1, px - half : px + half + 1]
        if pixels.shape != stamp.shape:
            continue
        variance, flux = np.full(stamp.shape, background.rms**2), 0.0
        for _ in range(4):
            weight = inside / variance
            flux = (weight * stamp * pixels).sum() / (weight * stamp**2).sum()
            variance = background.rms**2 + np.maximum(flux * stamp, 0) / image.info.gain
        values.append((inside * (pixels - flux * stamp) ** 2 / variance).sum() / (inside.sum() - 3))
    return np.array(values)


def both_chi2(seed, fwhm_px, folder, shape=(1000, 1000)):
    """Median reduced chi2 of the reserved stars, ours and PSFEx's; the width varies by 15 % over the field."""
    positions = grid_positions(shape, 48, seed)
    n = positions[0].size
    flux = np.random.default_rng(seed).choice([2e4, 5e4, 1e5], n) * (fwhm_px / 3) ** 2
    sky = make_sky(seed, shape, fwhm_px, positions=positions, n_stars=n, flux=flux, variation=0.15)
    background = measure_background(sky.image)
    sources = extract_sources(sky.image, background)
    psf = build_psf(sky.image, background, sources)
    kept = sources.table[np.flatnonzero(psf.photometry["reserved"])]
    x, y = np.asarray(kept["x"]), np.asarray(kept["y"])
    side = 2 * int(np.ceil(4 * fwhm_px)) + 1
    source_extractor(
        sky.image.data - level_map(background), folder, gain=sky.image.info.gain,
        apertures_px=(2 * sources.fwhm_px,), columns=(f"VIGNET({side},{side})",), BACK_TYPE="MANUAL", BACK_VALUE=0,
    )  # fmt: skip
    model = psfex(folder, fwhm_px=sources.fwhm_px, degree=2, without=(x, y))
    size, radius = 2 * int(2 * fwhm_px + 1) + 1, 1.5 * fwhm_px
    ours = reduced_chi2(sky.image, background, render(psf, x, y, size), x, y, radius)
    theirs = reduced_chi2(sky.image, background, model.render(x, y, size), x, y, radius)
    show(f"FWHM {fwhm_px}, seed {seed}: {np.median(ours):.3f}, PSFEx {np.median(theirs):.3f} ({len(ours)} stars)")
    return float(np.median(ours)), float(np.median(theirs))


def test_the_psf_is_as_good_as_that_of_psfex(tmp_path):
    ours, theirs = both_chi2(53, 3.0, tmp_path)
    assert ours < 1.05 * theirs


@pytest.mark.slow
@pytest.mark.parametrize("fwhm_px", [1.8, 3.0, 4.4])
def test_the_psf_over_seeds(tmp_path, fwhm_px):
    both = np.array([both_chi2(seed, fwhm_px, tmp_path, (1200, 1200)) for seed in range(61, 66)])
    assert both[:, 0].mean() < 1.05 * both[:, 1].mean()
