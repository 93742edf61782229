"""Runs as tasks of warm Celery workers, with a health check that notices a worker that died.

`dagster_celery` executes the whole run in one task. Its own check reads the state a task had last written, which a
killed worker leaves at "started" for ever; here the workers are asked what they are working on.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from dagster import Field, StringSource
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import PRIORITY_TAG
from dagster._serdes import ConfigurableClassData
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.make_app import make_app
from dagster_celery.tags import DAGSTER_CELERY_RUN_PRIORITY_TAG, DAGSTER_CELERY_TASK_ID_TAG

from resources.roll_call import PRIORITY_STEPS, RollCall, ask_workers
from resources.settings import Settings

if TYPE_CHECKING:
    from celery import Celery
    from dagster import DagsterRun
    from dagster._config import UserConfigSchema
    from dagster._core.launcher import LaunchRunContext

#: The answer of the workers serves all checks of one round of Dagster's run monitoring [s].
_ANSWER_IS_FRESH_S = 5.0
#: Of a run's start, which a worker writes down, against the asking: clocks of two machines may differ [s].
_CLOCKS_AGREE_S = 10.0


def celery_app(settings: Settings) -> "Celery":
    """The Celery application both sides share: whole runs as JSON messages, acknowledged when they start.

    A run is not handed out twice by the broker: whether it is repeated is decided by Dagster's run monitoring, which
    knows what the run had already made.
    """
    return make_app(_app_arguments(settings))


def _app_arguments(settings: Settings) -> dict[str, Any]:
    return {
        "broker": settings.queue_url,
        "backend": "disabled://",
        "include": [],
        "task_default_queue": settings.queue_name,
        "config_source": {
            # Nothing is reserved ahead: what waits stays in the queue, where a dead worker cannot lose it.
            "worker_prefetch_multiplier": 1,
            "worker_disable_prefetch": True,
            "task_default_queue": settings.queue_name,
            "task_ignore_result": True,
            "task_acks_late": False,
            "task_serializer": "json",
            "accept_content": ["json"],
            "worker_max_memory_per_child": settings.worker_memory_mb * 1024,
            "worker_max_tasks_per_child": 1000,
            "worker_hijack_root_logger": False,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "broker_connection_retry_on_startup": True,
            "broker_transport_options": {
                "queue_order_strategy": "priority",
                "priority_steps": list(PRIORITY_STEPS),
                "visibility_timeout": 60,
                "max_retries": 5,
                "interval_max": 1.0,
            },
        },
    }


class WarmWorkerLauncher(CeleryRunLauncher):
    """Launches a run as a task of the queue of the deployed version.

    Parameters
    ----------
    home : str
        Overrides ``SEECHANGE_HOME``, so that ``DAGSTER_HOME`` alone is enough to find the queue.
    """

    def __init__(self, home: str | None = None, inst_data: ConfigurableClassData | None = None) -> None:
        self._settings = Settings.of_home(home)
        arguments = _app_arguments(self._settings)
        super().__init__(
            default_queue=arguments["task_default_queue"],
            broker=arguments["broker"],
            backend=arguments["backend"],
            config_source=arguments["config_source"],
            inst_data=inst_data,
        )
        self._roll_call = RollCall()
        self._asked = float("-inf")

    @classmethod
    def config_type(cls) -> "UserConfigSchema":
        """Schema of ``run_launcher.config``."""
        return {"home": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Build from ``dagster.yaml``."""
        return cls(inst_data=inst_data, **config_value)

    @property
    def supports_resume_run(self) -> bool:
        """A run is not resumed but retried: what it had made is found by its steps."""
        return False

    def launch_run(self, context: "LaunchRunContext") -> None:
        """Hand the run to the workers; a live one goes before all that still wait in the queue."""
        is_live = int(context.dagster_run.tags.get(PRIORITY_TAG, 0)) > 0
        counts_down = self._settings.queue_url.startswith("redis")  # there 0 goes first, in RabbitMQ 9
        priority = {DAGSTER_CELERY_RUN_PRIORITY_TAG: "0" if is_live == counts_down else "9"}
        run = context.dagster_run.with_tags({**context.dagster_run.tags, **priority})
        super().launch_run(context._replace(dagster_run=run))

    def check_run_worker_health(self, run: "DagsterRun") -> CheckRunHealthResult:
        """Whether a worker has the run in hand: it is lost once nobody has spoken of it in two complete rounds.

        A run without a task is none of ours: a command executes it in its own process, beside the workers.
        """
        task = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        self._ask()
        missed_since = self._roll_call.missed_since(task)
        if missed_since is None or self._started_after(run, missed_since - _CLOCKS_AGREE_S):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "The worker of this run is gone.")

    def get_run_worker_debug_info(self, run: "DagsterRun", include_container_logs: bool | None = True) -> str | None:
        """What a person can look for in the logs; the results that the parent class asks for are not kept."""
        del include_container_logs
        return f"Celery task {run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)} of queue {self.default_queue}"

    def _ask(self) -> None:
        """Ask the workers what they have in hand, unless they have just been asked."""
        now = time.time()
        if now - self._asked > _ANSWER_IS_FRESH_S:
            self._asked = now
            answers = ask_workers(self.celery, "active")
            in_hand = {name: {task["id"] for task in tasks} for name, tasks in (answers or {}).items()}
            self._roll_call.hear(now, in_hand)

    def _started_after(self, run: "DagsterRun", moment: float) -> bool:
        record = self._instance.get_run_record_by_id(run.run_id)
        return record is not None and (record.start_time or 0.0) > moment
