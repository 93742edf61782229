"""Real DECam, 90prime and Mosaic3 cutouts with masks and weights, against Gaia and published zero points."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table, vstack

from resources.catalog_tables import normalised
from seechange_assets.errors import TooFewStars
from seechange_assets.instruments.base import RawCcd, get_instrument
from seechange_assets.instruments.generic import read_image
from seechange_assets.products import Flag, Image, SkyCatalog, wcs_from_text
from seechange_assets.science.background import measure_background
from seechange_assets.science.psf_fit import build_psf
from seechange_assets.science.sources import extract_sources
from seechange_assets.science.tangent_plane import ARCSEC_PER_RADIAN, moved, unit_vectors
from tests.data import test_data

CASES = ("testcase3", "testcase4", "testcase8", "testcase12", "mzlsbass2")


@dataclass
class Match:
    """Sources of one image paired with Gaia, and the zero points they give."""

    image: str
    separation_arcsec: np.ndarray
    zero_points: np.ndarray
    published: float


def read(path: Path, ccd: str) -> RawCcd:
    """An image with the mask and the weight beside it."""
    if path.name.startswith("c4d"):
        return get_instrument("decam").read_ccd(path, ccd)
    mask, weight = (path.with_name(path.name.replace("_ooi_", part)) for part in ("_ood_", "_oow_"))
    return read_image(path, mask=mask, weight=weight, extension=ccd)


def gaia(folder: Path) -> SkyCatalog:
    """All Gaia chunks of a case."""
    chunks = [Table.read(path) for path in sorted(folder.glob("gaia/chunk-*.fits"))]
    for chunk in chunks:
        chunk.meta.clear()
    return normalised(vstack(chunks), folder.name)


def measured(raw: RawCcd, catalog: SkyCatalog, published: float) -> Match:
    """Sources and their PSF fluxes, paired with stars within one arcsec by the header's WCS."""
    flags = raw.flags | np.where(np.isfinite(raw.variance), 0, Flag.NO_DATA).astype(np.uint16)
    image = Image(raw.info, np.where(np.isfinite(raw.data), raw.data, 0).astype(np.float32), flags)
    background = measure_background(image, box_size_px=64)
    sources = extract_sources(image, background)
    table = sources.table[np.asarray(sources.table["is_good"])]
    nothing = Match("", np.zeros(0), np.zeros(0), published)
    try:
        psf = build_psf(image, background, sources)
    except TooFewStars:
        return nothing
    flux = np.asarray(psf.photometry["flux_psf"])[np.asarray(sources.table["is_good"])]
    found = unit_vectors(*wcs_from_text(raw.info.wcs_guess).all_pix2world(table["x"], table["y"], 0))
    years = 2000.0 + (raw.info.mjd_mid - 51544.5) / 365.25 - catalog.epoch_yr
    columns = [np.asarray(catalog.table[name], float) for name in ("ra", "dec", "pm_ra", "pm_dec")]
    stars = moved(*columns, years)
    distance = ARCSEC_PER_RADIAN * np.linalg.norm(found[:, None] - stars[None, :], axis=2)
    if not distance.size:
        return nothing
    nearest = distance.argmin(axis=1)
    # Gaia lists the cores of galaxies too; they are no measure of the zero point.
    near = (distance.min(axis=1) < 1.0) & (np.asarray(table["snr"]) > 20) & np.asarray(table["is_star"], bool)
    g, bp, rp = (np.asarray(catalog.table[name], float)[nearest[near]] for name in ("mag_g", "mag_bp", "mag_rp"))
    magnitude = get_instrument("decam").gaia_magnitude(raw.info.filter[0], g, bp - rp)
    zero_points = magnitude + 2.5 * np.log10(flux[near])
    return Match("", distance.min(axis=1)[near], zero_points[np.isfinite(zero_points)], published)


@pytest.fixture(scope="module")
def matches() -> list[Match]:
    found = []
    for case in CASES:
        folder = test_data("decam_legacypipe") / case
        catalog = gaia(folder)
        for row in Table.read(folder / "survey-ccds-1.fits.gz"):
            path = folder / "images" / str(row["image_filename"]).strip()
            raw = read(path, str(row["ccdname"]).strip())
            # DECam images hold counts, those of the other two cameras counts per second.
            exptime_s = float(row["exptime"]) if path.name.startswith("c4d") else 1.0
            published = float(row["ccdzpt"]) + 2.5 * np.log10(exptime_s)
            found.append(replace(measured(raw, catalog, published), image=path.name))
    return found


def test_every_image_is_read_with_mask_and_weight():
    for case in CASES:
        folder = test_data("decam_legacypipe") / case
        for row in Table.read(folder / "survey-ccds-1.fits.gz"):
            raw = read(folder / "images" / str(row["image_filename"]).strip(), str(row["ccdname"]).strip())
            assert raw.flags.shape == raw.variance.shape == raw.data.shape
            usable = (raw.flags == 0) & np.isfinite(raw.variance)
            assert 0.3 < usable.mean() <= 1.0
            # The weights tell the noise: robust scatter of neighbouring pixels against the stated variance.
            good = usable[:, 1:] & usable[:, :-1]
            steps = (np.diff(raw.data, axis=1) / np.sqrt(raw.variance[:, 1:] + raw.variance[:, :-1]))[good]
            assert 0.6 < 1.4826 * np.median(np.abs(steps)) < 1.5, row["image_filename"]


def test_stars_lie_where_gaia_says(matches):
    separation = np.concatenate([match.separation_arcsec for match in matches])
    assert len(separation) >= 12
    assert np.median(separation) < 0.1
    assert np.mean(separation < 0.3) > 0.9


def test_zero_points_compare_with_the_published_ones(matches):
    lines = ["", "  zp here  published  difference  stars  image"]
    offsets = []
    for match in matches:
        n = len(match.zero_points)
        zp = np.median(match.zero_points) if n else np.nan
        lines.append(f"{zp:9.3f}  {match.published:9.3f}  {zp - match.published:10.3f}  {n:5d}  {match.image}")
        if n >= 2:
            offsets.append(zp - match.published)
    sys.stdout.write("\n".join(lines) + "\n")
    # A handful of stars in small cutouts, and DECam's colour transform for all cameras.
    assert len(offsets) >= 4
    assert np.abs(np.median(offsets)) < 0.1
    assert np.abs(offsets).max() < 0.3
