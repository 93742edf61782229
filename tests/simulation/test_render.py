"""Rendering of stars: flux, position, width."""

import numpy as np
import pytest

from seechange_assets.simulation.render import MoffatField, add_sources


@pytest.mark.parametrize("fwhm_px", [1.2, 2.0, 4.0])
def test_flux_is_conserved(fwhm_px: float) -> None:
    image = np.zeros((301, 301), np.float32)
    add_sources(
        image, np.array([150.3]), np.array([149.8]), np.array([1e6]), MoffatField(fwhm_px, image.shape, tilt=0.0)
    )
    # A Moffat of beta 3.2 keeps 1e-4 of its light beyond 60 half widths.
    assert image.sum() == pytest.approx(1e6, rel=2e-3)


def test_centroid_is_where_asked() -> None:
    image = np.zeros((201, 201), np.float32)
    psf = MoffatField(2.5, image.shape, e1_0=0.1, e2_0=0.05, tilt=0.0, curvature=0.0)
    add_sources(image, np.array([100.37]), np.array([99.81]), np.array([1e5]), psf)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    assert (x * image).sum() / image.sum() == pytest.approx(100.37, abs=2e-3)
    assert (y * image).sum() / image.sum() == pytest.approx(99.81, abs=2e-3)


def test_ellipticity_has_its_sign() -> None:
    psf = MoffatField(3.0, (101, 101), e1_0=0.2, e2_0=0.0, tilt=0.0)
    stamp = psf.stamp(50.0, 50.0, 10)
    assert stamp[10, 14] > 1.5 * stamp[14, 10]


def test_faint_and_bright_stars_have_the_same_profile() -> None:
    psf = MoffatField(2.0, (101, 101))
    one, other = np.zeros((101, 101), np.float32), np.zeros((101, 101), np.float32)
    add_sources(one, np.array([50.2]), np.array([50.4]), np.array([3e2]), psf)
    add_sources(other, np.array([50.2]), np.array([50.4]), np.array([3e5]), psf)
    # The stamp of the faint star ends where it drops below 0.01 e-.
    assert np.abs(one - other / 1000).max() < 0.011
