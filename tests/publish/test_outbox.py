"""What is told once, on which stream, and in which form."""

import io

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.alert_stream import decode
from seechange_assets.alert_wire import container, framed, unframed
from seechange_assets.errors import ParameterError
from seechange_assets.publish import packets, packets_v0_2
from seechange_assets.publish.alerts import AlertParameters
from seechange_assets.publish.streams import StreamParameters
from sql.alerts import outbox_status, requeue
from tests.publish.nights import STARS, night, outbox
from tests.publish.sky import MJD, PROVENANCES
from tests.publish.test_packets import CONTEXT, limit, source, target

OTHER_RECIPE = {"provenance_ids": PROVENANCES | {"alerts": "d" * 20}}  # any recipe that the tests' database knows


def stars_moved(dx):
    return tuple((x + dx, y, flux) for x, y, flux in STARS)


def withheld(database):
    return [row.is_withheld for row in outbox(database)]


def test_another_recipe_does_not_tell_the_same_detections_again(database):
    night(database)
    night(database, **OTHER_RECIPE)
    assert withheld(database) == [False] * 3 + [True] * 3
    assert len({row.alert_id for row in outbox(database)}) == 6
    with database.session() as session:
        (status,) = outbox_status(session)
    assert (status["pending"], status["withheld"]) == (3, 3)


def test_a_detection_measured_anew_is_told_again_only_farther_away(database):
    """On a difference made again: 1.5 arcsec away it is the same detection, 3 arcsec away another (1 arcsec/pixel)."""
    night(database)
    night(database, stars=stars_moved(1.5))
    assert withheld(database) == [False] * 3 + [True] * 3
    night(database, stars=stars_moved(3.0))
    assert withheld(database)[6:] == [False] * 3


def test_resend_tells_all(database):
    night(database)
    night(database, resend=True, **OTHER_RECIPE)
    assert withheld(database) == [False] * 6


def test_what_was_withheld_can_be_sent_later(database):
    night(database)
    night(database, **OTHER_RECIPE)
    with database.session() as session:
        assert requeue(session) == 0
        assert requeue(session, withheld=True) == 3
    assert withheld(database) == [False] * 6


def test_other_exposures_are_told(database):
    night(database)
    night(database, "ls4_2", MJD + 1)
    assert withheld(database) == [False] * 6


def test_a_backfill_has_its_own_topic(database):
    night(database, is_backfill=True)
    assert {row.topic for row in outbox(database)} == {"ls4-backfill-20251121"}


def test_streams_have_threshold_schema_topic_and_form(database):
    streams = {
        "main": StreamParameters(),
        "old": StreamParameters(topic="ls4-{year}-{month}-{day}", backfill_topic="old", packet_schema="ls4.v0_2.alert"),
        "registry": StreamParameters(topic="reg-{night}", backfill_topic="regb", wire_format="confluent", schema_id=77),
        "files": StreamParameters(topic="file-{night}", backfill_topic="fileb", wire_format="container"),
        "best": StreamParameters(topic="best-{night}", backfill_topic="bestb", min_score=0.95),
        "off": StreamParameters(topic="off-{night}", backfill_topic="offb", enabled=False),
    }
    night(database, streams=streams)
    rows = outbox(database)
    assert [sum(row.stream == name for row in rows) for name in streams] == [3, 3, 3, 3, 0, 0]
    assert {row.topic for row in rows} == {"ls4-alerts-20251121", "ls4-2025-11-21", "reg-20251121", "file-20251121"}
    alerts = [(row.stream, decode(row.packet, row.schema_name, row.wire_format)) for row in rows]
    for stream in ("old", "registry", "files"):
        assert sorted(a["alertId"] for s, a in alerts if s == stream) == sorted(
            a["alertId"] for s, a in alerts if s == "main"
        )
    assert next(row for row in rows if row.stream == "registry").packet[:5] == b"\0\0\0\0M"
    assert fastavro.is_avro(io.BytesIO(next(row for row in rows if row.stream == "files").packet))


def test_streams_do_not_share_topics():
    for streams in (
        {"a": {}, "b": {}},
        {"a": {"backfill_topic": "{instrument}-alerts-{night}"}},
        {"a": {}, "b": {"topic": "{instrument}-backfill-{year}{month}{day}", "backfill_topic": "b"}},
    ):
        with pytest.raises(ParameterError, match="both write the topic"):
            AlertParameters.from_overrides({"streams": streams})
    with pytest.raises(ParameterError, match="streams"):
        AlertParameters.from_overrides({"streams": {"a": {"wire_format": "pickle"}}})


def test_where_alerts_go_makes_nothing_stale():
    told = {"streams": {"main": {"topic": "t-{night}", "wire_format": "container"}}, "resend": True, "enabled": False}
    assert AlertParameters.from_overrides(told).critical_values() == AlertParameters().critical_values()


def test_the_product_does_not_tell_topic_tag_or_version(database):
    first = night(database, enabled=False).table
    streams = {"x": StreamParameters(topic="elsewhere-{night}", backfill_topic="b")}
    again = night(database, enabled=False, streams=streams, provenance_tag="dr1", software_version="9.9.9").table
    assert (first == again).all()


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_a_container_is_read_by_fastavro_alone(bodies):
    schema = '{"type":"bytes"}'

    def datum(body):
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, fastavro.parse_schema({"type": "bytes"}), body)
        return stream.getvalue()

    assert list(fastavro.reader(io.BytesIO(container([datum(body) for body in bodies], schema)))) == bodies


@pytest.mark.parametrize("module", [packets, packets_v0_2])
def test_a_container_carries_its_schema(module):
    packet = module.build_packet(CONTEXT, source(), target() | {"ra": 150.0, "dec": -30.0}, limits=[limit()])
    content = container([packet] * 3, packets.schema_text(module.SCHEMA_NAME))
    reader = fastavro.reader(io.BytesIO(content))
    assert len({alert["alertId"] for alert in reader}) == 1
    assert reader.writer_schema["name"].endswith("alert")
    message = framed(packet, "confluent", "", 900)
    assert message[:5] == b"\0\0\0\x03\x84"  # as Rubin's packets of version 9.0 begin
    schema = packets.alert_schema(module.SCHEMA_NAME)
    assert unframed(message, "confluent", schema) == unframed(packet, "bare", schema)
    with pytest.raises(ValueError, match="Confluent"):
        unframed(b"x" + packet, "confluent", schema)
