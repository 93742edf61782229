"""Composition root: assets, recipes, resources, jobs and sensors become one code location.

Assembly only. The pipeline on one page is `PHASES`; what an asset reads is in its own
signature, and its provenance follows from there.
"""

from pathlib import Path
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
from seechange_assets.acquire import exposure, masters
from seechange_assets.assess.night_report import night_report
from seechange_assets.calibrate import background, image, psf, sources, wcs, zp
from seechange_assets.data_product import PARAMETER_MODELS
from seechange_assets.discover import cutouts, detections, diff, measurements, reference, scores
from seechange_assets.instruments.base import Instrument, get_instrument
from seechange_assets.layers import Layers, check_sections, load_layers, parameters_of
from seechange_assets.provenance import Recipes
from seechange_assets.publish import alerts, associations, forced_photometry
from sensors import RUN_SENSORS, SCHEDULES, SENSORS, jobs

#: The pipeline: phase (and group of the lineage page) -> its assets, in order.
PHASES: dict[str, list[Any]] = {
    "acquire": [
        exposure.exposure,
        masters.master_bias,
        masters.master_dark,
        masters.master_flat,
        masters.master_fringe,
    ],
    "calibrate": [image.image, background.background, sources.sources, psf.psf, wcs.wcs, zp.zp],
    "discover": [
        reference.reference,
        diff.diff,
        detections.detections,
        cutouts.cutouts,
        measurements.measurements,
        scores.scores,
    ],
    "publish": [associations.associations, forced_photometry.forced_photometry, alerts.alerts],
}
CONFIG = Path(__file__).parent / "config"


def configured_layers(settings: Settings) -> Layers:
    """What the YAML files of these settings say, with the file and line of each value.

    Raises
    ------
    ParameterError
        For a file that cannot be read or a section of no process, with the nearest valid name.
    """
    layers = load_layers([CONFIG / "default.yaml", *settings.config])
    check_sections(layers, {name: model for name, model in PARAMETER_MODELS.items() if name != "exposure"})
    return layers


def build_recipes(settings: Settings) -> Recipes:
    """Parameters of every process from defaults and YAML, and the provenance that follows.

    Raises
    ------
    ParameterError
        For an unknown section or parameter, with the nearest valid name.
    """
    layers = configured_layers(settings)
    instrument = get_instrument(settings.instrument)
    assets = [asset for phase in PHASES.values() for asset in phase]
    upstreams = {_name(asset): _upstreams(asset) for asset in assets}
    # Masters are made of exposures, but of a night's: to Dagster, every new exposure would make all of them stale.
    upstreams |= {_name(master): ("exposure", *upstreams[_name(master)]) for master in PHASES["acquire"][1:]}
    parameters = {name: parameters_of(PARAMETER_MODELS[name], layers.get(name)) for name in upstreams}
    camera = {"instrument": instrument.name, "constants": instrument.constants()}
    parameters["exposure"] = exposure.ExposureParameters(**camera)
    return Recipes(parameters, upstreams)


def build_assets(recipes: Recipes, instrument: Instrument) -> list[Any]:
    """The assets with their code version, partitions, group and parameters stamped on."""
    per_exposure = partitions.by_ccd(partitions.exposure, "exposure", instrument.ccds)
    calibration = partitions.by_ccd(partitions.calibration, "calibration", instrument.ccds)
    partitioned_by = {
        "exposure": partitions.exposure,
        **{_name(master): calibration for master in PHASES["acquire"][1:]},
        "reference": partitions.by_ccd(partitions.field_filter, "field_filter", instrument.ccds),
    }
    stamped = []
    for group, assets in PHASES.items():
        for asset in assets:
            name = _name(asset)
            attributes = {
                "code_version": recipes[name].id,
                "partitions_def": partitioned_by.get(name, per_exposure),
                "group_name": group,
            }
            parameters = recipes.parameters(name).model_dump(mode="json")
            metadata = {"parameters": dg.MetadataValue.json(parameters)} if parameters else {}
            stamped.append(_with_attributes(asset, attributes, metadata))
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


def _name(asset: Any) -> str:
    return asset.key.path[-1]


def _upstreams(asset: Any) -> tuple[str, ...]:
    spec = asset if isinstance(asset, dg.AssetSpec) else asset.get_asset_spec()
    return tuple(sorted(dep.asset_key.path[-1] for dep in spec.deps))


def _with_attributes(asset: Any, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
    def stamp(spec: dg.AssetSpec) -> dg.AssetSpec:
        # Merged: Dagster keeps the key of the IO manager in the metadata too.
        return spec.replace_attributes(**attributes).merge_attributes(metadata=metadata)

    return stamp(asset) if isinstance(asset, dg.AssetSpec) else asset.map_asset_specs(stamp)


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads; built when it asks, so importing this module has no side effects."""
    return build_definitions(Settings.from_environment())
