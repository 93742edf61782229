"""The brokers of an installation, from its settings."""

from resources.alert_stream import AlertStream
from resources.hopskotch import HopskotchStream
from resources.settings import Settings


def alert_stream(settings: Settings) -> AlertStream:
    """The Kafka broker, asked for when it is needed, and HOPSKOTCH where it is configured."""
    hop = {name: value.get_secret_value() for name, value in settings.hop.items()}
    return AlertStream(
        lambda: settings.kafka_servers,
        security=settings.kafka_options,
        other_brokers={"hopskotch": HopskotchStream(**hop)} if hop else None,
    )
