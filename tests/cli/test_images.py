"""`seechange subtract` and `calibrate` as a user runs them: files in, files and numbers out."""

import json
from dataclasses import replace
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
SUMMARY = {
    "n_sources", "fwhm_px", "fwhm_arcsec", "n_matched", "wcs_rms_mas_ra_all", "wcs_rms_mas_dec_all",
    "wcs_rms_mas_ra_bright", "wcs_rms_mas_dec_bright", "zp", "zp_err", "zp_scatter", "limiting_magnitude",
    "core_seconds",
}  # fmt: skip


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
        "background.fits", "background_rms.fits", "sources.fits", "psf.fits", "matches.fits", "zp_stars.fits",
        "solved.hdr", "summary.json",
    }  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert set(summary["core_seconds"]) == {"read", "background", "sources", "psf", "wcs", "zp", "total"}
    assert summary["fwhm_arcsec"] == pytest.approx(summary["fwhm_px"] * made.image.info.pixel_scale_arcsec, rel=0.01)
    assert 0 < summary["wcs_rms_mas_ra_bright"] < 60
    assert summary["n_matched"] == Table.read(out / "matches.fits")["used"].sum()
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


def test_a_catalogue_without_colours_is_in_the_filter_of_the_image(
    tmp_path: Path, made: SimulatedCcd, image: Path
) -> None:
    """As SCAMP's catalogues are: positions and one magnitude."""
    stars = made.stars[made.stars["mag"] < 20.5]
    ra, dec = WCS(header_from_text(made.true_wcs_text)).all_pix2world(stars["x"], stars["y"], 0)
    columns = {"X_WORLD": ra, "Y_WORLD": dec, "MAG": stars["mag"], "OBSDATE": np.full(len(stars), 2016.0)}
    Table(columns).write(tmp_path / "one_band.fits")
    assert run("calibrate", image, "--catalog", tmp_path / "one_band.fits", "-o", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["zp_system"] == "catalogue"
    # Some sixty stars of 20 mmag, and what the faint ones add.
    assert summary["zp"] == pytest.approx(true_zero_point(made), abs=0.015)


def star_table(made: SimulatedCcd, one_based: int = 0) -> Table:
    """Positions of the stars as a detector would list them: without brightness."""
    rng = np.random.default_rng(3)
    stars = made.stars[made.stars["mag"] < 20.5]
    error = np.full(len(stars), 0.02)
    x, y = (np.asarray(stars[axis]) + rng.normal(0, error) + one_based for axis in "xy")
    names = ("XWIN_IMAGE", "YWIN_IMAGE", "ERRAWIN_IMAGE", "ERRBWIN_IMAGE") if one_based else ("x", "y", "xErr", "yErr")
    return Table([x, y, error, error], names=names)


def as_fits(made: SimulatedCcd, folder: Path) -> tuple[Path, list[object]]:
    """A table in the file of the header, as HSC's are; a gain of 0 is nothing to astrometry."""
    header = header_from_text(made.wcs_text)
    header["GAIN"] = 0.0
    hdus = [fits.PrimaryHDU(header=header), fits.table_to_hdu(star_table(made))]
    fits.HDUList(hdus).writeto(folder / "stars_of_image.fits")
    return folder / "stars_of_image.fits", []


def as_ldac(made: SimulatedCcd, folder: Path) -> tuple[Path, list[object]]:
    """SExtractor's form: the image's header as a text in a table, pixels from 1."""
    text = header_from_text(made.wcs_text).tostring(padding=True)
    column = fits.Column("Field Header Card", f"{len(text)}A", array=[text])
    head = fits.BinTableHDU.from_columns([column], name="LDAC_IMHEAD")
    head.header["TDIM1"] = f"(80, {len(text) // 80})"
    stars = fits.table_to_hdu(star_table(made, one_based=1))
    fits.HDUList([fits.PrimaryHDU(), head, stars]).writeto(folder / "stars.ldac")
    return folder / "stars.ldac", []


def as_csv(made: SimulatedCcd, folder: Path) -> tuple[Path, list[object]]:
    """A text table, the header as text beside it."""
    star_table(made).write(folder / "stars.csv")
    (folder / "image.hdr").write_text(made.wcs_text + "\n")
    return folder / "stars.csv", ["--header", folder / "image.hdr"]


@pytest.mark.parametrize("make", [as_fits, as_ldac, as_csv])
def test_of_a_table_the_wcs_alone_is_solved(tmp_path: Path, made: SimulatedCcd, catalog: Path, make) -> None:
    (tmp_path / "in").mkdir()
    table, options = make(made, tmp_path / "in")
    out = tmp_path / "out"
    assert run("calibrate", table, *options, "--catalog", catalog, "-o", out) == 0
    assert {path.name for path in out.iterdir()} == {"sources.fits", "matches.fits", "solved.hdr", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == SUMMARY
    assert summary["zp"] is None
    assert summary["n_matched"] > 20
    solved, true = (WCS(header_from_text(text)) for text in ((out / "solved.hdr").read_text(), made.true_wcs_text))
    x, y = solved.all_world2pix(*true.all_pix2world([20.0, 490.0], [30.0, 480.0], 0), 0)
    # Dozens of stars of 0.02 px fix the corners to a few hundredths.
    np.testing.assert_allclose((x, y), ([20.0, 490.0], [30.0, 480.0]), atol=0.06)


def test_real_tables_of_hyper_suprime_cam(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the real catalogue is Parquet: needs pyarrow")
    folder = data_folder("hsc_cosmos_gaia")
    tables = sorted(folder.glob("1180_*.fits"))[::5]
    residuals = []
    for table in tables:
        assert run("calibrate", table, "--catalog", folder / "gaia_refCat.parquet", "-o", tmp_path / table.stem) == 0
        summary = json.loads((tmp_path / table.stem / "summary.json").read_text())
        residuals.append([summary["wcs_rms_mas_ra_all"], summary["wcs_rms_mas_dec_all"]])
    assert (np.median(residuals, axis=0) < [35.0, 25.0]).all()


def test_calibrate_refuses_what_does_not_fit_a_table(
    tmp_path: Path, made: SimulatedCcd, image: Path, catalog: Path, capsys
) -> None:
    table, _ = as_fits(made, tmp_path)
    star_table(made).write(tmp_path / "bare.fits")
    Table({"a": [1.0]}).write(tmp_path / "other.csv")
    few = star_table(made)[:4]
    few.write(tmp_path / "few.csv")
    stars = ("--catalog", catalog)
    refused(capsys, tmp_path, "--catalog", "calibrate", table)
    refused(capsys, tmp_path, "belong to an image", "calibrate", table, "--mask", image, *stars)
    refused(capsys, tmp_path, "belongs to a table", "calibrate", image, "--header", image, *stars)
    refused(capsys, tmp_path, "no header with a celestial WCS", "calibrate", tmp_path / "bare.fits", *stars)
    refused(capsys, tmp_path, "no column x", "calibrate", tmp_path / "other.csv", "--header", image, *stars)
    refused(capsys, tmp_path, "4 usable stars found", "calibrate", tmp_path / "few.csv", "--header", image, *stars)
    refused(capsys, tmp_path, "no such file", "calibrate", tmp_path / "none.csv", "--header", image, *stars)
    refused(capsys, tmp_path, "cannot be read", "calibrate", table, "--header", tmp_path / "none.hdr", *stars)


def test_calibrate_refuses_a_file_as_folder(tmp_path: Path, image: Path, catalog: Path, capsys) -> None:
    (tmp_path / "taken").write_text("here already")
    assert run("calibrate", image, "--catalog", catalog, "-o", tmp_path / "taken") == 1
    assert "--out names the folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "here already"


def test_a_catalogue_of_another_place_is_refused(tmp_path: Path, made: SimulatedCcd, image: Path, capsys) -> None:
    """Its stars moved by five arcminutes: as many, where the image is, but others."""
    elsewhere = made.catalog.table.copy()
    elsewhere["dec"] += 300.0 / 3600.0
    write_catalog(replace(made.catalog, table=elsewhere), tmp_path / "elsewhere.fits")
    refused(capsys, tmp_path, "star", "calibrate", image, "--catalog", tmp_path / "elsewhere.fits")


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
