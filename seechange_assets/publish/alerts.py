"""Alert packets of one CCD: kept in the archive, committed to the outbox for each stream, and sent."""

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pydantic

from seechange_assets import __version__
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.parameters import Field, Parameters, non_critical
from seechange_assets.ports import Resource
from seechange_assets.process import data_product
from seechange_assets.products import Alerts, Associations, Cutouts, Difference, ImageInfo, Psf, Wcs
from seechange_assets.provenance import Recipes
from seechange_assets.publish.streams import StreamParameters, checked_streams, topic_name

if TYPE_CHECKING:
    from astropy.table import Table

    from resources.database import Database
    from seechange_assets.publish.packets import PacketContext

#: Longest time that a run gives to sending [s]; what is left then is the relay's.
PATIENCE_S = 2.0
#: Every packet is also written with this schema, into the container file of the CCD.
ARCHIVED_SCHEMA = "ls4.v1_0.alert"
_ASKED_FOR = ("alerts", "associations", "forced_photometry", "diff")


class AlertParameters(Parameters):
    """What an alert tells, and where it goes."""

    process: ClassVar[str] = "alerts"
    algorithm_version: ClassVar[str] = "2"
    history_days: float = Field(365.0, ge=0, le=36525, description="How far back the history in a packet goes [day].")
    streams: dict[str, StreamParameters] = non_critical(
        {"main": StreamParameters()}, description="Streams by name: topics, schema, wire format, lowest score."
    )
    enabled: bool = non_critical(True, description="Commit the packets to the outbox, from where they are sent.")
    resend: bool = non_critical(
        False, description="Send again what was told of a detection before, when it is processed again."
    )

    @pydantic.field_validator("streams")
    @classmethod
    def _streams_are_apart(cls, value: dict[str, StreamParameters]) -> dict[str, StreamParameters]:
        checked_streams(value)
        return value


def build_alerts(
    database: "Database",
    info: ImageInfo,
    associations: Associations,
    cutouts: Cutouts,
    wcs: Wcs,
    psf: Psf,
    *,
    night: str,
    provenance_ids: Mapping[str, str],
    provenance_tag: str,
    software_version: str,
    is_test: bool = False,
    is_backfill: bool = False,
    history_days: float = 365.0,
    streams: Mapping[str, StreamParameters] | None = None,
    enabled: bool = True,
    resend: bool = False,
) -> tuple[Alerts, list[bytes]]:
    """Make one packet per associated measurement and commit all of them to the outbox.

    The rows are read in one short transaction and the messages written in another; between
    them nothing is held. Messages that are in the outbox already stay as they are.

    Parameters
    ----------
    night : str
        Of the exposure, ``YYYYMMDD``.
    provenance_ids : mapping
        Ids of ``alerts``, ``associations``, ``forced_photometry`` and ``diff``.
    is_backfill : bool
        The messages go to the streams' topics for backfills.

    Returns
    -------
    (alerts, packets in the schema `ARCHIVED_SCHEMA`, in the same order)

    Raises
    ------
    ServiceUnavailable
        If Postgres does not answer.
    """
    from seechange_assets.publish.packets import PacketContext

    context = PacketContext(
        info.instrument, info.target, provenance_ids["alerts"], provenance_tag, software_version, is_test, info.project
    )
    ids = [uuid.UUID(str(value)) for value in associations.table["measurement_id"]]
    content = read_content(database, info, ids, provenance_ids, history_days)
    streams = {"main": StreamParameters()} if streams is None else streams
    schemas = {ARCHIVED_SCHEMA, *(stream.packet_schema for stream in streams.values() if stream.enabled)}
    packets = {schema: make_packets(context, content, cutouts, wcs, psf, schema) for schema in sorted(schemas)}
    rows = [
        row
        for name, stream in streams.items()
        if stream.enabled
        for row in messages(context, info, content["sources"], packets, name, stream, night, is_backfill)
    ]
    if enabled and rows:
        from sql.alerts import commit_alerts

        with database.session() as session:
            commit_alerts(session, rows, resend=resend)
    return Alerts(_table(context, content["sources"])), packets[ARCHIVED_SCHEMA]


