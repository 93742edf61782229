"""From the outbox over a real broker to a consumer."""

import io
import time

import fastavro
import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits
from astropy.wcs import WCS

from resources.alert_stream import AlertStream, Delivery, Message, decode, listen
from seechange_assets.errors import InvalidName, ParameterError, ServiceUnavailable
from seechange_assets.publish.alerts import AlertParameters
from seechange_assets.publish.packets import SCHEMA_FOLDER
from seechange_assets.publish.streams import topic_name
from sql.alerts import OutboxRow, covered, outbox_status, requeue
from sql.objects import ForcedPhotometryRow, ObjectRow
from sql.sky import separation_deg
from tests.publish.nights import STARS, night, outbox
from tests.publish.sky import MJD


def relay(database, stream, **options):
    return stream.relay(database, **options)


def test_topics():
    assert topic_name("{instrument}-alerts-{night}", "ls4", "20261122") == "ls4-alerts-20261122"
    assert topic_name("alerts_{year}-{month}-{day}", "ls4", "20261122") == "alerts_2026-11-22"
    with pytest.raises(ParameterError, match="unknown field 'moon'"):
        AlertParameters.from_overrides({"streams": {"main": {"topic": "{moon}"}}})
    with pytest.raises((ParameterError, InvalidName), match="not allowed"):
        AlertParameters.from_overrides({"streams": {"main": {"topic": "alerts/{night}"}}})
    assert set(AlertParameters().critical_values()) == {"history_days"}


def test_a_packet_tells_the_whole_history(database):
    night(database, "ls4_0", MJD - 2, stars=STARS[1:])
    night(database, "ls4_1", MJD - 1)
    night(database, "ls4_old", MJD - 400)
    alerts = night(database, "ls4_2", MJD)
    assert len(alerts.table) == 3
    assert {row.topic for row in outbox(database)} == {"ls4-alerts-20251121"}
    with database.session() as session:
        rows = session.scalars(sa.select(OutboxRow).where(OutboxRow.exposure == "ls4_2").order_by(OutboxRow.sequence))
        first = next(iter(rows))
        first = decode(first.packet, first.schema_name)
    assert first["diaSource"]["visit"] == "ls4_2"
    assert [s["visit"] for s in first["prvDiaSources"]] == ["ls4_1"]
    # The object was not known when ls4_0 was measured: no forced flux then, but a limit.
    assert [s["visit"] for s in first["prvDiaForcedSources"]] == ["ls4_1", "ls4_2"]
    assert [s["visit"] for s in first["prvDiaNonDetectionLimits"]] == ["ls4_0"]
    assert first["prvDiaNonDetectionLimits"][0]["limitingMag"] == pytest.approx(20.5)
    assert first["diaObject"]["nDiaSources"] == 3
    middle = MJD + 30 / 86400
    assert first["diaSource"]["midpointMjdTai"] - middle == pytest.approx(37 / 86400, abs=1e-9)
    assert first["prvDiaForcedSources"][1]["psfFlux"] == pytest.approx(5000 * 10 ** (0.4 * 4.4), rel=0.05)
    first_difference = fits.open(io.BytesIO(first["cutoutDifference"]))[0]
    x, y = np.array([60.3, 80.7]) - (np.round([60.3, 80.7]) - 20)
    here = WCS(first_difference.header).all_pix2world(x, y, 0)
    assert separation_deg(*here, first["diaSource"]["ra"], first["diaSource"]["dec"]) * 3600 < 0.2


def test_a_rerun_adds_nothing(database):
    """Not even after a later exposure, which moves the mean positions and finds an object of its own."""
    first = night(database)
    night(database, "ls4_2", MJD + 1, stars=((60.6, 80.7, 5000.0), (90.0, 150.0, 2000.0)))
    before = [(row.alert_id, row.packet) for row in outbox(database)]
    again = night(database)
    assert all((first.table[name] == again.table[name]).all() for name in first.table.colnames)
    assert [(row.alert_id, row.packet) for row in outbox(database)] == before


def test_a_difference_made_again_sends_new_alerts_and_keeps_the_names_that_were_sent(database):
    first = night(database)
    night(database, stars=((60.3, 80.7, 5500.0), (90.0, 150.0, 2000.0)))
    rows = outbox(database)
    assert len(rows) == 5
    assert len({row.alert_id for row in rows}) == 5
    assert rows[3].key == first.table["object_name"][0]  # brighter than before, the same object
    with database.session() as session:
        detections = {item.name: item.n_detections for item in session.scalars(sa.select(ObjectRow))}
        forced = set(session.scalars(sa.select(ForcedPhotometryRow.object_id)))
    gone = set(first.table["object_name"][1:])
    assert {name: n for name, n in detections.items() if name in gone} == dict.fromkeys(gone, 0)
    assert sum(detections.values()) == 2
    assert len(forced) == 4  # an object with a name that others know keeps its light curve


def test_objects_that_no_alert_named_are_forgotten_with_their_forced_photometry(database):
    night(database, enabled=False)
    night(database, stars=(), enabled=False)
    with database.session() as session:
        assert session.scalars(sa.select(ObjectRow)).all() == []
        assert session.scalars(sa.select(ForcedPhotometryRow)).all() == []


def test_disabled_alerts_are_made_but_not_committed(database):
    assert len(night(database, enabled=False).table) == 3
    assert outbox(database) == []


def test_a_night_without_detections(database):
    assert len(night(database, stars=()).table) == 0


