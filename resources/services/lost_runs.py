"""Runs that nothing will ever start: never queued, or handed to workers and their task is nowhere.

Dagster makes a run and then queues it: where the database fails in between (its disk is full, it is restarted) the run
stays as it was made, and its partition would count as in work until Dagster's own timeout, hours later.

Dagster's own monitoring asks the launcher only about runs that have started; of one that has not it knows how long it
waits. But waiting is healthy while long runs hold all workers, and a task can be gone: the queue lost its memory, the
database was down when a worker took it, or its queue is that of an older version.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from resources.roll_call import RollCall, ask_workers, waiting_tasks
from resources.services import dagster_ui
from resources.services.supervisor import Supervisor
from resources.settings import Settings

if TYPE_CHECKING:
    from celery import Celery
    from dagster import DagsterInstance
    from dagster._core.storage.dagster_run import RunRecord

PERIOD_S = 5.0
#: A run being handed over may wait some seconds for the queue before its task exists.
ROUNDS = 3
#: Between making a run and queueing it are milliseconds; a sensor that failed in between does it in its next ticks.
NEVER_QUEUED_S = 60.0
NEVER_QUEUED = "This run was made but never queued: the database or the daemon failed in between."
REASON = "The task of this run is lost: it is neither in the queue nor with a worker."


@dataclass
class LostRuns:
    """Looks for them and tells Dagster, which tries them again (``run_retries``).

    Parameters
    ----------
    settings : Settings
        Whose runs.
    """

    settings: Settings
    _asked: float = field(default=float("-inf"), init=False)
    _made: dict[str, float] = field(default_factory=dict, init=False)
    _roll_call: RollCall = field(default_factory=lambda: RollCall(rounds=ROUNDS), init=False)

    @cached_property
    def instance(self) -> "DagsterInstance":
        """Dagster's instance of this home."""
        import dagster as dg

        return dg.DagsterInstance.from_config(str(self.settings.dagster_home))

    @cached_property
    def app(self) -> "Celery":
        """What asks queue and workers."""
        from resources.run_launcher import celery_app

        return celery_app(self.settings)

    def close(self) -> list[str]:
        """Ask once, unless that was a moment ago; mark the runs that are lost as failed and return their ids."""
        now = time.time()
        is_dagster_here = (self.settings.dagster_home / "dagster.yaml").is_file()
        if not is_dagster_here or now - self._asked < PERIOD_S:
            return []
        self._asked = now
        return self._close_never_queued() + (self._close_without_task() if self.settings.uses_queue else [])

    def _close_never_queued(self) -> list[str]:
        """Runs that stay as they were made; by our own clock, as the server's may differ."""
        import dagster as dg

        now = time.monotonic()
        made = self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED]))
        self._made = {run.run_id: self._made.get(run.run_id, now) for run in made}
        lost = [run for run in made if now - self._made[run.run_id] >= NEVER_QUEUED_S]
        for run in lost:
            self.instance.report_run_failed(run, NEVER_QUEUED)
        return [run.run_id for run in lost]

    def _close_without_task(self) -> list[str]:
        waiting = self._unstarted()
        if waiting:
            self._ask([task for record in waiting if (task := _task(record)) is not None])
        lost = [record for record in waiting if self._is_lost(record)]
        for record in lost:
            self.instance.report_run_failed(record.dagster_run, REASON)
        return [record.dagster_run.run_id for record in lost]

    def _unstarted(self) -> "Sequence[RunRecord]":
        """Runs that the queue's launcher was given (those of a code server carry the tag of one) and that wait."""
        import dagster as dg
        from dagster._core.storage.tags import GRPC_INFO_TAG

        records = self.instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING]))
        return [record for record in records if GRPC_INFO_TAG not in record.dagster_run.tags]

    def _ask(self, tasks: list[str]) -> None:
        """One round. The queue first: a task that a worker takes meanwhile is seen in its hands."""
        asked = time.time()
        queued = waiting_tasks(self.app, self._queue())
        answers = None if queued is None else ask_workers(self.app, "query_task", *tasks)
        if queued is None or answers is None:
            self._roll_call.hear(asked, None)
        else:
            self._roll_call.hear(asked, {name: queued | set(found) for name, found in answers.items()})

    def _queue(self) -> str:
        """The one that the running Dagster hands runs to."""
        supervisor = Supervisor(self.settings.home)
        is_up = dagster_ui.find(supervisor) is not None
        return supervisor.version(dagster_ui.NAME).partition(" ")[0] if is_up else self.settings.queue_name

    def _is_lost(self, record: "RunRecord") -> bool:
        """Whether every round missed its task since it waits as it does now."""
        missed_since = self._roll_call.missed_since(_task(record))
        if missed_since is None or record.update_timestamp.timestamp() > missed_since:
            return False
        now = self.instance.get_run_record_by_id(record.dagster_run.run_id)
        return now is not None and now.update_timestamp == record.update_timestamp


def _task(record: "RunRecord") -> str | None:
    from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

    return record.dagster_run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
