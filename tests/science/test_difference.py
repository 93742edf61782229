"""The whole subtraction of synthetic exposures: score, fluxes, flags, refusals."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError, ReferenceUnusable
from seechange_assets.products import Difference, Flag
from seechange_assets.science.difference import subtract
from seechange_assets.science.psf import gaussian_psf
from tests.science.pairs import Observation, Scene, as_reference, observe, rotated_wcs, star_field, wcs_text

SHAPE = (420, 380)
METHODS = ["zogy", "alard_lupton"]


def _observations(seed: int, **changes: float) -> tuple[Observation, Observation, NDArray, NDArray]:
    """New image with 12 transients, reference (rotated, deeper, sharper), the transients' places and fluxes."""
    rng = np.random.default_rng(seed)
    scene = star_field(rng, SHAPE, 120)
    x, y = rng.uniform(40, SHAPE[1] - 40, 12), rng.uniform(40, SHAPE[0] - 40, 12)
    wcs = rotated_wcs(SHAPE)
    flux = np.full(12, 6000.0)
    transients = Scene(*wcs.all_pix2world(x, y, 0), flux)
    new = observe(rng, scene, wcs, SHAPE, fwhm_px=4.0, sky_rms=20, extra=transients)
    turned = rotated_wcs(SHAPE, rotation_deg=changes.get("rotation_deg", 0.3), shift_px=(3.3, -2.2))
    reference = observe(rng, scene, turned, SHAPE, fwhm_px=3.2, sky_rms=12, gain=8, zp=25.6)
    return new, reference, np.stack([x, y], axis=1), flux


def _inside() -> NDArray[np.bool_]:
    """All but the border of 2 FWHM, where stars beyond it intrude and nothing is detected."""
    inside = np.zeros(SHAPE, bool)
    inside[8:-8, 8:-8] = True
    return inside


def _blank(difference: Difference, new: Observation, transients: NDArray) -> NDArray[np.bool_]:
    """Unflagged pixels more than 3 FWHM from any star or transient, off the border."""
    yy, xx = np.indices(SHAPE)
    far = (difference.flags == 0) & _inside()
    places = np.concatenate([np.stack([new.sources.table["x"], new.sources.table["y"]], axis=1), transients])
    for x, y in places:
        far &= (xx - x) ** 2 + (yy - y) ** 2 > 12.0**2
    return far


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rotation_deg", [0.0, 0.3, 179.0])
@pytest.mark.parametrize("method", METHODS)
def test_score_is_calibrated_and_transients_keep_their_flux(method: str, seed: int, rotation_deg: float) -> None:
    new, reference, places, flux = _observations(seed, rotation_deg=rotation_deg)
    difference = subtract(*new.arguments(), as_reference(reference), method=method)
    score = difference.score[_blank(difference, new, places)]
    assert score.std() == pytest.approx(1.0, abs=0.06)
    assert abs(score.mean()) < 0.15
    x, y = np.rint(places).astype(int).T
    clean = difference.flags[y, x] == 0
    pull = ((difference.flux[y, x] - flux) / difference.flux_err[y, x])[clean]
    # A peak between pixels loses up to 4 % of flux, that is up to 1.5 sigma here.
    assert np.abs(np.median(pull)) < 1.8
    assert np.median(difference.score[y, x][clean]) > 15
    assert difference.flux_scale == pytest.approx(10 ** (-0.4 * 0.6), rel=0.01)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_stars_leave_nothing(method: str, seed: int) -> None:
    new, reference, places, _ = _observations(seed)
    difference = subtract(*new.arguments(), as_reference(reference), method=method)
    far = _inside()
    yy, xx = np.indices(SHAPE)
    for x, y in places:
        far &= (xx - x) ** 2 + (yy - y) ** 2 > 15.0**2
    score = difference.score[far & (difference.flags == 0)]
    assert np.abs(score).max() < 5.5  # 120 stars with S/N up to 300 and no detection


