"""Flags that say what is bad about a product, and their inheritance by everything made from it.

A product has its own flags and those of all it was made of. `change` sets or clears its own and passes the change on
to every descendant of every version in one transaction; what is written later inherits when it is written
(`io_managers.store`). Flagged products are not chosen as masters, members or references, and their alerts wait in the
outbox for somebody to ask for them.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from seechange_assets.errors import ParameterError, ProductNotFound
from seechange_assets.parameters import unknown_name
from seechange_assets.partitions import Partition
from sql.alerts import release_unflagged, withhold_flagged
from sql.base import ProductRow
from sql.lineage import EXPOSURE, hold_flags, inherit_more, made_from, refresh
from sql.models import PRODUCT_ROWS, ExposureRow, FlagChangeRow

#: Name -> bit. The numbers are those of the original pipeline.
FLAGS: Mapping[str, int] = {
    "banding": 1, "shaking": 2, "saturation": 3, "bad subtraction": 4, "bright sky": 5,
    "psf fit failed": 11,
    "few sources": 16, "many sources": 17,
    "no catalog": 21, "cross-match failed": 22, "big residuals": 23,
    "background too dense": 31, "background fit failed": 32,
    "bad reference": 35, "superseded reference": 36,
    "cosmic ray": 41, "ghost": 42, "satellite": 43, "offset": 44, "bad pixel": 45, "bleed trail": 46,
}  # fmt: skip
_IMAGE = ("banding", "shaking", "saturation", "bad subtraction", "bright sky")
_SOLUTION = ("no catalog", "cross-match failed", "big residuals")
_ARTEFACT = ("cosmic ray", "ghost", "satellite", "offset", "bad pixel", "bleed trail")
_OF_PRODUCT: Mapping[str, tuple[str, ...]] = {
    "background": ("background too dense", "background fit failed"),
    "sources": ("few sources", "many sources"),
    "psf": ("psf fit failed",),
    "wcs": _SOLUTION,
    "zp": _SOLUTION,
    "reference": (*_IMAGE, "bad reference", "superseded reference"),
    **dict.fromkeys(("detections", "cutouts", "measurements", "scores", "associations"), _ARTEFACT),
    **dict.fromkeys(("forced_photometry", "alerts"), _ARTEFACT),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flagged:
    """A product with its flags: its own, and those of what it was made of."""

    product: str
    partition: Partition
    provenance_id: str
    own: tuple[str, ...]
    upstream: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change of flags did: products addressed, their descendants, how many of all have other flags now."""

    n_addressed: int
    n_descendants: int
    n_changed: int


def flags_of(product: str) -> tuple[str, ...]:
    """Names of the flags that this kind of product can have of its own."""
    return _OF_PRODUCT.get(product, _IMAGE)


def bits(names: Iterable[str]) -> int:
    """The number in which the bit of each flag is set.

    Raises
    ------
    ParameterError
        For an unknown flag, with the nearest one.
    """
    total = 0
    for name in names:
        if name not in FLAGS:
            raise ParameterError(unknown_name(name, list(FLAGS), "flags"))
        total |= 1 << FLAGS[name]
    return total


def names(bitflag: int) -> tuple[str, ...]:
    """Flags of a number; ``bit N`` for one without a name."""
    known = {bit: name for name, bit in FLAGS.items()}
    return tuple(known.get(bit, f"bit {bit}") for bit in range(bitflag.bit_length()) if bitflag >> bit & 1)


def change(
    session: Session,
    product: str,
    rows: Sequence[Any],
    *,
    set_flags: Sequence[str] = (),
    clear_flags: Sequence[str] = (),
    reason: str = "",
) -> Changed:
    """Set and clear own flags of products of one kind; everything made from them inherits the change.

    Parameters
    ----------
    rows : rows of the product's table, or of ``exposures``.

    Raises
    ------
    ParameterError
        A flag that does not exist, or that a product of this kind cannot have.
    """
    added, removed = bits(set_flags), bits(clear_flags)
    for name in set_flags:
        if name not in flags_of(product):
            raise ParameterError(f"{name!r} says nothing of {product}: expected one of {', '.join(flags_of(product))}")
    hold_flags(session, to_change=True)
    n_changed = 0
    for row in rows:
        table = type(row)
        own = ExposureRow.bitflag if product == EXPOSURE else table.own_bitflag
        key = ExposureRow.key == row.key if product == EXPOSURE else table.id == row.id
        new = own.op("|")(added).op("&")(~removed)
        changed = session.execute(sa.update(table).where(key, own != new).values({own: new}))
        n_changed += changed.rowcount if product == EXPOSURE else 0  # type: ignore[attr-defined]
        session.add(_note(product, row, set_flags, clear_flags, reason))
    ids = {row.key if product == EXPOSURE else row.id for row in rows}
    # What is set reaches every descendant, whatever else it is made of; what is cleared may have another source.
    n_all, n_refreshed = _pass_on(session, {product: ids}, None if removed else added)
    return Changed(len(rows), n_all - len(ids), n_changed + n_refreshed)


