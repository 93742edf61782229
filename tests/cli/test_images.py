"""`seechange subtract` and `calibrate` as a user runs them: files in, files and numbers out."""

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.ndimage import binary_dilation, gaussian_filter

from resources.catalog_tables import write_catalog
from seechange_assets.cli.main import main
from seechange_assets.products import header_from_text
from seechange_assets.simulation import simulate_ccd
from seechange_assets.simulation.ccd import SimulatedCcd
from tests.data import test_data as data_folder

SEEING_PX = 1.8


def run(*arguments: object) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def write_image(path: Path, made: SimulatedCcd, **keywords: object) -> Path:
    """The image with the header of a telescope: its own idea of the WCS."""
    info = made.image.info
    header = header_from_text(made.wcs_text)
    header.update(
        {
            "GAIN": info.gain, "RDNOISE": info.read_noise, "SATURATE": info.saturation, "EXPTIME": info.exptime_s,
            "MJD-OBS": info.mjd, "FILTER": info.filter,
        }
        | keywords
    )  # fmt: skip
    fits.PrimaryHDU(made.image.data, header).writeto(path)
    return path


@pytest.fixture(scope="module")
def made() -> SimulatedCcd:
    return simulate_ccd(np.random.default_rng(11), (512, 512), seeing_px=SEEING_PX, with_transients=False)


@pytest.fixture
def image(tmp_path: Path, made: SimulatedCcd) -> Path:
    return write_image(tmp_path / "image.fits", made)


@pytest.fixture
def catalog(tmp_path: Path, made: SimulatedCcd) -> Path:
    write_catalog(made.catalog, tmp_path / "stars.fits")
    return tmp_path / "stars.fits"


def blank(data: np.ndarray) -> np.ndarray:
    """Pixels far from anything that stands out of the smoothed sky, and from the border."""
    sky = np.nanmedian(data)
    smooth = gaussian_filter(np.where(np.isfinite(data), data - sky, 0.0), 1.5)
    spread = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    sources = binary_dilation(np.abs(smooth - np.median(smooth)) > 5 * spread, iterations=15)
    sources[:15], sources[-15:], sources[:, :15], sources[:, -15:] = True, True, True, True
    return ~sources


@pytest.mark.parametrize("frame", ["DEC-OBS04a", "DEC-OBS04b", "DEC-OBS04c"])
def test_subtract_on_real_frames(tmp_path: Path, frame: str) -> None:
    folder = data_folder("decam_atfield")
    new, reference = folder / f"{frame}.mini.fits", folder / "expected" / "Stack-DEC-OBS18.fits"
    assert run("subtract", new, reference, "-o", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "diff.fits", "score.fits", "detections.fits", "summary.json",
    }  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["blank_sky_score_sigma"] == pytest.approx(1.0, abs=0.1)
    assert summary["zp_system"] == "none"
    score, (difference, header) = (
        fits.getdata(tmp_path / "score.fits"),
        fits.getdata(tmp_path / "diff.fits", header=True),
    )
    assert score.shape == difference.shape == fits.getdata(new).shape
    quiet = score[blank(fits.getdata(new)) & blank(fits.getdata(reference)) & np.isfinite(score)]
    assert quiet.size > 5000
    # Beyond 6 sigma it is a real source or artefact; everything else counts.
    assert quiet[np.abs(quiet) < 6].std() == pytest.approx(1.0, abs=0.1)
    here, expected = WCS(header), WCS(fits.getheader(new))
    assert here.has_celestial
    corners = np.array([[0.0, 0.0], [255.0, 255.0]])
    np.testing.assert_allclose(here.all_pix2world(corners, 0), expected.all_pix2world(corners, 0), atol=1e-6)
    detections = Table.read(tmp_path / "detections.fits")
    assert len(detections) == summary["n_detections"]
    assert {"x", "y", "ra", "dec", "score"} <= set(detections.colnames)


