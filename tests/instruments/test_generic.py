"""Any FITS image: header values, fall-backs, overrides."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from seechange_assets.errors import BadExposure, ParameterError
from seechange_assets.instruments.base import get_instrument
from seechange_assets.instruments.generic import DEFAULT_MJD, UNKNOWN_FILTER, estimate_gain, read_image
from seechange_assets.products import Flag, wcs_from_text
from tests.data import test_data


def bare(path: Path, data: np.ndarray, **header: object) -> Path:
    hdu = fits.PrimaryHDU(data)
    hdu.header.update(header)
    hdu.writeto(path)
    return path


def test_real_decam_cut_out() -> None:
    raw = read_image(test_data("decam_atfield") / "DEC-OBS04a.mini.fits")
    assert raw.data.shape == (256, 256)
    assert raw.info.gain == pytest.approx(3.984, abs=1e-3)
    assert raw.info.filter == "i"
    assert raw.info.pixel_scale_arcsec == pytest.approx(0.2623, abs=1e-3)
    ra, dec = wcs_from_text(raw.info.wcs_guess).all_pix2world(128, 128, 0)
    assert (ra, dec) == (pytest.approx(318.108, abs=0.02), pytest.approx(-66.016, abs=0.02))
    exposure = get_instrument("generic").read_exposure(test_data("decam_atfield") / "DEC-OBS04a.mini.fits")
    assert exposure.key.startswith("generic_20180804T")


def test_bare_file_gets_fall_backs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    raw = read_image(bare(tmp_path / "it is;bare.fits", rng.poisson(4000, (200, 200)).astype(np.float32) / 2))
    info = raw.info
    assert info.gain == pytest.approx(2.0, rel=0.1)
    assert (info.filter, info.mjd, info.wcs_guess) == (UNKNOWN_FILTER, DEFAULT_MJD, "")
    assert info.exposure == "it_is_bare"
    assert np.isnan(info.pixel_scale_arcsec)


def test_gain_of_sky_subtracted_image_is_one() -> None:
    assert estimate_gain(np.random.default_rng(2).normal(0, 5, (100, 100)).astype(np.float32)) == 1.0


def test_overrides_and_own_keywords(tmp_path: Path) -> None:
    path = bare(tmp_path / "a.fits", np.ones((20, 20), np.float32), GAIN="junk", MYSAT=1234.0, FILTER="r'")
    raw = read_image(path, overrides={"gain": 3, "filter": "i"}, keywords={"saturation": ("MYSAT",)})
    assert (raw.info.gain, raw.info.filter, raw.info.saturation) == (3.0, "i", 1234.0)
    with pytest.raises(BadExposure, match="GAIN is 'junk'"):
        read_image(path)


@pytest.mark.parametrize("overrides", [{"gian": 1.0}, {"gain": -1.0}, {"gain": "x"}, {"mjd": float("nan")}])
def test_impossible_overrides(tmp_path: Path, overrides: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        read_image(bare(tmp_path / "a.fits", np.ones((20, 20), np.float32)), overrides=overrides)


def test_mask_and_weight(tmp_path: Path) -> None:
    image = bare(tmp_path / "a.fits", np.ones((20, 20), np.float32))
    mask, weight = np.zeros((20, 20), np.int32), np.full((20, 20), 0.25, np.float32)
    mask[3, 4], weight[5, 6] = 2, 0
    raw = read_image(image, bare(tmp_path / "m.fits", mask), bare(tmp_path / "w.fits", weight))
    assert raw.flags[3, 4] == Flag.BAD
    assert raw.flags.sum() == Flag.BAD
    assert raw.variance[0, 0] == 4.0
    assert np.isinf(raw.variance[5, 6])
    with pytest.raises(BadExposure, match="shape"):
        read_image(image, bare(tmp_path / "small.fits", mask[:10]))


def test_no_image_inside(tmp_path: Path) -> None:
    path = tmp_path / "table.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])])]).writeto(path)
    with pytest.raises(BadExposure, match="two-dimensional"):
        read_image(path)
    with pytest.raises(BadExposure, match="no extension 'SCI'"):
        read_image(bare(tmp_path / "a.fits", np.ones((20, 20), np.float32)), extension="SCI")
