"""Delete products with everything that was made from them: rows in one transaction, then their files.

Raw exposures and recipes are never deleted. What an alert that has been sent was made of stays, too. Rows go before
files, so a row never lacks its file; what a crash leaves between is an orphan that `seechange verify` names.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from resources.archive import Archive
from resources.database import Database
from seechange_assets.errors import AlertsSent
from seechange_assets.partitions import Partition
from sql import objects as sky
from sql.alerts import AlertFileRow, OutboxRow, forget_undetected
from sql.lineage import Rows, hold_flags, made_from, made_with
from sql.models import PRODUCT_ROWS, ProvenanceUpstreamRow, ReportRow
from sql.objects import ForcedPhotometryRow, MeasurementRow, ObjectRow

#: Bulk statements here run on sessions that have loaded none of the rows they change.
_IN_DATABASE = {"synchronize_session": False}
#: Objects are locked this far around [deg].
_SKY_MARGIN_DEG = 2.0 / 3600.0
Refresh = Callable[[Session, Sequence[uuid.UUID]], None]


@dataclass(frozen=True, slots=True)
class Gone:
    """A product that is deleted."""

    product: str
    id: uuid.UUID
    partition: Partition
    provenance_id: str
    path: str
    n_bytes: int


@dataclass(slots=True)
class Plan:
    """What goes: products in the order of the pipeline, and what hangs on them; ``n_kept`` is kept for sent alerts."""

    products: list[Gone] = field(default_factory=list)
    n_measurements: int = 0
    n_forced: int = 0
    n_messages: int = 0
    alert_files: list[str] = field(default_factory=list)
    n_kept: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many of each product."""
        counts: dict[str, int] = {}
        for one in self.products:
            counts[one.product] = counts.get(one.product, 0) + 1
        return counts


def plan(session: Session, roots: Mapping[str, Iterable[uuid.UUID]], *, keep_sent: bool = False) -> Plan:
    """What goes with these products.

    Parameters
    ----------
    roots : product name -> row ids.
    keep_sent : leave what sent alerts were made of, and delete the rest.

    Raises
    ------
    AlertsSent
        Something of it has been told in an alert, and `keep_sent` is not given. A message that was tried without
        an answer counts as sent: the broker may have it.
    """
    found = made_from(session, roots)
    told = _told(session, found)
    n_kept = 0
    if told and not keep_sent:
        places = sorted({f"{place[0]} CCD {place[1]}" for places in told.values() for place in places.values()})
        listed = ", ".join(places[:3]) + (" ..." if len(places) > 3 else "")
        raise AlertsSent(
            f"alerts of {listed} have been sent and were made of this; "
            "--keep-sent leaves them and what they were made of (`seechange flag` says that it is bad)"
        )
    if told:
        kept = made_with(session, {name: set(places) for name, places in told.items()}, found)
        n_kept = sum(len(found[name] & ids) for name, ids in kept.items() if name in found)
        found = {name: ids - kept.get(name, set()) for name, ids in found.items()}
    made = Plan(_listed(session, found), n_kept=n_kept)
    for table, name in (
        (MeasurementRow, "n_measurements"),
        (ForcedPhotometryRow, "n_forced"),
        (OutboxRow, "n_messages"),
    ):
        count = sa.select(sa.func.count()).select_from(table).where(_belongs(table, found))
        setattr(made, name, session.scalar(count) or 0)
    made.alert_files = list(session.scalars(sa.select(AlertFileRow.filepath).where(_belongs(AlertFileRow, found))))
    return made


def delete(
    database: Database,
    archive: Archive,
    roots: Mapping[str, Iterable[uuid.UUID]],
    refresh_objects: Refresh,
    *,
    keep_sent: bool = False,
) -> Plan:
    """Delete these products and everything made from them; returns what has gone.

    Parameters
    ----------
    refresh_objects : computes positions and numbers of detections of objects that lost some, in the transaction.

    Raises
    ------
    AlertsSent
        See `plan`; nothing is deleted then.
    """
    with database.session() as session:
        hold_flags(session, to_change=True)  # nothing is written meanwhile that is made of what goes
        done = plan(session, roots, keep_sent=keep_sent)
        found: Rows = {}
        for one in done.products:
            found.setdefault(one.product, set()).add(one.id)
        _delete_sky(session, found, refresh_objects)
        for table in (OutboxRow, AlertFileRow):
            session.execute(sa.delete(table).where(_belongs(table, found)), execution_options=_IN_DATABASE)
        for product in reversed(PRODUCT_ROWS):
            _delete_rows(session, product, found.get(product, set()))
    for path in [one.path for one in done.products] + done.alert_files:
        archive.remove(path)
    return done


