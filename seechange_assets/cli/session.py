"""The code location opened in this process: definitions, Dagster instance, store."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seechange_assets.errors import ServiceUnavailable


@dataclass(frozen=True)
class Ledger:
    """Rows and recipes of a survey, for commands that need neither products nor Dagster."""

    database: Any
    recipes: Any
    instrument: str
    tag: str


@dataclass
class Session:
    """Everything a command needs to act on the survey."""

    settings: Any

    @cached_property
    def store(self) -> Any:
        """Products and look-ups under the current recipes."""
        from seechange_assets.definitions import build_store

        store = build_store(self.settings)
        _check_revision(store.database)
        return store

    @cached_property
    def ledger(self) -> Ledger:
        """The survey's rows under the current recipes; no asset is imported."""
        from io_managers.recipes import with_reference_set
        from resources.database import Database
        from seechange_assets.recipe_file import recipes_in_force

        database = Database(lambda: self.settings.database_url)
        recipes = recipes_in_force(self.settings)
        _check_revision(database)
        pinned = with_reference_set(recipes, database, self.settings)
        return Ledger(database, pinned, self.settings.instrument, self.settings.tag)

    @cached_property
    def registry(self) -> Any:
        """The registered exposures."""
        from io_managers.exposures import ExposureRegistry
        from seechange_assets.instruments.base import get_instrument

        return ExposureRegistry(self.store, get_instrument(self.settings.instrument))

    @cached_property
    def definitions(self) -> Any:
        """The Dagster definitions."""
        from seechange_assets.definitions import build_definitions

        return build_definitions(self.settings)

    @cached_property
    def instance(self) -> Any:
        """The Dagster instance of the home; runs of this process are recorded there."""
        import dagster as dg

        from resources.services.dagster_ui import ensure_home

        ensure_home(self.settings)
        os.environ["DAGSTER_HOME"] = str(self.settings.dagster_home)
        return dg.DagsterInstance.get()

    def announce(self, exposures: Sequence[str]) -> None:
        """Make science exposures partitions of Dagster."""
        from sensors.announce import announce

        rows = [self.registry.get(key) for key in exposures]
        science = [row for row in rows if row is not None and row.kind == "science"]
        if science:
            announce(self.instance, science, self.store.recipes)

    def run(self, job: str, partition: dict[str, str], assets: Sequence[str]) -> Any:
        """Run `assets` of one partition in this process and return Dagster's result."""
        import dagster as dg

        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=dg.MultiPartitionKey(partition),
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )


def _check_revision(database: Any) -> None:
    found, newest = database.revisions()
    if found != newest:
        raise ServiceUnavailable(
            f"the database has revision {found}, the code needs {newest}: run `seechange db upgrade`"
        )


def open_session(settings: Any) -> Session:
    """A session on the survey of these settings."""
    return Session(settings)
