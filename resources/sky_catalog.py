"""Star catalogues of the sky: a file, a folder of HEALPix cells, or the Gaia archive with a cache.

All three answer one question, a cone, with a `SkyCatalog` sorted by brightness. The same stars give
the same excerpt (and name) whatever the source's own order.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from resources.catalog_excerpts import Cell, ExcerptStore, FolderExcerpts
from resources.catalog_tables import (
    COLUMNS,
    DEFAULT_EPOCH_YR,
    HELP,
    identified,
    normalised,
    read_catalog,
    write_atomically,
    write_catalog,
)
from seechange_assets.errors import CatalogError, ServiceUnavailable
from seechange_assets.products import SkyCatalog

if TYPE_CHECKING:
    from astropy.table import Table

GaiaQuery = Callable[[float, float, float, float], "Table"]

GAIA, GAIA_NAME, GAIA_MAX_MAG = "gaia", "gaia_dr3", 22.0
DESCRIPTION = "catalog.json"
GAIA_ORDER = 6  # cells of 0.84 square degrees: a CCD of half a degree needs four or so
_ATTEMPTS = 5
_FIRST_WAIT_S = 1.0
# A cell's corners lie at most this far from its centre, in units of sqrt(area): cells near the poles are long.
_CELL_REACH = 1.1
# A cell of the Milky Way can hold a million stars; a CCD touches about six cells.
_CELLS_IN_MEMORY = 8


class SkyCatalogSource(Protocol):
    """Where stars come from."""

    def cone(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float | None = None, min_stars: int = 1
    ) -> SkyCatalog:
        """Stars within `radius_deg`, brighter than `max_mag` [G], brightest first.

        Raises
        ------
        CatalogError
            Fewer than `min_stars`.
        ServiceUnavailable
            A remote catalogue does not answer.
        """
        ...


def open_sky_catalog(
    location: str | None, excerpts: ExcerptStore | Path | None = None, column_map: Mapping[str, str] | None = None
) -> SkyCatalogSource:
    """The catalogue at `location`: ``gaia`` (kept in `excerpts`), a folder of cells or a file.

    Raises
    ------
    CatalogError
        No location, or nothing there.
    """
    if not location:
        raise CatalogError(f"no star catalogue is configured: {HELP}")
    if location.lower() == GAIA:
        return GaiaArchive(excerpts)
    path = Path(location).expanduser()
    if path.is_dir():
        return PartitionedCatalog(path, column_map)
    if path.is_file():
        return FileCatalog(path, column_map)
    raise CatalogError(f"star catalogue {location!r} does not exist: {HELP}")


class FileCatalog:
    """One file, read once per process."""

    def __init__(self, path: Path, column_map: Mapping[str, str] | None = None) -> None:
        self._path, self._map = path, tuple(sorted((column_map or {}).items()))

    def cone(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float | None = None, min_stars: int = 1
    ) -> SkyCatalog:
        """See `SkyCatalogSource.cone`."""
        catalog = _loaded(self._path, self._map)
        return _excerpt([catalog], self._path.stem, (ra_deg, dec_deg, radius_deg), max_mag, min_stars)


class PartitionedCatalog:
    """A folder of ``npix=<n>.fits`` or ``.parquet`` files, one per nested HEALPix cell; see `write_partitioned`."""

    def __init__(self, directory: Path, column_map: Mapping[str, str] | None = None) -> None:
        self._directory, self._map = directory, tuple(sorted((column_map or {}).items()))
        try:
            description = json.loads((directory / DESCRIPTION).read_text())
            self._order = int(description["order"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CatalogError(f"{directory} is no partitioned catalogue, {DESCRIPTION}: {error!r}; {HELP}") from error
        self._name = str(description.get("name", directory.name))
        self._epoch_yr = float(description.get("epoch_yr", DEFAULT_EPOCH_YR))

    def cone(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float | None = None, min_stars: int = 1
    ) -> SkyCatalog:
        """See `SkyCatalogSource.cone`."""
        pieces = []
        for cell in cells_in_cone(ra_deg, dec_deg, radius_deg, self._order):
            for suffix in ("fits", "parquet"):
                path = self._directory / f"npix={cell}.{suffix}"
                if path.exists():
                    pieces.append(_loaded(path, self._map))
                    break
        if not pieces:
            raise CatalogError(f"star catalogue {self._directory} has no cell at {_where(ra_deg, dec_deg)}: {HELP}")
        excerpt = _excerpt(pieces, self._name, (ra_deg, dec_deg, radius_deg), max_mag, min_stars)
        return replace(excerpt, epoch_yr=self._epoch_yr)


class GaiaArchive:
    """Gaia DR3 from ESA's archive, fetched by HEALPix cell and kept for ever.

    Parameters
    ----------
    excerpts : ExcerptStore or Path, optional
        Where the cells are kept, or their folder; without it every cone is asked anew.
    query : callable, optional
        ``(ra_deg, dec_deg, radius_deg, max_mag) -> Table``; `query_gaia` by default. It raises
        OSError for what may pass.
    sleep : callable
        Waits between attempts [s].
    """

    def __init__(
        self,
        excerpts: ExcerptStore | Path | None = None,
        query: GaiaQuery | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._excerpts = FolderExcerpts(excerpts) if isinstance(excerpts, Path) else excerpts
        self._query, self._sleep = query or query_gaia, sleep
        self._in_memory: dict[Cell, SkyCatalog] = {}

    def cone(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float | None = None, min_stars: int = 1
    ) -> SkyCatalog:
        """See `SkyCatalogSource.cone`."""
        cone = (ra_deg, dec_deg, radius_deg)
        if self._excerpts is None:
            stars = self._fetch(*cone, GAIA_MAX_MAG if max_mag is None else max_mag)
            return _excerpt([stars], GAIA_NAME, cone, max_mag, min_stars)
        # One depth for all: who wants brighter stars only shares the cells of the others.
        limit = GAIA_MAX_MAG if max_mag is None else max(GAIA_MAX_MAG, float(np.ceil(max_mag)))
        wanted = [Cell(GAIA_NAME, GAIA_ORDER, cell, limit) for cell in cells_in_cone(*cone, GAIA_ORDER)]
        cells = [self._cell(self._excerpts, cell) for cell in wanted]
        return _excerpt(cells, GAIA_NAME, cone, max_mag, min_stars)

    def _cell(self, excerpts: ExcerptStore, cell: Cell) -> SkyCatalog:
        """The stars of one cell; of several processes that miss it one fetches, the others wait."""
        if cell not in self._in_memory:
            stars = excerpts.load(cell)
            if stars is None:
                with excerpts.claim(cell):
                    stars = excerpts.load(cell)
                    if stars is None:
                        stars = self._download(cell)
                        excerpts.save(cell, stars)
            if len(self._in_memory) >= _CELLS_IN_MEMORY:
                self._in_memory.pop(next(iter(self._in_memory)))
            self._in_memory[cell] = stars
        return self._in_memory[cell]

    def _download(self, cell: Cell) -> SkyCatalog:
        import hpgeom

        nside = 2**cell.order
        ra, dec = (float(v) for v in hpgeom.pixel_to_angle(nside, cell.cell))
        reach = _CELL_REACH * float(np.sqrt(hpgeom.nside_to_pixel_area(nside)))
        around = self._fetch(ra, dec, reach, cell.max_mag)
        if not len(around.table):
            raise CatalogError(f"the Gaia archive has no star around {_where(ra, dec)}; {HELP}")
        inside = hpgeom.angle_to_pixel(nside, around.table["ra"], around.table["dec"]) == cell.cell
        return SkyCatalog(around.table[inside], around.epoch_yr, around.name)

    def _fetch(self, ra_deg: float, dec_deg: float, radius_deg: float, limit: float) -> SkyCatalog:
        """One query, tried again with doubled waits."""
        for attempt in range(_ATTEMPTS):
            try:
                return normalised(self._query(ra_deg, dec_deg, radius_deg, limit), GAIA_NAME)
            except OSError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise ServiceUnavailable(
                        f"the Gaia archive does not answer ({_ATTEMPTS} attempts at {_where(ra_deg, dec_deg)}): "
                        f"{error}; for a local catalogue, {HELP}"
                    ) from error
                self._sleep(_FIRST_WAIT_S * 2.0**attempt)
        raise AssertionError("unreachable")


def query_gaia(ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float) -> "Table":
    """Cone of Gaia DR3 by an asynchronous TAP job, which has no row limit.

    Raises
    ------
    OSError
        The archive cannot be reached or fails.
    CatalogError
        astroquery is not installed.
    """
    try:
        from astroquery.exceptions import RemoteServiceError
        from astroquery.exceptions import TimeoutError as ArchiveTimeout
        from astroquery.gaia import Gaia
    except ImportError as error:
        raise CatalogError(f"the Gaia archive needs astroquery: pip install astroquery, or {HELP}") from error
    columns = (
        "ra, dec, ra_error, dec_error, pmra, pmdec, parallax, ref_epoch, phot_g_mean_mag, phot_bp_mean_mag, "
        "phot_rp_mean_mag, phot_g_mean_flux_over_error, phot_bp_mean_flux_over_error, phot_rp_mean_flux_over_error"
    )
    circle = f"CIRCLE('ICRS', {float(ra_deg):.8f}, {float(dec_deg):.8f}, {float(radius_deg):.6f})"
    adql = (  # numbers only: formatted floats cannot carry SQL
        f"SELECT {columns} FROM gaiadr3.gaia_source WHERE 1 = CONTAINS(POINT('ICRS', ra, dec), {circle}) "  # noqa: S608
        f"AND phot_g_mean_mag <= {float(max_mag):.3f}"
    )
    Gaia.ROW_LIMIT = -1
    try:
        return Gaia.launch_job_async(adql).get_results()
    except (RemoteServiceError, ArchiveTimeout) as error:
        raise OSError(str(error)) from error


def write_partitioned(catalog: SkyCatalog, directory: Path, order: int) -> None:
    """Write a catalogue as a folder of FITS files, one per HEALPix cell (nested) of that order.

    Cells without stars get no file; ``catalog.json`` (order, epoch, name) is written last.
    """
    import hpgeom

    directory.mkdir(parents=True, exist_ok=True)
    cells = hpgeom.angle_to_pixel(2**order, np.asarray(catalog.table["ra"]), np.asarray(catalog.table["dec"]))
    for cell in np.unique(cells):
        piece = SkyCatalog(catalog.table[cells == cell], catalog.epoch_yr, catalog.name)
        write_catalog(piece, directory / f"npix={cell}.fits", durable=False)
    description = {"order": int(order), "epoch_yr": catalog.epoch_yr, "name": catalog.name, "scheme": "nested"}
    write_atomically(directory / DESCRIPTION, json.dumps(description, indent=1, sort_keys=True).encode())


def cells_in_cone(ra_deg: float, dec_deg: float, radius_deg: float, order: int) -> list[int]:
    """All HEALPix cells (nested) that touch a cone; right at the poles and across RA 0."""
    import hpgeom

    radius = min(max(float(radius_deg), 1e-6), 180.0)
    cells = hpgeom.query_circle(2**order, ra_deg % 360.0, dec_deg, radius, inclusive=True, fact=4)
    return [int(cell) for cell in cells]


def _excerpt(
    pieces: list[SkyCatalog], name: str, cone: tuple[float, float, float], max_mag: float | None, min_stars: int
) -> SkyCatalog:
    """The stars of a cone from all pieces (of one epoch), brightest first."""
    from astropy.table import Table

    near = [_near(piece.table, cone, max_mag) for piece in pieces]
    rows = {column: np.concatenate([np.asarray(part[column], float) for part in near]) for column in COLUMNS}
    n_found, n_required = len(rows["ra"]), max(min_stars, 1)
    if n_found < n_required:
        limit = "" if max_mag is None else f" brighter than G {max_mag:g}"
        raise CatalogError(
            f"star catalogue {name} has {n_found} stars{limit} within {cone[2]:.3f} deg of {_where(*cone[:2])}, "
            f"{n_required} required: {HELP}"
        )
    order = np.lexsort((rows["dec"], rows["ra"], rows["mag_g"]))
    excerpt = Table({column: values[order] for column, values in rows.items()})
    return SkyCatalog(excerpt, pieces[0].epoch_yr, identified(name, excerpt))


def _near(table: "Table", cone: tuple[float, float, float], max_mag: float | None) -> "Table":
    """Rows within the cone and the magnitude limit."""
    ra_deg, dec_deg, radius_deg = cone
    ra, dec, mag = (np.asarray(table[column], float) for column in ("ra", "dec", "mag_g"))
    near = np.abs(dec - dec_deg) <= radius_deg
    if max_mag is not None:
        near &= mag <= max_mag
    rows = np.flatnonzero(near)
    return table[rows[_separation_deg(ra[rows], dec[rows], ra_deg, dec_deg) <= radius_deg]]


def _separation_deg(ra: NDArray, dec: NDArray, ra_deg: float, dec_deg: float) -> NDArray[np.float64]:
    """Haversine: exact for small angles, at the poles and across RA 0."""
    d_ra, d_dec = np.radians(ra - ra_deg), np.radians(dec - dec_deg)
    cosines = np.cos(np.radians(dec)) * np.cos(np.radians(dec_deg))
    haversine = np.sin(d_dec / 2) ** 2 + cosines * np.sin(d_ra / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(np.clip(haversine, 0, 1))))


def _loaded(path: Path, column_map: tuple[tuple[str, str], ...] = ()) -> SkyCatalog:
    """A file's stars from memory if the file has not changed since."""
    try:
        stat = path.stat()
    except OSError as error:
        raise CatalogError(f"cannot read the star catalogue {path}: {error}; {HELP}") from error
    return _cached(path, column_map, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=_CELLS_IN_MEMORY)
def _cached(path: Path, column_map: tuple[tuple[str, str], ...], _mtime_ns: int, _size: int) -> SkyCatalog:
    return read_catalog(path, dict(column_map))


def _where(ra_deg: float, dec_deg: float) -> str:
    return f"RA {ra_deg:.4f} Dec {dec_deg:+.4f}"


class DeferredCatalog:
    """A catalogue that is opened at its first use, so that a step that needs none runs without one."""

    def __init__(self, location: str | None, excerpts: ExcerptStore | Path | None = None) -> None:
        self._location, self._excerpts = location, excerpts

    @cached_property
    def _source(self) -> SkyCatalogSource:
        return open_sky_catalog(self._location, self._excerpts)

    def cone(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float | None = None, min_stars: int = 1
    ) -> SkyCatalog:
        """See `SkyCatalogSource.cone`; raises CatalogError when the location cannot be opened."""
        return self._source.cone(ra_deg, dec_deg, radius_deg, max_mag=max_mag, min_stars=min_stars)
