"""The in-memory CCD: its truth holds."""

import numpy as np
import pytest

from seechange_assets.products import wcs_from_text
from seechange_assets.simulation import simulate_ccd


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_is_poisson_plus_read_noise(seed: int) -> None:
    made = simulate_ccd(np.random.default_rng(seed), (400, 400), star_density_deg2=50.0)
    data, info = made.image.data, made.image.info
    sky = np.median(data)
    expected = np.sqrt(sky / info.gain + (info.read_noise / info.gain) ** 2)
    # The mean of galaxies below the noise widens the distribution by a few percent.
    assert 1.4826 * np.median(np.abs(data - sky)) == pytest.approx(expected, rel=0.06)


def test_stars_carry_their_flux() -> None:
    made = simulate_ccd(np.random.default_rng(4), (600, 600), star_density_deg2=800.0, transients=0)
    stars, data = made.stars, made.image.data - np.median(made.image.data)
    ratios = []
    for row in stars[(stars["mag"] > 15) & (stars["mag"] < 17)]:
        ix, iy = round(row["x"]), round(row["y"])
        near = np.hypot(stars["x"] - row["x"], stars["y"] - row["y"])
        if 20 < ix < 580 and 20 < iy < 580 and stars["flux"][(near < 25) & (near > 0)].sum() < 0.01 * row["flux"]:
            ratios.append(data[iy - 12 : iy + 13, ix - 12 : ix + 13].sum() / row["flux"])
    # Beyond 12 pixels lies 1 % of the light of this Moffat profile; galaxies and sky add as much.
    assert np.median(ratios) == pytest.approx(0.99, abs=0.02)


def test_true_wcs_places_the_stars() -> None:
    made = simulate_ccd(np.random.default_rng(5), (300, 300), rotation_deg=0.4, dither_px=(5.0, -3.0))
    x, y = wcs_from_text(made.true_wcs_text).all_world2pix(made.stars["ra"], made.stars["dec"], 0)
    np.testing.assert_allclose(x, made.stars["x"], atol=1e-6)
    np.testing.assert_allclose(y, made.stars["y"], atol=1e-6)


def test_the_same_sky_again_is_shifted_and_without_transients() -> None:
    rng = np.random.default_rng(6)
    new = simulate_ccd(rng, (300, 300))
    ref = simulate_ccd(rng, (300, 300), sky=new.sky, with_transients=False, dither_px=(3.3, -1.2))
    assert len(new.transients) == 10
    assert len(ref.transients) == 0
    assert np.median(ref.stars["x"] - new.stars["x"]) == pytest.approx(3.3, abs=1e-2)
    assert np.median(ref.stars["y"] - new.stars["y"]) == pytest.approx(-1.2, abs=1e-2)
