"""Reading LS4 files (through the small demo camera of the same format), good ones and bad ones."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seechange_assets.errors import BadExposure, ParameterError
from seechange_assets.instruments.base import get_instrument
from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.names import checked_name
from seechange_assets.products import wcs_from_text
from tests.simulation.demo import demo_survey

Edit = Callable[[fits.HDUList], None]


def edited(folder: Path, edit: Edit) -> Path:
    """A copy of a science exposure after `edit` of its HDUs."""
    path = folder / "edited.fits"
    with fits.open(demo_survey().science[0]) as hdus, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit(hdus)
        hdus.writeto(path, overwrite=True, output_verify="ignore")
    return path


def put(keyword: str, value: object, extension: int = 0) -> Edit:
    def edit(hdus: fits.HDUList) -> None:
        hdus[extension].header[keyword] = value

    return edit


def drop(keyword: str) -> Edit:
    def edit(hdus: fits.HDUList) -> None:
        del hdus[0].header[keyword]

    return edit


def test_a_good_exposure() -> None:
    survey, camera = demo_survey(), get_instrument("demo")
    exposure = camera.read_exposure(survey.science[0])
    assert exposure.key == "demo_20261120T023000"
    assert (exposure.kind, exposure.project, exposure.field) == ("science", "survey", "sim01")
    assert exposure.night == "2026-11-19"
    assert exposure.filters == {"01": "r", "02": "g"}
    assert exposure.exptime_s == 45.0


def test_a_good_ccd() -> None:
    survey, camera = demo_survey(), get_instrument("demo")
    raw = camera.read_ccd(survey.science[0], "02")
    assert raw.data.shape == (512, 552)
    assert raw.data.dtype == np.float32
    assert [amp.name for amp in raw.amplifiers] == ["A", "B"]
    assert raw.info.gain == pytest.approx(1.64)
    assert raw.info.filter == "g"
    assert wcs_from_text(raw.info.wcs_guess).has_celestial


def test_layout_of_ls4() -> None:
    camera = Ls4()
    assert len(camera.ccds) == 32
    assert [camera.default_filter(ccd) for ccd in ("01", "08", "17", "32")] == ["g", "r", "i", "z"]
    east, north = camera.ccd_offset_deg("01")
    assert east > 2
    assert north > 1.5
    # Every CCD's centre is where its WCS says.
    for ccd in ("01", "12", "32"):
        wcs = wcs_from_text(camera.wcs_guess(100.0, 0.0, ccd).tostring(sep="\n"))
        ra, dec = wcs.all_pix2world(1023.5, 2047.5, 0)
        east, north = camera.ccd_offset_deg(ccd)
        assert ra - 100 == pytest.approx(east, abs=0.01)
        assert dec == pytest.approx(north, abs=0.01)


def test_calibrations_need_no_pointing() -> None:
    survey, camera = demo_survey(), get_instrument("demo")
    exposure = camera.read_exposure(survey.biases[0])
    assert exposure.kind == "bias"
    assert np.isnan(exposure.ra_deg)
    assert exposure.field == "none"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop("DATE-OBS"), None),
        (put("DATE-OBS", "yesterday"), "DATE-OBS"),
        (put("DATE-OBS", "1897-01-01T00:00:00"), "DATE-OBS"),
        (put("DATE-OBS", "2101-01-01T00:00:00"), "DATE-OBS"),
        (drop("EXPTIME"), "EXPTIME"),
        (put("EXPTIME", -1.0), "EXPTIME"),
        (put("EXPTIME", 3601.0), "EXPTIME"),
        (put("EXPTIME", "NaN"), "EXPTIME"),
        (put("EXPTIME", "long"), "EXPTIME"),
        (put("EXPTIME", True), "EXPTIME"),
        (put("FILTER", "H-alpha", 1), "FILTER"),
        (put("RA", 361.0), "RA"),
        (put("DEC", -91.0), "DEC"),
        (drop("RA"), "RA"),
        (put("IMAGETYP", "selfie"), "IMAGETYP"),
        (put("NCCD", 3), "NCCD"),
        (drop("NCCD"), None),
        (put("CCDLIST", "01,07"), "CCDLIST"),
        (lambda hdus: hdus.pop(2), "extensions"),
        (put("EXTNAME", "CCD01", 2), "CCD"),
    ],
)
def test_bad_headers(tmp_path: Path, edit: Edit, said: str | None) -> None:
    path, camera = edited(tmp_path, edit), get_instrument("demo")
    if said is None:
        # MJD-OBS stands in for DATE-OBS, and two extensions are all that this camera has.
        camera.read_exposure(path)
        return
    with pytest.raises(BadExposure) as caught:
        camera.read_exposure(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


def test_no_date_at_all(tmp_path: Path) -> None:
    def edit(hdus: fits.HDUList) -> None:
        del hdus[0].header["DATE-OBS"], hdus[0].header["MJD-OBS"]

    with pytest.raises(BadExposure, match="DATE-OBS is missing"):
        get_instrument("demo").read_exposure(edited(tmp_path, edit))


def test_bad_amplifier_value(tmp_path: Path) -> None:
    path = edited(tmp_path, put("GAINA", -3.0, 1))
    with pytest.raises(BadExposure, match="CCD01: GAINA"):
        get_instrument("demo").read_ccd(path, "01")


@pytest.mark.parametrize(
    "hostile", ["../../etc/passwd", "a'; DROP TABLE images;--", "x" * 68, "...", "naïve ☃"[:5], "a\\b c"]
)
def test_hostile_names_are_made_safe(tmp_path: Path, hostile: str) -> None:
    def edit(hdus: fits.HDUList) -> None:
        for keyword in ("OBJECT", "PROJECT", "FIELD"):
            try:
                hdus[0].header[keyword] = hostile
            except ValueError:
                hdus[0].header[keyword] = "?"

    exposure = get_instrument("demo").read_exposure(edited(tmp_path, edit))
    for name in (exposure.target, exposure.project, exposure.field, exposure.key):
        checked_name(name)


@pytest.mark.parametrize("lost", [1, 2880, 100_000, 700_000, 1_120_000])
def test_truncated(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "cut.fits"
    content = demo_survey().science[0].read_bytes()
    # Beyond the padding of the last block, so that pixels are lost.
    path.write_bytes(content[: len(content) - _padding() - lost])
    with pytest.raises(BadExposure) as caught:
        get_instrument("demo").read_exposure(path)
    assert "\n" not in str(caught.value)


def test_a_cut_last_block_is_refused(tmp_path: Path) -> None:
    """All pixels are there, yet a transfer that has not ended must not claim the exposure's key."""
    path = tmp_path / "unpadded.fits"
    content = demo_survey().science[0].read_bytes()
    path.write_bytes(content[: len(content) - _padding()])
    with pytest.raises(BadExposure, match=f"{_padding()} bytes are missing in its last block"):
        get_instrument("demo").read_exposure(path)


