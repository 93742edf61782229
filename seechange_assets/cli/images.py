"""`seechange subtract` and `calibrate`: the science path on plain FITS images, without a database."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, busy, print_json
from seechange_assets.errors import ParameterError

if TYPE_CHECKING:
    import numpy as np
    from astropy.table import Table

    from seechange_assets.products import CalibratedImage, ImageInfo, SkyCatalog, Sources, Wcs
    from seechange_assets.science.subtract_pair import GaiaMagnitude

OutOption = Annotated[Path, typer.Option("-o", "--out", help="Folder to write into.")]
CatalogOption = Annotated[
    str | None, typer.Option(help="Star catalogue: a FITS, LDAC, CSV or ECSV file, a partitioned folder, or `gaia`.")
]
ExtensionOption = Annotated[str | None, typer.Option(help="Extension of the image, by name or number.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(subtract)
    app.command()(calibrate)


def subtract(
    new: Annotated[Path, typer.Argument(help="Calibrated FITS image.")],
    reference: Annotated[Path, typer.Argument(help="Calibrated FITS image to subtract.")],
    out: OutOption,
    catalog: CatalogOption = None,
    method: Annotated[str, typer.Option(help="zogy, alard_lupton, sfft or direct.")] = "zogy",
    threshold: Annotated[float, typer.Option(min=2.0, help="Least |S/N| of a detection.")] = 5.0,
    ignore_filter: Annotated[bool, typer.Option(help="Subtract although the filters differ.")] = False,
    extension: ExtensionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Subtract one image from another: difference, score, detections and a summary."""
    from seechange_assets.instruments.generic import read_image
    from seechange_assets.science.detections import detect
    from seechange_assets.science.subtract_pair import subtract_images

    with busy("subtracting"):
        raw, raw_reference = (read_image(path, extension=_extension(extension)) for path in (new, reference))
        stars = _catalog(catalog, raw.info, raw.data.shape)
        difference, calibrated, used = subtract_images(
            raw, raw_reference, stars, method=method, gaia_magnitude=_transform(stars), ignore_filter=ignore_filter
        )
        detections = detect(difference, threshold=threshold)
    summary = {
        "method": difference.method,
        "n_detections": len(detections.table),
        "blank_sky_score_sigma": round(blank_sky_sigma(difference, calibrated.sources.table), 4),
        "flux_scale": difference.flux_scale,
        "n_alignment_stars": difference.n_alignment_stars,
        "alignment_rms_px": difference.alignment_rms_px,
        "fwhm_new_px": calibrated.psf.fwhm_px,
        "fwhm_reference_px": used.psf.fwhm_px,
        "n_psf_stars": calibrated.psf.n_stars,
        "zp": difference.zp,
        "zp_err": difference.zp_err,
        "zp_system": _zp_system(difference.info.filter, stars),
        "limiting_magnitude": difference.limiting_magnitude,
        "masked_fraction": difference.masked_fraction,
    }
    out.mkdir(parents=True, exist_ok=True)
    _write_image(out / "diff.fits", difference.data, difference.wcs.header)
    _write_image(out / "score.fits", difference.score, difference.wcs.header)
    detections.table.write(out / "detections.fits", overwrite=True)
    _finish(out, summary, as_json)


