"""Detection and deblending against truth: pairs, crowds, galaxies, plateaus."""

import numpy as np
import pytest

from seechange_assets.science.background import level_map, measure_background
from seechange_assets.science.extraction import MERGED, SINGULAR, TRUNCATED, extract_objects
from seechange_assets.science.sources import extract_sources, matched_taps
from tests.science.fields import GAIN, moffat_field, show
from tests.science.skies import make_sky

NOISE, SIGMA_PX = 5.0, 1.5


def drawn(positions, fluxes, shape=(120, 150), seed=None):
    """Gaussian stars, with noise if there is a seed."""
    y, x = np.indices(shape)
    data = sum(
        flux / (2 * np.pi * SIGMA_PX**2) * np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / SIGMA_PX**2)
        for (px, py), flux in zip(positions, fluxes, strict=True)
    )
    noise = 0.0 if seed is None else np.random.default_rng(seed).normal(0, NOISE, shape)
    return (data + noise).astype(np.float32)


def objects(data, masked=None, **options):
    settings = {
        "taps": matched_taps(2.3548 * SIGMA_PX), "threshold": 4.0, "gain": 1.6, "min_area_px": 3,
        "deblend_contrast": 0.005, "deblend_significance": 2.5,
    } | options  # fmt: skip
    masked = np.zeros(data.shape, bool) if masked is None else masked
    return extract_objects(data, np.full_like(data, NOISE), masked, **settings)


def test_moments_of_one_star():
    found = objects(drawn([(70.3, 55.6)], [5e5]), threshold=0.5)
    assert len(found) == 1
    assert found["x"][0] == pytest.approx(70.3, abs=0.01)
    assert found["y"][0] == pytest.approx(55.6, abs=0.01)
    # The filter is as wide as the star, but ends after 3/4 FWHM, where its own sigma is 0.9 of the whole Gaussian's.
    assert found["a"][0] == pytest.approx(np.sqrt(2) * SIGMA_PX, rel=0.08)
    assert found["b"][0] == pytest.approx(found["a"][0], rel=0.01)
    assert found["flag"][0] == 0
    assert found["cxx"][0] * found["a"][0] ** 2 == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("ratio", "n"), [(1.0, 2), (0.1, 2), (0.002, 1)])
def test_pairs_are_parted_by_contrast(ratio, n):
    found = objects(drawn([(60, 60), (72, 60)], [1e6, ratio * 1e6]))
    assert len(found) == n
    assert (found["flag"] == (MERGED if n == 2 else 0)).all()


def test_noise_does_not_split_a_bright_extended_source():
    y, x = np.indices((200, 200))
    galaxy = 40 * NOISE * np.exp(-np.hypot(x - 100.2, y - 99.7) / 15.0)
    extra = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, np.sqrt(NOISE**2 + galaxy / 1.6))
        found = objects((galaxy + noise).astype(np.float32))
        assert found["npix"].max() > 2000
        extra.append(len(found) - 1)
    show(f"false sources on and around a galaxy: {np.mean(extra):.2f}")
    # Bumps of 2.5 sigma on the wings of some 4 sigma, of a hundred places where one may be.
    assert np.mean(extra) < 3


def test_a_plateau_is_one_source():
    data = drawn([(60, 60)], [3e6])
    data = np.minimum(data, 3e4)
    found = objects(data, taps=np.ones(1, np.float32))
    assert len(found) == 1


def test_borders_masks_and_empty_images():
    data = drawn([(0.4, 50), (100, 60)], [1e5, 1e5])
    masked = np.zeros(data.shape, bool)
    masked[:, 90:110] = True
    found = objects(np.where(masked, np.float32(0), data), masked)
    assert found["flag"].tolist() == [TRUNCATED]
    assert len(objects(np.zeros((50, 60), np.float32))) == 0
    line = np.zeros((50, 60), np.float32)
    line[20:40, 30] = 100 * NOISE
    assert objects(line, taps=np.ones(1, np.float32))["flag"][0] & SINGULAR


def counted(seed, fwhm_px, stars_per_mpx, shape=(1024, 1024)):
    """Share of the true stars over S/N 20 that have a source within half a FWHM; sources without any star; number."""
    from scipy.spatial import cKDTree

    field = moffat_field(seed, shape, stars_per_mpx=stars_per_mpx, fwhm_px=fwhm_px)
    rng = np.random.default_rng(seed)
    n = int(stars_per_mpx * shape[0] * shape[1] / 1e6)
    # The same draws as those of the field, in its order.
    flux = 10 ** (-0.4 * (16 + 8 * rng.power(3.2, n) - 30))
    y, x = rng.integers(0, 3 * shape[0], n), rng.integers(0, 3 * shape[1], n)
    stars = np.stack([(x + 0.5) / 3 - 0.5, (y + 0.5) / 3 - 0.5], axis=1)
    area = 1.25 * np.pi * (fwhm_px / 2) ** 2 / (2 ** (1 / 3) - 1)
    snr = flux / np.sqrt(area * field.noise**2 + flux / GAIN)
    sources = extract_sources(field.image, measure_background(field.image)).table
    places = np.stack([sources["x"], sources["y"]], axis=1)
    found = cKDTree(places).query(stars[snr > 20])[0] < 0.5 * fwhm_px
    lonely = cKDTree(stars[snr > 3]).query(places)[0] > 0.6 * fwhm_px
    return float(found.mean()), float(lonely.mean()), len(sources)


def test_a_crowd_is_resolved():
    # One star per 83 pixels; SExtractor's own deblending finds 21 % of those of S/N 20 to 100, and 52 % beyond.
    found, lonely, n = counted(91, 4.4, 12000.0)
    show(f"crowd: {found:.3f} of S/N > 20 found, {lonely:.3f} without a star, {n} sources")
    assert found > 0.5
    assert lonely < 0.12


@pytest.mark.slow
@pytest.mark.parametrize(("fwhm_px", "stars_per_mpx", "least", "most"),
                         [(4.4, 480.0, 0.95, 0.10), (4.4, 12000.0, 0.5, 0.12), (2.0, 12000.0, 0.75, 0.08)])  # fmt: skip
def test_completeness_over_seeds(fwhm_px, stars_per_mpx, least, most):
    both = np.array([counted(seed, fwhm_px, stars_per_mpx) for seed in range(201, 206)])
    show(fwhm_px, stars_per_mpx, both.mean(axis=0).round(3))
    assert both[:, 0].mean() > least
    # A threshold of 4 sigma alone lets some 10 noise peaks of a megapixel through.
    assert both[:, 1].mean() < most


def test_the_same_objects_in_any_part_of_the_image():
    sky = make_sky(3, (300, 300), n_stars=60)
    data = sky.image.data - level_map(measure_background(sky.image))
    whole, part = objects(data), objects(np.ascontiguousarray(data[40:, 30:]))
    inside = whole[(whole["xmin"] > 50) & (whole["ymin"] > 60)]
    for one in inside:
        distance = np.hypot(part["x"] + 30 - one["x"], part["y"] + 40 - one["y"])
        assert distance.min() < 1e-9
