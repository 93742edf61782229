"""Cutouts: geometry, flux scale, edges."""

import numpy as np
import pytest
from astropy.table import Table

from seechange_assets.products import Detections, Flag, Reference, Sources, ZeroPoint
from seechange_assets.science.cutouts import cut_stamps, make_cutouts, stamp_corners
from seechange_assets.science.psf import gaussian_psf
from tests.science.synthetic import add_sources, flat_background, image_info, make_difference, plain_image, tan_wcs

SHAPE = (128, 160)


def detections_at(x, y):
    return Detections(Table({"x": np.asarray(x, float), "y": np.asarray(y, float)}), 5.0)


def reference(shift=(0.0, 0.0), shape=SHAPE):
    data = np.zeros(shape, np.float32)
    psf = gaussian_psf(3.0, shape)
    add_sources(data, psf, [80.25 + shift[0]], [60.0 + shift[1]], [1000.0])
    zero_point = ZeroPoint(25.0, 0.01, 0.01, 0.0, 10, (), (), 22.0, Table())
    return Reference(
        "set", image_info(), data, np.ones(shape, np.float32), np.zeros(shape, np.uint16),
        Sources(Table(), (), 3.0), psf, tan_wcs(shape, shift=shift), zero_point, (),
    )  # fmt: skip


def cutouts(x, y, shift=(0.0, 0.0), size=21, flux_scale=0.5):
    rng = np.random.default_rng(1)
    ref = reference(shift)
    difference = make_difference(rng, shape=SHAPE)
    values = {name: getattr(difference, name) for name in difference.__slots__}
    values |= {"reference_wcs": ref.wcs.header, "flux_scale": flux_scale}
    data = rng.normal(100, 1, SHAPE).astype(np.float32)
    made = make_cutouts(
        detections_at(x, y), type(difference)(**values), plain_image(data), flat_background(SHAPE), ref, size=size
    )
    return made, data, difference


def test_stamps_are_centred_on_the_nearest_pixel_and_background_subtracted():
    made, data, difference = cutouts([50.4, 80.5], [40.6, 60.0])
    assert made.corner.tolist() == [[40, 31], [71, 50]]
    assert made.new.shape == made.ref.shape == made.sub.shape == (2, 21, 21)
    assert np.allclose(made.new[0], data[31:52, 40:61] - 100.0, atol=1e-4)
    assert (made.sub[0] == difference.data[31:52, 40:61]).all()
    assert made.new.dtype == np.float32
    assert made.sub_flags.dtype == np.uint16


@pytest.mark.parametrize("shift", [(0.0, 0.0), (7.3, -4.6)])
def test_reference_is_warped_and_scaled(shift):
    made, _, _ = cutouts([80.25], [60.0], shift)
    y, x = np.mgrid[:21, :21]
    assert np.isclose(made.ref[0].sum(), 500.0, rtol=2e-3)  # Lanczos-3 on FWHM 3 px conserves flux to 1e-3
    assert np.isclose((made.ref[0] * x).sum() / made.ref[0].sum(), 80.25 - made.corner[0, 0], atol=0.03)
    assert np.isclose(
        (made.ref[0] * y).sum() / made.ref[0].sum(), 60.0 - made.corner[0, 1], atol=0.03
    )  # the sampled kernel has a small first moment


def test_outside_is_nan_and_flagged():
    made, _, _ = cutouts([2.0, 159.0], [3.0, 127.0])
    for stamps, flags in ((made.new, made.new_flags), (made.sub, made.sub_flags), (made.ref, made.ref_flags)):
        assert np.isnan(stamps[0, :7, :]).all()
        assert np.isnan(stamps[0, :, :8]).all()
        assert np.isnan(stamps[1, 11:, :]).all()
        assert ((flags & Flag.NO_DATA > 0) == np.isnan(stamps)).all()


def test_no_detection_gives_empty_stamps():
    made, _, _ = cutouts([], [])
    assert made.new.shape == made.ref.shape == made.sub.shape == made.ref_flags.shape == (0, 21, 21)


def test_even_size_is_refused():
    with pytest.raises(ValueError, match="odd"):
        cutouts([50], [50], size=20)


def test_cut_stamps_of_flags():
    flags = np.zeros((30, 30), np.uint16)
    flags[10, 12] = Flag.BAD
    _, cut = cut_stamps(np.zeros((30, 30), np.float32), flags, stamp_corners(np.array([12.0]), np.array([10.0]), 5), 5)
    assert cut[0, 2, 2] == Flag.BAD
    assert cut.sum() == Flag.BAD