def calibrate(
    image: Annotated[
        Path, typer.Argument(help="FITS image without the marks of the camera, or a table of x, y (with errors).")
    ],
    out: OutOption,
    catalog: CatalogOption = None,
    mask: Annotated[Path | None, typer.Option(help="Mask image, not zero where bad.")] = None,
    weight: Annotated[Path | None, typer.Option(help="Inverse-variance image.")] = None,
    header: Annotated[
        Path | None, typer.Option(help="Header of the image a table was measured on: FITS or text.")
    ] = None,
    extension: ExtensionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Background, sources, PSF, WCS and zero point of one image: tables, solved header and a summary.

    Of a table of x, y (pixels from 0; columns of SExtractor from 1) the WCS alone is solved.
    """
    from seechange_assets.instruments.star_list import is_star_list

    _check_folder(out)
    if is_star_list(image, _extension(extension)):
        if mask or weight:
            raise ParameterError(f"{image} is a table: --mask and --weight belong to an image")
        _calibrate_list(image, out, catalog, header, extension, as_json)
        return
    if header:
        raise ParameterError(f"{image} is an image and has a header of its own: --header belongs to a table")
    _calibrate_image(image, out, catalog, (mask, weight), extension, as_json)


def _calibrate_image(
    path: Path,
    out: Path,
    catalog: str | None,
    companions: tuple[Path | None, Path | None],
    extension: str | None,
    as_json: bool,
) -> None:
    from seechange_assets.instruments.generic import read_image
    from seechange_assets.science.background import level_map, rms_map
    from seechange_assets.science.subtract_pair import calibrate as calibrate_image

    seconds: dict[str, float] = {}
    with busy("calibrating"):
        with _core_seconds(seconds, "read"):
            raw = read_image(path, *companions, extension=_extension(extension))
            stars = _catalog(catalog, raw.info, raw.data.shape)
        result = calibrate_image(
            raw, stars, gaia_magnitude=_transform(stars), stage=lambda name: _core_seconds(seconds, name)
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_image(out / "background.fits", level_map(result.background), result.wcs.header)
    _write_image(out / "background_rms.fits", rms_map(result.background), result.wcs.header)
    _source_table(result).write(out / "sources.fits", overwrite=True)
    _write_image(out / "psf.fits", result.psf.coefficients, "")
    result.zp.stars.write(out / "zp_stars.fits", overwrite=True)
    _write_solution(out, result.wcs)
    extra = {
        "background": result.background.level,
        "background_rms": result.background.rms,
        "n_stars": int(result.sources.table["is_star"].sum()),
        "psf_form": result.psf.form,
        "n_psf_stars": result.psf.n_stars,
        "psf_chi2": result.psf.chi2,
        "n_zp_stars": result.zp.n_stars,
        "zp_system": _zp_system(raw.info.filter, stars),
    }
    _finish(out, _calibration_summary(result.sources, result.wcs, seconds, result) | extra, as_json)


def _calibrate_list(
    path: Path, out: Path, catalog: str | None, header: Path | None, extension: str | None, as_json: bool
) -> None:
    """Astrometry alone, of positions somebody else measured."""
    from seechange_assets.instruments.star_list import read_star_list
    from seechange_assets.science.astrometry import solve_wcs

    seconds: dict[str, float] = {}
    with busy("solving"):
        with _core_seconds(seconds, "read"):
            found = read_star_list(path, header, _extension(extension))
            stars = _catalog(catalog, found.info, found.shape)
        if stars is None:
            raise ParameterError(f"{path} is a table: its WCS is solved with a star catalogue: give --catalog")
        with _core_seconds(seconds, "wcs"):
            wcs = solve_wcs(found.sources, found.info, found.shape, stars)
    table = found.sources.table.copy()
    table["ra"], table["dec"] = wcs.astropy().all_pix2world(table["x"], table["y"], 0)
    out.mkdir(parents=True, exist_ok=True)
    table.write(out / "sources.fits", overwrite=True)
    _write_solution(out, wcs)
    _finish(out, _calibration_summary(found.sources, wcs, seconds), as_json)


@contextmanager
def _core_seconds(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the processor time of the body under `name`."""
    start = time.process_time()
    yield
    seconds[name] = round(time.process_time() - start, 4)


def _calibration_summary(
    sources: "Sources", wcs: "Wcs", seconds: dict[str, float], result: "CalibratedImage | None" = None
) -> dict[str, Any]:
    """The numbers of a calibration; residuals are robust rms (1.4826 MAD). NaN is what was not measured."""
    nan = float("nan")
    psf, zp = (result.psf, result.zp) if result else (None, None)
    return {
        "n_sources": len(sources.table),
        "fwhm_px": psf.fwhm_px if psf else nan,
        "fwhm_arcsec": psf.fwhm_px * _pixel_scale_arcsec(wcs) if psf else nan,
        "n_matched": wcs.n_matched,
        "wcs_rms_mas_ra_all": wcs.residual_ra_mas,
        "wcs_rms_mas_dec_all": wcs.residual_dec_mas,
        "wcs_rms_mas_ra_bright": wcs.residual_ra_bright_mas,
        "wcs_rms_mas_dec_bright": wcs.residual_dec_bright_mas,
        "zp": zp.zp if zp else nan,
        "zp_err": zp.zp_err if zp else nan,
        "zp_scatter": zp.scatter if zp else nan,
        "limiting_magnitude": zp.limiting_magnitude if zp else nan,
        "core_seconds": seconds | {"total": round(sum(seconds.values()), 4)},
    }


def _pixel_scale_arcsec(wcs: "Wcs") -> float:
    """Mean pixel scale of the solution."""
    from astropy.wcs.utils import proj_plane_pixel_scales

    return float(proj_plane_pixel_scales(wcs.astropy().celestial).mean()) * 3600.0


def _write_solution(out: Path, wcs: "Wcs") -> None:
    """The solved header as text, one card per line, and the pairs it was fitted to."""
    (out / "solved.hdr").write_text(wcs.header + "\nEND\n")
    wcs.matches.write(out / "matches.fits", overwrite=True)


def _check_folder(out: Path) -> None:
    """Refuse a place that is no folder before any work is done."""
    if out.exists() and not out.is_dir():
        raise ParameterError(f"{out} is a file: --out names the folder to write into")


def _source_table(result: Any) -> "Table":
    """Sources with their PSF fluxes, sky positions and magnitudes."""
    import numpy as np
    from astropy.table import hstack

    photometry = result.psf.photometry.copy()
    photometry.rename_columns(["chi2", "used"], ["psf_chi2", "used_for_psf"])
    table = hstack([result.sources.table, photometry])
    table["ra"], table["dec"] = result.wcs.astropy().all_pix2world(table["x"], table["y"], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["mag"] = result.zp.zp - 2.5 * np.log10(table["flux_psf"])
    return table


def blank_sky_sigma(difference: Any, sources: "Table", clearance_fwhm: float = 3.0) -> float:
    """Robust width of the score on unflagged pixels away from every source (1 when calibrated)."""
    import numpy as np

    ny, nx = difference.score.shape
    blank = (difference.flags == 0) & np.isfinite(difference.score)
    radius = clearance_fwhm * difference.psf.fwhm_px
    half = int(np.ceil(radius))
    for x, y in zip(sources["x"], sources["y"], strict=True):
        x0, y0 = round(float(x)), round(float(y))
        rows = slice(max(0, y0 - half), min(ny, y0 + half + 1))
        columns = slice(max(0, x0 - half), min(nx, x0 + half + 1))
        yy, xx = np.mgrid[rows, columns]
        blank[rows, columns] &= np.hypot(xx - x, yy - y) > radius
    score = difference.score[blank]
    if score.size == 0:
        return float("nan")
    return float(1.4826 * np.median(np.abs(score - np.median(score))))


def _catalog(location: str | None, info: "ImageInfo", shape: tuple[int, ...]) -> "SkyCatalog | None":
    """Stars around an image from the catalogue the user names."""
    if location is None:
        return None
    from resources.sky_catalog import open_sky_catalog
    from seechange_assets.science.astrometry import catalog_cone

    return open_sky_catalog(location).cone(*catalog_cone(info, (shape[0], shape[1]), 60.0))


def _has_colors(stars: "SkyCatalog") -> bool:
    """Whether any star has BP and RP."""
    import numpy as np

    return bool(np.isfinite(np.asarray(stars.table["mag_bp"]) - np.asarray(stars.table["mag_rp"])).any())


def _transform(stars: "SkyCatalog | None") -> "GaiaMagnitude":
    """Gaia's colour transform; a catalogue without any colour is taken to be in the filter of the image."""
    from seechange_assets.instruments.base import get_instrument
    from seechange_assets.science.subtract_pair import plain_g

    return plain_g if stars is not None and not _has_colors(stars) else get_instrument("generic").gaia_magnitude


def _zp_system(filter_name: str, stars: "SkyCatalog | None") -> str:
    """What magnitudes with the zero point mean: without a colour transform of the filter they are Gaia's G."""
    from seechange_assets.instruments.base import get_instrument

    if stars is None:
        return "none"
    if not _has_colors(stars):
        return "catalogue"
    return "AB" if filter_name in get_instrument("generic").gaia_colors else "Gaia G"


def _extension(value: str | None) -> str | int | None:
    return int(value) if value is not None and value.isdigit() else value


def _write_image(path: Path, data: "np.ndarray", wcs_header: str) -> None:
    from astropy.io import fits

    from seechange_assets.products import header_from_text

    hdu = fits.PrimaryHDU(data)
    if wcs_header:
        # A solved header tells the size of the image, which is the file's own affair.
        cards = [card for card in header_from_text(wcs_header).cards if not card.keyword.startswith("NAXIS")]
        hdu.header.extend(cards, update=True)
    hdu.writeto(path, overwrite=True)


def _finish(out: Path, summary: dict[str, Any], as_json: bool) -> None:
    from seechange_assets.products import plain

    (out / "summary.json").write_text(_dump(plain(summary)) + "\n")
    if as_json:
        print_json(plain(summary))
        return
    for name, value in summary.items():
        typer.echo(f"{name:>24}  {value:.5g}" if isinstance(value, float) else f"{name:>24}  {value}")
    typer.echo(f"written to {out}")


def _dump(data: Any) -> str:
    import json

    return json.dumps(data, indent=2)
