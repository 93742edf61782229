"""What was made of what, row by row, as the rows themselves record it.

A product of an exposure is made of those of the same exposure and CCD whose recipe feeds its own
(``provenance_upstreams``). What the data chose stands in the row: an image names its masters, a reference its members,
a difference its reference. So any number of versions are told apart, and nothing is written twice.
"""

import functools
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session, aliased

from sql.base import ProductRow
from sql.models import PRODUCT_ROWS, ExposureRow, ProvenanceRow, ProvenanceUpstreamRow

#: Products by name, and the ids of some of their rows; ``exposure`` has keys instead.
Rows = dict[str, set[Any]]
EXPOSURE, REFERENCE, DIFFERENCE, IMAGE = "exposure", "reference", "diff", "image"
MASTERS = ("master_bias", "master_dark", "master_flat", "master_fringe")
#: Advisory lock of who changes flags (exclusive) and who writes a product or a message that inherits them (shared).
_BADNESS_LOCK = 7319
_CHUNK = 10_000
#: Bulk statements here run on sessions that have loaded none of the rows they change.
_IN_DATABASE = {"synchronize_session": False}


def made_from(session: Session, roots: Mapping[str, Iterable[Any]]) -> Rows:
    """The roots and everything that was made from them, directly or not, in every version.

    Parameters
    ----------
    roots : product name -> row ids; ``exposure`` -> keys.

    Returns
    -------
    dict
        Product name -> row ids, in the order of the pipeline.
    """
    found: Rows = {name: set(roots.get(name, ())) for name in (EXPOSURE, *PRODUCT_ROWS)}
    feeds = _feeds(session)
    for name in PRODUCT_ROWS:  # their order: what feeds comes first
        for upstream in (EXPOSURE, *PRODUCT_ROWS):
            if upstream != name and found[upstream] and (upstream, name) in feeds:
                found[name] |= _links(session, upstream, name, found[upstream])
    return {name: ids for name, ids in found.items() if ids}


def made_with(session: Session, products: Mapping[str, Iterable[Any]], within: Rows) -> Rows:
    """These products and those of `within` that they were made of, directly or not."""
    found: Rows = {name: set(products.get(name, ())) for name in PRODUCT_ROWS}
    feeds = _feeds(session)
    for name in reversed(PRODUCT_ROWS):
        for upstream in PRODUCT_ROWS:
            if upstream != name and found[name] and within.get(upstream) and (upstream, name) in feeds:
                parents = _links(session, upstream, name, found[name], to_parents=True)
                found[upstream] |= parents & within[upstream]
    return {name: ids for name, ids in found.items() if ids}


def refresh(session: Session, product: str, ids: Iterable[uuid.UUID], upstreams: Iterable[str] | None = None) -> int:
    """Compute anew what these products inherit: the flags of all they were made of. Returns how many changed.

    Parameters
    ----------
    upstreams : names of the processes that feed `product`, if known.
    """
    if upstreams is None:
        upstreams = [up for up, down in _feeds(session) if down == product]
    statement, listed, n_changed = _refresh_statement(product, tuple(upstreams)), list(ids), 0
    for start in range(0, len(listed), _CHUNK):
        chunk = {"ids": listed[start : start + _CHUNK]}
        n_changed += session.execute(statement, chunk, execution_options=_IN_DATABASE).rowcount  # type: ignore[attr-defined]
    return n_changed


@functools.cache
def _refresh_statement(product: str, upstreams: tuple[str, ...]) -> Any:
    """Of these rows (parameter ``ids``), what is inherited; built once, as every product that is saved needs it."""
    table = PRODUCT_ROWS[product]
    parents = [_flags_of_parents(upstream, product) for upstream in upstreams if _can_feed(upstream, product)]
    inherited: Any = sa.literal(0, sa.BigInteger)
    for parent in parents:
        inherited = inherited.op("|")(parent)
    wanted = table.id == sa.any_(sa.cast(sa.bindparam("ids"), ARRAY(table.id.type)))
    told = sa.select(table.id, inherited.label("flags")).where(wanted)
    new = told.cte("new").prefix_with("MATERIALIZED")  # what is compared is written, and looked up once
    total = table.own_bitflag.op("|")(new.c.flags)
    changed = sa.or_(table.upstream_bitflag != new.c.flags, table.bitflag != total)
    statement = sa.update(table).where(table.id == new.c.id, changed)
    return statement.values(upstream_bitflag=new.c.flags, bitflag=total)


def inherit_more(session: Session, product: str, ids: Iterable[uuid.UUID], flags: int) -> int:
    """Add flags to those that these products inherit. Returns how many did not have all of them."""
    table = PRODUCT_ROWS[product]
    both = {name: getattr(table, name).op("|")(flags) for name in ("upstream_bitflag", "bitflag")}
    lacking = sa.or_(*(getattr(table, name) != value for name, value in both.items()))
    statement = sa.update(table).where(_one_of(table.id, ids), lacking).values(both)
    return session.execute(statement, execution_options=_IN_DATABASE).rowcount  # type: ignore[attr-defined, no-any-return]


