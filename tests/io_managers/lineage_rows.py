"""Rows of products that were made of each other, in two versions, without files."""

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Session

from io_managers.recipes import register
from io_managers.store import ProductStore
from seechange_assets.partitions import Partition
from seechange_assets.provenance import Recipes
from sql.models import PRODUCT_ROWS, ExposureRow

CALIBRATED = ("image", "background", "sources", "psf", "wcs", "zp")
AFTER = ("diff", "detections", "cutouts", "measurements", "scores", "associations", "forced_photometry", "alerts")
CCD = "01"
_FILLERS: dict[Any, Any] = {sa.Integer: 1, sa.BigInteger: 1, sa.Double: 1.0, sa.String: "", JSONB: {}}


def add(session: Session, store: ProductStore, product: str, key: str, **values: Any) -> uuid.UUID:
    """A row of a product, made by the recipe of the store; every column that is needed has some value."""
    table = PRODUCT_ROWS[product]
    row_id = store.row_id(product, Partition(key, CCD))
    given = {
        "id": row_id, "partition": key, "ccd": CCD, "provenance_id": store.recipes[product].id,
        "filepath": f"{product}/{row_id}.fits", "kind": product.removeprefix("master_"), "instrument": "demo",
    } | values  # fmt: skip
    row = {c.name: given.get(c.name, _filler(c)) for c in table.__table__.columns if c.name in given or _needed(c)}
    session.execute(sa.insert(table).values(**row))
    return row_id


def add_exposure(session: Session, store: ProductStore, key: str, kind: str = "science") -> None:
    given = {"key": key, "kind": kind, "instrument": "demo", "filepath": f"raw/{key}", "night": "2026-11-22",
             "provenance_id": store.recipes["exposure"].id}  # fmt: skip
    columns = [c for c in ExposureRow.__table__.columns if c.name != "sequence" and (c.name in given or _needed(c))]
    session.execute(sa.insert(ExposureRow).values(**{c.name: given.get(c.name, _filler(c)) for c in columns}))


def two_versions(store: ProductStore) -> tuple[ProductStore, ProductStore]:
    """The store, and one whose recipe of ``wcs`` differs, so that all after it have another version."""
    changed = dict(store.recipes._parameters)
    changed["wcs"] = changed["wcs"].model_copy(update={"max_stars": 1500})
    recipes = Recipes(changed, store.recipes._upstreams)
    other = type(store)(store.database, store.archive, recipes, store.instrument, "other")
    with store.database.session() as session:
        register(session, store.recipes.values())
        register(session, recipes.values())
    return store, other


def add_survey(old: ProductStore, new: ProductStore) -> dict[str, uuid.UUID]:
    """Master -> members m1, m2 -> reference -> difference of ``science``, in both versions after ``wcs``.

    The ids are named ``product/key`` with ``'`` behind those of the second version.
    """
    ids: dict[str, uuid.UUID] = {}
    master = f"n1/{old.recipes['master_bias'].id}"
    with old.database.session() as session:
        add_exposure(session, old, "bias1", "bias")
        ids["master_bias/n1"] = add(session, old, "master_bias", "n1", inputs={"members": ["bias1"]})
        for key in ("m1", "m2", "science"):
            add_exposure(session, old, key)
            for product in CALIBRATED:
                inputs = {"masters": {"bias": master} if key != "m2" else {}} if product == "image" else {}
                ids[f"{product}/{key}"] = add(session, old, product, key, inputs=inputs)
                if product in ("wcs", "zp"):
                    ids[f"{product}/{key}'"] = add(session, new, product, key)
        for store, mark in ((old, ""), (new, "'")):
            members = {"members": ["m1", "m2"], "inputs": {"members": ["m1", "m2"]}}
            reference = add(session, store, "reference", "f.r", **members)
            ids[f"reference/f.r{mark}"] = reference
            for product in AFTER:
                more = {"reference_id": reference} if product == "diff" else {}
                ids[f"{product}/science{mark}"] = add(session, store, product, "science", **more)
    return ids


def _needed(column: Any) -> bool:
    return not column.nullable and column.server_default is None


def _filler(column: Any) -> Any:
    if isinstance(column.type, UUID):
        return uuid.UUID(int=0)
    return next(value for kind, value in _FILLERS.items() if isinstance(column.type, kind))