def _delete_rows(session: Session, product: str, ids: set[uuid.UUID]) -> None:
    if not ids:
        return
    table, report = PRODUCT_ROWS[product], ReportRow
    told = (
        report.step == product, report.partition == table.partition, report.ccd == table.ccd,
        report.provenance_id == table.provenance_id, table.id.in_(ids),
    )  # fmt: skip
    session.execute(sa.delete(report).where(*told), execution_options=_IN_DATABASE)
    session.execute(sa.delete(table).where(table.id.in_(ids)), execution_options=_IN_DATABASE)


def _delete_sky(session: Session, found: Rows, refresh_objects: Refresh) -> None:
    """Measurements and forced fluxes; objects that keep none and that no alert has named go with them."""
    m, f = MeasurementRow, ForcedPhotometryRow
    linked = session.scalars(sa.select(m.object_id).where(_belongs(m, found)).distinct())
    left = [object_id for object_id in linked if object_id is not None]
    if left:
        places = session.execute(sa.select(ObjectRow.ra, ObjectRow.dec).where(ObjectRow.id.in_(left))).all()
        ra, dec = np.array(places, float).T
        sky.lock_sky(session, *sky.neighbourhood(ra, dec, _SKY_MARGIN_DEG))
    for table in (f, m):
        session.execute(sa.delete(table).where(_belongs(table, found)), execution_options=_IN_DATABASE)
    if left:
        refresh_objects(session, left)
        # Their unsent messages go in this transaction, so they do not name an object.
        session.execute(sa.delete(OutboxRow).where(_belongs(OutboxRow, found)), execution_options=_IN_DATABASE)
        forget_undetected(session, left)


def _told(session: Session, found: Rows) -> dict[str, dict[uuid.UUID, tuple[str, str]]]:
    """Sets of alerts and of associations of which something was sent: product -> row id -> (exposure, ccd).

    Messages that a relay is sending now are waited for.
    """
    o = OutboxRow
    told: dict[str, dict[uuid.UUID, tuple[str, str]]] = {}
    for product in ("associations", "alerts"):
        if not found.get(product):
            continue
        table = PRODUCT_ROWS[product]
        query = sa.select(table.id, o.exposure, o.ccd, o.sent_at, o.attempts).join(o, _is_told_by(product))
        query = query.where(table.id.in_(found[product])).with_for_update(of=o)
        for row in session.execute(query):
            if row.sent_at is not None or row.attempts > 0:
                told.setdefault(product, {})[row.id] = (row.exposure, row.ccd)
    return told


def _is_told_by(product: str) -> sa.ColumnElement[bool]:
    """Whether a message comes from these alerts, or from alerts made of these associations."""
    table, o, link = PRODUCT_ROWS[product], OutboxRow, ProvenanceUpstreamRow
    here = (o.exposure == table.partition, o.ccd == table.ccd)
    if product == "alerts":
        return sa.and_(*here, o.provenance_id == table.provenance_id)
    is_fed = sa.exists().where(link.downstream_id == o.provenance_id, link.upstream_id == table.provenance_id)
    return sa.and_(*here, is_fed)


def _belongs(table: Any, found: Rows) -> sa.ColumnElement[bool]:
    """Rows that hang on a product that goes: of the same place, made by its recipe."""
    owner = {MeasurementRow: "associations", ForcedPhotometryRow: "forced_photometry"}.get(table, "alerts")
    product = PRODUCT_ROWS[owner]
    key = table.partition if table is AlertFileRow else table.exposure
    ids = found.get(owner, set())
    return sa.exists().where(
        product.id.in_(ids), product.partition == key, product.ccd == table.ccd,
        product.provenance_id == table.provenance_id,
    )  # fmt: skip


def _listed(session: Session, found: Rows) -> list[Gone]:
    gone = []
    for product, ids in found.items():
        if product in PRODUCT_ROWS and ids:
            t = PRODUCT_ROWS[product]
            query = sa.select(t.id, t.partition, t.ccd, t.provenance_id, t.filepath, t.n_bytes).where(t.id.in_(ids))
            gone += [
                Gone(product, row_id, Partition(key, ccd), provenance, path, n_bytes)
                for row_id, key, ccd, provenance, path, n_bytes in session.execute(
                    query.order_by(t.partition, t.ccd, t.created_at)
                )
            ]
    return gone
