"""Satellite trails in a single image: found when there, never where there is none."""

import numpy as np
import pytest

from seechange_assets.products import Flag, FloatImage
from seechange_assets.science.trails import find_trails
from seechange_assets.simulation import simulate_ccd
from seechange_assets.simulation.detector import add_streak

SHAPE = (1024, 1024)


def with_trail(seed: int, snr: float, width_px: float = 1.9) -> tuple[FloatImage, np.ndarray, FloatImage]:
    """Data, flags and the light of a trail whose ridge has this S/N per pixel."""
    image = simulate_ccd(np.random.default_rng(seed), SHAPE, cosmic_rays=20).image
    rng = np.random.default_rng(1000 + seed)
    noise = 1.4826 * np.median(np.abs(np.diff(image.data, axis=1))) / np.sqrt(2)
    light = np.zeros(SHAPE, np.float32)
    add_streak(rng, light, width_px, snr * noise)
    return image.data + light, image.flags.copy(), light


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("snr", [3.0, 20.0])
def test_trail_is_flagged(seed: int, snr: float) -> None:
    data, flags, light = with_trail(seed, snr)
    if np.count_nonzero(light > 0.5 * light.max()) < 600 * 2:
        pytest.skip("the trail crosses a corner only")
    trails = find_trails(data, flags)
    assert len(trails) == 1
    hit = (flags & Flag.STREAK) > 0
    assert hit[light > 0.5 * light.max()].mean() > 0.97
    # Little else: the flags end within a few widths.
    assert hit[light < 1e-3 * light.max()].mean() < 0.01


@pytest.mark.parametrize("seed", range(20, 28))
def test_no_trail_no_flags(seed: int) -> None:
    """Crowded fields and bright galaxies included."""
    density = 150_000 if seed % 2 else None
    image = simulate_ccd(np.random.default_rng(seed), SHAPE, star_density_deg2=density, cosmic_rays=30).image
    flags = image.flags.copy()
    data = np.array(image.data)
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    rng = np.random.default_rng(seed)
    q, angle = rng.uniform(0.15, 1), rng.uniform(0, np.pi)
    du, dv = u - 400, v - 600
    a, b = du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)
    data += (3000 * np.exp(-np.sqrt(a**2 + (b / q) ** 2) / 40)).astype(np.float32)
    assert find_trails(data, flags) == []
    np.testing.assert_array_equal(flags, image.flags)


def test_bleeding_and_bad_columns_are_no_trails() -> None:
    image = simulate_ccd(np.random.default_rng(5), SHAPE).image
    data, flags = np.array(image.data), image.flags.copy()
    data[:, 300:302] += 500
    data[100:900, 700] += 50000
    data[200, :] += 300
    assert find_trails(data, flags) == []


@pytest.mark.parametrize("data", [np.zeros((200, 200)), np.full((300, 300), 7.0), np.zeros((20, 20))])
def test_nothing_to_see(data: np.ndarray) -> None:
    assert find_trails(data.astype(np.float32), np.zeros(data.shape, np.uint16)) == []
    everything_flagged = np.full(data.shape, Flag.BAD, np.uint16)
    assert find_trails(data.astype(np.float32), everything_flagged) == []


def test_half_masked_and_repeatable() -> None:
    data, flags, _ = with_trail(2, 20.0)
    flags[:, :512] |= np.uint16(Flag.BAD)
    again = flags.copy()
    assert find_trails(data, flags) == find_trails(data, again)
    np.testing.assert_array_equal(flags, again)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_full_size(seed: int) -> None:
    """No false trail on full CCDs, in 0.3 core-seconds (a factor of two for a busy machine)."""
    import time

    image = simulate_ccd(np.random.default_rng(seed), (4096, 2048), cosmic_rays=80).image
    flags = image.flags.copy()
    find_trails(image.data, flags)
    start = time.process_time()
    assert find_trails(image.data, image.flags.copy()) == []
    assert time.process_time() - start < 0.6
