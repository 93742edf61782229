"""The archive for a notebook: every product by exposure and CCD, read-only.

>>> survey = Survey.open()                                    # doctest: +SKIP
>>> survey.zp("ls4_20261122T031502", "07").zp                 # doctest: +SKIP
>>> survey.list("diff", contains=(30.1, -20.2), is_bad=False) # doctest: +SKIP
"""

import html
import uuid
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from seechange_assets.content import freeze
from seechange_assets.errors import ProductNotFound
from seechange_assets.partitions import Partition
from seechange_assets.products import (
    Alerts,
    Associations,
    Background,
    Cutouts,
    Detections,
    Difference,
    ForcedPhotometry,
    Image,
    Master,
    Measurements,
    Psf,
    Reference,
    Scores,
    Sources,
    Wcs,
    ZeroPoint,
)

if TYPE_CHECKING:
    from astropy.table import Table


class StoredProduct:
    """A product of the archive whose file is read when something of it is asked for.

    ``product, partition, ccd, provenance_id, id, flags`` and ``summary`` come from its row; every other attribute is
    that of the dataclass (`load`).
    """

    def __init__(self, store: Any, product: str, row: Any) -> None:
        from io_managers.badness import names

        self._store, self._row = store, row
        self.product, self.partition, self.ccd = product, row.partition, row.ccd
        self.provenance_id, self.id = row.provenance_id, str(row.id)
        self.flags, self.summary = names(row.bitflag), dict(row.summary)

    @cached_property
    def _loaded(self) -> Any:
        return freeze(self._store.load_row(self._row))

    def load(self) -> Any:
        """The product as its dataclass, read-only; the file is read once and verified."""
        return self._loaded

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loaded, name)

    def __repr__(self) -> str:
        flags = f", flags: {', '.join(self.flags)}" if self.flags else ""
        return f"{self.product} of {self.partition} CCD {self.ccd} ({self.provenance_id[:10]}{flags})"

    def _repr_html_(self) -> str:
        rows = {"flags": ", ".join(self.flags) or "none", **self.summary, "file": self._row.filepath}
        return _html_table(repr(self), rows)


