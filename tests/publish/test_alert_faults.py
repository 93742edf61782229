"""Brokers that are absent, slow, restarted or choosy, and relays that are killed: every alert arrives, none differs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from confluent_kafka import Producer

from resources.alert_stream import AlertStream, Message, listen
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.publish.alerts import PATIENCE_S, deliver
from tests.publish.nights import night, outbox
from tests.publish.sky import MJD

KILLED_BEFORE_SEND = "AlertStream.publish = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"
KILLED_BEFORE_MARK = """
send = AlertStream.publish
def publish(self, *arguments):
    print(sum(not answer.error for answer in send(self, *arguments)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
AlertStream.publish = publish
"""


def relay_killed(database, servers, how):
    """A relay in a process of its own that dies by SIGKILL; returns what it said."""
    program = (
        "import os, signal, sys\nfrom resources.alert_stream import AlertStream\n"
        f"from resources.database import Database\n{how}\n"
        "AlertStream(sys.argv[2]).relay(Database(sys.argv[1]))"
    )
    url = database.engine.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", program, url, servers], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def raw_messages(servers, topic, patience_s=3.0):
    """(alert id, bytes) of every message of a topic."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"test-{os.getpid()}"})
    try:
        parts = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        consumer.assign([TopicPartition(topic, part, OFFSET_BEGINNING) for part in parts])
        got, last = [], time.monotonic()
        while time.monotonic() - last < patience_s:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                got.append((dict(message.headers())["alert_id"].decode(), message.value()))
                last = time.monotonic()
        return got
    finally:
        consumer.close()


def assert_whole(database, servers, topic, n_duplicates):
    """Every id arrived; what came twice is equal; nothing waits."""
    told = {str(row.alert_id): bytes(row.packet) for row in outbox(database)}
    got = raw_messages(servers, topic)
    assert dict(got) == told
    assert all(told[alert] == packet for alert, packet in got)
    assert len(got) == len(told) + n_duplicates
    assert all(row.sent_at for row in outbox(database))


@pytest.mark.parametrize(("how", "n_duplicates"), [(KILLED_BEFORE_SEND, 0), (KILLED_BEFORE_MARK, 3)])
def test_a_relay_killed_around_sending_loses_nothing(database, kafka_servers, how, n_duplicates):
    topic_night = f"2026030{1 + n_duplicates}"
    night(database, date=topic_night)
    said = relay_killed(database, kafka_servers, how)
    assert (said.strip() or "0") == str(n_duplicates)
    assert [row.sent_at for row in outbox(database)] == [None] * 3
    assert AlertStream(kafka_servers).relay(database) == 3
    assert_whole(database, kafka_servers, f"ls4-alerts-{topic_night}", n_duplicates)


@pytest.fixture
def mock_cluster():
    """librdkafka's cluster of three brokers, in this process; it makes a topic when a client asks for it."""
    producer = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "", "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    for topic in ("ls4-alerts-20260405", "ls4-alerts-20260406"):
        producer.list_topics(topic, timeout=10)
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    del producer


def test_a_cluster_acknowledges_every_alert(database, mock_cluster):
    night(database, date="20260405")
    assert AlertStream(mock_cluster, replication=3).relay(database) == 3
    assert_whole(database, mock_cluster, "ls4-alerts-20260405", 0)


def test_a_topic_that_cannot_be_made_keeps_the_alerts_waiting(database, mock_cluster):
    """librdkafka's cluster has no controller, so it refuses to create topics."""
    night(database, date="20260409")
    with pytest.raises(ServiceUnavailable, match=r"3 alerts stay in the outbox.*cannot create the topic"):
        AlertStream(mock_cluster).relay(database)
    assert [(row.attempts, row.sent_at) for row in outbox(database)] == [(1, None)] * 3


def test_a_message_too_large_stays_with_its_reason_and_the_others_go(database, mock_cluster):
    import sqlalchemy as sa

    from sql.alerts import OutboxRow

    night(database, date="20260406")
    first = outbox(database)[1].sequence
    with database.session() as session:
        session.execute(sa.update(OutboxRow).where(OutboxRow.sequence == first).values(packet=bytes(3_000_000)))
    with pytest.raises(ServiceUnavailable, match=r"1 alerts stay in the outbox \(2 sent\).*too large"):
        AlertStream(mock_cluster).relay(database)
    assert [bool(row.sent_at) for row in outbox(database)] == [True, False, True]
    assert "too large" in outbox(database)[1].last_error


@pytest.mark.parametrize("is_slow", [False, True])
def test_science_never_waits_for_a_broker(database, is_slow):
    """Absent, or answering after five seconds: the run goes on within its patience, and the next at once."""
    keeper = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "", "log_level": 0}) if is_slow else None
    servers = "127.0.0.1:9"
    if keeper is not None:
        broker = next(iter(keeper.list_topics(timeout=10).brokers.values()))
        servers = f"{broker.host}:{broker.port}"
    stream = AlertStream(servers)
    if is_slow:
        stream.publish = slow_publish
    night(database)
    for longest in (PATIENCE_S + 2.0, 0.5):
        started = time.monotonic()
        deliver(database, stream)
        assert time.monotonic() - started < longest + 1.0  # a loaded machine
    assert [row.attempts for row in outbox(database)] == [1] * 3
    assert [row.sent_at for row in outbox(database)] == [None] * 3


