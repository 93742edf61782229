"""Real DECam frames (resampled by others, no catalogue, few stars): is blank sky calibrated, is the transient found?"""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from seechange_assets.instruments.base import RawCcd
from seechange_assets.products import Difference, Flag, ImageInfo, header_text
from seechange_assets.science.subtract_pair import subtract_images
from tests.data import test_data as data_folder

WCS_KEYS = ("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD1_", "CD2_", "PV1_", "PV2_", "EQUINOX", "RADESYS")
#: The brightest change between the epochs, on a galaxy; 0-based pixel.
VARIABLE = (129, 128)
FRAMES = ["DEC-OBS04a", "DEC-OBS04b", "DEC-OBS04c"]
METHODS = ["zogy", "alard_lupton", "sfft"]
#: The five brightest stars that all frames show away from their borders; the fifth is a tenth as bright as the others.
BRIGHT = [(58, 180), (100, 73), (104, 233), (178, 202), (124, 210)]


def read(path: Path) -> RawCcd:
    """The pixels with just the keywords these files have in common."""
    with fits.open(path) as hdus:
        header, data = hdus[0].header, hdus[0].data.astype(np.float32)
    wcs = fits.Header([card for card in header.cards if card.keyword.startswith(WCS_KEYS)])
    info = ImageInfo(
        path.stem, "N6", "generic", "", "i", 58334.0, header["EXPTIME"], 1.0, "", "",
        header["GAIN"], header["RDNOISE"], header["SATURATE"], 0.262, header_text(wcs), ("all",),
    )  # fmt: skip
    return RawCcd(info, data)


def subtracted(new: str, reference: str, method: str = "zogy") -> tuple[Difference, list[NDArray]]:
    """Difference and the places of all sources of both images."""
    folder = data_folder("decam_atfield")
    frames = (read(_path(folder, name)) for name in (new, reference))
    difference, calibrated, deep = subtract_images(*frames, method=method)
    places = [np.stack([s.table["x"], s.table["y"]], axis=1) for s in (calibrated.sources, deep.sources)]
    return difference, places


def _path(folder: Path, name: str) -> Path:
    return folder / "expected" / f"{name}.fits" if name.startswith("Stack") else folder / f"{name}.mini.fits"


def blank_sky(difference: Difference, places: list[NDArray], fwhm_px: float) -> NDArray[np.bool_]:
    """Unflagged pixels more than 3 FWHM from any source of either image; nothing of the code's own masks but flags."""
    yy, xx = np.indices(difference.score.shape)
    far = (difference.flags == 0) & np.isfinite(difference.score)
    for x, y in np.concatenate(places):
        far &= (xx - x) ** 2 + (yy - y) ** 2 > (3 * fwhm_px) ** 2
    return far


@pytest.mark.parametrize(
    ("new", "reference"),
    [(frame, "Stack-DEC-OBS18") for frame in FRAMES]
    + [("Stack-DEC-OBS18", frame) for frame in FRAMES]
    + [("Stack-DEC-OBS18", "Stack-DEC-OBS04"), ("Stack-DEC-OBS04", "Stack-DEC-OBS18")]
    + [("DEC-OBS18a", "Stack-DEC-OBS04"), ("DEC-OBS18b", "Stack-DEC-OBS04"), ("DEC-OBS18c", "Stack-DEC-OBS04")],
)
@pytest.mark.parametrize("method", METHODS)
def test_blank_sky_has_unit_noise(method: str, new: str, reference: str) -> None:
    difference, places = subtracted(new, reference, method)
    score = difference.score[blank_sky(difference, places, 5.0)]
    assert score.size > 5000
    # Beyond 6 sigma it is a real source or artefact; everything else counts.
    assert score[np.abs(score) < 6].std() == pytest.approx(1.0, abs=0.1)
    # Hundreds of free pixels from seven stars leave more around the brightest of them than few Gaussians do.
    assert np.mean(np.abs(score) > 6) < (2e-3 if method == "sfft" else 1e-3)
    assert abs(score.mean()) < 0.15


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("method", METHODS)
def test_the_variable_stands_out_with_its_sign(method: str, frame: str) -> None:
    x, y = VARIABLE
    window = np.s_[y - 4 : y + 5, x - 4 : x + 5]
    forward, _ = subtracted(frame, "Stack-DEC-OBS18", method)
    backward, _ = subtracted("Stack-DEC-OBS18", frame, method)
    assert forward.score[window].max() > 5
    # The galaxy below counts with the error of PSFs made from five stars, so it is less in the sharper frame.
    assert backward.score[window].min() < -3
    # The same flux change, in the counts of either image.
    gain = forward.flux[window].max() / forward.flux_scale
    assert -backward.flux[window].min() == pytest.approx(gain, rel=0.3)


@pytest.mark.parametrize("frame", FRAMES)
def test_stars_do_not_become_detections(frame: str) -> None:
    difference, _ = subtracted(frame, "Stack-DEC-OBS18")
    score = np.where(difference.flags == 0, difference.score, 0.0)[12:-12, 12:-12]
    significant = np.argwhere(np.abs(score) > 5) + 12
    near = np.abs(significant - VARIABLE[::-1]).max(axis=1) < 8
    # Frame c holds a broken streak at x 10-30, y 150-160.
    streak = (significant[:, 0] > 145) & (significant[:, 0] < 168) & (significant[:, 1] < 40)
    other = significant[~(near | streak)]
    # What is left beside five PSF stars: the star cut by the border at (5, 126), and an excess 4 px from the star at
    # (104, 233) that all three frames show, which may be a source. Neither stands out by more than 7 sigma.
    stars = np.array([[126.0, 5.0], [233.2, 104.5]])
    distance = np.hypot(*(other[:, None, :] - stars[None]).transpose(2, 0, 1)).min(axis=1)
    assert (distance < 10).all()
    assert np.abs(difference.score[tuple(other.T)]).max(initial=0.0) < 7


def test_flux_scale_comes_from_the_stars() -> None:
    difference, _ = subtracted("DEC-OBS04a", "Stack-DEC-OBS18")
    assert difference.n_alignment_stars >= 3
    assert difference.flux_scale == pytest.approx(1.03, abs=0.05)
    assert difference.alignment_rms_px < 0.3
    assert np.isnan(difference.zp_err)
    assert (difference.flags & Flag.NO_DATA).astype(bool).mean() < 0.05


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("method", METHODS)
def test_bright_stars_leave_little(method: str, frame: str) -> None:
    difference, _ = subtracted(frame, "Stack-DEC-OBS18", method)
    left, scores = [], []
    for x, y in BRIGHT:
        window = np.s_[y - 1 : y + 2, x - 1 : x + 2]
        left.append(float(difference.flux[window].mean()))
        scores.append(float(np.abs(difference.score[window]).max()))
    # Stars of 4e5, 1.5e5, 5e4, 5e4 and 1.2e4 ADU; PSFs of five stars are good to some per cent.
    assert np.abs(left[0]) < 0.04 * 4e5
    assert np.abs(left[1]) < 0.04 * 1.5e5
    assert max(scores) < 5.0
