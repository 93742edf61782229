"""Alerts to and from a Kafka broker: a producer that proves delivery, and a consumer."""

import logging
import os
import re
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_assets.alert_wire import unframed
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.names import checked_name

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka import Message as KafkaMessage

    from resources.database import Database

#: The published schemas: data, read by name.
SCHEMAS = Path(__file__).resolve().parents[1] / "seechange_assets" / "publish" / "schemas"
_log = logging.getLogger(__name__)

#: Longest time [s] to find out that no broker answers.
CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: a packet, the key that keeps an object's alerts in one partition, and headers."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the broker answered to one message; ``error`` is empty if it was stored."""

    error: str = "no answer from the broker"
    partition: int | None = None
    offset: int | None = None


class AlertStream:
    """A broker to publish on.

    Parameters
    ----------
    servers : str or a function that gives it
        ``host:port,...``; a function is asked when the broker is needed.
    security : mapping, optional
        Options of librdkafka for TLS and SASL, e.g. ``{"security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": ..., "sasl.password": ...}``.
    message_timeout_s : float
        A message not acknowledged by then has failed.
    partitions, replication : int
        Of topics that do not exist yet.
    other_brokers : mapping, optional
        What else the relay publishes on, by the name of a stream's ``via``; each has `publish`.
    """

    def __init__(
        self,
        servers: str | Callable[[], str],
        *,
        security: Mapping[str, str] | None = None,
        message_timeout_s: float = 10.0,
        partitions: int = 4,
        replication: int = 1,
        other_brokers: Mapping[str, Any] | None = None,
    ) -> None:
        self._servers = servers
        self._security = dict(security or {})
        self._message_timeout_s = message_timeout_s
        self._partitions = partitions
        self._replication = replication
        self._other_brokers = dict(other_brokers or {})
        self._producer: tuple[int, Producer] | None = None

    def __repr__(self) -> str:
        return f"AlertStream({self._servers!r})"

    @property
    def servers(self) -> str:
        """Bootstrap servers; raises ServiceUnavailable when none is known."""
        return self._servers if isinstance(self._servers, str) else self._servers()

    def configuration(self, **options: Any) -> dict[str, Any]:
        """Options of a librdkafka client for this broker; logs stay silent, errors are raised."""
        silent = {"log_level": 0, "error_cb": _ignore}
        return {"bootstrap.servers": self.servers, **silent, **self._security, **options}

    def ensure_topics(self, topics: set[str], known: Collection[str]) -> None:
        """Create the topics that the broker does not know.

        Raises
        ------
        ServiceUnavailable
            When it refuses to create a topic.
        """
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import AdminClient, NewTopic

        missing = sorted(topics.difference(known))
        if not missing:
            return
        new = [NewTopic(checked_name(topic, "topic"), self._partitions, self._replication) for topic in missing]
        admin = AdminClient(self.configuration())  # must live until its futures are done
        for topic, future in admin.create_topics(new, request_timeout=CONNECT_TIMEOUT_S).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    reason = error.args[0].str()
                    raise ServiceUnavailable(f"cannot create the topic {topic} on {self.servers}: {reason}") from error

    def relay(self, database: "Database", limit: int = 10_000, **options: Any) -> int:
        """Send what waits in the outbox of `database`; see `resources.outbox_relay.relay`."""
        from resources.outbox_relay import relay

        return relay(database, {"kafka": self, **self._other_brokers}, limit, **options)

    def publish(self, messages: Sequence[Message], timeout_s: float | None = None) -> list[Delivery]:
        """Send messages and wait for the broker's answers, at most `timeout_s` (default `message_timeout_s`).

        Returns
        -------
        list of Delivery
            One per message, in their order.

        Raises
        ------
        ServiceUnavailable
            When no broker answers at all; nothing was sent.
        """
        deadline = time.monotonic() + (self._message_timeout_s + 1.0 if timeout_s is None else timeout_s)
        producer = self._connected()
        patience_s = min(CONNECT_TIMEOUT_S, deadline - time.monotonic())
        topics = {message.topic for message in messages}
        self.ensure_topics(topics, known_topics(producer, self.servers, patience_s))
        deliveries = [Delivery()] * len(messages)
        for number, message in enumerate(messages):
            self._produce(producer, message, _recorder(deliveries, number), deadline)
        producer.flush(max(0.0, deadline - time.monotonic()))
        if any(delivery.error for delivery in deliveries):
            # What is still queued must not go out after its row was recorded as failed, and an
            # idempotent producer that lost messages starts anew.
            producer.purge()
            producer.flush(1.0)
            self._producer = None
        return deliveries

    def _connected(self) -> "Producer":
        """The producer of this process: its threads do not survive a fork."""
        from confluent_kafka import Producer

        if self._producer is None or self._producer[0] != os.getpid():
            options = {
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "message.timeout.ms": int(self._message_timeout_s * 1000),
            }
            self._producer = os.getpid(), Producer(self.configuration(**options))
        return self._producer[1]

    def _produce(
        self, producer: "Producer", message: Message, recorder: Callable[[Any, Any], None], deadline: float
    ) -> None:
        from confluent_kafka import KafkaException

        headers: dict[str, str | bytes | None] = dict(message.headers)
        while time.monotonic() < deadline:
            try:
                producer.produce(message.topic, message.value, message.key, headers=headers, on_delivery=recorder)
            except BufferError:  # the queue is full: let deliveries make room
                producer.poll(0.1)
            except KafkaException as error:
                return recorder(error.args[0], None)
            else:
                return None
        return None