def slow_publish(messages, timeout_s=None):
    """A broker whose answers take five seconds."""
    from resources.alert_stream import Delivery

    time.sleep(min(5.0, timeout_s))
    return [Delivery()] * len(messages)


def test_a_broker_restarted_while_alerts_are_sent(database, switched_broker):
    """Its memory is lost with it; what it had not acknowledged arrives, what it had can be replayed."""
    broker = switched_broker
    broker.start()
    for number in range(20):
        night(database, f"ls4_{number:02d}", MJD + number, date="20260407")
    stream = AlertStream(broker.servers, message_timeout_s=3.0)
    restart = threading.Thread(target=lambda: (broker.stop(), time.sleep(0.5), broker.start()))
    restart.start()
    sent, deadline = 0, time.monotonic() + 60
    while any(row.sent_at is None for row in outbox(database)) and time.monotonic() < deadline:
        try:
            sent += stream.relay(database, batch=5)
        except ServiceUnavailable:
            time.sleep(0.2)
    restart.join()
    assert all(row.sent_at for row in outbox(database))
    from sql.alerts import requeue

    with database.session() as session:
        requeue(session)
    assert stream.relay(database) == 60
    heard = {alert["alertId"] for alert in listen(broker.servers, from_beginning=True, timeout_s=3)}
    assert heard == {str(row.alert_id) for row in outbox(database)}


@pytest.mark.faults
def test_relays_killed_again_and_again(database, kafka_servers):
    """Ten relays that die at random moments; then one that lives."""
    for number in range(10):
        night(database, f"ls4_{number}", MJD + number, date="20260408")
    url = database.engine.url.render_as_string(hide_password=False)
    program = (
        "import sys\nfrom resources.alert_stream import AlertStream\nfrom resources.database import Database\n"
        "print(1, flush=True)\nAlertStream(sys.argv[2]).relay(Database(sys.argv[1]), batch=1)"
    )
    for number in range(10):
        relay = subprocess.Popen([sys.executable, "-c", program, url, kafka_servers], stdout=subprocess.PIPE)
        relay.stdout.readline()
        time.sleep(0.15 * number)
        relay.kill()
        relay.wait()
    AlertStream(kafka_servers).relay(database)
    told = {str(row.alert_id): bytes(row.packet) for row in outbox(database)}
    got = raw_messages(kafka_servers, "ls4-alerts-20260408")
    assert set(told) == {alert for alert, _ in got}
    assert all(told[alert] == packet for alert, packet in got)


def test_a_message_nobody_takes_is_not_marked(kafka_servers):
    deliveries = AlertStream(kafka_servers).publish([Message("ls4-alerts-y", "k", b"x", {})], 0.0)
    assert deliveries[0].error