def is_made_of_flagged(session: Session, partition: str, ccd: str, provenance_id: str) -> bool:
    """Whether anything of this exposure and CCD that feeds this recipe is flagged, by itself or by inheritance."""
    feeding = sa.select(ProvenanceUpstreamRow.upstream_id).where(ProvenanceUpstreamRow.downstream_id == provenance_id)
    tables = [table for name, table in PRODUCT_ROWS.items() if name not in (*MASTERS, REFERENCE)]
    flagged = [
        sa.exists().where(t.partition == partition, t.ccd == ccd, t.bitflag != 0, t.provenance_id.in_(feeding))
        for t in tables
    ]
    return bool(session.scalar(sa.select(sa.or_(*flagged))))


def hold_flags(session: Session, *, to_change: bool = False) -> None:
    """Let no flag change until the transaction ends; with `to_change`, let nothing be written either that inherits."""
    lock = sa.func.pg_advisory_xact_lock if to_change else sa.func.pg_advisory_xact_lock_shared
    session.execute(sa.select(lock(_BADNESS_LOCK)))


def _feeds(session: Session) -> set[tuple[str, str]]:
    """(upstream, downstream) processes of all recipes there are, and what needs no link between recipes."""
    up, down = aliased(ProvenanceRow), aliased(ProvenanceRow)
    link = ProvenanceUpstreamRow
    query = sa.select(up.process, down.process).distinct()
    query = query.join(link, link.upstream_id == up.id).join(down, down.id == link.downstream_id)
    recorded = {(master, IMAGE) for master in MASTERS} | {(REFERENCE, DIFFERENCE)}
    pairs = recorded | {(a, b) for a, b in session.execute(query)}
    return {(a, b) for a, b in pairs if _can_feed(a, b)}


def _can_feed(upstream: str, product: str) -> bool:
    """Whether rows record that one is made of the other; the rest follows through what lies between."""
    if product not in PRODUCT_ROWS or upstream not in (EXPOSURE, *PRODUCT_ROWS):
        return False
    if upstream == EXPOSURE:
        return product == IMAGE or product in MASTERS
    if upstream in MASTERS:
        return product == IMAGE or product in MASTERS
    return product == DIFFERENCE if upstream == REFERENCE else product not in MASTERS


def _links(session: Session, upstream: str, product: str, ids: set[Any], *, to_parents: bool = False) -> set[Any]:
    """Rows of `product` that are made of these of `upstream`; with `to_parents` the other way round."""
    up: Any = aliased(_table(upstream))
    down = PRODUCT_ROWS[product]
    key = up.key if upstream == EXPOSURE else up.id
    wanted, given = (key, down.id) if to_parents else (down.id, key)
    query = sa.select(wanted).select_from(down).join(up, _is_made_of(up, down, upstream, product))
    listed, found = list(ids), set()
    for start in range(0, len(listed), _CHUNK):
        found |= set(session.scalars(query.where(_one_of(given, listed[start : start + _CHUNK]))))
    return found


def _one_of(column: Any, values: Iterable[Any]) -> Any:
    """Whether a column has one of many values, which go as one array: each as a parameter would take longer."""
    return column == sa.any_(sa.cast(list(values), ARRAY(column.type)))


def _flags_of_parents(upstream: str, product: str) -> Any:
    """Sub-select: the flags of every row of `upstream` that a row of `product` is made of, as one number."""
    up, down = aliased(_table(upstream)), PRODUCT_ROWS[product]
    flags = sa.select(sa.func.coalesce(sa.func.bit_or(up.bitflag), 0)).where(_is_made_of(up, down, upstream, product))
    return flags.correlate(down).scalar_subquery()


def _is_made_of(up: Any, down: Any, upstream: str, product: str) -> Any:
    if upstream == EXPOSURE and product == IMAGE:
        return down.partition == up.key
    if upstream == EXPOSURE:
        return sa.and_(down.kind == product.removeprefix("master_"), down.inputs["members"].has_key(up.key))
    if upstream == REFERENCE:
        return down.reference_id == up.id
    same_ccd = down.ccd == up.ccd
    if upstream in MASTERS and product == IMAGE:
        named = sa.func.concat(up.partition, "/", up.provenance_id)
        kind = upstream.removeprefix("master_")
        return sa.and_(same_ccd, up.kind == kind, down.inputs["masters"][kind].astext == named)
    link = ProvenanceUpstreamRow
    is_fed = sa.exists().where(link.downstream_id == down.provenance_id, link.upstream_id == up.provenance_id)
    if upstream in MASTERS:  # a master does not say which others it took: those of its night
        return sa.and_(same_ccd, is_fed, _night(down) == _night(up))
    is_part = down.members.has_key(up.partition) if product == REFERENCE else down.partition == up.partition
    return sa.and_(same_ccd, is_fed, is_part)


def _night(master: Any) -> sa.ColumnElement[str]:
    return sa.func.split_part(master.partition, ".", 1)


def _table(product: str) -> type[ProductRow] | type[ExposureRow]:
    return ExposureRow if product == EXPOSURE else PRODUCT_ROWS[product]