@pytest.mark.parametrize("method", METHODS)
def test_product_is_complete(method: str) -> None:
    new, reference, _, _ = _observations(0)
    difference = subtract(*new.arguments(), as_reference(reference), method=method, reference_id="abc")
    assert difference.method == method
    for name in ("data", "noise", "score", "flux", "flux_err"):
        values = getattr(difference, name)
        assert values.dtype == np.float32
        assert values.shape == SHAPE
        assert np.isfinite(values[difference.flags == 0]).all()
    assert difference.reference_id == "abc"
    assert difference.n_alignment_stars > 50
    assert difference.alignment_rms_px < 0.3
    assert 2.5 < difference.psf.fwhm_px < 4.2
    # 5 sigma of a PSF of FWHM 4 px on a sky of rms 20 and a reference of 12 * 0.575.
    assert difference.limiting_magnitude == pytest.approx(25 - 2.5 * np.log10(5 * 21.2 * 6.0), abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_masked_pixels_do_not_leak(method: str) -> None:
    new, reference, places, _ = _observations(1)
    data, flags = new.image.data.copy(), new.image.flags.copy()
    data[200:203, :], flags[200:203, :] = 60000.0, Flag.SATURATED
    data[100, 100], flags[100, 100] = np.nan, Flag.BAD
    damaged = replace(new, image=replace(new.image, data=data, flags=flags))
    difference = subtract(*damaged.arguments(), as_reference(reference), method=method)
    assert (difference.flags[200:203] & Flag.SATURATED).all()
    assert (difference.flags[196:207] & Flag.SATURATED).all()
    assert not (difference.flags[185:190] & Flag.SATURATED).any()
    score = difference.score[_blank(difference, new, places)]
    assert np.abs(score).max() < 5.5


def test_deterministic() -> None:
    new, reference, _, _ = _observations(2)
    first, second = (subtract(*new.arguments(), as_reference(reference)) for _ in range(2))
    assert np.array_equal(first.score, second.score, equal_nan=True)


def test_without_common_stars_the_zero_points_give_the_scale() -> None:
    new, reference, _, _ = _observations(3)
    for observation in (new, reference):
        observation.sources.table["is_good"] = False
    difference = subtract(*new.arguments(), as_reference(reference))
    assert difference.n_alignment_stars == 0
    assert difference.flux_scale == pytest.approx(10 ** (-0.4 * 0.6))


@pytest.mark.parametrize("method", METHODS)
def test_refuses_unusable_references(method: str) -> None:
    new, observed, _, _ = _observations(0)
    reference = as_reference(observed)
    nan = np.full(SHAPE, np.nan, np.float32)
    masked = np.ones(SHAPE, np.uint16)
    masked[:30] = 0
    elsewhere = rotated_wcs(SHAPE, shift_px=(5000.0, 0.0))
    coarse = rotated_wcs(SHAPE, scale_arcsec=2.5)
    cases = {
        "filter": replace(reference, info=replace(reference.info, filter="g")),
        "finite": replace(reference, data=nan),
        "masked": replace(reference, flags=masked),
        "no celestial WCS": replace(reference, wcs=replace(reference.wcs, header="")),
        "covers": replace(reference, wcs=replace(reference.wcs, header=wcs_text(elsewhere))),
        "pixel scales": replace(reference, wcs=replace(reference.wcs, header=wcs_text(coarse))),
        "does not fit": replace(
            reference, psf=replace(gaussian_psf(14.0, SHAPE, 21), photometry=reference.psf.photometry)
        ),
    }
    for message, bad in cases.items():
        with pytest.raises(ReferenceUnusable, match=message):
            subtract(*new.arguments(), bad, method=method)
    with pytest.raises(ParameterError, match="expected one of"):
        subtract(*new.arguments(), reference, method="magic")


def test_a_kernel_without_common_stars_is_refused() -> None:
    new, reference, _, _ = _observations(3)
    for observation in (new, reference):
        observation.sources.table["is_good"] = False
    with pytest.raises(ReferenceUnusable, match="0 sources are unflagged"):
        subtract(*new.arguments(), as_reference(reference), method="alard_lupton")
