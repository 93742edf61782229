"""Reading DECam: real community-pipeline cut-outs, and a made-up raw file."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from seechange_assets.errors import BadExposure
from seechange_assets.instruments.base import get_instrument
from seechange_assets.instruments.decam import pipeline_flags
from seechange_assets.products import Flag, Master, wcs_from_text
from seechange_assets.science.detrend import detrend
from tests.data import test_data


def test_the_ccds() -> None:
    camera = get_instrument("decam")
    assert len(camera.ccds) == 62
    assert camera.bad_pixels("S7").all()
    assert not camera.bad_pixels("N1").any()


def test_community_pipeline_product() -> None:
    folder = test_data("decam_legacypipe") / "testcase4/images/decam/CP/V4.8.2/CP20170315"
    path, camera = folder / "c4d_170316_062107_ooi_z_ls9.N2.fits", get_instrument("decam")
    exposure = camera.read_exposure(path)
    assert exposure.filters == {"N2": "z"}
    assert exposure.kind == "science"
    raw = camera.read_ccd(path, "N2")
    assert raw.data.shape == (251, 245)
    assert raw.info.gain == pytest.approx(4.47)
    assert raw.info.steps_done == ("overscan", "bias", "linearity", "dark", "flat", "fringe", "illumination")
    # The mask of this cut-out knows cosmic rays alone (code 5).
    assert set(np.unique(raw.flags)) == {0, Flag.COSMIC_RAY}
    sky = 1.4826 * np.median(np.abs(raw.data - np.median(raw.data)))
    assert np.sqrt(np.median(raw.variance)) == pytest.approx(sky, rel=0.15)
    ra, dec = wcs_from_text(raw.info.wcs_guess).all_pix2world(122, 125, 0)
    assert (ra, dec) == (pytest.approx(exposure.ra_deg, abs=1.2), pytest.approx(exposure.dec_deg, abs=1.2))
    raw.variance[5, 6] = np.inf
    image = detrend(raw, {}, camera.bad_pixels("N2"))
    assert image.flags[5, 6] & Flag.NO_DATA
    assert (image.flags & Flag.COSMIC_RAY).any()


def test_masks_are_no_exposures() -> None:
    folder = test_data("decam_legacypipe") / "testcase4/images/decam/CP/V4.8.2/CP20170315"
    with pytest.raises(BadExposure, match="a mask or weight"):
        get_instrument("decam").read_exposure(folder / "c4d_170316_062107_ood_z_ls9.N2.fits")


def test_every_real_image_is_read() -> None:
    camera = get_instrument("decam")
    paths = sorted(test_data("decam_legacypipe").glob("testcase*/images/decam/**/*_ooi_*.fits"))
    assert paths
    for path in paths:
        exposure = camera.read_exposure(path)
        for ccd in exposure.filters:
            raw = camera.read_ccd(path, ccd)
            assert raw.flags is not None
            assert raw.variance is not None


def test_an_image_without_mask_and_weight_is_refused(tmp_path: Path) -> None:
    folder = test_data("decam_legacypipe") / "testcase4/images/decam/CP/V4.8.2/CP20170315"
    camera, name = get_instrument("decam"), "c4d_170316_062107_ooi_z_ls9.N2.fits"
    lonely, archived = tmp_path / name, tmp_path / "raw.0123456789.fits"
    for path in (lonely, archived):
        path.write_bytes((folder / name).read_bytes())
        for read in (camera.read_exposure, lambda path: camera.read_ccd(path, "N2")):
            with pytest.raises(BadExposure, match="without its mask and weight"):
                read(path)
    for part in ("_ood_", "_oow_"):
        lonely.with_name(name.replace("_ooi_", part)).write_bytes((folder / name.replace("_ooi_", part)).read_bytes())
    assert camera.read_exposure(lonely).filters == {"N2": "z"}


def test_mask_codes_and_bits() -> None:
    mask = np.array([[0, 1, 3, 4, 5, 8, 99]])
    new = [0, Flag.BAD, Flag.SATURATED, Flag.BLEED, Flag.COSMIC_RAY, Flag.STREAK, Flag.BAD]
    np.testing.assert_array_equal(pipeline_flags(mask, "V4.8.2a"), [new])
    old = pipeline_flags(np.array([[2, 16, 18]]), "V3.2.1")
    np.testing.assert_array_equal(old, [[Flag.SATURATED, Flag.COSMIC_RAY, Flag.SATURATED | Flag.COSMIC_RAY]])


def raw_decam(path: Path, *, bias_section: str = "[57:106,51:4146]") -> Path:
    """A raw file with one CCD: sky of 400 ADU over biases of 1800 and 2100 ADU."""
    data = np.zeros((4146, 2160), np.uint16)
    rng = np.random.default_rng(1)
    data[:, :1080], data[:, 1080:] = 1800, 2100
    data[50:, 106:2054] += 400
    data += rng.integers(0, 3, data.shape, dtype=np.uint16)
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "OBSTYPE": "object", "DATE-OBS": "2021-10-25T04:48:47.1", "EXPTIME": 86.0, "RA": "00:31:18.5",
            "DEC": "-43:00:36",
            "FILTER": "r DECam SDSS c0002 6415.0 1480.0", "NEXTEND": 1, "PROPID": "2021B-0149", "OBJECT": "ELAIS E1",
        }
    )  # fmt: skip
    ccd = fits.ImageHDU(data, name="S2")
    ccd.header.update(
        {
            "DATASECA": "[107:1130,51:4146]", "DATASECB": "[1131:2154,51:4146]", "BIASSECA": bias_section,
            "BIASSECB": "[2155:2160,51:4146]", "GAINA": 4.0, "GAINB": 4.4, "RDNOISEA": 6.0, "RDNOISEB": 7.0,
            "SATURATA": 44000.0, "SATURATB": 43000.0,
        }
    )  # fmt: skip
    fits.HDUList([primary, ccd]).writeto(path)
    return path


def test_raw_exposure(tmp_path: Path) -> None:
    path, camera = raw_decam(tmp_path / "c4d_211025_044847_ori.fits"), get_instrument("decam")
    exposure = camera.read_exposure(path)
    assert exposure.key == "decam_20211025T044847"
    assert exposure.ra_deg == pytest.approx(7.8271, abs=1e-3)
    assert exposure.target == "ELAIS_E1"
    raw = camera.read_ccd(path, "S2")
    assert raw.info.gain == pytest.approx(4.2)
    shape = camera.ccd_shape
    flat = Master("flat", "f", "S2", "decam", "r", 0, 1e5, np.ones(shape, np.float32), np.zeros(shape, np.uint16), ())
    bias = Master("bias", "b", "S2", "decam", "", 0, 1e5, np.zeros(shape, np.float32), np.zeros(shape, np.uint16), ())
    image = detrend(raw, {"bias": bias, "flat": flat}, camera.bad_pixels("S2"), cosmic_rays=False)
    # The same counts mean more electrons at the amplifier with the larger gain.
    assert np.median(image.data[:, 100:900]) == pytest.approx(400 * 4.0 / 4.2, abs=0.1)


def test_raw_with_impossible_section(tmp_path: Path) -> None:
    path = raw_decam(tmp_path / "bad.fits", bias_section="[57:3000,51:4146]")
    with pytest.raises(BadExposure, match="BIASSECA"):
        get_instrument("decam").read_ccd(path, "S2")