class Survey:
    """Products of one instrument under the recipes of a tag, read-only.

    Every getter raises `ProductNotFound` when the product has not been made and `ArchiveError`
    when its file is damaged.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def open(cls, tag: str = "current") -> Self:
        """Open the survey that the environment names (see `resources.settings`).

        Parameters
        ----------
        tag : a provenance tag, or the id of a provenance: then its products and those they were made of.

        Raises
        ------
        ProductNotFound
            There is no such tag or provenance.
        """
        from resources.settings import Settings
        from seechange_assets.definitions import build_store

        return cls(build_store(Settings.from_environment()).reading(tag))

    def __repr__(self) -> str:
        return f"Survey({self._store.instrument}, {self._store.archive})"

    def _repr_html_(self) -> str:
        from sql.models import PRODUCT_ROWS

        known = {name: recipe.id for name, recipe in self._store.recipes.items() if name in PRODUCT_ROWS}
        return _html_table(f"{self!r}, tag {self._store.tag}", known)

    def at(self, name: str) -> Self:
        """The same survey under another tag, or under a provenance and those it is made with.

        Raises
        ------
        ProductNotFound
            There is no such tag or provenance.
        """
        return type(self)(self._store.reading(name))

    def list(self, product: str, **filters: Any) -> "Table":
        """Products of one kind as an astropy Table, without opening a file.

        Parameters
        ----------
        product : ``image`` ... ``alerts``, ``reference``, ``master_bias`` ...
        **filters : ``contains``, ``cone``, ``mjd``, ``filter``, ``field``, ``ccd``, ``max_fwhm_px``,
            ``min_limiting_magnitude``, ``is_bad``: see `seechange_assets.product_lists.list_products`.
        """
        from seechange_assets.product_lists import list_products

        with self._store.database.session() as session:
            _read_only(session)
            return list_products(session, self._store.recipes, self._store.instrument, product, **filters)

    def each(self, product: str, **filters: Any) -> Iterator[StoredProduct]:
        """The products of a list, one after the other; pixels are read when they are asked for."""
        for row_id in self.list(product, **filters)["id"]:
            yield self._stored(product, uuid.UUID(str(row_id)))

    def find(self, product: str, exposure: str, ccd: str) -> StoredProduct:
        """A product whose file is read when something of it is asked for."""
        row = self._store.row(product, Partition(exposure, ccd))
        if row is None:
            recipe = self._store.recipes[product].id
            raise ProductNotFound(f"no {product} of {exposure} CCD {ccd} under provenance {recipe}")
        return StoredProduct(self._store, product, row)

    def by_id(self, product_id: str) -> StoredProduct:
        """The product with this id, of whatever kind and recipe."""
        from sql.models import PRODUCT_ROWS

        for product in PRODUCT_ROWS:
            try:
                return self._stored(product, uuid.UUID(product_id))
            except ProductNotFound:
                continue
        raise ProductNotFound(f"there is no product {product_id!r:.40}")

    def _stored(self, product: str, row_id: uuid.UUID) -> StoredProduct:
        from sql.models import PRODUCT_ROWS

        table = PRODUCT_ROWS[product]
        with self._store.database.session() as session:
            _read_only(session)
            row = session.get(table, row_id)
        if row is None or getattr(row, "kind", None) not in (None, product.removeprefix("master_")):
            raise ProductNotFound(f"there is no {product} {row_id}")
        return StoredProduct(self._store, product, row)

    def master(self, kind: str, calibration: str, ccd: str) -> Master:
        """A master ``bias``, ``dark``, ``flat`` or ``fringe`` of a calibration run."""
        return self._load(f"master_{kind}", calibration, ccd)

    def image(self, exposure: str, ccd: str) -> Image:
        """The calibrated image."""
        return self._load("image", exposure, ccd)

    def background(self, exposure: str, ccd: str) -> Background:
        """The sky level and rms."""
        return self._load("background", exposure, ccd)

    def sources(self, exposure: str, ccd: str) -> Sources:
        """The source catalogue."""
        return self._load("sources", exposure, ccd)

    def psf(self, exposure: str, ccd: str) -> Psf:
        """The point spread function."""
        return self._load("psf", exposure, ccd)

    def wcs(self, exposure: str, ccd: str) -> Wcs:
        """The astrometric solution."""
        return self._load("wcs", exposure, ccd)

    def zp(self, exposure: str, ccd: str) -> ZeroPoint:
        """The photometric zero point."""
        return self._load("zp", exposure, ccd)

    def reference(self, field_filter: str, ccd: str) -> Reference:
        """The reference of a field and filter (``field.filter``)."""
        return self._load("reference", field_filter, ccd)

    def diff(self, exposure: str, ccd: str) -> Difference:
        """The difference image."""
        return self._load("diff", exposure, ccd)

    def detections(self, exposure: str, ccd: str) -> Detections:
        """Detections on the difference."""
        return self._load("detections", exposure, ccd)

    def cutouts(self, exposure: str, ccd: str) -> Cutouts:
        """Stamps of the detections."""
        return self._load("cutouts", exposure, ccd)

    def measurements(self, exposure: str, ccd: str) -> Measurements:
        """Photometry and diagnostics of the detections."""
        return self._load("measurements", exposure, ccd)

    def scores(self, exposure: str, ccd: str) -> Scores:
        """Real/bogus scores of the measurements."""
        return self._load("scores", exposure, ccd)

    def associations(self, exposure: str, ccd: str) -> Associations:
        """Which measurements belong to which objects."""
        return self._load("associations", exposure, ccd)

    def forced_photometry(self, exposure: str, ccd: str) -> ForcedPhotometry:
        """Fluxes at every known object."""
        return self._load("forced_photometry", exposure, ccd)

    def alerts(self, exposure: str, ccd: str) -> Alerts:
        """What was told."""
        return self._load("alerts", exposure, ccd)

    def objects(self, ra: float, dec: float, radius: float = 5.0) -> Any:
        """Objects in a cone, nearest first, as an astropy Table: `ra`, `dec` in ICRS [deg], `radius` [arcsec]."""
        from sql.objects import objects_in_cone

        with self._store.database.session() as session:
            return objects_in_cone(session, ra, dec, radius)

    def lightcurve(self, name: str) -> Any:
        """Detections, forced fluxes and limits of an object as an astropy Table, oldest first.

        Columns ``kind`` (``detection``, ``forced`` or ``limit``), ``mjd_mid`` [UTC], ``filter, flux_njy, flux_njy_err,
        snr, limiting_magnitude, exposure, ccd``; NaN where nothing was measured.
        Raises `ProductNotFound` for an unknown name.
        """
        import numpy as np
        from astropy.table import Table

        from sql.light_curves import LIGHT_CURVE_COLUMNS, LIGHT_CURVE_RECIPES, light_curve

        numbers = ("mjd_mid", "flux_njy", "flux_njy_err", "snr", "limiting_magnitude")
        recipes = {process: self._store.recipes[process].id for process in LIGHT_CURVE_RECIPES}
        with self._store.database.session() as session:
            points = light_curve(session, name, recipes)
        # None becomes NaN in a float column.
        return Table({
            column: np.array([point[column] for point in points], float if column in numbers else str)
            for column in LIGHT_CURVE_COLUMNS
        })  # fmt: skip

    def _load(self, product: str, exposure: str, ccd: str) -> Any:
        return self.find(product, exposure, ccd).load()


def _read_only(session: Any) -> None:
    import sqlalchemy as sa

    session.execute(sa.text("set transaction read only"))


def _html_table(title: str, rows: dict[str, Any]) -> str:
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(str(name))}</th><td>{html.escape(_told(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def _told(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