def test_round_trip_with_fastavro_alone(database, kafka_servers):
    """What docs/alerts.md shows: confluent-kafka, fastavro and the schema files."""
    from confluent_kafka import Consumer, TopicPartition

    night(database, date="20260101")
    assert relay(database, AlertStream(kafka_servers)) == 3
    schema = fastavro.schema.load_schema(str(SCHEMA_FOLDER / "ls4.v1_0.alert.avsc"))
    consumer = Consumer({"bootstrap.servers": kafka_servers, "group.id": "test"})
    parts = consumer.list_topics("ls4-alerts-20260101", timeout=5).topics["ls4-alerts-20260101"].partitions
    consumer.assign([TopicPartition("ls4-alerts-20260101", part, 0) for part in parts])
    got = {}
    deadline = time.monotonic() + 20
    while len(got) < 3 and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is not None and message.error() is None:
            alert = fastavro.schemaless_reader(io.BytesIO(message.value()), schema, None)
            got[message.key().decode()] = alert
            assert dict(message.headers()) == {
                "schema": b"ls4.v1_0.alert", "alert_id": alert["alertId"].encode(), "wire": b"bare",
            }  # fmt: skip
    consumer.close()
    assert {key: alert["alertId"] for key, alert in got.items()} == {
        row.key: str(row.alert_id) for row in outbox(database)
    }
    rows = outbox(database)
    assert all(row.sent_at and row.attempts == 1 and row.broker_offset is not None for row in rows)


def test_without_a_broker_nothing_is_lost_and_everything_is_sent_once(database, switched_broker):
    broker = switched_broker
    stream = AlertStream(broker.servers, message_timeout_s=2.0)
    night(database)
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="3 alerts stay in the outbox"):
        relay(database, stream)
    assert time.monotonic() - started < 8
    assert [(row.sent_at, row.attempts) for row in outbox(database)] == [(None, 1)] * 3
    assert all(broker.servers in row.last_error for row in outbox(database))
    with database.session() as session:
        (status,) = outbox_status(session)
    assert (status["pending"], status["sent"], status["attempts"]) == (3, 0, 1)

    night(database, "ls4_2", MJD + 1)
    broker.start()
    assert relay(database, stream) == 6
    assert relay(database, stream) == 0
    assert all(row.last_error is None for row in outbox(database))
    heard = [alert["alertId"] for alert in listen(broker.servers, from_beginning=True, timeout_s=3)]
    assert sorted(heard) == sorted(str(row.alert_id) for row in outbox(database))

    with database.session() as session:
        assert requeue(session, OutboxRow.exposure == "ls4_2") == 3
    assert relay(database, stream, limit=2) == 2
    assert relay(database, stream) == 1


def test_only_acknowledged_messages_are_marked_sent(database):
    class HalfDeaf(AlertStream):
        def publish(self, messages, timeout_s=None):
            return [Delivery("", 0, n) if n % 2 == 0 else Delivery("refused") for n in range(len(messages))]

    night(database)
    with pytest.raises(ServiceUnavailable, match="refused"):
        relay(database, HalfDeaf("nowhere:1"))
    assert [(row.sent_at is not None, row.last_error) for row in outbox(database)] == [
        (True, None), (False, "refused"), (True, None),
    ]  # fmt: skip


def test_two_relays_share_the_work(database):
    from concurrent.futures import ThreadPoolExecutor

    sent = []

    class Recorder(AlertStream):
        def publish(self, messages, timeout_s=None):
            time.sleep(0.05)
            sent.extend(message.headers["alert_id"] for message in messages)
            return [Delivery("", 0, 0)] * len(messages)

    for number in range(8):
        night(database, f"ls4_{number}", MJD + number)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: relay(database, Recorder("nowhere:1"), batch=3), range(4))) == 24
    assert len(sent) == len(set(sent)) == 24


def test_a_message_too_large_does_not_stop_the_others(kafka_servers):
    stream = AlertStream(kafka_servers)
    messages = [Message("ls4-alerts-x", "k", b"1" * size, {}) for size in (10, 3_000_000, 10)]
    deliveries = stream.publish(messages)
    assert [bool(delivery.error) for delivery in deliveries] == [False, True, False]


def test_listening_needs_a_broker_and_stops_in_time(kafka_servers):
    started = time.monotonic()
    assert list(listen(kafka_servers, "no-such-topic", timeout_s=1)) == []
    assert list(listen(kafka_servers, maximum=0)) == []
    assert time.monotonic() - started < 5
    with pytest.raises(ServiceUnavailable, match="no broker answers"):
        next(listen("127.0.0.1:9"))


def test_foreign_messages_are_skipped_with_a_warning(kafka_servers, caplog):
    AlertStream(kafka_servers).publish([Message("foreign-alerts-1", "k", b"hello", {"schema": "../../etc/x"})])
    assert list(listen(kafka_servers, "foreign-alerts-.*", from_beginning=True, timeout_s=2)) == []
    assert "foreign-alerts-1" in caplog.text


def test_listening_finds_topics_that_appear_later(database, kafka_servers):
    import threading

    heard = []
    listener = threading.Thread(
        target=lambda: heard.extend(listen(kafka_servers, "ls4-alerts-20260202", timeout_s=15, maximum=3))
    )
    listener.start()
    time.sleep(1)
    night(database, date="20260202")
    relay(database, AlertStream(kafka_servers))
    listener.join(20)
    assert len(heard) == 3


def test_footprints_contain_their_inside_only():
    square = {"ra": [359.9, 0.1, 0.1, 359.9], "dec": [-0.1, -0.1, 0.1, 0.1]}
    pole = {"ra": [0.0, 90.0, 180.0, 270.0], "dec": [89.9] * 4}
    assert covered([square, pole], 0.0, 0.05).tolist() == [True, False]
    assert covered([square, pole], 0.2, 0.05).tolist() == [False, False]
    assert covered([square, pole], 33.0, 89.99).tolist() == [False, True]
    assert covered([square, pole], 180.0, 0.0).tolist() == [False, False]
    assert covered([], 0.0, 0.0).tolist() == []
