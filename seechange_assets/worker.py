"""The Celery application of the warm workers: ``celery -A seechange_assets.worker worker``.

A worker imports the definitions and the algorithms once, forks, and each child then executes whole runs: 0.4 s of
orchestration per run instead of the 3 s that a process of its own costs.
"""

import functools
import gc
import importlib
import itertools
import pkgutil
from typing import Any

import dagster as dg
from astropy.io import fits
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME

import seechange_assets.definitions
import seechange_assets.science
from resources.run_launcher import celery_app
from resources.settings import Settings

#: After so many runs a child has loaded what it keeps.
_RUNS_UNTIL_SETTLED = 2
_runs = itertools.count(1)

app = celery_app(Settings.from_environment())


@functools.cache
def instance() -> dg.DagsterInstance:
    """Dagster's instance, opened once in each child: its connections and what it knows of the tables stay."""
    return dg.DagsterInstance.get()


@app.task(name=TASK_EXECUTE_JOB_NAME)
def execute_job(execute_job_args_packed: Any) -> int:
    """Execute one run: the task of `dagster_celery`, which opens the instance anew for each."""
    arguments = unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs)
    try:
        return _execute_run_command_body(
            instance=instance(),
            run_id=arguments.run_id,
            write_stream_fn=lambda _event: None,
            set_exit_code_on_failure=arguments.set_exit_code_on_failure is not False,
        )
    finally:
        forget_the_run()


def forget_the_run() -> None:
    """Let go of what the run leaves behind; the heap stays, for the next.

    Contexts of Dagster refer to each other in circles, and so hold the run's products: without looking for circles
    the next run begins with 300 MB of the last. What the first runs leave for good (definitions, caches) is not
    looked through again: that would take a tenth of a second each time. Pages given back to the system would have to
    be cleared again for the next run, a twentieth of its time.
    """
    gc.collect()
    if next(_runs) == _RUNS_UNTIL_SETTLED:
        gc.freeze()


# Before the fork, so that the children share the pages and never pay for the import.
for module in pkgutil.iter_modules(seechange_assets.science.__path__, "seechange_assets.science."):
    importlib.import_module(module.name)
# Astropy looks each of these up in its configuration for every card of a header: 5 % of what a run costs beside its
# algorithms. Nobody changes them while a worker lives.
for setting in ("strip_header_whitespace", "enable_record_valued_keyword_cards", "extension_name_case_sensitive"):
    setattr(type(fits.conf), setting, getattr(fits.conf, setting))
gc.collect()
gc.freeze()  # what is there now stays: the children need not look through it, and its pages stay shared
