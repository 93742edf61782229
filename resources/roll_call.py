"""Who is at work on what: the answers of warm workers over several rounds, and what still waits in their queue.

One answer proves nothing: a worker that is slow or connects anew is not in it, and its tasks would look lost.
"""

import json
from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

#: Seconds for an answer.
PATIENCE_S = 2.0
#: Rounds without an answer after which a worker is taken for dead. With the second round that must miss a task, and a
#: round every 7 s, its runs are lost after 35 s: Celery may wait 30 s before it connects to the queue again.
SILENT_ROUNDS = 4
#: In Redis and Valkey, where priority 0 goes first: a list for each.
PRIORITY_STEPS = (0, 9)


class RollCall:
    """Which tasks have been missed, and since when.

    A round is complete when every worker that has answered lately does. One that is silent makes rounds incomplete
    until it has missed `SILENT_ROUNDS` of them and is taken for dead; rounds that nobody answers (the queue is down) do
    not count. A worker that starts again answers under its old name, so nobody waits for the dead one.

    Parameters
    ----------
    rounds : int
        Complete rounds in a row in which a task must be nowhere.
    """

    def __init__(self, *, rounds: int = 2) -> None:
        self._silence: dict[str, int] = {}
        self._complete: deque[tuple[float, frozenset[str]]] = deque(maxlen=rounds)

    def hear(self, asked: float, answers: Mapping[str, Collection[str]] | None) -> None:
        """One round: the tasks of each worker that answered, None if none did; `asked` is when [s since 1970]."""
        if not answers:
            self._complete.clear()
            return
        silence = {name: rounds + 1 for name, rounds in self._silence.items() if rounds + 1 < SILENT_ROUNDS}
        self._silence = silence | dict.fromkeys(answers, 0)
        if any(self._silence.values()):
            self._complete.clear()
        else:
            self._complete.append((asked, frozenset().union(*answers.values())))

    def missed_since(self, task: str | None) -> float | None:
        """When the first of the complete rounds that miss the task was asked; None unless all of them do."""
        if len(self._complete) < (self._complete.maxlen or 0) or any(task in tasks for _, tasks in self._complete):
            return None
        return self._complete[0][0]


def ask_workers(app: "Celery", question: str, *details: str, timeout_s: float = PATIENCE_S) -> dict[str, Any] | None:
    """What the living workers answer to a question of Celery's inspection, by worker; None if none answers."""
    from kombu.exceptions import OperationalError

    with app.connection_for_write() as connection:
        inspect = app.control.inspect(timeout=timeout_s, connection=connection)
        try:
            return getattr(inspect, question)(*details) or None
        except (OperationalError, *connection.connection_errors, *connection.channel_errors):
            return None


def listeners(app: "Celery") -> Counter[str]:
    """How many parents of workers listen to each queue, by their own answer."""
    answers = ask_workers(app, "active_queues") or {}
    return Counter(name for queues in answers.values() for name in {queue["name"] for queue in queues})


def waiting_tasks(app: "Celery", queue: str) -> set[str] | None:
    """Tasks in the queue that no worker has taken; None where that cannot be told (down, or not Redis or Valkey)."""
    from kombu.exceptions import OperationalError

    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            return None
        try:
            channel = connection.default_channel
            names = [queue if step == 0 else f"{queue}{channel.sep}{step}" for step in PRIORITY_STEPS]
            messages = [message for name in names for message in channel.client.lrange(name, 0, -1)]
        except (OperationalError, *connection.connection_errors, *connection.channel_errors):
            return None
    return {json.loads(message)["headers"]["id"] for message in messages}
