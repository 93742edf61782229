"""What another set of parameters changes: the same partitions under two tags, number by number.

Zero points and depths come from the rows; detections are matched on the sky, from the measurements and scores in the
archive, so an experiment need not go further than ``scores`` and touches no object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seechange_assets.partitions import Partition

if TYPE_CHECKING:
    from astropy.table import Table

#: Detections of both versions closer than this are the same one [arcsec].
MATCH_ARCSEC = 2.0
#: Number compared -> product and column that has it.
_NUMBERS = {
    "zp": ("zp", "zp"), "depth": ("zp", "limiting_magnitude"), "fwhm_px": ("psf", "fwhm_px"),
    "diff_depth": ("diff", "limiting_magnitude"), "detections": ("detections", "n_detections"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """One exposure and CCD under two versions, ``(first, second)``; None where one of them has no such product.

    ``gained`` and ``lost``: good detections only the second, only the first has; ``d_score``: mean change of the score
    of those that both have (``matched``).
    """

    exposure: str
    ccd: str
    zp: tuple[float | None, float | None]
    depth: tuple[float | None, float | None]
    fwhm_px: tuple[float | None, float | None]
    diff_depth: tuple[float | None, float | None]
    detections: tuple[float | None, float | None]
    matched: int | None = None
    gained: int | None = None
    lost: int | None = None
    d_score: float | None = None


def compare(first: Any, second: Any, exposures: Sequence[str] = ()) -> list[Comparison]:
    """Every partition that both versions have a product of.

    Parameters
    ----------
    first, second : stores that read by a tag or provenance id (`ProductStore.reading`).
    exposures : only these.
    """
    a, b = _rows(first, exposures), _rows(second, exposures)
    compared = []
    for place in sorted(a.keys() & b.keys(), key=lambda partition: (partition.key, partition.ccd)):
        numbers: dict[str, Any] = {name: (a[place].get(name), b[place].get(name)) for name in _NUMBERS}
        compared.append(Comparison(place.key, place.ccd, **numbers, **_detections(first, second, place)))
    return compared


def _rows(store: Any, exposures: Sequence[str]) -> dict[Partition, dict[str, float]]:
    import sqlalchemy as sa

    from sql.models import PRODUCT_ROWS, ImageRow

    ours = sa.exists().where(ImageRow.instrument == store.instrument)
    found: dict[Partition, dict[str, float]] = {}
    with store.database.session() as session:
        for name, (product, column) in _NUMBERS.items():
            if product not in store.recipes:
                continue
            table: Any = PRODUCT_ROWS[product]
            query = sa.select(table.partition, table.ccd, getattr(table, column))
            query = query.where(table.provenance_id == store.recipes[product].id)
            query = query.where(ours.where(ImageRow.partition == table.partition, ImageRow.ccd == table.ccd))
            if exposures:
                query = query.where(table.partition.in_(exposures))
            for key, ccd, value in session.execute(query):
                found.setdefault(Partition(key, ccd), {})[name] = value
    return found


def _detections(first: Any, second: Any, place: Partition) -> dict[str, Any]:
    """``matched, gained, lost, d_score``; nothing where a version has no scores."""
    import numpy as np
    from astropy import units as u
    from astropy.coordinates import SkyCoord, match_coordinates_sky

    a, b = _good(first, place), _good(second, place)
    if a is None or b is None:
        return {}
    if not len(a) or not len(b):
        return {"matched": 0, "gained": len(b), "lost": len(a)}
    here, there = (SkyCoord(table["ra"], table["dec"], unit="deg") for table in (a, b))
    nearest, distance, _ = match_coordinates_sky(here, there)
    back, _, _ = match_coordinates_sky(there, here)
    mutual = (distance < MATCH_ARCSEC * u.arcsec) & (back[nearest] == np.arange(len(a)))
    n = int(mutual.sum())
    change = np.asarray(b["score"])[nearest[mutual]] - np.asarray(a["score"])[mutual]
    mean = float(np.nanmean(change)) if np.isfinite(change).any() else None
    return {"matched": n, "gained": len(b) - n, "lost": len(a) - n, "d_score": mean}


def _good(store: Any, place: Partition) -> "Table | None":
    """Measurements that are not bad, with their scores."""
    import numpy as np

    rows = [store.row(name, place) if name in store.recipes else None for name in ("measurements", "scores")]
    if None in rows:
        return None
    measurements, scores = (store.load_row(row).table for row in rows)
    table = measurements["ra", "dec"].copy()
    table["score"] = scores["score"]
    usable = ~np.asarray(measurements["is_bad"], bool) & np.isfinite(table["ra"]) & np.isfinite(table["dec"])
    return table[usable]