def test_subtract_with_a_catalogue_is_in_ab(tmp_path: Path, made: SimulatedCcd, image: Path, catalog: Path) -> None:
    again = simulate_ccd(
        np.random.default_rng(12), (512, 512), sky=made.sky, dither_px=(3.3, -1.2), with_transients=False
    )
    reference = write_image(tmp_path / "reference.fits", again)
    assert run("subtract", image, reference, "--catalog", catalog, "-o", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["zp_system"] == "AB"
    assert summary["zp"] == pytest.approx(true_zero_point(made), abs=0.03)
    assert summary["blank_sky_score_sigma"] == pytest.approx(1.0, abs=0.1)


def true_zero_point(made: SimulatedCcd) -> float:
    return float(np.median(made.stars["mag"] + 2.5 * np.log10(made.stars["flux"])))


def test_calibrate_finds_the_truth(tmp_path: Path, made: SimulatedCcd, image: Path, catalog: Path) -> None:
    out = tmp_path / "out"
    assert run("calibrate", image, "--catalog", catalog, "-o", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "background.fits", "background_rms.fits", "sources.fits", "psf.fits", "solved.hdr", "summary.json",
    }  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    data, info = made.image.data, made.image.info
    assert summary["background"] == pytest.approx(np.median(data), rel=0.01)
    # Galaxies below the noise widen the sky by a few percent.
    sky_noise = np.sqrt(np.median(data) / info.gain + (info.read_noise / info.gain) ** 2)
    assert summary["background_rms"] == pytest.approx(sky_noise, rel=0.08)
    # The pixel widens the seeing: a box has the variance of a Gaussian of FWHM 0.68 px (exact only for Gaussians).
    assert summary["fwhm_px"] == pytest.approx(np.hypot(SEEING_PX, 0.68), rel=0.08)
    assert summary["zp"] == pytest.approx(true_zero_point(made), abs=0.03)
    assert summary["zp_system"] == "AB"
    solved, true = (
        WCS(header_from_text(text)) for text in ((out / "solved.hdr").read_text(), made.true_wcs_text)
    )  # fmt: skip
    x, y = solved.all_world2pix(*true.all_pix2world([20.0, 490.0], [30.0, 480.0], 0), 0)
    np.testing.assert_allclose((x, y), ([20.0, 490.0], [30.0, 480.0]), atol=0.15)
    sources = Table.read(out / "sources.fits")
    assert len(sources) == summary["n_sources"]
    bright = made.stars[(made.stars["mag"] < 18) & (made.stars["mag"] > 15)]
    inside = (np.abs(bright["x"] - 255.5) < 230) & (np.abs(bright["y"] - 255.5) < 230)
    offsets = []
    for star in bright[inside]:
        distance = np.hypot(sources["x"] - star["x"], sources["y"] - star["y"])
        if distance.min() < 0.5:
            offsets.append(sources["mag"][np.argmin(distance)] - star["mag"])
    assert len(offsets) > 10
    assert abs(np.median(offsets)) < 0.03


def test_a_filter_without_colour_transform_is_said_to_be_gaia(
    tmp_path: Path, made: SimulatedCcd, catalog: Path
) -> None:
    image = write_image(tmp_path / "white.fits", made, FILTER="clear")
    assert run("calibrate", image, "--catalog", catalog, "-o", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["zp_system"] == "Gaia G"


def test_pixels_without_weight_take_no_part(tmp_path: Path, made: SimulatedCcd, image: Path, catalog: Path) -> None:
    weight = np.full(made.image.data.shape, 1e-3, np.float32)
    weight[:, :200] = 0
    fits.PrimaryHDU(weight).writeto(tmp_path / "weight.fits")
    out = tmp_path / "out"
    assert run("calibrate", image, "--weight", tmp_path / "weight.fits", "--catalog", catalog, "-o", out) == 0
    sources = Table.read(out / "sources.fits")
    left = sources["x"] < 195
    assert not np.asarray(sources["is_good"], bool)[left].any()
    assert np.asarray(sources["is_good"], bool)[~left].sum() > 20


def shifted(made: SimulatedCcd, tmp_path: Path) -> Path:
    """The same pixels somewhere else on the sky."""
    return write_image(tmp_path / "elsewhere.fits", made, CRVAL1=10.0)


def junk(_: SimulatedCcd, tmp_path: Path) -> Path:
    path = tmp_path / "junk.fits"
    path.write_bytes(b"no FITS" * 1000)
    return path


def other_filter(made: SimulatedCcd, tmp_path: Path) -> Path:
    return write_image(tmp_path / "z.fits", made, FILTER="z")


def missing(_: SimulatedCcd, tmp_path: Path) -> Path:
    return tmp_path / "missing.fits"


@pytest.mark.parametrize(
    ("make", "word"),
    [(missing, "no such file"), (junk, "not a readable FITS"), (other_filter, "filter"), (shifted, "covers 0.0 %")],
)
def test_subtract_refuses_bad_input(tmp_path: Path, made, image: Path, capsys, make, word: str) -> None:
    refused(capsys, tmp_path, word, "subtract", image, make(made, tmp_path))
    if make in (missing, junk):
        refused(capsys, tmp_path, word, "subtract", make(made, tmp_path), image)


@pytest.mark.parametrize(
    ("make", "word"), [(missing, "no such file"), (junk, "not a readable FITS"), (shifted, "star")]
)
def test_calibrate_refuses_bad_input(tmp_path: Path, made, catalog: Path, capsys, make, word: str) -> None:
    refused(capsys, tmp_path, word, "calibrate", make(made, tmp_path), "--catalog", catalog)


def test_companions_and_catalogue_must_exist_and_fit(tmp_path: Path, image: Path, catalog: Path, capsys) -> None:
    small = tmp_path / "small.fits"
    fits.PrimaryHDU(np.ones((10, 10), np.float32)).writeto(small)
    refused(capsys, tmp_path, "shape", "calibrate", image, "--mask", small, "--catalog", catalog)
    refused(capsys, tmp_path, "no such file", "calibrate", image, "--weight", tmp_path / "none", "--catalog", catalog)
    refused(capsys, tmp_path, "does not exist", "calibrate", image, "--catalog", tmp_path / "none.fits")
    refused(capsys, tmp_path, "method", "subtract", image, image, "--method", "magic")


def refused(capsys, tmp_path: Path, word: str, *command: object) -> None:
    """One line, exit code 1, nothing written."""
    out = tmp_path / "out"
    capsys.readouterr()
    assert run(*command, "-o", out) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("seechange: ")
    assert word in said.err
    assert not out.exists()
