"""Alert packets of one CCD, committed to the outbox."""

import logging
import string
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
import numpy as np
import pydantic

from seechange_assets import __version__
from seechange_assets.data_product import data_product
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.names import checked_name
from seechange_assets.parameters import Field, Parameters, non_critical
from seechange_assets.products import Alerts, Associations, Cutouts, Difference, ImageInfo, Wcs
from seechange_assets.provenance import Recipes

if TYPE_CHECKING:
    from astropy.table import Table

    from resources.database import Database
    from seechange_assets.publish.packets import PacketContext

_TOPIC_FIELDS = {"instrument": "ls4", "night": "20261122", "year": "2026", "month": "11", "day": "22"}


class AlertParameters(Parameters):
    """What an alert tells, and where it goes."""

    process: ClassVar[str] = "alerts"
    history_days: float = Field(365.0, ge=0, le=36525, description="How far back the history in a packet goes [day].")
    topic: str = non_critical(
        "{instrument}-alerts-{night}", description="Topic, with {instrument}, {night} or {year}, {month}, {day}."
    )
    enabled: bool = non_critical(True, description="Commit the packets to the outbox, from where they are sent.")

    @pydantic.field_validator("topic")
    @classmethod
    def _topic_is_a_name(cls, value: str) -> str:
        unknown = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None} - set(_TOPIC_FIELDS)
        if unknown:
            raise ValueError(f"unknown field {min(unknown)!r}: expected one of {', '.join(_TOPIC_FIELDS)}")
        checked_name(value.format(**_TOPIC_FIELDS), "topic")
        return value


def topic_name(pattern: str, instrument: str, night: str) -> str:
    """Topic of a night (``YYYYMMDD``)."""
    digits = night.replace("-", "")
    fields = {"instrument": instrument, "night": night, "year": digits[:4], "month": digits[4:6], "day": digits[6:8]}
    return checked_name(pattern.format(**fields), "topic")


def build_alerts(
    database: "Database",
    info: ImageInfo,
    associations: Associations,
    cutouts: Cutouts,
    wcs: Wcs,
    *,
    night: str,
    provenance_ids: Mapping[str, str],
    provenance_tag: str,
    software_version: str,
    is_test: bool = False,
    history_days: float = 365.0,
    topic: str = "{instrument}-alerts-{night}",
    enabled: bool = True,
) -> Alerts:
    """Make one packet per associated measurement and commit all of them to the outbox.

    The rows are read in one short transaction and the packets written in another; between
    them nothing is held. Packets that are in the outbox already stay as they are.

    Parameters
    ----------
    night : str
        Of the exposure, ``YYYYMMDD``.
    provenance_ids : mapping
        Ids of ``alerts``, ``associations``, ``forced_photometry`` and ``diff``.

    Raises
    ------
    ServiceUnavailable
        If Postgres does not answer.
    """
    from seechange_assets.publish.packets import PacketContext, alert_id

    where = topic_name(topic, info.instrument, night)
    context = PacketContext(
        info.instrument, info.target, provenance_ids["alerts"], provenance_tag, software_version, is_test
    )
    ids = [uuid.UUID(str(value)) for value in associations.table["measurement_id"]]
    content = read_content(database, info, ids, provenance_ids, history_days)
    packets = make_packets(context, content, cutouts, wcs)
    rows = [
        {
            "alert_id": alert_id(context.provenance_id, source["id"]), "measurement_id": source["id"],
            "provenance_id": context.provenance_id, "exposure": info.exposure, "ccd": info.ccd, "topic": where,
            "key": target["name"], "schema_name": "ls4.v1_0.alert", "packet": packet,
        }
        for (source, target), packet in zip(content["sources"], packets, strict=True)
    ]  # fmt: skip
    sizes = {row["alert_id"]: len(row["packet"]) for row in rows}
    if enabled:
        from sql.alerts import commit_alerts, packet_sizes

        with database.session() as session:
            commit_alerts(session, rows)
            # Those committed before may tell of a shorter history than the ones made now.
            sizes |= packet_sizes(session, list(sizes))
    return Alerts(_table(rows, sizes), where)


