"""Alerts to and from a Kafka broker: producer, the relay of the outbox, and a consumer.

Delivery is at least once: a row of the outbox is marked sent when the broker has
acknowledged its packet on all in-sync replicas. A relay that dies between the two sends
the packet again, with the same bytes and the same alert id.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from seechange_assets.errors import ServiceUnavailable
from seechange_assets.names import checked_name

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka import Message as KafkaMessage

    from resources.database import Database

Decoded = TypeVar("Decoded")

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
    servers : str
        ``host:port,...``
    security : mapping, optional
        Options of librdkafka for TLS and SASL, e.g. ``{"security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": ..., "sasl.password": ...}``.
    message_timeout_s : float
        A message not acknowledged by then has failed.
    partitions, replication : int
        Of topics that do not exist yet.
    """

    def __init__(
        self,
        servers: str,
        *,
        security: Mapping[str, str] | None = None,
        message_timeout_s: float = 10.0,
        partitions: int = 4,
        replication: int = 1,
    ) -> None:
        self.servers = servers
        self._security = dict(security or {})
        self._message_timeout_s = message_timeout_s
        self._partitions = partitions
        self._replication = replication

    def __repr__(self) -> str:
        return f"AlertStream({self.servers!r})"

    def configuration(self, **options: Any) -> dict[str, Any]:
        """Options of a librdkafka client for this broker; logs stay silent, errors are raised."""
        return {"bootstrap.servers": self.servers, "log_level": 0, **self._security, **options}

    def ensure_topics(self, topics: set[str]) -> None:
        """Create the topics that do not exist.

        Raises
        ------
        ServiceUnavailable
            When no broker answers or it refuses to create a topic.
        """
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient(self.configuration())
        missing = topics - known_topics(admin, self.servers).keys()
        if not missing:
            return
        new = [NewTopic(checked_name(topic, "topic"), self._partitions, self._replication) for topic in sorted(missing)]
        for topic, future in admin.create_topics(new, request_timeout=CONNECT_TIMEOUT_S).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise ServiceUnavailable(f"cannot create the topic {topic} on {self.servers}: {error.args[0].str()}") from error

    def publish(self, messages: Sequence[Message]) -> list[Delivery]:
        """Send messages and wait for the broker's answers, at most `message_timeout_s`.

        Returns
        -------
        list of Delivery
            One per message, in their order.

        Raises
        ------
        ServiceUnavailable
            When no broker answers at all; nothing was sent.
        """
        from confluent_kafka import Producer

        self.ensure_topics({message.topic for message in messages})
        producer = Producer(self._producer_options())
        deliveries = [Delivery()] * len(messages)
        for number, message in enumerate(messages):
            self._produce(producer, message, _recorder(deliveries, number))
        producer.flush(self._message_timeout_s + 1.0)
        # Whatever is still queued must not go out after its row was recorded as failed.
        producer.purge()
        producer.flush(1.0)
        return deliveries

    def _producer_options(self) -> dict[str, Any]:
        return self.configuration(
            **{
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "message.timeout.ms": int(self._message_timeout_s * 1000),
            }
        )

    def _produce(self, producer: "Producer", message: Message, recorder: Callable[[Any, Any], None]) -> None:
        from confluent_kafka import KafkaException

        headers = [(name, value.encode()) for name, value in message.headers.items()]
        while True:
            try:
                producer.produce(message.topic, message.value, message.key, headers=headers, on_delivery=recorder)
                return
            except BufferError:
                producer.poll(0.1)
            except KafkaException as error:
                recorder(error.args[0], None)
                return


def _recorder(deliveries: list[Delivery], number: int) -> Callable[[Any, Any], None]:
    def record(error: Any, message: Any) -> None:
        if error is None:
            deliveries[number] = Delivery("", message.partition(), message.offset())
        else:
            deliveries[number] = Delivery(error.str())

    return record


def relay(database: "Database", stream: AlertStream, limit: int = 10_000, batch: int = 200) -> int:
    """Send unsent packets of the outbox, oldest first; several relays at once share the work.

    Returns
    -------
    int
        How many were sent.

    Raises
    ------
    ServiceUnavailable
        When the broker does not answer or does not take a packet. The packets stay in the outbox with
        the attempt and its error recorded.
    """
    sent, refused, after, first_error = 0, 0, 0, ""
    while sent < limit:
        n_sent, n_claimed, after, error = _relay_batch(database, stream, min(batch, limit - sent), after)
        sent, refused, first_error = sent + n_sent, refused + n_claimed - n_sent, first_error or error
        if n_sent == 0:
            break
    if first_error:
        raise ServiceUnavailable(f"{refused} alerts stay in the outbox ({sent} sent): {first_error}")
    return sent


def _relay_batch(database: "Database", stream: AlertStream, limit: int, after: int) -> tuple[int, int, int, str]:
    """(sent, claimed, last sequence, error) of one batch, in one transaction that holds its rows."""
    from sql.alerts import claim_unsent

    with database.session() as session:
        rows = claim_unsent(session, limit, after)
        if not rows:
            return 0, 0, after, ""
        messages = [
            Message(row.topic, row.key, row.packet, {"schema": row.schema_name, "alert_id": str(row.alert_id)})
            for row in rows
        ]
        try:
            deliveries = stream.publish(messages)
        except ServiceUnavailable as error:
            deliveries = [Delivery(str(error))] * len(rows)
        for row, delivery in zip(rows, deliveries, strict=True):
            row.attempts += 1
            row.last_error = delivery.error or None
            if not delivery.error:
                row.sent_at = datetime.now(UTC)
                row.broker_partition, row.broker_offset = delivery.partition, delivery.offset
        errors = [delivery.error for delivery in deliveries if delivery.error]
        return len(rows) - len(errors), len(rows), rows[-1].sequence, errors[0] if errors else ""


def known_topics(client: Any, servers: str) -> dict[str, list[int]]:
    """Topics of a broker and their partitions.

    Raises
    ------
    ServiceUnavailable
        When no broker answers.
    """
    from confluent_kafka import KafkaException

    try:
        topics = client.list_topics(timeout=CONNECT_TIMEOUT_S).topics
    except KafkaException as error:
        raise ServiceUnavailable(
            f"no broker answers on {servers} ({error.args[0].str()}); run `seechange up` or check SEECHANGE_KAFKA_SERVERS"
        ) from error
    return {name: sorted(topic.partitions) for name, topic in topics.items()}


def listen(
    servers: str,
    topics: str,
    decode: Callable[[bytes], Decoded],
    *,
    from_beginning: bool = False,
    timeout_s: float | None = None,
    maximum: int | None = None,
    security: Mapping[str, str] | None = None,
) -> Iterator[Decoded]:
    """Alerts as they arrive, decoded.

    Reads every partition of every matching topic by itself, without a consumer group, so nothing is
    remembered at the broker; topics that appear later are read from their beginning.

    Parameters
    ----------
    topics : str
        Regular expression that a topic's whole name must match, e.g. ``ls4-alerts-2026.*``.
    decode : callable
        Packet to alert, `seechange_assets.publish.packets.read_packet`.
    from_beginning : bool
        Start with the oldest packet kept, or with the next one.
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

    options = {"group.id": "seechange-listen", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = Consumer(AlertStream(servers, security=security).configuration(**options))
    try:
        for number, message in enumerate(_messages(consumer, servers, re.compile(topics), from_beginning, timeout_s), 1):
            yield decode(message.value())
            if maximum is not None and number >= maximum:
                return
    finally:
        consumer.close()


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
