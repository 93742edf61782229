"""The relay: from the outbox in Postgres to the brokers.

Delivery is at least once: a row of the outbox is marked sent when the broker has
acknowledged its packet on all in-sync replicas. A relay that dies between the two sends
the packet again, with the same bytes and the same alert id.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resources.alert_stream import Delivery, Message
from seechange_assets.errors import ServiceUnavailable

if TYPE_CHECKING:
    from resources.database import Database
    from sql.alerts import OutboxRow

#: After a failure, who has no time to lose leaves the next tries to others for so long [s].
PAUSE_S = 30.0


def relay(
    database: "Database",
    streams: Mapping[str, Any],
    limit: int = 10_000,
    batch: int = 200,
    patience_s: float | None = None,
) -> int:
    """Send unsent packets of the outbox, oldest first; several relays at once share the work.

    Parameters
    ----------
    streams : mapping
        What publishes, by the name in the column ``via``.
    patience_s : float, optional
        Give up after so long [s], and do not begin if somebody has failed within `PAUSE_S`: for
        callers that must not wait for a broker.

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
    if patience_s is not None and _was_refused(database):
        return 0
    deadline = None if patience_s is None else time.monotonic() + patience_s
    sent, refused, after, first_error = 0, 0, 0, ""
    while sent < limit and (deadline is None or time.monotonic() < deadline):
        n_sent, n_claimed, after, error = _relay_batch(database, streams, min(batch, limit - sent), after, deadline)
        sent, refused, first_error = sent + n_sent, refused + n_claimed - n_sent, first_error or error
        if n_sent == 0:
            break
    if first_error:
        raise ServiceUnavailable(f"{refused} alerts stay in the outbox ({sent} sent): {first_error}")
    return sent


def _was_refused(database: "Database") -> bool:
    from sql.alerts import refused_lately

    with database.session() as session:
        return refused_lately(session, PAUSE_S)


def _relay_batch(
    database: "Database", streams: Mapping[str, Any], limit: int, after: int, deadline: float | None
) -> tuple[int, int, int, str]:
    """(sent, claimed, last sequence, error) of one batch, in one transaction that holds its rows."""
    from sql.alerts import claim_unsent, mark_attempted

    with database.session() as session:
        rows = claim_unsent(session, limit, after)
        if not rows:
            return 0, 0, after, ""
        answers = []
        for via in sorted({row.via for row in rows}):
            mine = [row for row in rows if row.via == via]
            for row, delivery in zip(mine, _publish(streams, via, mine, deadline), strict=True):
                answers.append((row.sequence, delivery.error, delivery.partition, delivery.offset))
        mark_attempted(session, answers)
        errors = [error for _, error, _, _ in answers if error]
        return len(rows) - len(errors), len(rows), rows[-1].sequence, errors[0] if errors else ""


def _publish(streams: Mapping[str, Any], via: str, rows: "list[OutboxRow]", deadline: float | None) -> list[Delivery]:
    if via not in streams:
        return [Delivery(f"this installation has no {via} to publish on")] * len(rows)
    timeout_s = None if deadline is None else max(0.1, deadline - time.monotonic())
    try:
        deliveries: list[Delivery] = streams[via].publish([_message(row) for row in rows], timeout_s)
    except ServiceUnavailable as error:
        return [Delivery(str(error))] * len(rows)
    return deliveries


def _message(row: "OutboxRow") -> Message:
    headers = {"schema": row.schema_name, "alert_id": str(row.alert_id), "wire": row.wire_format}
    return Message(row.topic, row.key, row.packet, headers)