def messages(
    context: "PacketContext",
    info: ImageInfo,
    sources: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    packets: Mapping[str, Sequence[bytes]],
    name: str,
    stream: StreamParameters,
    night: str,
    is_backfill: bool,
) -> list[dict[str, Any]]:
    """Rows of the outbox for one stream: what reaches its score, as it travels."""
    from seechange_assets.alert_wire import framed
    from seechange_assets.publish.packets import alert_id, schema_text

    pattern = stream.backfill_topic if is_backfill else stream.topic
    schema = schema_text(stream.packet_schema)
    common = {
        "stream": name, "provenance_id": context.provenance_id, "exposure": info.exposure, "ccd": info.ccd,
        "topic": topic_name(pattern, info.instrument, night), "schema_name": stream.packet_schema,
        "wire_format": stream.wire_format, "via": stream.via,
    }  # fmt: skip
    return [
        common
        | {
            "alert_id": alert_id(context.provenance_id, source["id"]), "measurement_id": source["id"],
            "key": target["name"], "ra": source["ra"], "dec": source["dec"],
            "packet": framed(packet, stream.wire_format, schema, stream.schema_id),
        }
        for (source, target), packet in zip(sources, packets[stream.packet_schema], strict=True)
        if stream.min_score is None or (source["score"] is not None and source["score"] >= stream.min_score)
    ]  # fmt: skip


def read_content(
    database: "Database", info: ImageInfo, ids: Sequence[uuid.UUID], provenance_ids: Mapping[str, str], days: float
) -> dict[str, Any]:
    """Everything the packets of one CCD need, read in one transaction."""
    from sql import alerts as sky
    from sql import object_records

    with database.session() as session:
        sources = sky.sources_with_objects(session, ids)
        objects = sorted({target["id"] for _, target in sources})
        mjd = info.mjd_mid
        return {
            "sources": sources,
            "earlier": sky.earlier_sources(session, objects, provenance_ids["associations"], mjd, days),
            "forced": sky.forced_sources(session, objects, provenance_ids["forced_photometry"], mjd, days),
            "cross_matches": object_records.cross_matches(session, objects),
            "identifications": sky.identifications(session, ids),
            "differences": sky.difference_limits(session, info.exposure, info.ccd, provenance_ids["diff"], mjd, days)
            if sources
            else [],
        }


def make_packets(
    context: "PacketContext", content: Mapping[str, Any], cutouts: Cutouts, wcs: Wcs, psf: Psf, schema: str
) -> list[bytes]:
    """Packets of all sources in a schema, from rows and stamps only."""
    from seechange_assets.publish import packets, packets_v0_2
    from seechange_assets.publish.stamps import alert_stamps

    is_old = schema == packets_v0_2.SCHEMA_NAME
    rows = [source for source, _ in content["sources"]]
    stamps = _raw_stamps(rows, cutouts) if is_old else alert_stamps(rows, cutouts, wcs, psf)
    build = packets_v0_2.build_packet if is_old else packets.build_packet
    limits = _limits(content)
    return [
        build(
            context,
            source,
            target,
            earlier=[row for row in content["earlier"].get(target["id"], []) if not row["is_flagged"]],
            forced=content["forced"].get(target["id"], []),
            limits=limits[k],
            cross_matches=content["cross_matches"].get(target["id"]),
            identification=content["identifications"].get(source["id"]),
            stamps=stamps[k],
        )
        for k, (source, target) in enumerate(content["sources"])
    ]


