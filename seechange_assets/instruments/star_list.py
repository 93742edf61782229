"""A list of star positions with the header of the image they were measured on: all that astrometry needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadExposure, TooFewStars
from seechange_assets.instruments.generic import image_info
from seechange_assets.instruments.headers import Keywords, clean_text, image_shape, open_fits, wcs_text
from seechange_assets.products import ImageInfo, Sources

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import Table

#: What a column may be called (any case), best first, by value and axis.
POSITIONS: Mapping[str, tuple[str, ...]] = {
    "x": ("x", "xwin_image", "x_image", "x_px", "xcentroid", "x_fit"),
    "y": ("y", "ywin_image", "y_image", "y_px", "ycentroid", "y_fit"),
}
ERRORS: Mapping[str, tuple[str, ...]] = {
    "x": ("xerr", "x_err", "errawin_image", "erra_image", "x_error"),
    "y": ("yerr", "y_err", "errbwin_image", "errb_image", "y_error"),
}
FLUXES = ("flux_auto", "flux", "flux_psf", "flux_fit", "flux_aper")
#: Columns of SExtractor count pixels from 1.
ONE_BASED = "_image"
#: Where a table has no errors: the centroid of a star is hardly worse than this [pixel].
UNKNOWN_ERROR_PX = 0.05
#: A centroid of error e has about S/N this over e (a star of FWHM 2 pixel; wider ones have more).
ERROR_TIMES_SNR_PX = 1.0
#: What is nothing to astrometry need not be sound in the header.
UNUSED = {"gain": 1.0, "read_noise": 0.0, "saturation": 1e9, "airmass": 1.0}
TEXT_TABLES = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}


@dataclass(frozen=True, slots=True)
class StarList:
    """Stars as `Sources`, the header of their image, and its shape ``(ny, nx)``."""

    sources: Sources
    info: ImageInfo
    shape: tuple[int, int]


def is_star_list(path: Path, extension: str | int | None = None) -> bool:
    """Whether a file holds a table of positions and no image (or `extension` is a table).

    Raises
    ------
    BadExposure
        No readable FITS file, unless the name ends in ``.csv`` or ``.ecsv``.
    """
    if path.suffix.lower() in TEXT_TABLES:
        return True
    with open_fits(path) as hdus:
        if extension is not None and extension in hdus:
            return hasattr(hdus[extension], "columns")
        return any(hasattr(hdu, "columns") for hdu in hdus) and not any(len(image_shape(hdu)) == 2 for hdu in hdus)


def read_star_list(path: Path, header: Path | None = None, extension: str | int | None = None) -> StarList:
    """Read a table of ``x, y`` and the header of its image.

    Pixels count from 0, in columns of SExtractor (``*_IMAGE``) from 1. Errors are used where there are columns of
    them, and say how bright a star is where there is no flux.

    Parameters
    ----------
    path : Path
        FITS table (SExtractor's LDAC too), CSV or ECSV.
    header : Path, optional
        FITS file or text with the header's cards; by default the headers in the file itself.
    extension : str or int, optional
        Extension of the table; by default the first that has positions.

    Raises
    ------
    BadExposure
        Unreadable, no positions, or no header with a celestial WCS.
    TooFewStars
        No row with a finite position.
    """
    table, own = _text_table(path) if path.suffix.lower() in TEXT_TABLES else _fits_table(path, extension)
    headers = own if header is None else _headers_of(header)
    source = header or path
    guess = next((text for text in map(wcs_text, headers) if text), "")
    if not guess:
        raise BadExposure(f"{source}: no header with a celestial WCS to start from: give one with --header")
    known = {"exposure": clean_text(path.name.split(".")[0]) or "stars"} | UNUSED
    info = image_info(source, Keywords(source, "header", *headers), guess, 1.0, known)
    sources = _sources(path, table)
    x, y = (np.asarray(sources.table[name]) for name in "xy")
    return StarList(sources, info, _shape(headers, x, y))


def _text_table(path: Path) -> tuple["Table", list["Header"]]:
    from astropy.table import Table

    try:
        return Table.read(path, format=TEXT_TABLES[path.suffix.lower()]), []
    except FileNotFoundError as error:
        raise BadExposure(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise BadExposure(f"{path}: not a readable table ({' '.join(str(error).split())[:120]})") from error


def _fits_table(path: Path, extension: str | int | None) -> tuple["Table", list["Header"]]:
    """The table with positions, and the file's headers, that of the table first."""
    from astropy.table import Table

    with open_fits(path) as hdus:
        tables = [hdu for hdu in hdus if hasattr(hdu, "columns")]
        if extension is not None:
            tables = [hdus[extension]]
        for hdu in tables:
            names = [str(name) for name in hdu.columns.names]
            if _find(names, POSITIONS["x"]) and _find(names, POSITIONS["y"]):
                others = [other.header for other in hdus if other is not hdu]
                return Table.read(hdu), [hdu.header, *others, *_packed_headers(hdus)]
    raise BadExposure(f"{path}: no table with columns x and y (or X_IMAGE and Y_IMAGE)")


def _packed_headers(hdus: Sequence) -> list["Header"]:
    """The header of the image that SExtractor puts into its LDAC catalogues as one long text."""
    from astropy.io.fits import Header

    texts = [np.atleast_1d(hdu.data[0][0]) for hdu in hdus if hdu.name == "LDAC_IMHEAD"]
    # Reading strips the blanks that fill a card.
    return [Header.fromstring("".join(str(card).ljust(80) for card in cards)) for cards in texts]


def _headers_of(path: Path) -> list["Header"]:
    """The headers of a FITS file, or the cards of a text file (one per line)."""
    from astropy.io.fits import Header

    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadExposure(f"{path}: cannot be read ({error.strerror})") from error
    if b"\n" not in text[:2880]:
        with open_fits(path) as hdus:
            return [hdu.header for hdu in hdus]
    try:
        return [Header.fromstring(text.decode("ascii"), sep="\n")]
    except ValueError as error:
        raise BadExposure(f"{path}: neither a FITS file nor the text of a header") from error


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


def _column(path: Path, table: "Table", wanted: Sequence[str]) -> tuple[NDArray[np.float64] | None, str]:
    """The first column of these names as numbers (None if there is none), NaN where masked, and its name."""
    name = _find(table.colnames, wanted)
    if name is None:
        return None, ""
    try:
        values = np.ma.filled(np.ma.asarray(table[name], dtype=np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise BadExposure(f"{path}: column {name} holds no numbers") from error
    return values.reshape(len(table), -1)[:, 0], name


def _positions(path: Path, table: "Table", axis: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions from 0 and their errors [pixel]."""
    values, name = _column(path, table, POSITIONS[axis])
    if values is None:
        raise BadExposure(f"{path}: no column {axis} (nor {', '.join(POSITIONS[axis][1:])}), only {table.colnames[:9]}")
    error, _ = _column(path, table, ERRORS[axis])
    if name.lower().endswith(ONE_BASED):
        values = values - 1.0
    return values, np.full(len(values), UNKNOWN_ERROR_PX) if error is None else error


def _sources(path: Path, table: "Table") -> Sources:
    """All rows with a finite position as good stars, brightest first."""
    from astropy.table import Table

    (x, x_err), (y, y_err) = (_positions(path, table, axis) for axis in "xy")
    error = np.hypot(x_err, y_err) / np.sqrt(2.0)
    snr = ERROR_TIMES_SNR_PX / np.where(error > 0, error, UNKNOWN_ERROR_PX)
    flux, _ = _column(path, table, FLUXES)
    flux = snr if flux is None else flux
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & np.isfinite(flux))
    if not rows.size:
        raise TooFewStars(f"{path}", 0, 1, "No row has a finite position and flux.")
    rows = rows[np.argsort(-flux[rows], kind="stable")]
    columns = {"x": x, "y": y, "x_err": x_err, "y_err": y_err, "flux_auto": flux, "flux_auto_err": flux / snr}
    stars = Table({name: np.asarray(values[rows], np.float64) for name, values in columns.items()})
    stars["row"] = rows.astype(np.int32)
    stars["is_good"] = np.ones(len(rows), bool)
    return Sources(stars, (), float("nan"))


def _shape(headers: Sequence["Header"], x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[int, int]:
    """The shape of the image by its header, or what the stars span; headers of tables do not count."""
    for header in headers:
        if str(header.get("XTENSION", "IMAGE")).strip() != "IMAGE":
            continue
        size = [header.get(f"NAXIS{axis}") for axis in (2, 1)]
        if all(isinstance(n, int) and n > 0 for n in size):
            return int(size[0]), int(size[1])
    return int(np.ceil(y.max())) + 1, int(np.ceil(x.max())) + 1
