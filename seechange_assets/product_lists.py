"""Lists of products, straight from SQL: what there is in a region, a range of time, a filter, deep and sharp enough.

Nothing here opens a file.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seechange_assets.errors import ParameterError
from seechange_assets.parameters import unknown_name
from seechange_assets.products import plain

if TYPE_CHECKING:
    from astropy.table import Table
    from sqlalchemy.orm import Session

#: Column of a list -> (product that has it, column of its table). A list has those that its tag names a recipe of.
_ABOUT_IMAGE = {
    "mjd": ("image", "mjd"), "filter": ("image", "filter"), "field": ("image", "field"),
    "exptime_s": ("image", "exptime_s"), "airmass": ("image", "airmass"), "project": ("image", "project"),
    "ra_deg": ("wcs", "ra_deg"), "dec_deg": ("wcs", "dec_deg"), "fwhm_px": ("psf", "fwhm_px"),
    "sky": ("background", "level"), "zp": ("zp", "zp"), "limiting_magnitude": ("zp", "limiting_magnitude"),
}  # fmt: skip
_SHARED = ("reference", "master_bias", "master_dark", "master_flat", "master_fringe")
#: Columns of rows that belong to the storage.
_HIDDEN = {
    "id", "partition", "ccd", "provenance_id", "filepath", "sha256", "content_hash", "n_bytes", "summary", "inputs",
    "bitflag", "own_bitflag", "upstream_bitflag", "updated_at", "materialized_at", "created_at", "corners", "healpix",
    "instrument", "members", "reference_id",
}  # fmt: skip
#: No CCD reaches farther from its centre [deg].
_REACH_DEG = 2.5


def list_products(
    session: "Session",
    recipes: Mapping[str, Any],
    instrument: str,
    product: str,
    *,
    contains: tuple[float, float] | None = None,
    cone: tuple[float, float, float] | None = None,
    mjd: tuple[float | None, float | None] | None = None,
    filter: str | None = None,  # noqa: A002  (the field's own word)
    field: str | None = None,
    ccd: str | None = None,
    max_fwhm_px: float | None = None,
    min_limiting_magnitude: float | None = None,
    is_bad: bool | None = None,
) -> "Table":
    """Products of one kind, in order of time, partition and CCD.

    Parameters
    ----------
    recipes : those of a tag.
    contains : (ra, dec) [deg] that the footprint covers.
    cone : (ra, dec, radius) [deg] around the centre of the footprint.
    mjd : first and last start of the exposure; None is open.
    is_bad : only flagged products, or only good ones; None lists both.

    Returns
    -------
    Table
        ``exposure, ccd`` (``partition`` instead for what is shared), what is known of the image, the product's own
        numbers, ``flags`` (names, inherited ones too), ``provenance`` and ``id``. NaN where a number is not known.

    Raises
    ------
    ParameterError
        For an unknown product, or a filter that this product has no column for.
    """
    query, columns, table = _query(recipes, instrument, product)
    limits = [
        ("filter", filter, lambda c, v: c == v), ("field", field, lambda c, v: c == v),
        ("mjd", mjd and mjd[0], lambda c, v: c >= v), ("mjd", mjd and mjd[1], lambda c, v: c <= v),
        ("fwhm_px", max_fwhm_px, lambda c, v: c <= v),
        ("limiting_magnitude", min_limiting_magnitude, lambda c, v: c >= v),
    ]  # fmt: skip
    for name, value, condition in limits:
        if value is not None:
            query = query.where(condition(_column(columns, name, product), plain(value)))  # numpy's floats are no SQL
    if ccd is not None:
        query = query.where(table.ccd == ccd)
    if is_bad is not None:
        query = query.where(table.bitflag != 0 if is_bad else table.bitflag == 0)
    query = _in_region(query, columns, product, contains, cone)
    rows = [dict(row) for row in session.execute(query).mappings()]
    return _as_table(_inside(rows, contains, cone), [*columns, "flags", "provenance", "id"])


def _query(recipes: Mapping[str, Any], instrument: str, product: str) -> tuple[Any, dict[str, Any], Any]:
    """Select of a product with what is known of its image, its columns by name, and its table."""
    import sqlalchemy as sa

    from sql.models import PRODUCT_ROWS, ImageRow

    if product not in PRODUCT_ROWS:
        raise ParameterError(unknown_name(product, list(PRODUCT_ROWS), "products"))
    table: Any = PRODUCT_ROWS[product]
    is_shared = product in _SHARED
    columns: dict[str, Any] = {"partition" if is_shared else "exposure": table.partition, "ccd": table.ccd}
    joined: dict[str, Any] = {product: table}
    for name, (source, attribute) in ({} if is_shared else _ABOUT_IMAGE).items():
        if source in recipes and not hasattr(table, attribute):
            joined.setdefault(source, sa.orm.aliased(PRODUCT_ROWS[source], name=source))
            columns[name] = getattr(joined[source], attribute)
    own = [c.key for c in sa.inspect(table).columns if c.key not in _HIDDEN]
    columns |= {name: getattr(table, name) for name in own}
    if "corners" in table.__table__.columns:
        columns |= {"corners": table.corners, "healpix": table.healpix}
    elif "wcs" in joined:
        columns |= {"corners": joined["wcs"].corners, "healpix": joined["wcs"].healpix}
    selected = [column.label(name) for name, column in columns.items()]
    query = sa.select(*selected, table.bitflag, table.provenance_id.label("provenance"), table.id)
    for source, other in joined.items():
        if source != product:
            same = (other.partition == table.partition, other.ccd == table.ccd)
            query = query.outerjoin(other, sa.and_(*same, other.provenance_id == recipes[source].id))
    camera = table if hasattr(table, "instrument") else joined.get("image")
    if camera is not None and camera is not ImageRow:
        query = query.where(camera.instrument == instrument)
    query = query.where(table.provenance_id == recipes[product].id)
    if product.startswith("master_"):
        query = query.where(table.kind == product.removeprefix("master_"))
    order = [columns["mjd"]] if "mjd" in columns else []
    return query.order_by(*order, table.partition, table.ccd), columns, table


def _column(columns: Mapping[str, Any], name: str, product: str) -> Any:
    if name not in columns:
        raise ParameterError(f"a list of {product} has no {name}; there are {', '.join(columns)}")
    return columns[name]


def _in_region(query: Any, columns: Mapping[str, Any], product: str, contains: Any, cone: Any) -> Any:
    from sql.sky import cone_condition

    if contains is not None:
        ra, dec = contains
        query = query.where(cone_condition(_column(columns, "healpix", product), ra, dec, _REACH_DEG))
    if cone is not None:
        query = query.where(cone_condition(_column(columns, "healpix", product), *cone))
    return query


def _inside(rows: list[dict[str, Any]], contains: Any, cone: Any) -> list[dict[str, Any]]:
    """The index gives some rows just outside."""
    from sql.sky import is_inside, separation_deg

    if contains is not None:
        rows = [row for row in rows if is_inside(row["corners"], *contains)]
    if cone is not None:
        ra, dec, radius = cone
        rows = [row for row in rows if separation_deg(ra, dec, row["ra_deg"], row["dec_deg"]) <= radius]
    return rows


def _as_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "Table":
    import numpy as np
    from astropy.table import Table

    from io_managers.badness import names as flag_names

    shown = [name for name in names if name not in ("corners", "healpix")]
    told = [
        {**row, "flags": ", ".join(flag_names(row["bitflag"])), "id": str(row["id"])} for row in rows
    ]  # fmt: skip
    table = Table()
    for name in shown:
        values = [row[name] for row in told]
        is_text = any(isinstance(value, str) for value in values)
        table[name] = np.array(["" if v is None else v for v in values]) if is_text else _numbers(values)
    return table


def _numbers(values: list[Any]) -> Any:
    import numpy as np

    whole = values and all(isinstance(value, int) for value in values)
    return np.array(values, int if whole else float)  # None becomes NaN
