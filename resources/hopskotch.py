"""Alerts to HOPSKOTCH, the broker of SCiMMA, by its own client (the optional extra ``hop``)."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from resources.alert_stream import Delivery, Message
from seechange_assets.errors import ServiceUnavailable

DEFAULT_URL = "kafka://kafka.scimma.org"


class HopskotchStream:
    """Publishes raw packets through hop-client; credentials come from the environment alone.

    Parameters
    ----------
    url : str
        ``kafka://host[:port]``; the topic follows behind it.
    username, password : str
        Of a SCiMMA credential (SCRAM).
    """

    def __init__(self, url: str = DEFAULT_URL, username: str = "", password: str = "") -> None:
        self._url, self._username, self._password = url.rstrip("/"), username, password

    def __repr__(self) -> str:
        return f"HopskotchStream({self._url!r})"

    def publish(self, messages: Sequence[Message], timeout_s: float | None = None) -> list[Delivery]:
        """Send messages and wait for the answers, one per message, in their order.

        Raises
        ------
        ServiceUnavailable
            When hop-client is not installed; nothing was sent.
        """
        try:
            from hop import Stream
            from hop.auth import Auth
        except ImportError as error:
            raise ServiceUnavailable(
                "a stream goes to HOPSKOTCH, but hop-client is missing: pip install 'seechange-dagster[hop]'"
            ) from error
        deadline = time.monotonic() + (30.0 if timeout_s is None else timeout_s)
        stream = Stream(auth=Auth(self._username, self._password))
        deliveries = [Delivery("no answer from HOPSKOTCH")] * len(messages)
        for topic in sorted({message.topic for message in messages}):
            producer = stream.open(f"{self._url}/{topic}", "w")
            for number, message in enumerate(messages):
                if message.topic == topic and time.monotonic() < deadline:
                    headers = [(name, value.encode()) for name, value in message.headers.items()]
                    producer.write_raw(message.value, headers, delivery_callback=_recorder(deliveries, number))
            producer.close()  # waits for the answers
        return deliveries


def _recorder(deliveries: list[Delivery], number: int) -> Callable[[Any, Any], None]:
    def record(error: Any, message: Any) -> None:
        told = (message.partition(), message.offset()) if error is None else (None, None)
        deliveries[number] = Delivery("" if error is None else str(error), *told)

    return record
