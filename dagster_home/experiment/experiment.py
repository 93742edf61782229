"""A code location beside production: the tag `deeper`, with the parameters of `deeper.yaml`."""

from pathlib import Path

import dagster as dg

from resources.settings import Settings
from seechange_assets.experiment import experiment_definitions, experiment_settings


@dg.definitions
def defs() -> dg.Definitions:
    """Built when Dagster asks."""
    settings = Settings.from_environment()
    return experiment_definitions(experiment_settings(settings, "deeper", Path(__file__).with_name("deeper.yaml")))
