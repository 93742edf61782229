"""Star tables of any common format as a `SkyCatalog`: which column is what, and in which unit."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import CatalogError
from seechange_assets.products import NJY_ZERO_POINT, SkyCatalog

if TYPE_CHECKING:
    from astropy.table import Table

HELP = (
    "set SEECHANGE_CATALOG to a star table (FITS, LDAC, CSV, ECSV, Parquet), "
    "a folder written by write_partitioned, or 'gaia' for the Gaia archive"
)

#: Our column: names it may have elsewhere (any case), first match wins. Units are those of
#: `SkyCatalog` unless the file says otherwise or the name is in `_FIXED_UNITS`.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "ra": ("ra", "ra_deg", "ra_icrs", "raj2000", "_raj2000", "x_world", "alpha_j2000", "alphawin_j2000"),
    "dec": ("dec", "dec_deg", "de_icrs", "dej2000", "_dej2000", "y_world", "delta_j2000", "deltawin_j2000"),
    "ra_err": ("ra_err", "ra_error", "e_ra_icrs", "erra_world"),
    "dec_err": ("dec_err", "dec_error", "e_de_icrs", "errb_world"),
    "pm_ra": ("pm_ra", "pmra"),
    "pm_dec": ("pm_dec", "pmdec", "pmde"),
    "parallax": ("parallax", "plx"),
    "mag_g": ("mag_g", "phot_g_mean_mag", "gmag", "g_mag", "mag", "mag_auto"),
    "mag_bp": ("mag_bp", "phot_bp_mean_mag", "bpmag", "bp_mag"),
    "mag_rp": ("mag_rp", "phot_rp_mean_mag", "rpmag", "rp_mag"),
    "mag_g_err": ("mag_g_err", "magerr_g", "phot_g_mean_mag_error", "e_gmag", "magerr", "magerr_auto"),
    "mag_bp_err": ("mag_bp_err", "magerr_bp", "phot_bp_mean_mag_error", "e_bpmag"),
    "mag_rp_err": ("mag_rp_err", "magerr_rp", "phot_rp_mean_mag_error", "e_rpmag"),
}
COLUMNS = tuple(COLUMN_NAMES)
_SIGNAL_TO_NOISE = {
    "mag_g_err": "phot_g_mean_flux_over_error",
    "mag_bp_err": "phot_bp_mean_flux_over_error",
    "mag_rp_err": "phot_rp_mean_flux_over_error",
}
_EPOCH_NAMES = ("ref_epoch", "obsdate", "epoch_yr", "epoch")
_POSITION_UNITS = {"ra": "deg", "dec": "deg", "ra_err": "mas", "dec_err": "mas", "parallax": "mas"}
_UNITS = _POSITION_UNITS | {"pm_ra": "mas/yr", "pm_dec": "mas/yr"}
_FIXED_UNITS = {"erra_world": "deg", "errb_world": "deg"}
DEFAULT_EPOCH_YR = 2016.0  # of Gaia DR3
#: Reference catalogues of the LSST pipelines: angles in radians, fluxes in nanojansky. Their column to ours.
_LSST_POSITION = "coord_ra"
_LSST_ANGLES = {
    "coord_ra": "ra", "coord_dec": "dec", "coord_raErr": "ra_err", "coord_decErr": "dec_err", "pm_ra": "pm_ra",
    "pm_dec": "pm_dec", "parallax": "parallax",
}  # fmt: skip
_LSST_FLUXES = {"phot_g_mean_flux": "mag_g", "phot_bp_mean_flux": "mag_bp", "phot_rp_mean_flux": "mag_rp"}
_MAG_PER_RELATIVE_FLUX = 2.5 / np.log(10.0)
_PARQUET = {".parquet", ".pq"}


def read_catalog(path: Path, column_map: Mapping[str, str] | None = None) -> SkyCatalog:
    """Read a whole file.

    Parameters
    ----------
    path : Path
        FITS (the first table with positions, so LDAC too), CSV, ECSV or Parquet.
    column_map : mapping, optional
        Our column name to the file's, before the names known by default.

    Raises
    ------
    CatalogError
        Unreadable file, or no positions or magnitudes in it.
    """
    try:
        table = _read_parquet(path) if path.suffix.lower() in _PARQUET else _read_table(path)
        table = _from_lsst(table) if _LSST_POSITION in table.colnames else table
    except (OSError, ValueError, KeyError) as error:
        raise CatalogError(f"cannot read the star catalogue {path}: {error}; {HELP}") from error
    return normalised(table, path.name, column_map)


def normalised(table: "Table", name: str, column_map: Mapping[str, str] | None = None) -> SkyCatalog:
    """A table with foreign column names and units as a `SkyCatalog`; rows without position or magnitude go."""
    from astropy.table import Table

    lower = {column.lower(): column for column in table.colnames}
    try:
        columns = {target: _column(table, lower, target, (column_map or {}).get(target)) for target in COLUMNS}
    except (ValueError, TypeError) as error:
        raise CatalogError(f"star catalogue {name}: {error}; {HELP}") from error
    missing = [target for target in ("ra", "dec", "mag_g") if np.isnan(columns[target]).all()]
    if missing and len(table):
        raise CatalogError(f"star catalogue {name} has no {', '.join(missing)}, only {table.colnames}; {HELP}")
    usable = np.isfinite(columns["ra"]) & np.isfinite(columns["dec"]) & np.isfinite(columns["mag_g"])
    rows = {target: values[usable] for target, values in columns.items()}
    rows["ra"] = rows["ra"] % 360.0
    return SkyCatalog(Table(rows), _epoch(table, lower), identified(name, Table(rows)))


def identified(name: str, table: "Table") -> str:
    """Name of an excerpt: the source and ten characters of a hash of its content."""
    digest = hashlib.sha256()
    for column in COLUMNS:
        digest.update(np.ascontiguousarray(table[column], dtype="<f8").tobytes())
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:60]}-{digest.hexdigest()[:10]}"


def _column(table: "Table", lower: Mapping[str, str], target: str, wanted: str | None) -> NDArray[np.float64]:
    """One of our columns in our unit, NaN where the file does not have it."""
    from astropy import units

    for candidate in (wanted,) if wanted else COLUMN_NAMES[target]:
        if candidate is None or candidate.lower() not in lower:
            continue
        column = table[lower[candidate.lower()]]
        values = np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
        unit = _FIXED_UNITS.get(candidate.lower()) or getattr(column, "unit", None)
        if target in _UNITS and unit is not None and str(unit) not in ("", _UNITS[target]):
            values = values * units.Unit(unit).to(_UNITS[target])
        return values
    if target in _SIGNAL_TO_NOISE and _SIGNAL_TO_NOISE[target] in lower:
        ratio = np.ma.filled(np.ma.asarray(table[lower[_SIGNAL_TO_NOISE[target]]], dtype=np.float64), np.nan)
        return _MAG_PER_RELATIVE_FLUX / ratio
    return np.full(len(table), np.nan)


def _epoch(table: "Table", lower: Mapping[str, str]) -> float:
    """Epoch of the positions [Julian year]: a column, a header value, or that of Gaia DR3."""
    for name in _EPOCH_NAMES:
        if name in lower and len(table):
            epoch = float(np.median(np.asarray(table[lower[name]], float)))
            return epoch if epoch < 10000.0 else 2000.0 + (epoch - 51544.5) / 365.25
    for name in ("EPOCH_YR", "epoch_yr"):
        if name in table.meta:
            return float(table.meta[name])
    return DEFAULT_EPOCH_YR


def _read_table(path: Path) -> "Table":
    from astropy.io import fits
    from astropy.table import Table

    suffix = path.suffix.lower()
    if suffix == ".csv":
        return Table.read(path, format="ascii.csv")
    if suffix == ".ecsv":
        return Table.read(path, format="ascii.ecsv")
    positions = set(COLUMN_NAMES["ra"])
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            names = {name.lower() for name in getattr(getattr(hdu, "columns", None), "names", None) or []}
            if names & positions:
                return Table.read(hdu)
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise ValueError("the FITS file holds no table")
        return Table.read(tables[-1])


def _from_lsst(table: "Table") -> "Table":
    """A reference catalogue of the LSST pipelines in our columns and units."""
    from astropy.table import Table

    ours = Table()
    for name, target in _LSST_ANGLES.items():
        if name in table.colnames:
            per_radian = np.degrees(1.0) * (1.0 if target in ("ra", "dec") else 3.6e6)
            ours[target] = np.asarray(table[name], float) * per_radian
    for name, target in _LSST_FLUXES.items():
        if name in table.colnames:
            flux = np.asarray(table[name], float)
            ours[target] = NJY_ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
            if f"{name}Err" in table.colnames:
                ours[f"{target}_err"] = _MAG_PER_RELATIVE_FLUX * np.asarray(table[f"{name}Err"], float) / flux
    if "epoch" in table.colnames:
        ours["epoch"] = np.asarray(table["epoch"], float)
    return ours


def _read_parquet(path: Path) -> "Table":
    from astropy.table import Table

    try:
        from pyarrow import parquet
    except ImportError as error:
        raise CatalogError(f"reading {path} needs pyarrow: pip install pyarrow, or convert it to FITS") from error
    names = {name for known in COLUMN_NAMES.values() for name in known}
    names |= set(_SIGNAL_TO_NOISE.values()) | set(_EPOCH_NAMES)
    file = parquet.ParquetFile(path)
    present = file.schema_arrow.names
    # Of a catalogue with names of its own everything is read.
    wanted = [] if _LSST_POSITION in present else [name for name in present if name.lower() in names]
    data = file.read(columns=wanted or None)
    return Table({name: data[name].to_numpy() for name in data.column_names})


def write_catalog(catalog: SkyCatalog, path: Path, *, durable: bool = True) -> None:
    """Write a FITS file that `read_catalog` reads back; a reader sees the whole file or none."""
    import io

    from astropy.io import fits
    from astropy.table import Table

    table = Table({column: np.asarray(catalog.table[column], np.float64) for column in COLUMNS})
    hdu = fits.table_to_hdu(table)
    hdu.header["EPOCH_YR"] = catalog.epoch_yr
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    write_atomically(path, buffer.getvalue(), durable=durable)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Temporary name, fsync if `durable`, rename: a reader sees the whole file or none, even after a crash."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            if durable:
                handle.flush()
                os.fsync(handle.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