def read_content(
    database: "Database", info: ImageInfo, ids: Sequence[uuid.UUID], provenance_ids: Mapping[str, str], days: float
) -> dict[str, Any]:
    """Everything the packets of one CCD need, read in one transaction."""
    from sql import alerts as sky

    with database.session() as session:
        sources = sky.sources_with_objects(session, ids)
        objects = sorted({target["id"] for _, target in sources})
        mjd = info.mjd_mid
        return {
            "sources": sources,
            "earlier": sky.earlier_sources(session, objects, provenance_ids["associations"], mjd, days),
            "forced": sky.forced_sources(session, objects, provenance_ids["forced_photometry"], mjd, days),
            "differences": sky.difference_limits(session, info.exposure, info.ccd, provenance_ids["diff"], mjd, days)
            if sources
            else [],
        }


def make_packets(context: "PacketContext", content: Mapping[str, Any], cutouts: Cutouts, wcs: Wcs) -> list[bytes]:
    """Packets of all sources, from rows and stamps only."""
    from seechange_assets.publish.packets import build_packet
    from sql.alerts import covered

    corners = [row["corners"] for row in content["differences"]]
    stamps = _stamps([source for source, _ in content["sources"]], cutouts, wcs)
    packets = []
    for (source, target), fits in zip(content["sources"], stamps, strict=True):
        earlier = content["earlier"].get(target["id"], [])
        detected = {row["exposure"] for row in earlier} | {source["exposure"]}
        here = covered(corners, target["mean_ra"], target["mean_dec"])
        limits = [content["differences"][i] for i in np.flatnonzero(here)]
        limits = [row for row in limits if row["exposure"] not in detected]
        forced = content["forced"].get(target["id"], [])
        packets.append(
            build_packet(context, source, target, earlier=earlier, forced=forced, limits=limits, stamps=fits)
        )
    return packets


def _stamps(sources: Sequence[Mapping[str, Any]], cutouts: Cutouts, wcs: Wcs) -> list[tuple[bytes, bytes, bytes]]:
    """FITS stamps (difference, new, reference) of each source."""
    from seechange_assets.publish.packets import fits_stamp, stamp_wcs

    x, y = (np.array([source[name] for source in sources], float) for name in ("x", "y"))
    rows = [source["detection"] for source in sources]
    cards = stamp_wcs(wcs.astropy(), x, y, cutouts.corner[rows]) if rows else []
    stamps = []
    for row, source, card in zip(rows, sources, cards, strict=True):
        card |= {"BUNIT": "adu", "MAGZERO": source["zp"]}
        difference, new, reference = (fits_stamp(part[row], card) for part in (cutouts.sub, cutouts.new, cutouts.ref))
        stamps.append((difference, new, reference))
    return stamps


def _table(rows: Sequence[Mapping[str, Any]], sizes: Mapping[uuid.UUID, int]) -> "Table":
    from astropy.table import Table

    return Table({
        "alert_id": np.array([str(row["alert_id"]) for row in rows], "U36"),
        "measurement_id": np.array([str(row["measurement_id"]) for row in rows], "U36"),
        "object_name": np.array([row["key"] for row in rows], "U80"),
        "n_bytes": np.array([sizes[row["alert_id"]] for row in rows], np.int64),
    })  # fmt: skip


@data_product(AlertParameters, deps=["forced_photometry"])
def alerts(
    diff: Difference,
    associations: Associations,
    cutouts: Cutouts,
    parameters: AlertParameters,
    recipes: dg.ResourceParam[Recipes],
    store: dg.ResourceParam[Any],
    stream: dg.ResourceParam[Any],
) -> Alerts:
    """Avro packets, committed to the outbox and sent; what the broker does not take now is sent later."""
    made = build_alerts(
        store.database,
        diff.info,
        associations,
        cutouts,
        diff.wcs,
        night=store.night(diff.info.exposure),
        provenance_ids={name: recipes[name].id for name in ("alerts", "associations", "forced_photometry", "diff")},
        provenance_tag=store.tag,
        software_version=__version__,
        **parameters.arguments(),
    )
    deliver(store.database, stream)
    return made


def deliver(database: "Database", stream: Any) -> None:
    """Send what waits in the outbox; a broker that is down never stops science."""
    try:
        stream.relay(database)
    except ServiceUnavailable as error:
        logging.getLogger(__name__).warning("alerts wait in the outbox: %s", error)