def inherit(session: Session, product: str, row_id: uuid.UUID, upstreams: Iterable[str]) -> None:
    """Give a product that has just been written the flags of what it was made of; what exists of it inherits too."""
    hold_flags(session)
    if refresh(session, product, [row_id], upstreams):
        _pass_on(session, {product: {row_id}})


def find(
    session: Session, product: str, partition: Partition, provenance_ids: Sequence[str] | None = None
) -> list[ProductRow]:
    """The rows of a product by version, the newest last; all versions where none are named.

    Raises
    ------
    ProductNotFound
        There is none.
    ParameterError
        There is no such kind of product.
    """
    if product not in PRODUCT_ROWS:
        raise ParameterError(unknown_name(product, list(PRODUCT_ROWS), "products"))
    table = PRODUCT_ROWS[product]
    query = sa.select(table).where(table.partition == partition.key, table.ccd == partition.ccd)
    if product.startswith("master_"):
        query = query.where(sa.literal_column("kind") == product.removeprefix("master_"))
    if provenance_ids is not None:
        query = query.where(table.provenance_id.in_(provenance_ids))
    rows = list(session.scalars(query.order_by(table.materialized_at)))
    if not rows:
        version = "" if provenance_ids is None else f" under provenance {', '.join(provenance_ids)}"
        raise ProductNotFound(f"no {product} of {partition.key} CCD {partition.ccd}{version}")
    return rows


def flagged(session: Session, partition: str | None = None, ccd: str | None = None) -> list[Flagged]:
    """Exposures and products that are flagged; with a partition also what they inherit, else only own flags."""
    reasons = _reasons(session)
    query = sa.select(ExposureRow.key, ExposureRow.bitflag, ExposureRow.provenance_id)
    query = query.where(ExposureRow.bitflag != 0).order_by(ExposureRow.key)
    if partition is not None:
        query = query.where(ExposureRow.key == partition)
    found = [
        Flagged(EXPOSURE, Partition(key, ""), made_by, names(bitflag), (), reasons.get((EXPOSURE, key, "", made_by)))
        for key, bitflag, made_by in session.execute(query)
    ]
    for product, table in PRODUCT_ROWS.items():
        column = table.own_bitflag if partition is None else table.bitflag
        columns = (table.partition, table.ccd, table.provenance_id, table.own_bitflag, table.upstream_bitflag)
        rows = sa.select(*columns).where(column != 0).order_by(table.partition, table.ccd, table.created_at)
        rows = rows if partition is None else rows.where(table.partition == partition)
        rows = rows if ccd is None else rows.where(table.ccd == ccd)
        if product.startswith("master_"):
            rows = rows.where(sa.literal_column("kind") == product.removeprefix("master_"))
        found += [
            Flagged(product, Partition(key, its), prov, names(own), names(up), reasons.get((product, key, its, prov)))
            for key, its, prov, own, up in session.execute(rows)
        ]
    return found


def _pass_on(session: Session, roots: Mapping[str, Iterable[Any]], added: int | None = None) -> tuple[int, int]:
    """Refresh the roots and all made from them, in the order of the pipeline: (how many, how many changed).

    Parameters
    ----------
    added : flags that the roots have got, if that is all that is new: then nobody else's flags are looked up.
    """
    found = made_from(session, roots)
    n_changed = 0
    for product, ids in found.items():
        if product == EXPOSURE:
            continue
        is_root = added is None or product in roots
        n_changed += refresh(session, product, ids) if is_root else inherit_more(session, product, ids, added or 0)
    withhold_flagged(session, found.get("alerts", ()))
    release_unflagged(session, found.get("alerts", ()))
    return sum(map(len, found.values())), n_changed


def _note(product: str, row: Any, set_flags: Sequence[str], clear_flags: Sequence[str], reason: str) -> FlagChangeRow:
    is_exposure = product == EXPOSURE
    return FlagChangeRow(
        product=product,
        partition=row.key if is_exposure else row.partition,
        ccd="" if is_exposure else row.ccd,
        provenance_id=row.provenance_id,
        set_flags=list(set_flags),
        cleared_flags=list(clear_flags),
        reason=reason,
    )


def _reasons(session: Session) -> dict[tuple[str, str, str, str], str]:
    """Why each product was flagged last."""
    f = FlagChangeRow
    query = sa.select(f.product, f.partition, f.ccd, f.provenance_id, f.reason).order_by(f.number)
    return {tuple(key): reason for *key, reason in session.execute(query) if reason}  # type: ignore[misc]