def _limits(content: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """For each source, the earlier images that cover its object and have no detection of it."""
    from sql.alerts import covered

    differences = content["differences"]
    corners = [row["corners"] for row in differences]
    limits = []
    for source, target in content["sources"]:
        detected = {row["exposure"] for row in content["earlier"].get(target["id"], [])} | {source["exposure"]}
        here = covered(corners, target["mean_ra"], target["mean_dec"])
        rows = [differences[i] for i in np.flatnonzero(here)]
        limits.append([row for row in rows if row["exposure"] not in detected])
    return limits


def _raw_stamps(rows: Sequence[Mapping[str, Any]], cutouts: Cutouts) -> list[tuple[bytes, bytes, bytes]]:
    from seechange_assets.publish.packets_v0_2 import raw_stamp

    parts = ((cutouts.sub, cutouts.sub_flags), (cutouts.new, cutouts.new_flags), (cutouts.ref, cutouts.ref_flags))
    stamps = []
    for row in rows:
        difference, new, reference = (
            raw_stamp(pixels[row["detection"]], flags[row["detection"]]) for pixels, flags in parts
        )
        stamps.append((difference, new, reference))
    return stamps


def _table(context: "PacketContext", sources: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> "Table":
    """What was told, by names that follow from recipe and data alone."""
    from astropy.table import Table

    from seechange_assets.publish.packets import alert_id

    return Table({
        "alert_id": np.array([str(alert_id(context.provenance_id, source["id"])) for source, _ in sources], "U36"),
        "measurement_id": np.array([str(source["id"]) for source, _ in sources], "U36"),
        "object_name": np.array([target["name"] for _, target in sources], "U80"),
    })  # fmt: skip


def keep_container(store: Any, info: ImageInfo, recipes: Mapping[str, Any], packets: Sequence[bytes]) -> str:
    """Write the packets of a CCD as an Avro container file into the archive, then its row; returns the path.

    The first file stays: a rerun tells the history as it was known then.
    """
    from seechange_assets.alert_wire import container
    from seechange_assets.publish.packets import schema_text
    from sql.alerts import insert_alert_file, known_alert_file
    from sql.base import deterministic_id

    recipe = recipes["alerts"]
    folder = f"{store.instrument}/{store.night(info.exposure)}/{info.exposure}/{info.ccd}"
    path = f"{folder}/alerts.{recipe.short_id}.avro"
    ids = {"partition": info.exposure, "ccd": info.ccd, "provenance_id": recipe.id}
    with store.database.session() as session:
        if known_alert_file(session, **ids) == len(packets) and store.archive.exists(path):
            return path
    content = container(packets, schema_text(ARCHIVED_SCHEMA))
    sha256, n_bytes = store.archive.write(path, lambda file: file.write_bytes(content))
    with store.database.session() as session:
        file = {"filepath": path, "sha256": sha256, "n_bytes": n_bytes, "n_alerts": len(packets)}
        insert_alert_file(session, {"id": deterministic_id("alert_file", *ids.values()), **ids, **file})
    return path


@data_product(AlertParameters, deps=["forced_photometry"])
def alerts(
    diff: Difference,
    associations: Associations,
    cutouts: Cutouts,
    parameters: AlertParameters,
    is_backfill: bool,
    recipes: Resource[Recipes],
    store: Resource[Any],
    stream: Resource[Any],
) -> Alerts:
    """Avro packets, committed to the outbox and sent; what the broker does not take now is sent later."""
    night = store.night(diff.info.exposure)
    told = {"night": night, "provenance_tag": store.tag, "software_version": __version__, "is_backfill": is_backfill}
    ids = {name: recipes[name].id for name in _ASKED_FOR}
    made, packets = build_alerts(
        store.database, diff.info, associations, cutouts, diff.wcs, diff.psf, provenance_ids=ids,
        is_test=recipes.parameters("associations").is_test, **told, **parameters.arguments(),
    )  # fmt: skip
    keep_container(store, diff.info, recipes, packets)
    deliver(store.database, stream)
    return made


def deliver(database: "Database", stream: Any) -> None:
    """Send what waits in the outbox, for a moment; a broker that is slow or down never stops science."""
    try:
        stream.relay(database, patience_s=PATIENCE_S)
    except ServiceUnavailable as error:
        logging.getLogger(__name__).warning("alerts wait in the outbox: %s", error)
