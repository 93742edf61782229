"""An experiment beside production: other parameters over the same archive, as a code location of its own.

Its assets carry the tag as the first part of their key, so both stand side by side in the lineage; files and rows are
told apart by their provenance, as ever. What the experiment has in common with production is recognised, not made
again. No sensors: somebody launches its job or a backfill. Alerts are off unless its own YAML turns them on.
"""

from pathlib import Path
from typing import Any

import dagster as dg

from resources.settings import Settings
from seechange_assets.definitions import build_definitions
from seechange_assets.names import checked_name
from seechange_assets.pipeline import CONFIG

#: Assets that stay production's: raw files, and the pages about whole nights.
_NOT_OURS = ("exposure", "night_report")
#: What the job of one exposure and CCD does not make.
_SHARED = ("master_bias", "master_dark", "master_flat", "master_fringe", "reference")


def experiment_settings(settings: Settings, tag: str, *config: Path) -> Settings:
    """The settings of production with a tag and parameters of the experiment's own.

    Raises
    ------
    InvalidName
        If the tag breaks the allow-list.
    """
    layers = (CONFIG / "experiment.yaml", *settings.config, *config)
    return settings.model_copy(update={"tag": checked_name(tag, "tag"), "config": layers})


def experiment_definitions(settings: Settings) -> dg.Definitions:
    """The code location of an experiment; `settings` as `experiment_settings` gives them."""
    whole = build_definitions(settings)
    assets = [a for a in whole.assets or () if isinstance(a, dg.AssetsDefinition) and a.key.path[-1] not in _NOT_OURS]
    renamed = {asset.key: dg.AssetKey([settings.tag, *asset.key.path]) for asset in assets}
    chain = [renamed[asset.key] for asset in assets if asset.key.path[-1] not in _SHARED]
    job: Any = dg.define_asset_job("process_ccd", selection=dg.AssetSelection.assets(*chain))
    return dg.Definitions(
        assets=[asset.with_attributes(asset_key_replacements=renamed) for asset in assets],
        jobs=[job],
        executor=whole.executor,
        resources=whole.resources,
    )