def _padding() -> int:
    return -(512 * 552 * 2) % 2880


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x00" * 5000, b"SIMPLE  =", b"SIMPLE  =                    T" + b" " * 2850]
)
def test_not_fits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.fits"
    path.write_bytes(content)
    with pytest.raises(BadExposure):
        get_instrument("demo").read_exposure(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.fits", tmp_path):
        with pytest.raises(BadExposure):
            get_instrument("demo").read_exposure(path)


def test_file_of_another_camera() -> None:
    with pytest.raises(BadExposure):
        get_instrument("ls4").read_exposure(demo_survey().science[0])


def test_ccd_not_in_the_file() -> None:
    with pytest.raises(BadExposure, match="no CCD '09'"):
        get_instrument("demo").read_ccd(demo_survey().science[0], "09")


def test_unknown_instrument() -> None:
    with pytest.raises(ParameterError, match="expected one of"):
        get_instrument("hubble")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of the headers may be wrong: the answer is an exposure or a `BadExposure`, nothing else."""
    path = tmp_path / "damaged.fits"
    shutil.copy(demo_survey().science[0], path)
    offset = data.draw(st.integers(0, 2 * 2880 - 1))
    junk = data.draw(st.binary(min_size=1, max_size=12))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(junk)
    camera = get_instrument("demo")
    said = ""
    try:
        exposure = camera.read_exposure(path)
        checked_name(exposure.key)
        camera.read_ccd(path, next(iter(exposure.filters)))
    except BadExposure as error:
        said = str(error)
    assert "\n" not in said
