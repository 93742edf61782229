"""The archive for a notebook: every product by exposure and CCD, read-only.

>>> survey = Survey.open()                                    # doctest: +SKIP
>>> survey.zp("ls4_20261122T031502", "07").zp                 # doctest: +SKIP
"""

from typing import Any, Self

from seechange_assets.partitions import Partition
from seechange_assets.products import (
    Background,
    Cutouts,
    Detections,
    Difference,
    Image,
    Measurements,
    Psf,
    Reference,
    Scores,
    Sources,
    Wcs,
    ZeroPoint,
)


class Survey:
    """Products of one instrument under the current recipes.

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

    def objects(self, ra_deg: float, dec_deg: float, radius_arcsec: float = 5.0) -> Any:
        """Objects in a cone, nearest first, as an astropy Table."""
        from sql.objects import objects_in_cone

        with self._store.database.session() as session:
            return objects_in_cone(session, ra_deg, dec_deg, radius_arcsec)

    def lightcurve(self, name: str) -> Any:
        """Detections and forced fluxes of an object as an astropy Table, oldest first.

        Columns ``kind`` (``detection`` or ``forced``), ``mjd_mid`` [UTC], ``filter, flux_njy, flux_njy_err, snr,
        exposure, ccd``; NaN where nothing was measured. Raises `ProductNotFound` for an unknown name.
        """
        import numpy as np
        from astropy.table import Table

        from sql.objects import LIGHT_CURVE_COLUMNS, light_curve

        numbers = ("mjd_mid", "flux_njy", "flux_njy_err", "snr")
        with self._store.database.session() as session:
            points = light_curve(session, name)
        # None becomes NaN in a float column.
        return Table({
            column: np.array([point[column] for point in points], float if column in numbers else str)
            for column in LIGHT_CURVE_COLUMNS
        })  # fmt: skip

    def _load(self, product: str, exposure: str, ccd: str) -> Any:
        return self._store.load(product, Partition(exposure, ccd))
