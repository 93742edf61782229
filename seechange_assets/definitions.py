"""Composition root: assets, recipes, resources, jobs and sensors become one code location.

Assembly only. The pipeline on one page is `seechange_assets.pipeline`.
"""

from typing import Any

import dagster as dg

from io_managers.archive import ArchiveIOManager
from io_managers.exposures import ExposureRegistry
from io_managers.lookups import SurveyStore
from io_managers.night_numbers import NightBook
from io_managers.recipes import with_reference_set
from resources.alert_brokers import alert_stream
from resources.archive import Archive
from resources.archived_excerpts import ArchivedExcerpts
from resources.database import Database
from resources.galaxy_catalog import GalaxyCatalog
from resources.minor_planets import MinorPlanets
from resources.settings import Settings
from resources.sky_catalog import DeferredCatalog
from seechange_assets import partitions
from seechange_assets.assess.night_report import night_report
from seechange_assets.instruments.base import Instrument, get_instrument
from seechange_assets.pipeline import PHASES, build_recipes
from seechange_assets.provenance import Recipes
from sensors import RUN_SENSORS, SCHEDULES, SENSORS, jobs
from sensors.staleness_checks import staleness_checks
from sql.models import PRODUCT_ROWS


def build_assets(recipes: Recipes, instrument: Instrument) -> list[Any]:
    """The assets with their code version, partitions, group and parameters stamped on."""
    per_exposure = partitions.by_ccd(partitions.exposure, "exposure", instrument.ccds)
    calibration = partitions.by_ccd(partitions.calibration, "calibration", instrument.ccds)
    partitioned_by = {
        "exposure": partitions.exposure,
        **{master.name: calibration for master in PHASES["acquire"][1:]},
        "reference": partitions.by_ccd(partitions.field_filter, "field_filter", instrument.ccds),
    }
    stamped = []
    for group, products in PHASES.items():
        for product in products:
            name = product.name
            attributes = {
                "code_version": recipes[name].id,
                "partitions_def": partitioned_by.get(name, per_exposure),
                "group_name": group,
            }
            parameters = recipes.parameters(name).model_dump(mode="json")
            metadata = {"parameters": dg.MetadataValue.json(parameters)} if parameters else {}
            stamped.append(_with_attributes(product.asset(), attributes, metadata))
    return stamped


def build_store(settings: Settings) -> SurveyStore:
    """The products of one instrument under the recipes of these settings."""
    archive = Archive(str(settings.archive))
    database = Database(lambda: settings.database_url)
    recipes = with_reference_set(build_recipes(settings), database, settings)
    return SurveyStore(database, archive, recipes, settings.instrument, settings.tag)


def build_definitions(settings: Settings) -> dg.Definitions:
    """One instrument's code location."""
    instrument = get_instrument(settings.instrument)
    store = build_store(settings)
    recipes = store.recipes
    return dg.Definitions(
        assets=[*build_assets(recipes, instrument), night_report],
        asset_checks=[staleness_checks([name for name in recipes if name in PRODUCT_ROWS])],
        jobs=jobs(PHASES),
        sensors=[*SENSORS, *RUN_SENSORS],
        schedules=SCHEDULES,
        executor=dg.in_process_executor,
        resources={
            "archive": dg.IOManagerDefinition.hardcoded_io_manager(ArchiveIOManager(store)),
            "store": store,
            "recipes": recipes,
            "database": store.database,
            "instrument": instrument,
            "nights": NightBook(store, instrument.ccds, getattr(instrument, "grid", None)),
            "registry": ExposureRegistry(store, instrument),
            "settings": settings,
            "sky": DeferredCatalog(settings.catalog, ArchivedExcerpts(store.database, store.archive)),
            "minor_planets": MinorPlanets(settings.orbits),
            "galaxies": GalaxyCatalog(settings.galaxies),
            "stream": alert_stream(settings),
        },
    )


def _with_attributes(asset: Any, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
    def stamp(spec: dg.AssetSpec) -> dg.AssetSpec:
        # Merged: Dagster keeps the key of the IO manager in the metadata too.
        return spec.replace_attributes(**attributes).merge_attributes(metadata=metadata)

    return stamp(asset) if isinstance(asset, dg.AssetSpec) else asset.map_asset_specs(stamp)


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads; built when it asks, so importing this module has no side effects."""
    return build_definitions(Settings.from_environment())