def _ignore(_error: object) -> None:
    """Drop the client's own reports: the caller gets an exception or a `Delivery`."""


def _recorder(deliveries: list[Delivery], number: int) -> Callable[[Any, Any], None]:
    def record(error: Any, message: Any) -> None:
        if error is None:
            deliveries[number] = Delivery("", message.partition(), message.offset())
        else:
            deliveries[number] = Delivery(error.str())

    return record


def decode(message: bytes, schema: str, wire_format: str = "bare") -> dict[str, Any]:
    """A message as nested dictionaries, read with the published schema of that name."""
    return unframed(message, wire_format, _schema(schema))


@cache
def published_schemas() -> frozenset[str]:
    """Names of the schemas that packets are written with."""
    return frozenset(path.stem for path in SCHEMAS.glob("*.alert.avsc"))


@cache
def _schema(name: str) -> Any:
    from fastavro.schema import load_schema

    return load_schema(str(SCHEMAS / f"{checked_name(name, 'schema')}.avsc"))


def known_topics(client: Any, servers: str, timeout_s: float = CONNECT_TIMEOUT_S) -> dict[str, list[int]]:
    """Topics of a broker and their partitions.

    Raises
    ------
    ServiceUnavailable
        When no broker answers.
    """
    from confluent_kafka import KafkaException

    try:
        topics = client.list_topics(timeout=max(0.1, timeout_s)).topics
    except KafkaException as error:
        raise ServiceUnavailable(
            f"no broker answers on {servers} ({error.args[0].str()}); `seechange up`, or check SEECHANGE_KAFKA_SERVERS"
        ) from error
    return {name: sorted(topic.partitions) for name, topic in topics.items()}


def listen(
    servers: str,
    topics: str = ".*-alerts-.*",
    *,
    from_beginning: bool = False,
    timeout_s: float | None = None,
    maximum: int | None = None,
    security: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Alerts as they arrive, decoded with the published schema that their header names.

    Reads every partition of every matching topic by itself, without a consumer group, so nothing is
    remembered at the broker; topics that appear later are read from their beginning. Messages
    without one of our schemas in the header are skipped with a warning.

    Parameters
    ----------
    topics : str
        Regular expression that a topic's whole name must match, e.g. ``ls4-alerts-2026.*``.
    from_beginning : bool
        Start with the oldest packet kept, or with the next one (a broker may repeat its last few).
    timeout_s : float, optional
        Stop when nothing came for this long; otherwise listen for ever.
    maximum : int, optional
        Stop after so many alerts.

    Raises
    ------
    ServiceUnavailable
        When the broker does not answer at the start.
    """
    from confluent_kafka import Consumer

    if maximum is not None and maximum <= 0:
        return
    options = {"group.id": "seechange-listen", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = Consumer(AlertStream(servers, security=security).configuration(**options))
    n_heard = 0
    try:
        for message in _messages(consumer, servers, re.compile(topics), from_beginning, timeout_s):
            alert = _alert_in(message)
            if alert is None:
                continue
            yield alert
            n_heard += 1
            if n_heard == maximum:
                return
    finally:
        consumer.close()


def _alert_in(message: "KafkaMessage") -> dict[str, Any] | None:
    """The alert of a message; None, with a warning, for what is no alert of a published schema."""
    schema, packet = _header(message, "schema"), message.value()
    if packet is not None and schema in published_schemas():
        try:
            return decode(packet, schema, _header(message, "wire") or "bare")
        except (ValueError, EOFError, StopIteration, IndexError, struct.error) as error:
            _log.warning("skipped a message of %s that is no %s: %s", message.topic(), schema, error)
            return None
    _log.warning("skipped a message of %s with schema %r", message.topic(), schema)
    return None


def _header(message: "KafkaMessage", name: str) -> str:
    value = dict(message.headers() or ()).get(name) or b""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _messages(
    consumer: "Consumer", servers: str, topics: re.Pattern[str], from_beginning: bool, timeout_s: float | None
) -> "Iterator[KafkaMessage]":
    """Messages of all matching topics; the list of topics is read again every two seconds."""
    assigned: set[tuple[str, int]] = set()
    _assign_new(consumer, known_topics(consumer, servers), topics, assigned, from_beginning)
    last = refreshed = time.monotonic()
    while timeout_s is None or time.monotonic() - last < timeout_s:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            last = time.monotonic()
            yield message
        elif time.monotonic() - refreshed > 2.0:
            refreshed = time.monotonic()
            try:
                _assign_new(consumer, known_topics(consumer, servers), topics, assigned, True)
            except ServiceUnavailable:
                continue  # the broker may come back; the consumer reconnects by itself


def _assign_new(
    consumer: "Consumer",
    known: Mapping[str, list[int]],
    topics: re.Pattern[str],
    assigned: set[tuple[str, int]],
    from_beginning: bool,
) -> None:
    from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, TopicPartition

    wanted = {(name, part) for name, parts in known.items() if topics.fullmatch(name) for part in parts}
    offset = OFFSET_BEGINNING if from_beginning else OFFSET_END
    new = [TopicPartition(name, part, offset) for name, part in sorted(wanted - assigned)]
    if new:
        consumer.incremental_assign(new)
        assigned |= wanted
