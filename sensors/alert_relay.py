"""Alerts that are committed but not delivered go out when the broker is back."""

from typing import Any

import dagster as dg

from seechange_assets.errors import ServiceUnavailable

MAX_ALERTS = 5000


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Delivers alerts of the outbox that have not been acknowledged by the broker.",
    jobs=[],
)
def alert_relay(database: dg.ResourceParam[Any], stream: dg.ResourceParam[Any]) -> dg.SkipReason:
    """One tick: send what is left; a broker that is down is tried again at the next."""
    try:
        n_sent = stream.relay(database, limit=MAX_ALERTS)
    except ServiceUnavailable as error:
        return dg.SkipReason(f"alerts wait in the outbox: {error}")
    return dg.SkipReason(f"{n_sent} alerts delivered" if n_sent else "the outbox is empty")
